"""``KEY=VALUE`` and ``KEY+=VALUE``, as they are written on a command line or in a recipe."""

import re
from dataclasses import dataclass, field

from balenaflash.boot.config_keys import Kind, is_secret, kind_at
from balenaflash.boot.config_path import KeyPath, format_key, split_key
from balenaflash.boot.config_steps import AppendItem, ConfigStep, SetKey
from balenaflash.boot.given_text import without_mark
from balenaflash.boot.json_text import Json, parse_value
from balenaflash.errors import ConfigError

_QUOTED = re.compile(r'\s*"(?:[^"\\]|\\.)*"\s*')


@dataclass(frozen=True, slots=True)
class Assignment:
    """A key, and where its value or new item comes from."""

    key: KeyPath
    appends: bool
    text: str | None = field(repr=False)
    """The value itself; ``None`` when it is in ``source``."""

    source: str | None
    """Name of the file that holds it, ``-`` for standard input; or ``None``."""

    def value_in(self, text: str, name: str) -> Json:
        """The value or item that ``text`` stands for; ``name`` is what messages call it.

        For a key that takes a string it is the text itself, or a string in double quotes. For
        any other it is JSON, or the text where it is no JSON.

        Raises:
            ConfigError: it begins as a JSON object or array does, and is none.
        """
        kind = kind_at(self.key)
        if self.appends:
            kind = Kind.STRING if kind is Kind.STRINGS else None
        if kind in {Kind.STRING, Kind.SCALAR} and not _QUOTED.fullmatch(text):
            return text
        try:
            return parse_value(text, name)
        except ConfigError:
            if text.lstrip().startswith(("{", "[")):
                raise
            return text

    def step(self, value: Json) -> ConfigStep:
        """The change that it stands for with ``value``."""
        return AppendItem(self.key, value) if self.appends else SetKey(self.key, value)


def parse_assignment(text: str) -> Assignment:
    """The assignment in ``text``; ``KEY=@FILE`` and ``KEY=-`` name a source.

    Raises:
        ConfigError: it is none.
    """
    key, rest = split_key(text)
    operator = next((each for each in ("+=", "=") if rest.startswith(each)), None)
    if operator is None:
        raise ConfigError(
            f"{format_key(key)}: a value is missing",
            code="config-assignment",
            hint=f"Write it as {format_key(key)}=VALUE",
        )
    value = without_mark(rest.removeprefix(operator))
    source = value[1:] if value.startswith("@") else value if value == "-" else None
    appends = operator == "+="
    return Assignment(key, appends, None if source is not None else value, source)


def refuse_secret(key: KeyPath, value: Json) -> None:
    """Return if ``value`` may stand on a command line.

    Raises:
        ConfigError: it is a secret, and any user of the machine could have seen it there.
    """
    if is_secret(key, value):
        shown = format_key(key)
        raise ConfigError(
            f"{shown} is a secret, and every user of this machine can see a command line",
            code="config-secret",
            hint=f"Take it from a file or standard input: {shown}=@FILE or {shown}=-",
        )
