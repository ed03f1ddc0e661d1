"""A regular file as a target: new or existing."""

import errno
import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from balenaflash.durable import FileType, Folder, find_type, open_folder
from balenaflash.errors import TargetRefusedError, WriteError, refusal
from balenaflash.targets.medium import Begun, DescriptorMedium, DirectReader, describe_failure
from balenaflash.units import KIB, format_size

_BLOCK_UNIT = 512  # bytes that st_blocks counts in, stat(2)


class FileMedium(DescriptorMedium):
    """A file opened by `create_file` or `open_file`."""

    def __init__(self, path: Path, descriptor: int, size: int, *, is_new: bool = False) -> None:
        super().__init__(str(path), descriptor, size)
        self._is_new = is_new
        self._zeros = bytearray()
        self._direct: DirectReader | None = None

    @property
    def capacity(self) -> int:
        """As large as the filesystem has room for, beside the holes it may have."""
        filesystem = os.fstatvfs(self._descriptor)
        return self._size + filesystem.f_bavail * filesystem.f_frsize

    @property
    def alignment(self) -> int:
        """1: a file is written at any offset."""
        return 1

    @property
    def was_emptied(self) -> bool:
        """Whether a file that was there is overwritten."""
        return not self._is_new

    def describe_unfinished(self, _begun: Begun) -> str:
        """What `create_file` does with it."""
        return "the unfinished file is removed" if self._is_new else "the file is unfinished"

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer`` at ``offset``; zeros over a hole leave it a hole."""
        if self._is_zero(buffer) and self._is_hole(offset, len(buffer)):
            self._written += len(buffer)
        else:
            super().write(offset, buffer)

    def begin_read_back(self) -> None:
        """Flush, forget cached pages, and read directly where the filesystem can."""
        self.flush()
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if self._direct is None:
            try:
                self._direct = DirectReader.open(self._descriptor)
            except OSError as error:
                raise self._read_error(0, error) from error

    def close(self) -> None:
        """Close it; nothing is flushed."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        os.close(self._descriptor)

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if self._direct is None:
            return super()._read_some(offset, buffer)
        return self._direct.read_some(offset, buffer)

    def _is_zero(self, buffer: memoryview) -> bool:
        zeros = self._zeros
        if len(zeros) != len(buffer):
            # Another thread may need another size at the same time.
            zeros = self._zeros = bytearray(len(buffer))
        # bytearray compares by memcmp; memoryview would compare byte by byte.
        return zeros == buffer

    def _is_hole(self, offset: int, length: int) -> bool:
        """Ask the filesystem; one that knows no holes says that all is data."""
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end: a hole if within the file
                return offset + length <= self._size
            return False  # not known: so it is written

    def _write_error(self, action: str, error: OSError) -> WriteError:
        return WriteError(
            f"{self.name}: {action} failed: {describe_failure(error)}",
            written=self._written,
            code="write-failed",
            hint="Write it to a disk with more room." if error.errno == errno.ENOSPC else None,
        )

    def _read_error(self, offset: int, error: OSError | None) -> WriteError:
        reason = "the file ends there" if error is None else describe_failure(error)
        return WriteError(
            f"{self.name}: reading at byte {offset} failed: {reason}",
            written=self._written,
            code="read-back-failed",
        )


@contextmanager
def create_file(
    path: Path,
    *,
    size: int,
    overwrite: bool = False,
    needed: int | None = None,
    mode: int = 0o666,
) -> Iterator[FileMedium]:
    """A file of ``size`` zero bytes, all of them holes, open and locked until the block ends.

    ``needed`` is how many bytes will not be zero; the filesystem must have as much room.
    A file that was created is removed if the block fails; its mode is ``mode`` less the umask.
    With ``overwrite`` a file that is there is emptied first, keeps its owner, links and mode, but
    for those that ``mode`` keeps from reading, and stays as the failure left it.

    Raises:
        TargetRefusedError: ``target-exists``, ``target-is-link``, ``target-locked`` (another
            balenaflash reads, edits or writes it), ``target-missing`` (its directory),
            ``target-no-permission``, ``target-not-a-file``, ``target-read-only``,
            ``target-too-small`` (the filesystem). A file that was there is untouched.
    """
    existing = find_existing(path)
    if existing is not None and not overwrite:
        raise exists_already(path)
    if needed is not None:
        _require_room(path, needed, existing)
    with _open_parent(path) as folder:
        is_new = existing is None
        descriptor = _open_for_writing(folder, path, mode, is_new=is_new)
        medium = FileMedium(path, descriptor, size, is_new=is_new)
        try:
            lock_target(path, descriptor)
            if not is_new:
                _narrow(path, descriptor, mode)
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
    """The file at ``path`` for reading what its disk holds, open until the block ends.

    Raises:
        TargetRefusedError: ``target-missing``, ``target-no-permission``, ``target-not-a-file``.
    """
    try:
        path.stat()
    except FileNotFoundError as error:
        raise refusal("target-missing", f"{path}: is not there") from error
    except OSError as error:
        raise _opening_refused(path, error) from error
    try:
        # O_NONBLOCK: should a FIFO have taken its place, this does not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_refused(path, error) from error
    status = os.fstat(descriptor)
    medium = FileMedium(path, descriptor, status.st_size)
    try:
        _require_regular(path, status)
        medium.begin_read_back()
        yield medium
    finally:
        medium.close()


