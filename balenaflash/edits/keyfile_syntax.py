r"""NetworkManager's keyfiles: GLib's key file format and its escapes.

A file consists of ``[group]`` lines with ``key=value`` lines below them; ``#`` begins a comment
line. In a value ``\s \t \n \r \\`` stand for space, tab, line feed, carriage return and backslash,
and leading blanks are ignored (GLib 2.74, ``gkeyfile.c``). An SSID and a list have an additional
encoding (``libnm-core-impl/nm-keyfile.c``, NetworkManager 1.52).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from balenaflash.errors import EditError
from balenaflash.units import KIB

Groups: TypeAlias = Mapping[str, Mapping[str, str]]
"""Group to key to value."""

MAX_SIZE = 256 * KIB  # bytes; a keyfile has a few hundred

ALIASES = {
    "802-3-ethernet": "ethernet",
    "802-11-wireless": "wifi",
    "802-11-wireless-security": "wifi-security",
}
"""Setting names with the short names that keyfiles may use instead, nm-settings-keyfile(5)."""

_ESCAPES = {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
_ESCAPED = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}
_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
_GROUP = re.compile(r"\[(?P<name>[^\[\]\x00-\x1f\x7f]+)\]\s*", re.ASCII)
_PAIR = re.compile(
    r"(?P<key>[^=\[\]\s][^=\[\]]*?(?:\[[^=\[\]]+\])?)\s*=\s*(?P<value>.*)", re.ASCII | re.DOTALL
)
_BYTE_LIST = re.compile(r"(?:\s*\d{1,3}\s*;)+\s*", re.ASCII)
_BYTE_MAX = 255


@dataclass(frozen=True, slots=True)
class Keyfile:
    """The content of a keyfile."""

    name: str
    """Its name in messages."""

    groups: Groups
    """Values are as in the file, with their escapes."""

    def value(self, group: str, key: str) -> str | None:
        """The value of ``key`` without escapes; ``None`` if it is missing.

        ``group`` is the short name of a setting; the long name is searched too.

        Raises:
            EditError: it has an escape that GLib does not know.
        """
        for name in (group, *(long for long, short in ALIASES.items() if short == group)):
            if key in self.groups.get(name, {}):
                return _unescape(self.groups[name][key], f"{key} in [{name}]", self.name)
        return None

    def ssid(self) -> bytes | None:
        """The SSID of a Wi-Fi network; ``None`` if it is missing.

        Raises:
            EditError: it has an escape that GLib does not know. NetworkManager 1.52 with GLib 2.84
                then reads no SSID; with GLib 2.74 it reads the escape unchanged.
        """
        value = self.value("wifi", "ssid")
        return None if value is None else parse_ssid(value)


def parse_keyfile(data: bytes, name: str) -> Keyfile:
    """The keyfile in ``data``; ``name`` is its name in messages.

    As in GLib, a group that occurs twice is one group, and the last value of a key counts.

    Raises:
        EditError: GLib could not read it either; the message has the line.
    """
    if len(data) > MAX_SIZE:
        raise _invalid(name, f"has {len(data)} bytes, more than {MAX_SIZE}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(name, f"is not UTF-8 at byte {error.start}") from error
    if "\0" in text:
        raise _invalid(name, "contains a NUL character")
    groups: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        # As in GLib, a carriage return before the line feed is ignored.
        content = line.removesuffix("\r").lstrip(" \t\r\v\f")
        if not content or content.startswith("#"):
            continue
        if group := _GROUP.fullmatch(content):
            current = groups.setdefault(group["name"], {})
            continue
        pair = _PAIR.fullmatch(content)
        if pair is None or current is None:
            raise _invalid(name, f"line {number} is neither [group] nor key=value in a group")
        current[pair["key"]] = pair["value"]
    return Keyfile(name, groups)


def format_keyfile(groups: Groups) -> bytes:
    """The bytes of a keyfile with ``groups``, in their order.

    Values are plain text; a form feed or vertical tab at the start of one would be lost.
    """
    sections = [
        "".join([f"[{group}]\n", *(f"{key}={_escape(value)}\n" for key, value in pairs.items())])
        for group, pairs in groups.items()
    ]
    return "\n".join(sections).encode("utf-8")


def format_ssid(ssid: bytes) -> str:
    """The value for ``ssid`` as NetworkManager writes it.

    Printable ASCII is text with ``;`` escaped; any other SSID is a list of byte values.
    """
    if all(0x20 <= byte <= 0x7E for byte in ssid):  # noqa: PLR2004 -- isprint() in the C locale
        return ssid.decode("ascii").replace(";", r"\;")
    return "".join(f"{byte};" for byte in ssid)


def parse_ssid(value: str) -> bytes:
    """The SSID in ``value`` as NetworkManager reads it."""
    if _BYTE_LIST.fullmatch(value):
        numbers = [int(number) for number in value.split(";")[:-1]]
        if max(numbers) <= _BYTE_MAX:
            return bytes(numbers)
    return value.replace(r"\;", ";").encode("utf-8")


def format_list(items: tuple[str, ...]) -> str:
    """The value for a list of ``items``, which must not contain a ``;``."""
    return "".join(f"{item};" for item in items)


def _escape(value: str) -> str:
    text = "".join(_ESCAPED.get(char, char) for char in value)
    stripped = text.strip(" ")
    # GLib keeps blanks at the end; an editor may remove them unless they are escaped.
    head = len(text) - len(text.lstrip(" "))
    tail = len(text) - head - len(stripped)
    return r"\s" * head + stripped + r"\s" * tail


def _unescape(value: str, place: str, name: str) -> str:
    def replacement(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise _invalid(name, f"{place} has the unknown escape \\{match[1]}")
        return _ESCAPES[match[1]]

    return _ESCAPE.sub(replacement, value)


def _invalid(name: str, fact: str) -> EditError:
    return EditError(f"{name}: is not a NetworkManager keyfile: {fact}", code="keyfile-invalid")
