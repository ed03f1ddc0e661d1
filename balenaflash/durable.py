"""Files made, replaced, renamed and removed in an open folder, whole or not at all.

Other users may be able to write to the folder. So symbolic links in it are not followed, only
regular files are opened, and the folder itself, once open, cannot be exchanged for another one.

A file that another process has locked is not replaced: a running balenaflash locks every file that
it reads, edits or writes.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from enum import Enum
from pathlib import Path
from zlib import crc32

_NO_UNNAMED_FILES = frozenset(
    {
        errno.EOPNOTSUPP,  # open(2), O_TMPFILE: the filesystem has none
        errno.EISDIR,  # likewise, kernels that do not know the flag
        errno.ENOENT,  # likewise, or /proc is not mounted
    }
)
_NO_LOCKS = frozenset(
    {
        errno.ENOLCK,
        errno.EOPNOTSUPP,
        errno.EBADF,  # flock(2): NFS needs a descriptor open for writing
    }
)
_NOT_LOCKABLE = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,  # a file that this user may replace, but not read
        errno.EPERM,
        errno.ELOOP,  # a symbolic link, see `Folder.open_file`
        errno.EINVAL,  # not a regular file, likewise
    }
)
_PRIVATE = 0o600  # mode of a file until it has its content


class FileType(Enum):
    """The type of what a path names."""

    FILE = "a regular file"
    DIRECTORY = "a directory"
    LINK = "a symbolic link"
    BLOCK_DEVICE = "a block device"
    CHARACTER_DEVICE = "a character device"
    OTHER = "not a regular file"


_TYPES = {
    stat.S_IFREG: FileType.FILE,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFLNK: FileType.LINK,
    stat.S_IFBLK: FileType.BLOCK_DEVICE,
    stat.S_IFCHR: FileType.CHARACTER_DEVICE,
}


def find_type(path: Path, *, follow_links: bool = True) -> FileType | None:
    """The type of what is at ``path``; ``None`` if there is nothing, or nothing can be seen.

    Unlike `Path.exists` it raises no error for a name that is too long, or for a folder that this
    user may not search: whatever opens the file next reports the reason.
    """
    try:
        mode = path.stat(follow_symlinks=follow_links).st_mode
    except OSError:
        return None
    return _TYPES.get(stat.S_IFMT(mode), FileType.OTHER)


def is_same_file(path: Path, other: Path | str) -> bool:
    """True if both paths lead to the same file; False if one of them cannot be seen."""
    try:
        return path.samefile(other)
    except OSError:
        return False


class Folder:
    """An open folder; the names in its methods are those of its entries."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def find(self, name: str) -> os.stat_result | None:
        """The status of an entry, of a link itself; ``None`` if there is no such entry."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open_file(self, name: str, access: int = os.O_RDONLY) -> int:
        """A descriptor of the regular file ``name``; the caller closes it.

        Raises:
            OSError: it is missing, a link (``ELOOP``), not a regular file (``EINVAL``), or may not
                be opened.
        """
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        return _open_regular(os.open(name, flags, dir_fd=self.descriptor), name, access)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Lock the file ``name``, if there is one, until the block ends.

        Raises:
            BlockingIOError: another process has locked it.
        """
        try:
            descriptor = self.open_file(name)
        except OSError as error:
            if error.errno not in _NOT_LOCKABLE:
                raise
            yield
            return
        try:
            lock_file(descriptor)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def new_file(self, name: str, *, mode: int, replace: bool) -> Iterator[int]:
        """A descriptor of a new file that becomes ``name`` when the block ends without an error.

        The file has no name until then, so nothing is left of it, even after ``kill -9``. On a
        filesystem without unnamed files it has a hidden name; what a kill left there is removed by
        the next file for ``name``. If the content must last, the block flushes it; `flush` then
        makes the name last. ``mode`` is that of the new file, less the umask.

        Raises:
            FileExistsError: ``replace`` is not set, and something is at ``name``.
            BlockingIOError: another process has locked the file that would be replaced.
            OSError: the file cannot be made or named.
        """
        hidden = f".balenaflash-{crc32(os.fsencode(name)):08x}.new"  # never too long
        with self.locked(name) if replace else nullcontext():
            descriptor = self._open_unnamed(mode)
            is_named = descriptor is None
            if descriptor is None:
                descriptor = self._open_hidden(hidden, mode)
            try:
                yield descriptor
                if is_named:
                    self.rename(hidden, name, replace=replace)
                else:
                    self._link(descriptor, hidden, name, replace=replace)
                is_named = False
            finally:
                if is_named:
                    self.remove(hidden)
                os.close(descriptor)

    def rename(
        self, name: str, new_name: str, *, source: "Folder | None" = None, replace: bool = True
    ) -> None:
        """Rename an entry, or move one of the folder ``source`` here; a link is not followed.

        Raises:
            FileExistsError: ``replace`` is not set, and something is at ``new_name``.
        """
        if not replace and self.find(new_name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)
        folder = source or self
        os.rename(name, new_name, src_dir_fd=folder.descriptor, dst_dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Remove an entry, which must not be a folder; a missing one is not an error."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def flush(self) -> None:
        """Return when new, changed and removed names would survive a loss of power."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            # Some network filesystems cannot flush a folder.
            if error.errno != errno.EINVAL:
                raise

    @contextmanager
    def private_folder(self) -> Iterator["Folder"]:
        """A new folder in this one, only for this user, that is removed when the block ends.

        Its path leads to the open folder, also after another process renames it.
        """
        name = f".balenaflash-{secrets.token_hex(4)}"
        os.mkdir(name, 0o700, dir_fd=self.descriptor)
        try:
            descriptor = open_subfolder(self.descriptor, name)
            try:
                yield Folder(Path(f"/proc/self/fd/{descriptor}"), descriptor)
            finally:
                _empty(descriptor)
                os.close(descriptor)
        finally:
            with suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=self.descriptor)

    def _open_unnamed(self, mode: int) -> int | None:
        try:
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            return os.open(".", flags, mode, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in _NO_UNNAMED_FILES:
                return None
            raise

    def _open_hidden(self, hidden: str, mode: int) -> int:
        with suppress(FileNotFoundError):
            left = self.open_file(hidden)
            try:
                # A killed process left it; one that still runs has it locked.
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(left)
            self.remove(hidden)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(hidden, flags, mode, dir_fd=self.descriptor)
        with suppress(OSError):  # a filesystem without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def _link(self, descriptor: int, hidden: str, name: str, *, replace: bool) -> None:
        """Name an unnamed file ``name``. linkat(2) replaces nothing, so rename(2) does that."""
        if replace:
            self.remove(hidden)
        # With AT_SYMLINK_FOLLOW linkat(2) links the open file itself.
        os.link(
            f"/proc/self/fd/{descriptor}",
            hidden if replace else name,
            dst_dir_fd=self.descriptor,
            follow_symlinks=True,
        )
        if replace:
            self.rename(hidden, name)


@contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """The folder at ``path``, open until the block ends. A link is followed: the user named it.

    Raises:
        OSError: it is missing, is not a folder, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Folder(path, descriptor)
    finally:
        os.close(descriptor)


def open_subfolder(descriptor: int, name: str) -> int:
    """A descriptor of the folder ``name`` in another open one; a link is not followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=descriptor)


def open_regular_file(path: Path) -> int:
    """A descriptor, for reading, of the regular file that ``path`` names or leads to.

    Nothing else is opened: opening a FIFO would wait, and a device may react to it.

    Raises:
        OSError: it is missing, not a regular file (``EINVAL``), or may not be read.
    """
    return _open_regular(os.open(path, os.O_PATH | os.O_CLOEXEC), str(path), os.O_RDONLY)


def lock_file(descriptor: int) -> None:
    """Lock an open file until it is closed; on a filesystem without locks do nothing.

    Raises:
        BlockingIOError: another process has locked it, as balenaflash locks each file that it
            reads, edits or writes.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "is in use by another balenaflash") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def is_private(path: Path) -> bool:
    """True if only this user and root can exchange what is, or would be, at ``path``."""
    return all(map(_is_kept, (path, *path.parents)))


