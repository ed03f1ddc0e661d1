"""Files that are made, replaced, renamed and removed in an open folder, whole or not at all.

Other users may be able to write to the folder. So no name in it is followed where it is a
symbolic link, nothing but a regular file is opened, and the folder itself, once open, cannot be
exchanged for another one.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
_PRIVATE = 0o600  # mode of a file before it has its content, and of one with secrets


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
    """The type of what is at ``path``; ``None`` where there is nothing, or nothing can be seen.

    A folder on the way that may not be searched and a name that is too long are no errors here, as
    they are to `Path.exists`: whatever opens the file next reports the reason.
    """
    try:
        mode = path.stat(follow_symlinks=follow_links).st_mode
    except OSError:
        return None
    return _TYPES.get(stat.S_IFMT(mode), FileType.OTHER)


class Folder:
    """An open folder; every name is that of an entry in it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def find(self, name: str) -> os.stat_result | None:
        """The status of the entry itself, also of a link; ``None`` where there is none."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open_file(self, name: str, access: int = os.O_RDONLY) -> int:
        """A descriptor of the regular file ``name``, for whoever closes it.

        Raises:
            OSError: there is none, it is a link (``ELOOP``) or something else (``EINVAL``), or it
                may not be opened.
        """
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        return _open_regular(os.open(name, flags, dir_fd=self.descriptor), name, access)

    @contextmanager
    def new_file(self, name: str, *, mode: int, replace: bool) -> Iterator[int]:
        """A descriptor of a new file that becomes ``name`` when the block ends without an error.

        It has no name until then, so that nothing is left of it, also after ``kill -9``. On a
        filesystem without such files it has another name, and the next file for ``name`` removes
        what a kill left. The block flushes the content where that must last, and `flush` the name.

        Raises:
            FileExistsError: ``name`` is there, whatever it is, and is not to be replaced.
            OSError: it cannot be made or named.
        """
        hidden = _hidden_name(name)
        descriptor = self._open_unnamed(mode)
        is_named = descriptor is None
        if descriptor is None:
            descriptor = self._open_hidden(hidden, mode)
        try:
            yield descriptor
            if is_named:
                self.adopt(self, hidden, name, replace=replace)
            else:
                self._link(descriptor, hidden, name, replace=replace)
            is_named = False
        finally:
            if is_named:
                self.remove(hidden)
            os.close(descriptor)

    def rename(self, name: str, new_name: str) -> None:
        """Rename an entry, a link itself and not what it leads to; ``new_name`` is replaced."""
        os.rename(name, new_name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def adopt(self, other: "Folder", name: str, new_name: str, *, replace: bool) -> None:
        """Move the file ``name`` of ``other``, which may be this one, here.

        Raises:
            FileExistsError: ``new_name`` is there, whatever it is, and is not to be replaced.
        """
        if not replace and self.find(new_name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)
        os.rename(name, new_name, src_dir_fd=other.descriptor, dst_dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Remove an entry that is no folder; none is no error."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def flush(self) -> None:
        """Return when names that were given and removed would survive a loss of power."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            # Some network filesystems cannot flush a folder; there is nothing else to do.
            if error.errno != errno.EINVAL:
                raise

    @contextmanager
    def private_folder(self) -> Iterator["Folder"]:
        """A new folder in this one, for the programs of this process, removed at the end.

        Its path leads to the open folder, whatever is done to its name meanwhile.
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
        self._remove_left(hidden)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(hidden, flags, mode, dir_fd=self.descriptor)
        with suppress(OSError):  # a filesystem without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def _remove_left(self, hidden: str) -> None:
        """Remove what a killed process left under ``hidden``; one that runs has it locked."""
        try:
            descriptor = self.open_file(hidden)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
        self.remove(hidden)

    def _link(self, descriptor: int, hidden: str, name: str, *, replace: bool) -> None:
        """Give the file without a name ``name``; a link cannot replace, so by way of ``hidden``."""
        if replace:
            self.remove(hidden)
        # linkat(2) with AT_SYMLINK_FOLLOW names the file that this descriptor is of.
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
    """The folder at ``path``, which the user named, open until the block ends.

    Raises:
        OSError: it is not there, is not a folder, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Folder(path, descriptor)
    finally:
        os.close(descriptor)


def open_subfolder(descriptor: int, name: str) -> int:
    """A descriptor of the folder ``name`` in an open one; a link is not followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=descriptor)


def open_regular_file(path: Path) -> int:
    """A descriptor of the regular file that ``path`` names or leads to, for reading.

    Nothing else is opened, not for a moment: a FIFO would wait, and a device may do something.

    Raises:
        OSError: there is none, it is something else (``EINVAL``), or it may not be read.
    """
    return _open_regular(os.open(path, os.O_PATH | os.O_CLOEXEC), str(path), os.O_RDONLY)


def is_private(path: Path) -> bool:
    """Whether nobody but us and root can exchange what is at ``path``, be it there or not."""
    return all(map(_is_kept, (path, *path.parents)))


def _is_kept(path: Path) -> bool:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True  # the folder above tells who may make it
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    is_ours = status.st_uid in {0, os.geteuid()} and not stat.S_ISLNK(status.st_mode)
    # In a sticky folder, such as /tmp, only the owner of an entry exchanges it.
    return is_ours and (not others_write or bool(status.st_mode & stat.S_ISVTX))


def replace_file(
    path: Path, content: bytes, *, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    """Make the file at ``path`` hold ``content``, also after a loss of power.

    It has ``mode`` whatever the umask, and belongs to the user and group ``owner``, as far as we
    may give it to them; without that to us.

    Raises:
        OSError: what was there is as it was.
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
    """Write ``content`` where ``descriptor`` stands; short writes are continued."""
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
    """Open what ``place``, a descriptor of ``O_PATH`` that is closed here, stands for."""
    try:
        mode = os.fstat(place).st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", name)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is not a regular file", name)
        return os.open(f"/proc/self/fd/{place}", access | os.O_CLOEXEC)
    finally:
        os.close(place)


def _hidden_name(name: str) -> str:
    """The same for the same ``name``, and never too long."""
    return f".balenaflash-{crc32(os.fsencode(name)):08x}.new"
