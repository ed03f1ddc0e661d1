"""The path of a value in config.json: ``os.sshKeys``, ``deviceApiKeys["api.balena-cloud.com"]``.

Names are joined by dots. A name with a dot or another special character is written as a JSON string
in brackets.
"""

import json
import re
from typing import TypeAlias

from balenaflash.balena.json_text import MAX_DEPTH, Json, kind_of
from balenaflash.errors import ConfigError, closest

KeyPath: TypeAlias = tuple[str, ...]
"""The names from the top of config.json to a value; never empty."""

_NAME = r'[^\s.\[\]"=+]+'
_PART = re.compile(rf'(?P<dot>\.?)(?P<name>{_NAME})|\[(?P<quoted>"(?:[^"\\]|\\.)*")\]')
_PLAIN = re.compile(_NAME)


def split_key(text: str) -> tuple[KeyPath, str]:
    """The key at the start of ``text``, and the rest.

    Raises:
        ConfigError: ``text`` does not begin with a key.
    """
    names: list[str] = []
    position = 0
    while part := _PART.match(text, position):
        if part["name"] and bool(part["dot"]) != bool(names):
            break
        names.append(part["name"] or _unquoted(part["quoted"], text))
        position = part.end()
    if len(names) > MAX_DEPTH:
        raise ConfigError(
            f"{format_key(tuple(names[:2]))}...: has more than {MAX_DEPTH} levels",
            code="config-key-invalid",
        )
    if not names or text[position : position + 1] in {".", "["}:
        raise _invalid(text)
    return tuple(names), text[position:]


def parse_key(text: str) -> KeyPath:
    """The key in ``text``.

    Raises:
        ConfigError: it is not a key, or not only a key.
    """
    key, rest = split_key(text)
    if rest:
        raise _invalid(text)
    return key


def format_key(key: KeyPath) -> str:
    """``key`` as text for `parse_key`."""
    text = ""
    for name in key:
        if _PLAIN.fullmatch(name):
            text += f".{name}" if text else name
        else:
            text += f"[{json.dumps(name, ensure_ascii=False)}]"
    return text


def nested(key: KeyPath, value: Json) -> dict[str, Json]:
    """An object with only ``value`` at ``key``."""
    return {key[0]: nested(key[1:], value) if key[1:] else value}


def value_at(config: dict[str, Json], key: KeyPath) -> Json:
    """The value at ``key``.

    Raises:
        ConfigError: there is no such key.
    """
    return holder_of(config, key)[key[-1]]


def holder_of(config: dict[str, Json], key: KeyPath) -> dict[str, Json]:
    """The object that contains the last name of ``key``; errors as `value_at`."""
    holder = config
    here: Json = config
    for depth, name in enumerate(key):
        if not isinstance(here, dict):
            raise not_an_object(key[:depth], here)
        if name not in here:
            near = closest(name, here)
            meant = "" if near is None else f"Did you mean {format_key((*key[:depth], near))}? "
            raise ConfigError(
                f"config.json has no key {format_key(key)}",
                code="config-key-missing",
                hint=f"{meant}List the keys: balenaflash config show IMAGE",
            )
        holder, here = here, here[name]
    return holder


def not_an_object(key: KeyPath, value: Json) -> ConfigError:
    """The error for a ``key`` with ``value``, which should contain other keys."""
    return ConfigError(
        f"config.json: {format_key(key)} is {kind_of(value)}, not an object with keys",
        code="config-type",
    )


def _unquoted(quoted: str, text: str) -> str:
    try:
        return str(json.loads(quoted))
    except json.JSONDecodeError as error:
        raise _invalid(text) from error


def _invalid(text: str) -> ConfigError:
    # Without the text after the equals sign, which may be a secret.
    return ConfigError(
        f"{text.partition('=')[0]!r}: is not a key of config.json",
        code="config-key-invalid",
        hint='Write it as os.sshKeys, or with quotes: deviceApiKeys["api.balena-cloud.com"]',
    )
