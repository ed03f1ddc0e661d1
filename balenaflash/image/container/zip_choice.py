"""Which member of a zip file is the image: one rule for files and for streams."""

from collections.abc import Mapping
from enum import Enum, auto

from balenaflash.errors import ImageError
from balenaflash.extent import MIB

LARGEST_OTHER = 16 * MIB
"""Bytes above which a member is as good as named as an image, unless it is named otherwise.

A stream is read in its order, so smaller members are kept until it is known whether an image
follows them.
"""

_IMAGE_SUFFIXES = (".img", ".balenaos-img", ".wic", ".raw", ".iso", ".bin", ".sdcard", ".hddimg")
_COMPRESSED_SUFFIXES = ("", ".gz", ".xz", ".bz2", ".zst")
_COMPANION_SUFFIXES = (
    *(".bmap", ".json", ".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".rtf", ".doc", ".docx"),
    *(".yml", ".yaml", ".xml", ".toml", ".ini", ".cfg", ".conf", ".csv", ".log", ".list"),
    *(".sig", ".asc", ".pem", ".crt", ".p7s", ".sum", ".md5", ".sha1", ".sha256", ".sha512"),
    *(".md5sum", ".sha1sum", ".sha256sum", ".sha512sum", ".torrent", ".zsync", ".url", ".lnk"),
    *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".ico"),
    *(".sh", ".bash", ".py", ".bat", ".cmd", ".ps1", ".exe", ".msi", ".dll", ".desktop"),
)
"""What lies beside an image and is none: notes, checksums, pictures, programs that flash it."""

_COMPANION_NAMES = frozenset(
    {
        *("readme", "license", "licence", "copying", "changelog", "version"),
        *("md5sums", "sha1sums", "sha256sums", "sha512sums"),
        *("thumbs.db", "ehthumbs.db"),  # of Windows Explorer, as desktop.ini is
    }
)

_MAX_LISTED = 10


class Standing(Enum):
    """What the name of a member, and its size, say about it."""

    IMAGE = auto()
    PERHAPS = auto()
    """The image where no other member is one."""

    NEVER = auto()
    """Not the image, unless it was asked for by name."""


def standing_of(member: str, size: int = 0) -> Standing:
    """What to think of ``member`` of ``size`` bytes, unpacked."""
    parts = member.split("/")
    last = parts[-1].lower()
    # An archiver's own, hidden files, and the folder that Etcher knows: .meta.
    is_hidden = any(
        part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in parts
    )
    if not last or is_hidden:
        return Standing.NEVER
    endings = (suffix + more for suffix in _IMAGE_SUFFIXES for more in _COMPRESSED_SUFFIXES)
    if last.endswith(tuple(endings)):
        return Standing.IMAGE
    if last in _COMPANION_NAMES or last.endswith(_COMPANION_SUFFIXES):
        return Standing.NEVER
    return Standing.IMAGE if size > LARGEST_OTHER else Standing.PERHAPS


def is_called(member: str, wanted: str) -> bool:
    """Whether ``wanted`` is the whole name of ``member``, or its last part."""
    return wanted in {member, member.rpartition("/")[2]}


def choose_member(name: str, members: Mapping[str, int], wanted: str | None) -> str:
    """The one of ``members``, the files in the zip file ``name``, that is the image.

    It is the one that was asked for, by its whole name or its last part; else the only one named
    as an image, or large; else, where none is, the only one not named as a companion of an image.
    ``members`` has the size of each.

    Raises:
        ImageError: it cannot be told, or is not there.
    """
    if wanted is not None:
        if wanted in members:
            return wanted
        found = [member for member in members if is_called(member, wanted)]
        return _only(name, found, members, f"holds no file {wanted!r}")
    standings = {member: standing_of(member, size) for member, size in members.items()}
    named = [member for member in members if standings[member] is Standing.IMAGE]
    others = [member for member in members if standings[member] is Standing.PERHAPS]
    return _only(name, named or others, members, "holds no image")


def _only(name: str, found: list[str], members: Mapping[str, int], none_found: str) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise ImageError(
            f"{name}: holds {len(found)} files that may be the image: {_listed(found)}",
            code="zip-member-ambiguous",
            hint="Name one of them with --member NAME.",
        )
    raise ImageError(
        f"{name}: {none_found}, only: {_listed(list(members)) or 'nothing'}",
        code="zip-member-missing",
        hint="Name one of them with --member NAME." if members else None,
    )


def _listed(members: list[str]) -> str:
    shown = ", ".join(map(repr, members[:_MAX_LISTED]))
    return f"{shown} and {len(members) - _MAX_LISTED} more" if members[_MAX_LISTED:] else shown
