"""A new file that is there when it is complete, and not before."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.extent import KIB
from balenaflash.target.file import FileMedium

_BLOCK = 64 * KIB  # what is zero in one piece becomes a hole

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a tmpfs for files, shm_overview(7)

_REFUSALS = {
    errno.ENOENT: ("target-missing", "there is no directory {folder}"),
    errno.ENOTDIR: ("target-missing", "{folder} is no directory"),
    errno.EACCES: ("target-no-permission", "files may not be made in {folder}"),
    errno.EPERM: ("target-no-permission", "files may not be made in {folder}"),
    errno.EROFS: ("target-read-only", "the filesystem of {folder} is read-only"),
    errno.ENOSPC: ("target-too-small", "the filesystem of {folder} is full"),
    errno.EDQUOT: ("target-too-small", "the quota of its user in {folder} is used up"),
}
"""What keeps a file from being made, to code and words."""


class NewFile(FileMedium):
    """A file under a name of its own beside the place it is for; runs of zeros become holes."""

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer`` at ``offset``; zeros of 64 KiB over a hole leave it a hole."""
        for start in range(0, len(buffer), _BLOCK):
            super().write(offset + start, buffer[start : start + _BLOCK])


@contextmanager
def make_file(out: Path, *, size: int, overwrite: bool) -> Iterator[NewFile]:
    """A new file of ``size`` zero bytes that becomes ``out`` when the block ends well.

    It may be written behind ``size``. At the end it is flushed; until then whatever is at ``out``
    stays, and after a failure, too. Whoever has the old file open keeps that.

    Raises:
        TargetRefusedError: ``out`` is there and ``overwrite`` is not set, is not a regular file,
            or cannot be made.
        WriteError: flushing failed.
    """
    with new_path(out, overwrite=overwrite) as path:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        medium = NewFile(out, descriptor, size, is_new=True)
        try:
            os.ftruncate(descriptor, size)
            yield medium
            medium.flush()
        finally:
            medium.close()


@contextmanager
def new_path(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path beside ``out``; the file that is there when the block ends well becomes ``out``.

    It lies in a directory of its own, which is removed whatever happens.

    Raises:
        TargetRefusedError: as `make_file`.
    """
    final = Path(os.path.realpath(out))
    with _refusals_of(out, final.parent):
        require_place(out, overwrite=overwrite)
        with tempfile.TemporaryDirectory(prefix=".balenaflash-", dir=final.parent) as folder:
            path = Path(folder, "new")
            yield path
            # Whoever uses an older one at that path keeps it, and whoever opens it now has all.
            path.replace(final)
        _flush_directory(final.parent)


def require_place(out: Path, *, overwrite: bool) -> None:
    """Return if a new file may become ``out``.

    Raises:
        TargetRefusedError: it is, or is to be, something else than a regular file; or it is
            there and ``overwrite`` is not set.
    """
    final = Path(os.path.realpath(out))
    if final.exists() and not final.is_file():
        kind = "a directory" if final.is_dir() else "not a regular file"
        raise _refusal("target-not-a-file", f"{out}: is {kind}", "Name a file, there or new.")
    if final.is_relative_to("/dev") and not final.is_relative_to(_SHARED_MEMORY):
        # A node that is not there yet, or a misspelt one, must not become a file.
        raise _refusal("target-not-a-file", f"{out}: /dev is not a place for files")
    if final.exists() and not overwrite:
        raise _refusal(
            "target-exists",
            f"{out}: is there already",
            "Name another file, or add --overwrite.",
            lifted_by="--overwrite",
        )


@contextmanager
def _refusals_of(out: Path, folder: Path) -> Iterator[None]:
    """Turn what the system has against a file in ``folder`` into a refusal of ``out``."""
    try:
        yield
    except OSError as error:
        code, words = _REFUSALS.get(error.errno or 0, ("target-refused", f"{error.strerror}"))
        raise _refusal(code, f"{out}: cannot be made: {words.format(folder=folder)}") from error


def _flush_directory(directory: Path) -> None:
    """Let the name of the new file survive a power loss, too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the filesystem cannot flush directories
            raise
    finally:
        os.close(descriptor)


def _refusal(
    code: str, message: str, hint: str | None = None, *, lifted_by: str | None = None
) -> TargetRefusedError:
    return TargetRefusedError([Problem(code, message, hint, lifted_by)])
