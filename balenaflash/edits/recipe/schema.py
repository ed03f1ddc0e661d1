"""The keys of a recipe and of its steps.

A recipe is a TOML 1.0 file::

    name = "bench"                  # its name in messages
    for = ["generic-amd64"]         # optional: the device types it is for

    [[step]]
    put = ["logo.txt", "certs"]     # files and directories, as `boot put`
    to = "/lab/"

    [[step]]
    config-set = ["hostname=bench-${bench}", "os.sshKeys+=@lab.pub", "apiKey=@balena.key"]

    [[step]]
    wifi = "Lab"
    psk = "${env:LAB_PSK}"

Steps run in their order. Each ``[[step]]`` has exactly one key that is named as a command and says
what to do, and keys for the options of that command:

=================  ==============================================================================
``put``            a local file or directory, or several; ``to`` (``/``)
``apply``          a file with a ``BALENA_BOOT_PARTITION_FILES`` list; ``deploy-dir``, required
``rm``             a path or pattern, or several; ``recursive``
``mkdir``          a path, or several; ``parents``
``mv``             a path or pattern, or several; ``to``, required
``use-internal``   ``true``; ``from`` and ``to``, paths; ``keep-old``
``splash``         a local PNG image
``config-set``     a ``KEY=VALUE``, ``KEY+=VALUE`` or ``KEY=@FILE``, or several, as `config set`
``config-unset``   a key of config.json, or several
``config-merge``   a local file such as `balena config generate` writes
``wifi``           the SSID; ``psk``, ``psk-file`` or ``open``; ``wpa3``, ``hidden``, ``country``;
                   and the keys of ``ethernet``
``ethernet``       ``true``; ``name``, ``interface``, ``autoconnect`` (``true``), ``priority``,
                   ``address``, ``gateway``, ``dns`` (each one or several), ``overwrite``
``keyfile``        a local keyfile of NetworkManager; ``name``, ``overwrite``
``network-rm``     the file name of a network, or several
=================  ==============================================================================

Local files are relative to the directory of the recipe. Paths in the boot partition start at its
root, with or without a leading slash, and must not contain ``..``.

In a string of a step ``${NAME}`` is replaced by the value that the user gives as
``--var NAME=VALUE``, and ``$$`` by a dollar sign. A secret is ``psk``, or the value of a key of
config.json that is masked in all output. Because every user of the machine can see a command line,
a secret cannot contain ``${NAME}``: it is read from a file, or from the environment with
``${env:NAME}``. ``${env:NAME}`` is allowed only in a secret, so that no value of the environment
is ever shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Holds(Enum):
    """The type of a value; the words follow "must be"."""

    TEXT = "a string"
    TEXTS = "a string or an array of strings"
    FLAG = "true or false"
    TRUE = "true"
    NUMBER = "a whole number"


class TextRole(Enum):
    """The meaning of the text of a value."""

    PLAIN = "plain"
    LOCAL = "local"
    """A path relative to the recipe."""

    BOOT = "boot"
    """A path in the boot partition."""

    SECRET = "secret"  # noqa: S105 -- the name of a role
    RAW = "raw"
    """A text that is parsed before variables are replaced in it, if it can contain any."""


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a step."""

    holds: Holds = Holds.TEXT
    role: TextRole = TextRole.PLAIN
    is_required: bool = False


_TEXT = Field()
_TEXTS = Field(Holds.TEXTS)
_FLAG = Field(Holds.FLAG)
_LOCAL = Field(role=TextRole.LOCAL)
_BOOT = Field(role=TextRole.BOOT)
_BOOTS = Field(Holds.TEXTS, TextRole.BOOT)
_KEYS = Field(Holds.TEXTS, TextRole.RAW)

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
    "put": {"put": Field(Holds.TEXTS, TextRole.LOCAL), "to": _BOOT},
    "apply": {"apply": _LOCAL, "deploy-dir": Field(role=TextRole.LOCAL, is_required=True)},
    "rm": {"rm": _BOOTS, "recursive": _FLAG},
    "mkdir": {"mkdir": _BOOTS, "parents": _FLAG},
    "mv": {"mv": _BOOTS, "to": Field(role=TextRole.BOOT, is_required=True)},
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
        "psk": Field(role=TextRole.SECRET),
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
"""The keys of each kind of step; its own key comes first and is always required."""

RECIPE: Mapping[str, Field] = {
    "name": Field(role=TextRole.RAW, is_required=True),
    "for": Field(Holds.TEXTS, TextRole.RAW),
}
"""The keys of a recipe except ``step``."""
