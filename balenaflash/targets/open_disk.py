"""The only module that opens a disk for writing, with the ioctls of block devices.

The functions for ioctls take an open descriptor of a block device and let the kernel's ``OSError``
through: only the caller knows the name of the device. Requests are those of linux/fs.h.
"""

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from balenaflash.errors import TargetRefusedError, WriteError, refusal
from balenaflash.rereading import read_device_size
from balenaflash.targets.disks import Disk
from balenaflash.targets.medium import Begun, DescriptorMedium, describe_failure
from balenaflash.targets.sysfs import RUNNING_KERNEL, DeviceNumber, Kernel, read_int, read_serial
from balenaflash.targets.unmount import describe_holders, find_disk_holders, find_disk_writers

_BLKROGET = 0x125E
_BLKRRPART = 0x125F
_BLKSSZGET = 0x1268
_BLKZEROOUT = 0x127F
_BLKGETDISKSEQ = 0x80081280  # with the direction of asm-generic/ioctl.h: x86, Arm, RISC-V, s390

_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.EIO})
"""Answers of drivers after their device was unplugged."""

_LOCK_INTERVAL = 0.05  # seconds

_UNFINISHED = {
    Begun.NOTHING: "its content is unchanged",
    Begun.FIRST_WRITE: "none of the image was written, but its first MiB may have changed",
    Begun.START_ZEROED: "its first MiB is zeroed, and it will not boot",
    Begun.PART: "it holds part of the image and will not boot",
}


def read_logical_sector_size(descriptor: int) -> int:
    """The unit of transfer in bytes: offsets and lengths of direct I/O are multiples of it."""
    return _read(descriptor, _BLKSSZGET, "=i")


def read_is_read_only(descriptor: int) -> bool:
    """True if the kernel refuses to write; opening for writing may succeed nevertheless."""
    return _read(descriptor, _BLKROGET, "=i") != 0


def read_disk_sequence(descriptor: int) -> int | None:
    """The number of this disk since boot, never assigned twice; ``None`` before kernel 5.15."""
    try:
        return _read(descriptor, _BLKGETDISKSEQ, "=Q")
    except OSError as error:
        # Drivers before 6.x answer unknown requests with either.
        if error.errno in {errno.ENOTTY, errno.EINVAL}:
            return None
        raise


def _read(descriptor: int, request: int, answer_format: str) -> int:
    answer = fcntl.ioctl(descriptor, request, bytes(struct.calcsize(answer_format)))
    (value,) = struct.unpack(answer_format, answer)
    return int(value)


def reread_partition_table(descriptor: int) -> None:
    """Make the kernel read the partition table again, if this user may and the disk can."""
    # EINVAL: it has no partitions (a loop device without -P), or the kernel has no partition
    # parsers. EBUSY: a partition is open. EACCES, EPERM: not root. If the disk failed or is gone,
    # writing or reading has already reported that. In each case the kernel reads the table when
    # the disk is plugged in again.
    harmless = {errno.EINVAL, errno.EBUSY, errno.EACCES, errno.EPERM}
    try:
        fcntl.ioctl(descriptor, _BLKRRPART)
    except OSError as error:
        if error.errno not in harmless | _GONE:
            raise


