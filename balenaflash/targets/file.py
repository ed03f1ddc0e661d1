"""A regular file as a target: written in place, or new and complete before it has its name."""

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from balenaflash.durable import (
    FileType,
    Folder,
    find_type,
    lock_file,
    open_folder,
    open_regular_file,
    write_all,
)
from balenaflash.errors import TargetRefusedError, WriteError, refusal
from balenaflash.targets.medium import Begun, DescriptorMedium, DirectReader, describe_failure
from balenaflash.units import KIB, is_zero

_BLOCK = 64 * KIB  # zeros of this size become a hole
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a tmpfs for files, shm_overview(7)


class FileMedium(DescriptorMedium):
    """A file opened by `create_file` or `open_file`."""

    def __init__(self, path: Path, descriptor: int, size: int, *, is_new: bool = False) -> None:
        super().__init__(str(path), descriptor, size)
        self._is_new = is_new
        self._direct: DirectReader | None = None

    @property
    def capacity(self) -> int:
        """Its size and the room left in its filesystem; holes are counted as if they were full."""
        filesystem = os.fstatvfs(self._descriptor)
        return self.size + filesystem.f_bavail * filesystem.f_frsize

    @property
    def alignment(self) -> int:
        return 1

    @property
    def was_emptied(self) -> bool:
        return not self._is_new

    def describe_unfinished(self, _begun: Begun) -> str:
        return "the unfinished file is removed" if self._is_new else "the file is unfinished"

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer`` at ``offset``; zeros over a hole leave it a hole."""
        if not (is_zero(buffer) and self._is_hole(offset, len(buffer))):
            super().write(offset, buffer)

    def begin_read_back(self) -> None:
        """Flush, drop cached pages, and read directly if the filesystem can."""
        self.flush()
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if self._direct is None:
            try:
                self._direct = DirectReader.open(self._descriptor)
            except OSError as error:
                raise self._read_error(0, error) from error

    def close(self) -> None:
        """Close the file without flushing it."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        os.close(self._descriptor)

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if self._direct is None:
            return super()._read_some(offset, buffer)
        return self._direct.read_some(offset, buffer)

    def _is_hole(self, offset: int, length: int) -> bool:
        """True if the range is known to be a hole; some filesystems report everything as data."""
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end: a hole if within the file
                return offset + length <= self.size
            return False

    def _write_error(self, action: str, error: OSError) -> WriteError:
        return WriteError(
            f"{self.name}: {action} failed: {describe_failure(error)}",
            code="write-failed",
            hint="Write it to a disk with more room." if error.errno == errno.ENOSPC else None,
        )

    def _read_error(self, offset: int, error: OSError | None) -> WriteError:
        reason = "the file ends there" if error is None else describe_failure(error)
        return WriteError(
            f"{self.name}: reading at byte {offset} failed: {reason}",
            code="read-back-failed",
        )


class NewFile(FileMedium):
    """A file without a name yet; runs of zeros become holes."""

    def write(self, offset: int, buffer: memoryview) -> None:
        for start in range(0, len(buffer), _BLOCK):
            super().write(offset + start, buffer[start : start + _BLOCK])


@contextmanager
def create_file(
    path: Path, *, size: int, overwrite: bool = False, mode: int = 0o666
) -> Iterator[FileMedium]:
    """A file of ``size`` zero bytes, all of them holes, open and locked until the block ends.

    A new file has ``mode`` less the umask, and is removed if the block fails. With ``overwrite``
    an existing file is emptied first. It keeps its owner, links and mode, less the permissions to
    read that ``mode`` lacks, and stays as it is if the block fails.

    Raises:
        TargetRefusedError: ``target-exists``, ``target-is-link``, ``target-locked``,
            ``target-missing`` (its directory), ``target-no-permission``, ``target-not-a-file``,
            ``target-read-only``, ``target-too-small`` (the filesystem). An existing file is
            unchanged.
        WriteError: the directory could not be flushed.
    """
    is_new = not _find_existing(path, overwrite=overwrite)
    with ExitStack() as stack:
        with _refusals(path):
            folder = stack.enter_context(open_folder(path.parent))
            if is_new:
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
                descriptor = os.open(path.name, flags, mode, dir_fd=folder.descriptor)
            else:
                descriptor = folder.open_file(path.name, os.O_RDWR)
        medium = FileMedium(path, descriptor, size, is_new=is_new)
        try:
            with _refusals(path):
                lock_file(descriptor)
                if not is_new:
                    _restrict(descriptor, mode)
                _set_size(path, descriptor, size)
            yield medium
            _flush_folder(folder)
        except BaseException:
            # Also after an interrupt: half an image must not be taken for a whole one.
            if is_new and _is_open_as(descriptor, folder, path.name):
                folder.remove(path.name)
            raise
        finally:
            medium.close()


