"""What a recipe can say.

A recipe is a TOML 1.0 file::

    name = "bench"                  # what messages call it
    for = ["generic-amd64"]         # optional: the device types it is made for

    [[step]]
    put = ["logo.txt", "certs"]     # files and directories, as `boot put`
    to = "/lab/"

    [[step]]
    config-set = ["hostname=bench-${bench}", "os.sshKeys+=@lab.pub", "apiKey=@balena.key"]

    [[step]]
    wifi = "Lab"
    psk = "${env:LAB_PSK}"

Steps are made in their order. Each ``[[step]]`` has the one key that says what it does, which is
named as the command is, and keys for the options of that command:

=================  ==============================================================================
``put``            a local file or directory, or several; ``to`` (``/``)
``apply``          a file with a ``BALENA_BOOT_PARTITION_FILES`` list; ``deploy-dir``, needed
``rm``             a path or pattern, or several; ``recursive``
``mkdir``          a path, or several; ``parents``
``mv``             a path or pattern, or several; ``to``, needed
``use-internal``   ``true``; ``from`` and ``to``, paths; ``keep-old``
``splash``         a local PNG image
``config-set``     a ``KEY=VALUE``, ``KEY+=VALUE`` or ``KEY=@FILE``, or several, as `config set`
``config-unset``   a key of config.json, or several
``config-merge``   a local file such as `balena config generate` makes
``wifi``           the SSID; ``psk``, ``psk-file`` or ``open``; ``wpa3``, ``hidden``, ``country``;
                   and those of ``ethernet``
``ethernet``       ``true``; ``name``, ``interface``, ``autoconnect`` (``true``), ``priority``,
                   ``address``, ``gateway``, ``dns`` (each one or several), ``overwrite``
``keyfile``        a local keyfile of NetworkManager; ``name``, ``overwrite``
``network-rm``     the name of a network's file, or several
=================  ==============================================================================

Local files are relative to the directory of the recipe. Paths in the boot partition begin at its
root, with or without a slash in front, and may not hold ``..``.

``${NAME}`` in a string of a step stands for what the user gives as ``--var NAME=VALUE``, and
``$$`` for a dollar sign. A secret, which is ``psk`` or the value of a key of config.json that is
masked in all output, cannot be given so, for a command line is seen by every user of the machine:
it comes from a file, or from the environment as ``${env:NAME}``. Where there is no secret
``${env:NAME}`` cannot stand, so that nothing that came from there is ever shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Holds(Enum):
    """The type of a value, in words that follow "must be"."""

    TEXT = "a string"
    TEXTS = "a string or an array of strings"
    FLAG = "true or false"
    TRUE = "true"
    NUMBER = "a whole number"


class Use(Enum):
    """What the text of a value is."""

    PLAIN = "plain"
    LOCAL = "local"
    """A path relative to the recipe."""

    BOOT = "boot"
    """A path in the boot partition."""

    SECRET = "secret"  # noqa: S105 -- the name of a use
    RAW = "raw"
    """Variables are not filled in here; where there can be any, it is taken apart before."""


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a step."""

    holds: Holds = Holds.TEXT
    use: Use = Use.PLAIN
    is_required: bool = False


_TEXT = Field()
_TEXTS = Field(Holds.TEXTS)
_FLAG = Field(Holds.FLAG)
_LOCAL = Field(use=Use.LOCAL)
_BOOT = Field(use=Use.BOOT)
_BOOTS = Field(Holds.TEXTS, Use.BOOT)
_KEYS = Field(Holds.TEXTS, Use.RAW)

_FILE: Mapping[str, Field] = {"name": _TEXT, "overwrite": _FLAG}
_CONNECTION: Mapping[str, Field] = {
    **_FILE,
    "interface": _TEXT,
    "autoconnect": _FLAG,
    "priority": Field(Holds.NUMBER),
    "address": _TEXTS,
    "gateway": _TEXTS,
    "dns": _TEXTS,
}

STEPS: Mapping[str, Mapping[str, Field]] = {
    "put": {"put": Field(Holds.TEXTS, Use.LOCAL), "to": _BOOT},
    "apply": {"apply": _LOCAL, "deploy-dir": Field(use=Use.LOCAL, is_required=True)},
    "rm": {"rm": _BOOTS, "recursive": _FLAG},
    "mkdir": {"mkdir": _BOOTS, "parents": _FLAG},
    "mv": {"mv": _BOOTS, "to": Field(use=Use.BOOT, is_required=True)},
    "use-internal": {
        "use-internal": Field(Holds.TRUE),
        "from": _BOOT,
        "to": _BOOT,
        "keep-old": _FLAG,
    },
    "splash": {"splash": _LOCAL},
    "config-set": {"config-set": _KEYS},
    "config-unset": {"config-unset": _KEYS},
    "config-merge": {"config-merge": _LOCAL},
    "wifi": {
        "wifi": _TEXT,
        "psk": Field(use=Use.SECRET),
        "psk-file": _LOCAL,
        "open": _FLAG,
        "wpa3": _FLAG,
        "hidden": _FLAG,
        "country": _TEXT,
        **_CONNECTION,
    },
    "ethernet": {"ethernet": Field(Holds.TRUE), **_CONNECTION},
    "keyfile": {"keyfile": _LOCAL, **_FILE},
    "network-rm": {"network-rm": _TEXTS},
}
"""What each kind of step may hold; its own key comes first and is the only one it must have."""

RECIPE: Mapping[str, Field] = {
    "name": Field(use=Use.RAW, is_required=True),
    "for": Field(Holds.TEXTS, Use.RAW),
}
"""The keys of a recipe beside ``step``."""
