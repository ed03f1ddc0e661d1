"""Names and times in a FAT volume: long names, 8.3 names, and names that FAT cannot store.

Names are stored as Linux and mtools store them. A name that fits 8.3 in capitals, or with all of
its base or extension in small letters, is stored as 8.3 alone; two "NT" bits mark the small
letters. Any other name is also stored as a long name.
"""

import os
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from balenaflash.errors import EditError

_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
CASE_BITS = _LOWER_BASE | _LOWER_EXTENSION
"""Bits of DIR_NTRes: show the base, or the extension, in small letters (linux/msdos_fs.h)."""

_MAX_NAME = 255  # UTF-16 units of a long name (fatgen103, "Long Directory Entries")
MAX_PATH = 1024
"""Characters of a path; fatgen103 asks for 260. It also bounds the depth of a hostile tree."""

_SLOT_BYTES = 26  # of a long name in one slot: 13 UTF-16 units

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|]')
"""Characters that are forbidden in a long name (fatgen103), and DEL, which is invisible."""

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f/]")
"""Characters in a stored name that would change a path, or the terminal that shows them."""

_SHORT_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()-@^_`{}~")
_CODE_PAGE = "cp437"  # of 8.3 names: Linux's default, CONFIG_FAT_DEFAULT_CODEPAGE
_LABEL_CODE_PAGE = "cp850"  # of labels, as mkfs.vfat and mlabel write them
_E5_STAND_IN = 0x05  # first byte of an 8.3 name that begins with 0xE5, the mark of a free slot
_LAST_TAIL = 999_999
_BASE_SIZE, _EXTENSION_SIZE = 8, 3


@dataclass(frozen=True, slots=True)
class ShortName:
    """A name as its 8.3 slot stores it."""

    stored: bytes
    """The eleven bytes, padded with spaces."""

    case_bits: int
    """Some of ``CASE_BITS``; 0 when there is a long name."""

    needs_long_name: bool


def fold(name: str) -> str:
    """``name`` without its case: two names that fold alike are the same name to FAT.

    Folded by character, as FAT drivers do, so that ``ß`` is not ``ss``.
    """
    return "".join(upper if len(upper := letter.upper()) == 1 else letter for letter in name)


def split_path(path: str) -> tuple[str, ...]:
    """The names in ``path``, which is absolute in the volume; empty for the root.

    Raises:
        EditError: it contains ``.`` or ``..``, or is too long.
    """
    names = tuple(name for name in path.split("/") if name)
    if {".", ".."} & set(names):
        raise EditError(
            f"{path}: '.' and '..' are not allowed in a path of the boot partition",
            code="path-invalid",
            hint="Give the path from the root of the partition, such as /EFI/BOOT/grub.cfg.",
        )
    if sum(map(len, names)) + len(names) > MAX_PATH:
        raise EditError(
            f"{path[:60]}...: a path of more than {MAX_PATH} characters", code="path-invalid"
        )
    return names


def check_name(name: str) -> None:
    """Raise ``EditError`` for a name that a FAT volume cannot store."""
    reason = _fault_of(name)
    if reason is not None:
        raise EditError(f"{name!r}: a FAT volume cannot store a name {reason}", code="name-invalid")


def is_storable(name: str) -> bool:
    """True if all characters are valid; other systems also write dots and spaces at the end."""
    return not _FORBIDDEN.search(name)


def is_safe(name: str) -> bool:
    """True if a stored name can be shown and made part of a path."""
    return name not in {"", ".", ".."} and not _UNSAFE.search(name)


def decode_short(stored: bytes, case_bits: int) -> str:
    """An 8.3 name as text; an invalid byte becomes U+FFFD."""
    if stored[0] == _E5_STAND_IN:
        stored = b"\xe5" + stored[1:]
    text = stored.decode(_CODE_PAGE)
    base, extension = text[:_BASE_SIZE].rstrip(" "), text[_BASE_SIZE:].rstrip(" ")
    if case_bits & _LOWER_BASE:
        base = base.lower()
    if case_bits & _LOWER_EXTENSION:
        extension = extension.lower()
    base, extension = (
        _UNSAFE.sub("\ufffd", part.replace(".", "\ufffd")) for part in (base, extension)
    )
    return f"{base}.{extension}" if extension else base or "\ufffd"


def decode_label(stored: bytes) -> str | None:
    """A volume label's eleven bytes as text; ``None`` for spaces only."""
    if stored[0] == _E5_STAND_IN:
        stored = b"\xe5" + stored[1:]
    return stored.partition(b"\0")[0].decode(_LABEL_CODE_PAGE).rstrip(" ") or None


def short_name(name: str, taken: Container[str]) -> ShortName:
    """The 8.3 name for ``name`` in a directory whose folded long and short names are ``taken``.

    Raises:
        EditError: the directory has a million names that begin alike.
    """
    base, dot, extension = name.lstrip(".").rpartition(".")
    if not dot:
        base, extension = extension, ""
    stored_base, stored_extension = _to_short(base), _to_short(extension)
    fits = (
        (stored_base, stored_extension) == (base.upper(), extension.upper())
        and 0 < len(stored_base) <= _BASE_SIZE
        and len(stored_extension) <= _EXTENSION_SIZE
        and not name.startswith(".")
    )
    if fits and decode_short(stored := _pad(stored_base, stored_extension), 0) not in taken:
        case_bits = _case_bits(base, extension)
        return ShortName(stored, case_bits or 0, needs_long_name=case_bits is None)
    stored = _with_tail(stored_base or "_", stored_extension, taken)
    return ShortName(stored, 0, needs_long_name=True)


def checksum(stored: bytes) -> int:
    """Checksum of an 8.3 name in the slots of its long name (fatgen103, ``ChkSum``)."""
    total = 0
    for byte in stored:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def split_long(name: str) -> list[bytes]:
    """The 26 bytes of each long-name slot, the start of the name first."""
    units = name.encode("utf-16-le")
    if len(units) % _SLOT_BYTES:
        units += b"\0\0"
    units += b"\xff" * (-len(units) % _SLOT_BYTES)
    return [units[start : start + _SLOT_BYTES] for start in range(0, len(units), _SLOT_BYTES)]


def join_long(parts: Sequence[bytes]) -> str:
    """The name in ``parts``, each from one slot; a broken surrogate becomes U+FFFD."""
    units = b"".join(parts)
    end = next((at for at in range(0, len(units), 2) if units[at : at + 2] == b"\0\0"), len(units))
    return units[:end].decode("utf-16-le", errors="replace")


def _fault_of(name: str) -> str | None:
    if name in {"", ".", ".."}:
        return "that is empty, '.' or '..'"
    if bad := _FORBIDDEN.search(name):
        return f"that contains {bad.group()!r}"
    if name[-1] in ". ":
        return "that ends in a dot or a space"
    try:
        length = len(name.encode("utf-16-le")) // 2
    except UnicodeEncodeError:
        return "that is not valid Unicode"
    return f"of {length} characters, more than {_MAX_NAME}" if length > _MAX_NAME else None


def _to_short(part: str) -> str:
    """``part`` in characters of 8.3 names; ASCII only, as the code page of a reader is unknown."""
    return "".join(
        upper if letter.isascii() and (upper := letter.upper()) in _SHORT_CHARACTERS else "_"
        for letter in part
        if letter not in " ."
    )


def _case_bits(base: str, extension: str) -> int | None:
    """The NT bits that restore ``base.extension``; ``None`` if one part has mixed case."""
    bits = 0
    for part, bit in ((base, _LOWER_BASE), (extension, _LOWER_EXTENSION)):
        if part == part.upper():
            continue
        if part != part.lower():
            return None
        bits |= bit
    return bits


def _with_tail(base: str, extension: str, taken: Container[str]) -> bytes:
    """The 8.3 name with ``~1``, or the first number after it that is free in the directory."""
    for number in range(1, _LAST_TAIL + 1):
        tail = f"~{number}"
        stored = _pad(base[: _BASE_SIZE - len(tail)] + tail, extension[:_EXTENSION_SIZE])
        if decode_short(stored, 0) not in taken:
            return stored
    raise EditError(
        f"{base}: {_LAST_TAIL} names in the directory begin alike", code="directory-full"
    )


def _pad(base: str, extension: str) -> bytes:
    return base.ljust(_BASE_SIZE).encode("ascii") + extension.ljust(_EXTENSION_SIZE).encode("ascii")


_FIRST = datetime(1980, 1, 1)  # noqa: DTZ001 -- FAT knows no time zone
_LAST = datetime(2107, 12, 31, 23, 59, 58)  # noqa: DTZ001 -- FAT knows no time zone


def encode_time(moment: datetime) -> tuple[int, int]:
    """Date and time words of ``moment``, or of the nearest moment that FAT can store.

    Microsoft FAT specification (fatgen103), "Date and Time Formats".
    """
    moment = min(max(moment.replace(tzinfo=None), _FIRST), _LAST)
    date = (moment.year - 1980) << 9 | moment.month << 5 | moment.day
    return date, moment.hour << 11 | moment.minute << 5 | moment.second // 2


def decode_time(date: int, time: int) -> datetime | None:
    """The moment in two words; ``None`` for a date of zero and for an invalid one."""
    try:
        return datetime(  # noqa: DTZ001 -- FAT knows no time zone
            1980 + (date >> 9),
            date >> 5 & 0xF,
            date & 0x1F,
            time >> 11,
            time >> 5 & 0x3F,
            (time & 0x1F) * 2,
        )
    except ValueError:
        return None


def time_of_edit() -> datetime:
    """``SOURCE_DATE_EPOCH`` in UTC where it is set, else now in local time.

    Raises:
        EditError: ``SOURCE_DATE_EPOCH`` is not a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now()  # noqa: DTZ005 -- FAT stores local time
    try:
        return datetime.fromtimestamp(int(epoch), UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError) as error:
        raise EditError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, not a number of seconds since 1970",
            code="source-date-epoch-invalid",
            hint="Set it to a number, such as the output of date +%s, or unset it.",
        ) from error