class DiskMedium(DescriptorMedium):
    """A disk opened by `open_disk`. All reading and writing bypasses the page cache."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        super().__init__(str(disk.node), descriptor, disk.size)
        self._disk = disk
        # Without the request the kernel would write zeros, page by page and in one long call.
        self._zeroes = bool(read_int(disk.sys_path, "queue/write_zeroes_max_bytes"))

    @property
    def alignment(self) -> int:
        return self._disk.logical_sector_size

    @property
    def was_emptied(self) -> bool:
        return False

    def describe_unfinished(self, begun: Begun) -> str:
        return _UNFINISHED[begun]

    def write(self, offset: int, buffer: memoryview) -> None:
        self._require_aligned(offset, len(buffer))
        super().write(offset, buffer)

    def zero(self, offset: int, length: int) -> None:
        self._require_aligned(offset, length)
        if not self._zeroes:
            super().zero(offset, length)
            return
        try:
            fcntl.ioctl(self._descriptor, _BLKZEROOUT, struct.pack("=QQ", offset, length))
        except OSError as error:
            raise self._write_error(f"zeroing at byte {offset}", error) from error

    def begin_read_back(self) -> None:
        self.flush()

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._require_aligned(offset, len(buffer))
        super().readinto(offset, buffer)

    def _require_aligned(self, offset: int, length: int) -> None:
        if offset % self.alignment or length % self.alignment:
            message = f"{length} bytes at {offset} are not whole sectors of {self.alignment}"
            raise ValueError(message)

    def _is_gone(self) -> bool:
        try:
            return read_device_size(self._descriptor) == 0
        except OSError as error:
            if error.errno in _GONE:
                return True
            raise

    def _write_error(self, action: str, error: OSError) -> WriteError:
        reason = describe_failure(error, is_gone=self._is_gone())
        return self._error(f"{action} failed: {reason}", "write-failed")

    def _read_error(self, offset: int, error: OSError | None) -> WriteError:
        is_gone = self._is_gone()
        if error is None and not is_gone:
            reason = "it ends there"
        else:
            # A disk unplugged while it is open reads like an empty file, without an error.
            reason = describe_failure(error or OSError(errno.ENODEV, ""), is_gone=is_gone)
        return self._error(f"reading at byte {offset} failed: {reason}", "read-back-failed")

    def _error(self, fact: str, code: str) -> WriteError:
        hint = "Try another port or reader, then another card or disk."
        return WriteError(f"{self.name}: {fact}", code=code, hint=hint)


@contextmanager
def open_disk(
    disk: Disk,
    *,
    for_writing: bool = True,
    lock_timeout: float = 5.0,
    kernel: Kernel = RUNNING_KERNEL,
) -> Iterator[DiskMedium]:
    """The disk that was listed as ``disk``, open until the block ends.

    For writing it is opened once and exclusively: the kernel then refuses mounts and other
    exclusive users. It is locked from before the first write until after the last read, so that
    udevd and its listeners keep away (systemd.io/BLOCK_DEVICE_LOCKING). A lock of another process
    is waited for, at most ``lock_timeout`` seconds: udevd holds it while it examines a disk just
    plugged in. So is another process that has the disk open for writing, as a virtual machine has
    its disk. Before anything is read or written, the open disk is proved to be the listed one.

    For reading, a mounted or otherwise used disk is allowed; its content may then change
    meanwhile. Several readers may share a disk, but not with a writer.

    After writing, the kernel is asked to read the new partition table, unless udevd does so by
    itself: it would announce every partition twice.

    Raises:
        TargetRefusedError: ``target-missing``, ``target-no-permission``, ``target-busy``,
            ``target-read-only``, ``target-changed``. Not a byte was written.
    """
    # O_EXCL without O_CREAT means "exclusively" for a block device, open(2).
    mode = os.O_RDWR | os.O_EXCL if for_writing else os.O_RDONLY
    try:
        descriptor = os.open(disk.node, mode | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_refused(disk, error, kernel) from error
    try:
        _lock(disk, descriptor, kernel, for_writing=for_writing, timeout=lock_timeout)
        _prove(disk, descriptor, kernel, for_writing=for_writing)
        try:
            yield DiskMedium(disk, descriptor)
        finally:
            if for_writing and not kernel.has_udevd:
                reread_partition_table(descriptor)
    finally:
        os.close(descriptor)


def _opening_refused(disk: Disk, error: OSError, kernel: Kernel) -> TargetRefusedError:
    match error.errno:
        case errno.EBUSY:
            return _busy(disk, kernel, "another program, or a mount elsewhere, uses it exclusively")
        case errno.EACCES | errno.EPERM:
            return refusal(
                "target-no-permission",
                f"{disk.node}: {error.strerror}",
                "Run it as root (sudo balenaflash ...) or join the group of the node: "
                f"ls -l {disk.node}",
            )
        case errno.EROFS:
            return _read_only(disk)
        case _:
            return refusal(
                "target-missing",
                f"{disk.node}: cannot be opened: {describe_failure(error)}",
                "Run: balenaflash devices",
            )


def _read_only(disk: Disk) -> TargetRefusedError:
    return refusal("target-read-only", f"{disk.node}: is read-only")


def _busy(disk: Disk, kernel: Kernel, fact: str) -> TargetRefusedError:
    # The kernel does not report which process has it open exclusively, but which have it open.
    holders = describe_holders(find_disk_holders(disk.sys_path, kernel))
    return refusal(
        "target-busy",
        f"{disk.node}: {fact}{f': {holders}' if holders else ''}",
        f"End that program; to find it: sudo lsof {disk.node}; lsblk {disk.node}",
    )


def _lock(
    disk: Disk, descriptor: int, kernel: Kernel, *, for_writing: bool, timeout: float
) -> None:
    operation = fcntl.LOCK_EX if for_writing else fcntl.LOCK_SH
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise _busy(disk, kernel, "another program has locked it") from error
        else:
            if not for_writing or not find_disk_writers(disk.sys_path, kernel):
                return
            if time.monotonic() > deadline:
                raise _busy(disk, kernel, "another program has it open for writing")
        time.sleep(_LOCK_INTERVAL)


def _prove(disk: Disk, descriptor: int, kernel: Kernel, *, for_writing: bool) -> None:
    try:
        change = _find_change(disk, descriptor, kernel)
        # A disk that is read-only to the kernel may be opened for writing all the same.
        unwritable = for_writing and change is None and read_is_read_only(descriptor)
    except OSError as error:
        raise _opening_refused(disk, error, kernel) from error
    if change is not None:
        raise refusal(
            "target-changed",
            f"{disk.node}: is not the disk that was listed: {change}",
            "List the disks again: balenaflash devices",
        )
    if unwritable:
        raise _read_only(disk)


def _find_change(disk: Disk, descriptor: int, kernel: Kernel) -> str | None:
    status = os.fstat(descriptor)
    if not stat.S_ISBLK(status.st_mode):
        return "it is not a block device"
    number = DeviceNumber.from_raw(status.st_rdev)
    if number != disk.device_number:
        return f"it is device {number}, not {disk.device_number}"
    if kernel.find_directory(number) != disk.sys_path:
        return "it is plugged in elsewhere"
    facts: tuple[tuple[str, int | str | None, int | str | None], ...] = (
        # The facts that users know best come first.
        ("size in bytes", read_device_size(descriptor), disk.size),
        ("sector size", read_logical_sector_size(descriptor), disk.logical_sector_size),
        ("serial number", read_serial(disk.sys_path), disk.serial),
        ("disk sequence number", read_disk_sequence(descriptor), disk.disk_sequence),
    )
    for name, found, listed in facts:
        if None not in {found, listed} and found != listed:
            return f"its {name} is {found}, not {listed}"
    return None
