"""Paths in the boot partition, as users write them and as the volume takes them."""

from balenaflash.errors import EditError


def volume_path(text: str) -> str:
    """``text`` as an absolute path without empty names; a missing leading slash is supplied.

    Raises:
        EditError: it holds ``..`` or nothing at all.
    """
    names = [name for name in text.split("/") if name not in {"", "."}]
    if not text or ".." in names:
        fact = "holds '..', which leads out of a directory" if text else "is no path"
        raise EditError(
            f"{text!r}: {fact}",
            code="path-invalid",
            hint="Write it from the root of the boot partition, such as /EFI/BOOT/grub.cfg.",
        )
    return "/" + "/".join(names)


def parent_of(path: str) -> str:
    """The directory that ``path``, as `volume_path` gives it, lies in; the root's is itself."""
    return path.rpartition("/")[0] or "/"


def name_of(path: str) -> str:
    """The last name of ``path``; empty for the root."""
    return path.rpartition("/")[2]


def join(directory: str, name: str) -> str:
    """``name`` in ``directory``, both as `volume_path` gives them."""
    return f"{directory.rstrip('/')}/{name}"
