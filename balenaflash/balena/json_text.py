"""JSON documents that keep their text where no value changes.

The order of keys, the digits of numbers, indentation and line ends are kept. Refused is everything
that balenaOS's own readers (jq, serde_json, V8) refuse or read differently: a byte order mark, text
that is not UTF-8, ``NaN`` and ``Infinity``, the same key twice.
"""

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import NoReturn, Self, TypeAlias

from balenaflash.errors import ConfigError
from balenaflash.units import MIB, format_size

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A JSON value; a number with a fraction or an exponent is read as `ExactFloat`."""

MAX_SIZE = MIB  # bytes of a document; a config.json has a few KiB
MAX_DEPTH = 64  # levels of nesting; a config.json has four

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIRST_KEY = re.compile(r'\s*\{(?P<gap>\s*)"(?:[^"\\]|\\.)*"(?P<colon>\s*:\s*)')


class ExactFloat(float):
    """A number with a fraction or an exponent that keeps its digits."""

    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(frozen=True, slots=True)
class JsonStyle:
    """The layout of a document."""

    indent: str | None = "  "
    """The blanks that each level adds to its lines; ``None`` for a document on one line."""

    newline: str = "\n"
    end: str = "\n"
    """The text after the last brace."""

    colon: str = ": "

    @property
    def comma(self) -> str:
        """The separator of items on one line."""
        return ", " if self.colon.endswith(" ") else ","


BALENA_STYLE = JsonStyle()
"""The layout of the image build (``jq -S``) and of os-config (``to_string_pretty``).

balena-cli writes config.json on one line instead. New files get this layout because it is readable.
"""


@dataclass(frozen=True, slots=True)
class JsonDocument:
    """An object read from a file, and the layout of the file."""

    content: dict[str, Json]
    style: JsonStyle = BALENA_STYLE


def parse_document(data: bytes, name: str) -> JsonDocument:
    """The object in ``data``; ``name`` is its name in messages.

    Raises:
        ConfigError: it is not a JSON object, with line and column if they are known.
    """
    if len(data) > MAX_SIZE:
        raise ConfigError(f"{name}: {format_size(len(data))} is too large", code="json-too-large")
    text = _decode(data, name)
    content = parse_value(text, name)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name}: is {kind_of(content)}, but must be an object in {{}}", code="json-invalid"
        )
    return JsonDocument(content, _style_of(text))


def parse_value(text: str, name: str) -> Json:
    """The one JSON value in ``text``; errors as `parse_document`."""
    hooks = _Hooks(name)
    try:
        value: Json = json.loads(
            text,
            parse_float=hooks.read_float,
            parse_int=hooks.read_int,
            parse_constant=hooks.refuse_constant,
            object_pairs_hook=hooks.build_object,
        )
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{name}: is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}",
            code="json-invalid",
        ) from error
    except ValueError as error:  # an integer of more than sys.get_int_max_str_digits() digits
        raise ConfigError(
            f"{name}: contains a number too long to read", code="json-invalid"
        ) from error
    except RecursionError as error:
        raise _too_deep(name) from error
    require_depth(value, name)
    return value


def require_depth(value: Json, name: str) -> None:
    """Refuse a ``value`` with more than `MAX_DEPTH` levels.

    Raises:
        ConfigError: it has more.
    """
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [each for outer in level for each in _items(outer)]
        if not level:
            return
    raise _too_deep(name)


def is_same(one: Json, other: Json) -> bool:
    """True if two values are equal as JSON.

    In Python ``True == 1``, and numbers are equal that differ in a late digit.
    """
    return _comparable(one) == _comparable(other)


def format_document(document: JsonDocument) -> bytes:
    """The bytes of ``document`` in its layout."""
    style = document.style
    text = _format(document.content, style, style.newline) + style.end
    # A lone surrogate was read from a \\u escape, and is written as one.
    return text.encode("utf-8", "backslashreplace")


def format_value(value: object) -> str:
    """``value`` on one line, for people."""
    return _format(value, JsonStyle(indent=None), "")


def format_lines(value: object) -> list[str]:
    """``value`` indented, a line each, for people."""
    return _format(value, BALENA_STYLE, "\n").split("\n")


def kind_of(value: Json) -> str:
    """The type of ``value`` in words, with an article."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"


@dataclass(frozen=True, slots=True)
class _Hooks:
    """Refusals of everything that Python reads and other readers do not."""

    name: str

    def refuse_constant(self, constant: str) -> NoReturn:
        raise ConfigError(f"{self.name}: {constant} is not valid JSON", code="json-invalid")

    def read_int(self, digits: str) -> int | ExactFloat:
        # JSON has a negative zero, which Python's integers do not have.
        return ExactFloat(digits) if digits == "-0" else int(digits)

    def read_float(self, digits: str) -> ExactFloat:
        number = ExactFloat(digits)
        if math.isinf(number):
            raise ConfigError(f"{self.name}: the number {digits} is too large", code="json-invalid")
        return number

    def build_object(self, pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ConfigError(
                f"{self.name}: the key {twice!r} occurs twice", code="json-duplicate-key"
            )
        return content


def _decode(data: bytes, name: str) -> str:
    if data.startswith(_BYTE_ORDER_MARK):
        raise ConfigError(
            f"{name}: begins with a byte order mark (line 1, column 1)",
            code="json-encoding",
            hint="Save it as UTF-8 without a byte order mark.",
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ConfigError(
            f"{name}: is not UTF-8 at line {line}, byte {column} of the line",
            code="json-encoding",
            hint="Save it as UTF-8.",
        ) from error


def _style_of(text: str) -> JsonStyle:
    end = text[len(text.rstrip()) :]
    first = _FIRST_KEY.match(text)
    if first is None:
        return JsonStyle(end=end)
    line_end, newline, indent = first["gap"].rpartition("\n")
    return JsonStyle(
        indent=indent if newline else None,
        newline="\r\n" if line_end.endswith("\r") else "\n",
        end=end,
        colon=first["colon"],
    )


def _format(value: object, style: JsonStyle, line_start: str) -> str:
    """``value`` as text; ``line_start`` is the line end and indentation at its level."""
    inner = line_start + (style.indent or "")
    match value:
        case dict() if value:
            items = [
                f"{_format_string(key)}{style.colon}{_format(each, style, inner)}"
                for key, each in value.items()
            ]
            return "{" + _join(items, style, line_start) + "}"
        case list() if value:
            items = [_format(each, style, inner) for each in value]
            return "[" + _join(items, style, line_start) + "]"
        case ExactFloat():
            return value.text
        case str():
            return _format_string(value)
        case _:
            return json.dumps(value, allow_nan=False)


def _format_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _join(items: list[str], style: JsonStyle, line_start: str) -> str:
    if style.indent is None:
        return style.comma.join(items)
    inner = line_start + style.indent
    return inner + f",{inner}".join(items) + line_start


def _comparable(value: Json) -> object:
    match value:
        case bool() | None:
            return (type(value), value)
        case int() | float():
            return Decimal(_format(value, BALENA_STYLE, ""))
        case dict():
            return {key: _comparable(each) for key, each in value.items()}
        case list():
            return [_comparable(each) for each in value]
        case _:
            return value


def _items(value: Json) -> list[Json]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
        case _:
            return []


def _too_deep(name: str) -> ConfigError:
    return ConfigError(f"{name}: is nested more than {MAX_DEPTH} levels deep", code="json-invalid")