def find_existing(path: Path) -> os.stat_result | None:
    """The status of the file at ``path`` that is to be replaced; ``None`` where nothing is.

    Raises:
        TargetRefusedError: it is something else than a file, or cannot be looked at.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _opening_refused(path, error) from error
    if stat.S_ISLNK(status.st_mode):
        raise _is_link(path)
    _require_regular(path, status)
    return status


def lock_target(path: Path, descriptor: int) -> None:
    """Lock the file that is to be replaced, until it is closed.

    Raises:
        TargetRefusedError: another process reads, edits or writes it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise refusal(
            "target-locked",
            f"{path}: is in use by another balenaflash",
            "Try again when that has finished, or name another file.",
        ) from error
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP}:  # a filesystem without locks
            raise _opening_refused(path, error) from error


def _require_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise refusal(
            "target-not-a-file", f"{path}: is a directory", f"Name a file in it: {path}/balena.img"
        )
    if not stat.S_ISREG(status.st_mode):
        raise refusal("target-not-a-file", f"{path}: is neither a file nor a disk")


def _require_room(path: Path, needed: int, existing: os.stat_result | None) -> None:
    try:
        filesystem = os.statvfs(path.parent)
    except OSError as error:
        raise _opening_refused(path, error) from error
    room = filesystem.f_bavail * filesystem.f_frsize
    if existing is not None:
        room += existing.st_blocks * _BLOCK_UNIT
    if room < needed:
        raise refusal(
            "target-too-small",
            f"{path}: needs {needed} bytes ({format_size(needed)}), "
            f"its filesystem has room for {room} ({format_size(room)})",
        )


@contextmanager
def _open_parent(path: Path) -> Iterator[Folder]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(open_folder(path.parent))
        except OSError as error:
            raise _opening_refused(path, error) from error
        yield folder


def _open_for_writing(folder: Folder, path: Path, mode: int, *, is_new: bool) -> int:
    try:
        if not is_new:
            return folder.open_file(path.name, os.O_RDWR)
        creation = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        return os.open(path.name, creation, mode, dir_fd=folder.descriptor)
    except OSError as error:
        raise _opening_refused(path, error) from error


def _narrow(path: Path, descriptor: int, mode: int) -> None:
    """Let nobody read the file whom ``mode`` does not let."""
    before = stat.S_IMODE(os.fstat(descriptor).st_mode)
    after = before & (mode | mode >> 1 & 0o022 | 0o7700)
    try:
        if after != before:
            os.fchmod(descriptor, after)
    except OSError as error:
        raise _opening_refused(path, error) from error


def _set_size(path: Path, descriptor: int, size: int) -> None:
    old_size = os.fstat(descriptor).st_size
    try:
        # Grown first: a filesystem that allows no file of this size says so while the
        # content is still there.
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
    """Let the name of a new file survive a power loss, too."""
    try:
        folder.flush()
    except OSError as error:
        raise WriteError(
            f"{folder.path}: flushing failed: {describe_failure(error)}", code="write-failed"
        ) from error


def _opening_refused(path: Path, error: OSError) -> TargetRefusedError:
    match error.errno:
        case errno.EEXIST:
            return exists_already(path)
        case errno.ELOOP:
            return _is_link(path)
        case errno.ENOENT | errno.ENOTDIR:
            return refusal(
                "target-missing",
                f"{path}: there is no directory {path.parent}",
                f"Make it first: mkdir -p {shlex.quote(str(path.parent))}",
            )
        case errno.EACCES | errno.EPERM:
            return refusal(
                "target-no-permission",
                f"{path}: {error.strerror}",
                "It needs another user, group or mode; see ls -l.",
            )
        case errno.EROFS:
            return refusal("target-read-only", f"{path}: its filesystem is read-only")
        case _:
            return refusal("target-refused", f"{path}: cannot be opened: {error.strerror}")


def _is_link(path: Path) -> TargetRefusedError:
    return refusal(
        "target-is-link",
        f"{path}: is a symbolic link, which is not followed",
        f"Name the file itself: {shlex.quote(os.path.realpath(path))}",
    )


def exists_already(path: Path) -> TargetRefusedError:
    """The refusal to replace a file without being told to."""
    return refusal(
        "target-exists",
        f"{path}: is there already",
        "Name another file, or add --overwrite.",
        lifted_by="--overwrite",
    )


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
        raise refusal("target-not-a-file", message, "Name a file, there or new.")
    if final.is_relative_to("/dev") and not final.is_relative_to(_SHARED_MEMORY):
        # A node that is not there yet, or a misspelt one, must not become a file.
        raise refusal("target-not-a-file", f"{out}: /dev is not a place for files")
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
        raise refusal(code, message) from error


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
