"""One step of a recipe: the keys it may have, its values checked, its variables, its files.

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

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from balenaflash.edits.files import volume_path
from balenaflash.edits.given_text import without_mark
from balenaflash.errors import ConfigError, EditError, InvalidConfigError, Problem, closest


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


NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""The name of a variable."""

_REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>[^{}]*)\})?")
_ENVIRONMENT = "env:"


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables of a recipe and their values."""

    given: Mapping[str, str] = field(default_factory=dict)
    """From the command line, where other users can read them."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def fill_in(self, text: str, *, secret: bool = False) -> str:
        """``text`` with each variable replaced; a ``$`` in a value is not replaced again.

        A byte order mark before the text, or before a value, is left out. ``secret`` is for a text
        that is never shown: only such a text can contain variables of the environment, and it
        cannot contain variables from the command line.

        Raises:
            ConfigError: a variable is not defined or not allowed here. No value is shown.
        """

        def value(reference: re.Match[str]) -> str:
            if reference["dollar"]:
                return "$"
            return without_mark(self._value(reference["name"], secret=secret))

        return _REFERENCE.sub(value, without_mark(text))

    def _value(self, name: str | None, *, secret: bool) -> str:
        if name is None:
            raise _invalid("a single $ is not allowed", "Write $$ for a dollar sign, or ${name}.")
        if name.startswith(_ENVIRONMENT):
            return self._from_environment(name.removeprefix(_ENVIRONMENT), secret=secret)
        if not NAME.fullmatch(name):
            raise _invalid(f"${{{name}}} is not a variable", "Write ${name} or ${env:NAME}.")
        if secret:
            raise _invalid(
                f"${{{name}}} would be a secret, and every user of this machine can see a "
                "command line",
                "Read it from a file, or from the environment with ${env:NAME}.",
            )
        if name not in self.given:
            near = closest(name, self.given)
            meant = "" if near is None else f"Did you mean ${{{near}}}? "
            raise _invalid(f"${{{name}}} is not defined", f"{meant}Define it: --var {name}=VALUE")
        return self.given[name]

    def _from_environment(self, name: str, *, secret: bool) -> str:
        if not secret:
            raise _invalid(
                f"${{env:{name}}} is allowed only in a secret, which is never shown",
                "Use ${name}, and define it with --var name=VALUE.",
            )
        if name not in self.environment:
            raise _invalid(f"${{env:{name}}}: the environment has no variable {name}")
        return self.environment[name]


def _invalid(message: str, hint: str | None = None) -> ConfigError:
    return ConfigError(message, code="recipe-variable", hint=hint)


Value: TypeAlias = str | tuple[str, ...] | bool | int
"""The value of a key in a step; a tuple for `Holds.TEXTS`."""

COMMAND_LINE = Path("--step")
"""The path of the recipe that consists of the steps on the command line."""


@dataclass(frozen=True, slots=True)
class RecipeStep:
    """A ``[[step]]`` after the check of its keys and values."""

    kind: str
    """A key of `schema.STEPS`, such as ``put``."""

    values: Mapping[str, Value] = field(repr=False)
    """Variables are replaced, except in `TextRole.RAW`; optional keys may be missing."""

    recipe: Path
    place: str
    """The step's name in messages, such as ``lab.toml: step 2 (put)``."""

    variables: Variables

    def text(self, name: str) -> str | None:
        """The string of ``name``; ``None`` if it is missing."""
        value = self.values.get(name)
        return value if isinstance(value, str) else None

    def texts(self, name: str) -> tuple[str, ...]:
        """The strings of ``name``; empty if it is missing."""
        value = self.values.get(name)
        return value if isinstance(value, tuple) else ()

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True if ``name`` is ``true``."""
        return self.values.get(name, default) is True

    def number(self, name: str) -> int:
        """The number of ``name``; 0 if it is missing."""
        value = self.values.get(name)
        return value if isinstance(value, int) else 0

    def path(self, name: str) -> Path:
        """The local path of ``name``, which must be present."""
        return self.local(str(self.values[name]))

    def local(self, text: str) -> Path:
        """``text`` as a path relative to the directory of the recipe."""
        return self.recipe.parent / text


def refuse_shown_secret(recipe: Path, written: str) -> None:
    """Refuse a secret that is ``written`` on the command line.

    Raises:
        ConfigError: ``recipe`` is `COMMAND_LINE`, and the secret is not from the environment.
    """
    if recipe == COMMAND_LINE and "${env:" not in written:
        raise ConfigError(
            "it is a secret, and every user of this machine can see a command line",
            code="config-secret",
            hint="Read it from the environment with ${env:NAME}, or from a file.",
        )


@contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Errors of the block get ``place`` in front of their messages."""
    try:
        yield
    except EditError as error:
        raise type(error)(f"{place}: {error}", code=error.code, hint=error.hint) from error
    except ConfigError as error:
        raise InvalidConfigError(
            [replace(each, message=f"{place}: {each.message}") for each in error.problems]
        ) from error


