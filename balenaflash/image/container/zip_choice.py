"""Which member of a zip file is the image."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from balenaflash.errors import ImageError

_IMAGE_SUFFIXES = (".img", ".balenaos-img", ".wic", ".raw", ".iso", ".bin", ".sdcard", ".hddimg")
_COMPRESSED_SUFFIXES = ("", ".gz", ".xz", ".bz2", ".zst")
_COMPANION_SUFFIXES = (
    *(".bmap", ".json", ".txt", ".md", ".html", ".pdf", ".yml", ".yaml", ".xml"),
    *(".sig", ".asc", ".sha1", ".sha256", ".sha512", ".sha256sum", ".md5", ".sum"),
)
"""What lies beside an image and is none."""

_MAX_LISTED = 10


def choose_member(name: str, members: Sequence[str], wanted: str | None) -> str:
    """The one of ``members``, the files in the zip file ``name``, that is the image.

    It is the one that was asked for, by its whole name or its last part; else the only one named
    as an image; else, where none is, the only one not named as a companion of an image.

    Raises:
        ImageError: it cannot be told, or is not there.
    """
    if wanted is not None:
        found = [member for member in members if wanted in {member, PurePosixPath(member).name}]
        if wanted in found:
            return wanted
        return _only(name, found, members, f"holds no file {wanted!r}")
    return _only(
        name,
        [member for member in members if is_image_name(member)]
        or [member for member in members if not is_companion_name(member)],
        members,
        "holds no image",
    )


def is_image_name(member: str) -> bool:
    """Whether ``member`` is named as an image is."""
    lower = member.lower()
    return any(
        lower.endswith(suffix + compressed)
        for suffix in _IMAGE_SUFFIXES
        for compressed in _COMPRESSED_SUFFIXES
    )


def is_companion_name(member: str) -> bool:
    """Whether ``member`` is named as what lies beside an image, or is an archiver's own."""
    return member.lower().endswith(_COMPANION_SUFFIXES) or member.startswith("__MACOSX/")


def _only(name: str, found: Sequence[str], members: Sequence[str], none_found: str) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise ImageError(
            f"{name}: holds {len(found)} files that may be the image: {_listed(found)}",
            code="zip-member-ambiguous",
            hint="Name one of them with --member NAME.",
        )
    raise ImageError(
        f"{name}: {none_found}, only: {_listed(members) or 'nothing'}",
        code="zip-member-missing",
        hint="Name one of them with --member NAME." if members else None,
    )


def _listed(members: Sequence[str]) -> str:
    shown = ", ".join(map(repr, members[:_MAX_LISTED]))
    return f"{shown} and {len(members) - _MAX_LISTED} more" if members[_MAX_LISTED:] else shown
