"""A new file that is there when it is complete, and not before."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from balenaflash.durable import FileType, Folder, find_type, open_folder
from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.extent import KIB
from balenaflash.target.file import FileMedium, exists_already, find_existing, lock_target

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
    """A file without a name yet; runs of zeros become holes."""

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer`` at ``offset``; zeros of 64 KiB over a hole leave it a hole."""
        for start in range(0, len(buffer), _BLOCK):
            super().write(offset + start, buffer[start : start + _BLOCK])


@contextmanager
def make_file(out: Path, *, size: int, overwrite: bool, mode: int = 0o666) -> Iterator[NewFile]:
    """A new file of ``size`` zero bytes that becomes ``out`` when the block ends well.

    It may be written past ``size``. At the end it is flushed; until then whatever is at ``out``
    stays, and after a failure, too. Whoever has the old file open keeps that, but nobody may be
    at work on it. ``mode`` is that of the new file, less the umask.

    Raises:
        TargetRefusedError: ``out`` is there and ``overwrite`` is not set, is not a regular file,
            is in use, or cannot be made.
        WriteError: flushing failed.
    """
    with _open_place(out, overwrite=overwrite) as folder:
        with folder.new_file(out.name, mode=mode, replace=overwrite) as descriptor:
            medium = NewFile(out, os.dup(descriptor), size, is_new=True)
            try:
                os.ftruncate(descriptor, size)
                yield medium
                medium.flush()
            finally:
                medium.close()
        folder.flush()


@contextmanager
def new_path(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path for a new file; the file that is there when the block ends well becomes ``out``.

    It lies in a directory of its own, which nobody else can exchange and which is removed whatever
    happens.

    Raises:
        TargetRefusedError: as `make_file`.
    """
    with (
        _open_place(out, overwrite=overwrite) as folder,
        folder.private_folder() as private,
    ):
        yield private.path / "new"
        folder.adopt(private, "new", out.name, replace=overwrite)
        folder.flush()


def require_place(out: Path, *, overwrite: bool) -> None:
    """Return if a new file may become ``out``.

    Raises:
        TargetRefusedError: it is, or is to be, something else than a regular file; or it is
            there and ``overwrite`` is not set.
    """
    final = Path(os.path.realpath(out))
    found = find_type(final)
    if found is not None and found is not FileType.FILE:
        message = f"{out}: is {found.value}"
        raise _refusal("target-not-a-file", message, "Name a file, there or new.")
    if final.is_relative_to("/dev") and not final.is_relative_to(_SHARED_MEMORY):
        # A node that is not there yet, or a misspelt one, must not become a file.
        raise _refusal("target-not-a-file", f"{out}: /dev is not a place for files")
    if find_existing(out) is not None and not overwrite:
        raise exists_already(out)


@contextmanager
def _open_place(out: Path, *, overwrite: bool) -> Iterator[Folder]:
    """The folder of ``out``, what is at ``out`` locked until the block ends."""
    try:
        require_place(out, overwrite=overwrite)
        with open_folder(out.parent) as folder, _locked(folder, out):
            yield folder
    except FileExistsError as error:
        raise exists_already(out) from error
    except OSError as error:
        code, words = _REFUSALS.get(error.errno or 0, ("target-refused", f"{error.strerror}"))
        message = f"{out}: cannot be made: {words.format(folder=out.parent)}"
        raise _refusal(code, message) from error


@contextmanager
def _locked(folder: Folder, out: Path) -> Iterator[None]:
    try:
        descriptor = folder.open_file(out.name)
    except (FileNotFoundError, PermissionError):
        # Where the file may be replaced and not read, nobody else's work on it is seen.
        yield
        return
    try:
        lock_target(out, descriptor)
        yield
    finally:
        os.close(descriptor)


def _refusal(code: str, message: str, hint: str | None = None) -> TargetRefusedError:
    return TargetRefusedError([Problem(code, message, hint)])