_TYPES: Mapping[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    list: "an array",
    dict: "a table",
}


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks one recipe and collects its problems."""

    recipe: Path
    variables: Variables
    problems: list[Problem] = field(default_factory=list)

    @contextmanager
    def collected(self, place: str) -> Iterator[None]:
        """Add errors of the block to the problems, with ``place``, and continue after it."""
        try:
            with errors_at(place):
                yield
        except (ConfigError, EditError) as error:
            self.problems.extend(error.problems)

    def check_table(
        self, table: Mapping[str, object], fields: Mapping[str, Field], place: str, kind: str = ""
    ) -> dict[str, Value]:
        """The valid values in ``table``; ``kind`` is the key that ``place`` names already."""
        values: dict[str, Value] = {}
        for name, raw in table.items():
            key = place if name == kind or name not in fields else f"{place}: {name}"
            with self.collected(key):
                if name not in fields:
                    raise _unknown("key", name, [*fields, "step"] if fields is RECIPE else fields)
                values[name] = self._value(fields[name], raw, key)
        for name, each in fields.items():
            if each.is_required and name not in table:
                with self.collected(place):
                    raise ConfigError(f"{name} is missing", code="recipe-key-missing")
        return values

    def check_step(self, table: object, number: int) -> RecipeStep | None:
        """The step number ``number``, from 1; ``None`` if it has a problem."""
        known = len(self.problems)
        place = f"{self.recipe}: step {number}"
        with self.collected(place):
            if not isinstance(table, dict):
                raise _wrong_type(table, "a table, written below [[step]]")
            kind = _kind_of(table)
            place += f" ({kind})"
            values = self.check_table(table, STEPS[kind], place, kind)
            if len(self.problems) == known:
                return RecipeStep(kind, values, self.recipe, place, self.variables)
        return None

    def _value(self, wanted: Field, raw: object, place: str) -> Value:
        match wanted.holds, raw:
            case (Holds.TEXT, str()):
                return self._text(wanted, raw)
            case (Holds.TEXTS, str()):
                return (self._text(wanted, raw),)
            case (Holds.TEXTS, list()) if raw:
                return tuple(self._texts(wanted, raw, place))
            case (Holds.FLAG | Holds.TRUE, bool()) if raw or wanted.holds is Holds.FLAG:
                return raw
            case (Holds.NUMBER, int()) if not isinstance(raw, bool):
                return raw
        raise _wrong_type(raw, wanted.holds.value)

    def _texts(self, wanted: Field, raw: list[object], place: str) -> Iterator[str]:
        for number, item in enumerate(raw, 1):
            with self.collected(f"{place}: item {number}"):
                if not isinstance(item, str):
                    raise _wrong_type(item, "a string")
                yield self._text(wanted, item)

    def _text(self, wanted: Field, raw: str) -> str:
        if wanted.role is TextRole.RAW:
            return raw
        if wanted.role is TextRole.SECRET:
            refuse_shown_secret(self.recipe, raw)
        text = self.variables.fill_in(raw, secret=wanted.role is TextRole.SECRET)
        if wanted.role is TextRole.BOOT:
            volume_path(text)
        if wanted.role is TextRole.LOCAL and (not text or "\0" in text):
            raise ConfigError(f"{text!r} is not the path of a file", code="recipe-path")
        return text


def _kind_of(table: Mapping[str, object]) -> str:
    """The kind of the step in ``table``."""
    kinds = [name for name in table if name in STEPS]
    if len(kinds) > 1:
        raise ConfigError(
            f"{' and '.join(kinds)} are separate steps",
            code="recipe-step",
            hint="Begin each with a line [[step]].",
        )
    if kinds:
        return kinds[0]
    options = {name for fields in STEPS.values() for name in fields}
    named = next((name for name in table if name not in options), None)
    if named is None:
        raise ConfigError(
            "the step has no action", code="recipe-step", hint=f"Add one of {', '.join(STEPS)}."
        )
    raise _unknown("step", named, STEPS)


def _unknown(what: str, name: str, known: Collection[str]) -> ConfigError:
    near = closest(name, known)
    shown = f"Did you mean {near}?" if near else f"Known: {', '.join(known)}."
    return ConfigError(f"{name!r} is not a known {what}", code=f"recipe-{what}-unknown", hint=shown)


def _wrong_type(raw: object, wanted: str) -> ConfigError:
    if isinstance(raw, bool):
        found = "true" if raw else "false"
    elif raw == []:
        found = "an empty array"
    else:
        words = (word for kind, word in _TYPES.items() if isinstance(raw, kind))
        found = next(words, "a date or time")
    return ConfigError(f"must be {wanted}, not {found}", code="recipe-type")