@contextmanager
def open_file(path: Path) -> Iterator[FileMedium]:
    """The file at ``path``, open until the block ends, to read what its disk holds.

    Raises:
        TargetRefusedError: ``target-missing``, ``target-no-permission``, ``target-not-a-file``.
    """
    _require_file(path, find_type(path))
    with _refusals(path):
        descriptor = open_regular_file(path)
    medium = FileMedium(path, descriptor, os.fstat(descriptor).st_size)
    try:
        medium.begin_read_back()
        yield medium
    finally:
        medium.close()


@contextmanager
def make_file(out: Path, *, size: int, overwrite: bool, mode: int = 0o666) -> Iterator[NewFile]:
    """A new file of ``size`` zero bytes that becomes ``out`` when the block ends without an error.

    It may be written past ``size``. At the end it is flushed; until then, and after a failure,
    what is at ``out`` is unchanged. A process that has the old file open keeps that one. ``mode``
    is that of the new file, less the umask.

    Raises:
        TargetRefusedError: as `require_place`, or the file cannot be made.
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
        _flush_folder(folder)


def write_file(out: Path, content: bytes, *, overwrite: bool, mode: int) -> None:
    """Make the file ``out`` with ``content``; otherwise as `make_file`.

    Raises:
        TargetRefusedError: as `make_file`, or there is no room for ``content``.
        WriteError: the directory could not be flushed.
    """
    with _open_place(out, overwrite=overwrite) as folder:
        with folder.new_file(out.name, mode=mode, replace=overwrite) as descriptor:
            write_all(descriptor, content)
            os.fsync(descriptor)
        _flush_folder(folder)


@contextmanager
def new_path(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path at which the block makes a file that then becomes ``out``.

    It lies in a directory of its own, which other users cannot exchange and which is always
    removed.

    Raises:
        TargetRefusedError: as `make_file`.
        WriteError: the directory could not be flushed.
    """
    with (
        _open_place(out, overwrite=overwrite) as folder,
        folder.locked(out.name),
        folder.private_folder() as private,
    ):
        yield private.path / "new"
        folder.rename("new", out.name, source=private, replace=overwrite)
        _flush_folder(folder)


def require_place(out: Path, *, overwrite: bool) -> None:
    """Return if a new file may become ``out``.

    Raises:
        TargetRefusedError: something other than a regular file is at ``out``, or is meant by it;
            a file is there, and ``overwrite`` is not set or another process has locked it; or
            there is no such directory.
    """
    with _open_place(out, overwrite=overwrite) as folder, folder.locked(out.name):
        pass


@contextmanager
def _open_place(out: Path, *, overwrite: bool) -> Iterator[Folder]:
    final = Path(os.path.realpath(out))
    _require_file(out, find_type(final))
    if final.is_relative_to("/dev") and not final.is_relative_to(_SHARED_MEMORY):
        # A node that is not there yet, or a misspelt one, must not become a file.
        message = f"{out}: /dev is not a place for files"
        raise refusal("target-not-a-file", message, "Name a file in another directory.")
    _find_existing(out, overwrite=overwrite)
    with _refusals(out), open_folder(out.parent) as folder:
        yield folder