def _is_kept(path: Path) -> bool:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True  # the mode of the folder above decides
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    is_ours = status.st_uid in {0, os.geteuid()} and not stat.S_ISLNK(status.st_mode)
    # In a sticky folder, such as /tmp, only the owner of an entry exchanges it.
    return is_ours and (not others_write or bool(status.st_mode & stat.S_ISVTX))


def replace_file(
    path: Path, content: bytes, *, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    """Replace or make the file at ``path``, safe from a loss of power.

    The umask does not change ``mode``. Only root can give the file to another ``owner``, a user
    and a group; by default it is the current user's.

    Raises:
        OSError: the file could not be replaced, and is unchanged.
    """
    with open_folder(path.parent) as folder:
        with folder.new_file(path.name, mode=_PRIVATE, replace=True) as descriptor:
            write_all(descriptor, content)
            if owner is not None and os.geteuid() == 0:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        folder.flush()


def write_all(descriptor: int, content: bytes) -> None:
    """Write ``content`` at the position of ``descriptor``; short writes are continued."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _empty(descriptor: int) -> None:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.name, dir_fd=descriptor)
            else:
                os.unlink(entry.name, dir_fd=descriptor)


def _open_regular(place: int, name: str, access: int) -> int:
    """Open the file that ``place``, an ``O_PATH`` descriptor, refers to, and close ``place``."""
    try:
        mode = os.fstat(place).st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", name)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is not a regular file", name)
        return os.open(f"/proc/self/fd/{place}", access | os.O_CLOEXEC)
    finally:
        os.close(place)