def _find_existing(path: Path, *, overwrite: bool) -> bool:
    """True if a file is at ``path`` that may be replaced, False if nothing is there."""
    found = find_type(path, follow_links=False)
    if found is FileType.LINK:
        raise _is_link(path)
    _require_file(path, found)
    if found is not None and not overwrite:
        raise _exists(path)
    return found is not None


def _require_file(path: Path, found: FileType | None) -> None:
    if found not in {FileType.FILE, None}:
        hint = "Name a regular file, or a new one."
        if found is FileType.DIRECTORY:
            hint = f"Name a file in it: {shlex.quote(f'{path}/balena.img')}"
        raise refusal("target-not-a-file", f"{path}: is {found.value}", hint)


def _restrict(descriptor: int, mode: int) -> None:
    """Remove the permissions to read that ``mode`` lacks."""
    before = stat.S_IMODE(os.fstat(descriptor).st_mode)
    after = before & (mode | mode >> 1 & 0o022 | 0o7700)
    if after != before:
        os.fchmod(descriptor, after)


def _set_size(path: Path, descriptor: int, size: int) -> None:
    old_size = os.fstat(descriptor).st_size
    try:
        # Grown first: a filesystem that allows no file of this size fails while the content is
        # still there.
        os.ftruncate(descriptor, max(size, old_size))
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise refusal(
            "target-too-small",
            f"{path}: cannot be made {size} bytes long: {describe_failure(error)}",
        ) from error


def _is_open_as(descriptor: int, folder: Folder, name: str) -> bool:
    status = folder.find(name)
    return status is not None and os.path.samestat(os.fstat(descriptor), status)


def _flush_folder(folder: Folder) -> None:
    try:
        folder.flush()
    except OSError as error:
        raise WriteError(
            f"{folder.path}: flushing failed: {describe_failure(error)}", code="write-failed"
        ) from error


_PERMISSION_HINT = "It needs another user, group or mode; see: ls -ld {place}"

_REASONS = {
    errno.EACCES: ("target-no-permission", None, _PERMISSION_HINT),
    errno.EPERM: ("target-no-permission", None, _PERMISSION_HINT),
    errno.EROFS: ("target-read-only", "its filesystem is read-only", None),
    errno.ENOSPC: ("target-too-small", "its filesystem is full", None),
    errno.EDQUOT: ("target-too-small", "the disk quota is used up", None),
    errno.EAGAIN: (
        "target-locked",
        None,
        "Try again when that has finished, or name another file.",
    ),
}
"""Error of the kernel to code, fact and hint; ``None``: the words of the error itself."""


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn an error of the kernel about a file that is opened or made into a refusal."""
    try:
        yield
    except OSError as error:
        raise _refuse_file(path, error) from error


def _refuse_file(path: Path, error: OSError) -> TargetRefusedError:
    is_missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
    if error.errno == errno.EEXIST:
        return _exists(path)
    if error.errno == errno.ELOOP:
        return _is_link(path)
    if is_missing and find_type(path.parent) is not FileType.DIRECTORY:
        return refusal(
            "target-missing",
            f"{path}: there is no directory {path.parent}",
            f"Make it first: mkdir -p {shlex.quote(str(path.parent))}",
        )
    code = "target-missing" if is_missing else "target-refused"
    code, fact, hint = _REASONS.get(error.errno or 0, (code, None, None))
    place = shlex.quote(str(path if os.path.lexists(path) else path.parent))
    return refusal(code, f"{path}: {fact or error.strerror}", hint and hint.format(place=place))


def _is_link(path: Path) -> TargetRefusedError:
    return refusal(
        "target-is-link",
        f"{path}: is a symbolic link, which is not followed",
        f"Name the file itself: {shlex.quote(os.path.realpath(path))}",
    )


def _exists(path: Path) -> TargetRefusedError:
    return refusal(
        "target-exists",
        f"{path}: is there already",
        "Name another file, or add --overwrite.",
        lifted_by="--overwrite",
    )
