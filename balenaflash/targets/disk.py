"""The only place that opens a disk to write it, with the ioctls of block devices.

Each takes an open descriptor of a block device and lets the kernel's ``OSError`` through;
only the caller knows what the device is called. Requests are those of linux/fs.h.
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
from balenaflash.targets.disks import Disk
from balenaflash.targets.medium import Begun, DescriptorMedium, describe_failure
from balenaflash.targets.sysfs import RUNNING_KERNEL, DeviceNumber, Kernel, read_int, read_serial
from balenaflash.targets.unmount import find_disk_holders, find_disk_writers, list_holders

_SIZE_OF_SIZE_T = struct.calcsize("@N")
_DIRECTION_READ = 2 << 30  # asm-generic/ioctl.h: x86, Arm, RISC-V, s390


def _io(number: int) -> int:
    return 0x12 << 8 | number


def _ior(number: int, size: int) -> int:
    return _DIRECTION_READ | size << 16 | _io(number)


_BLKROGET = _io(94)
_BLKRRPART = _io(95)
_BLKFLSBUF = _io(97)
_BLKSSZGET = _io(104)
_BLKPBSZGET = _io(123)
_BLKZEROOUT = _io(127)
_BLKGETSIZE64 = _ior(114, _SIZE_OF_SIZE_T)  # declared with size_t, answers 64 bits on all machines
_BLKGETDISKSEQ = _ior(128, 8)


def read_size(descriptor: int) -> int:
    """The size in bytes; 0 after the medium has gone."""
    return _read(descriptor, _BLKGETSIZE64, "=Q")


def read_logical_sector_size(descriptor: int) -> int:
    """The unit of transfer in bytes: offsets and lengths of direct I/O are multiples of it."""
    return _read(descriptor, _BLKSSZGET, "=i")


def read_physical_sector_size(descriptor: int) -> int:
    """The unit in bytes that the medium writes without reading first."""
    return _read(descriptor, _BLKPBSZGET, "=I")


def read_is_read_only(descriptor: int) -> bool:
    """Whether the kernel refuses to write; opening for writing may work all the same."""
    return _read(descriptor, _BLKROGET, "=i") != 0


def read_disk_sequence(descriptor: int) -> int | None:
    """The number of this disk since boot, never given twice; ``None`` before kernel 5.15."""
    try:
        return _read(descriptor, _BLKGETDISKSEQ, "=Q")
    except OSError as error:
        # Drivers before 6.x answer requests they do not know in either way.
        if error.errno in {errno.ENOTTY, errno.EINVAL}:
            return None
        raise


def drop_cached_pages(descriptor: int) -> None:
    """Write out and forget what the kernel caches of the device; needs CAP_SYS_ADMIN."""
    fcntl.ioctl(descriptor, _BLKFLSBUF)


def zero_out(descriptor: int, offset: int, length: int) -> None:
    """Let the kernel make a range read as zeros, which ends when it does.

    Both numbers are in bytes, multiples of the logical sector size. Where the device cannot do so
    by itself, the kernel writes zeros.
    """
    fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", offset, length))


def reread_partition_table(descriptor: int) -> None:
    """Let the kernel look at the partition table again; needs CAP_SYS_ADMIN.

    ``EINVAL``: the disk can have no partitions. ``EBUSY``: one of them is open.
    """
    fcntl.ioctl(descriptor, _BLKRRPART)


def _read(descriptor: int, request: int, answer_format: str) -> int:
    answer = fcntl.ioctl(descriptor, request, bytes(struct.calcsize(answer_format)))
    (value,) = struct.unpack(answer_format, answer)
    return int(value)


_LOCK_INTERVAL = 0.05  # seconds

_UNFINISHED = {
    Begun.NOTHING: "what it held before is unchanged",
    Begun.FIRST_WRITE: "none of the image was written, but its first MiB may have changed",
    Begun.START_ZEROED: "its first MiB is zeroed, and it will not boot",
    Begun.PART: "it holds part of the image and will not boot",
}


class DiskMedium(DescriptorMedium):
    """A disk opened by `open_disk`. All reading and writing bypasses the page cache."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        super().__init__(str(disk.node), descriptor, disk.size)
        self._disk = disk
        # Without the request the kernel would write zeros, page by page and in one long call.
        self._zeroes = bool(read_int(disk.sys_path, "queue/write_zeroes_max_bytes"))

    @property
    def alignment(self) -> int:
        """The logical sector size: direct I/O knows no smaller unit."""
        return self._disk.logical_sector_size

    @property
    def was_emptied(self) -> bool:
        """False: opening it changes nothing."""
        return False

    def describe_unfinished(self, begun: Begun) -> str:
        """It stays as it is."""
        return _UNFINISHED[begun]

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer``, whole sectors, at ``offset``."""
        self._require_aligned(offset, len(buffer))
        super().write(offset, buffer)

    def zero(self, offset: int, length: int) -> None:
        """Let the disk zero the range, if it can."""
        self._require_aligned(offset, length)
        if not self._zeroes:
            super().zero(offset, length)
            return
        try:
            zero_out(self._descriptor, offset, length)
        except OSError as error:
            raise self._write_error(f"zeroing at byte {offset}", error) from error
        with self._counting:
            self._written += length

    def begin_read_back(self) -> None:
        """Flush; reads bypass the page cache in any case."""
        self.flush()

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, whole sectors, from ``offset`` on."""
        self._require_aligned(offset, len(buffer))
        super().readinto(offset, buffer)

    def _require_aligned(self, offset: int, length: int) -> None:
        if offset % self.alignment or length % self.alignment:
            message = f"{length} bytes at {offset} are not whole sectors of {self.alignment}"
            raise ValueError(message)

    def _is_gone(self) -> bool:
        try:
            return read_size(self._descriptor) == 0
        except OSError as error:
            # Each is what some driver answers after its device was unplugged.
            if error.errno in {errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.EIO}:
                return True
            raise

    def _write_error(self, action: str, error: OSError) -> WriteError:
        reason = describe_failure(error, is_gone=self._is_gone())
        return WriteError(
            f"{self.name}: {action} failed: {reason}",
            written=self._written,
            code="write-failed",
            hint="Try another port or reader, then another card or disk.",
        )

    def _read_error(self, offset: int, error: OSError | None) -> WriteError:
        is_gone = self._is_gone()
        if error is not None:
            reason = describe_failure(error, is_gone=is_gone)
        elif is_gone:
            # A disk unplugged while it is open reads like an empty file, without an error.
            reason = describe_failure(OSError(errno.ENODEV, ""))
        else:
            reason = "it ends there"
        return WriteError(
            f"{self.name}: reading at byte {offset} failed: {reason}",
            written=self._written,
            code="read-back-failed",
            hint="Try another port or reader, then another card or disk.",
        )


@contextmanager
def open_disk(
    disk: Disk,
    *,
    for_writing: bool = True,
    lock_timeout: float = 5.0,
    kernel: Kernel = RUNNING_KERNEL,
) -> Iterator[DiskMedium]:
    """The disk that was listed as ``disk``, open until the block ends, or a refusal.

    For writing it is opened once, exclusively (the kernel then refuses mounts and other
    exclusive users), and locked from before the first write until after the last read
    (udevd and what listens to it then keep away, systemd.io/BLOCK_DEVICE_LOCKING). Somebody
    else's lock is waited for, ``lock_timeout`` seconds at most: udevd holds it while it
    looks at a disk just plugged in. What was opened is proved to be what was listed before
    anything is handed out. So is another process that has it open for writing, as a virtual
    machine has its disk: it is waited for as long.

    For reading, a mounted or otherwise used disk is allowed; what it holds may then change
    while it is read. Several readers may share a disk, none shares it with a writer.

    At the end of writing the kernel is asked to look at the new partition table, unless
    udevd does so by itself: it would then announce every partition twice.

    Raises:
        TargetRefusedError: ``target-missing``, ``target-no-permission``, ``target-busy``,
            ``target-read-only``, ``target-changed``. Not a byte was written.
    """
    descriptor = _open(disk, kernel, for_writing=for_writing)
    try:
        _lock(disk, descriptor, kernel, for_writing=for_writing, timeout=lock_timeout)
        _prove(disk, descriptor, kernel, for_writing=for_writing)
        try:
            yield DiskMedium(disk, descriptor)
        finally:
            if for_writing and not kernel.has_udevd:
                _reread_partition_table(descriptor)
    finally:
        os.close(descriptor)


def _open(disk: Disk, kernel: Kernel, *, for_writing: bool) -> int:
    # O_EXCL without O_CREAT means "exclusively" for a block device, open(2).
    mode = os.O_RDWR | os.O_EXCL if for_writing else os.O_RDONLY
    try:
        return os.open(disk.node, mode | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_refused(disk, error, kernel) from error


def _opening_refused(disk: Disk, error: OSError, kernel: Kernel) -> TargetRefusedError:
    match error.errno:
        case errno.EBUSY:
            return _busy(disk, kernel, "another program, or a mount elsewhere, uses it exclusively")
        case errno.EACCES | errno.EPERM:
            return refusal(
                "target-no-permission",
                f"{disk.node}: {error.strerror}",
                "Run it as root (sudo balenaflash ...) or join the group of the node; see ls -l.",
            )
        case errno.EROFS:
            return refusal("target-read-only", f"{disk.node}: is read-only")
        case _:
            return refusal(
                "target-missing",
                f"{disk.node}: cannot be opened: {describe_failure(error)}",
                "Run: balenaflash devices",
            )


def _busy(disk: Disk, kernel: Kernel, fact: str) -> TargetRefusedError:
    # Who has it open exclusively the kernel does not tell; who has it open at all it does.
    holders = list_holders(find_disk_holders(disk.sys_path, kernel))
    return refusal(
        "target-busy",
        f"{disk.node}: {fact}{f': {holders}' if holders else ''}",
        f"End it, or see who it is: sudo lsof {disk.node}; lsblk {disk.node}",
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
            writers = find_disk_writers(disk.sys_path, kernel) if for_writing else ()
            if not writers:
                return
            if time.monotonic() > deadline:
                raise _busy(disk, kernel, "another program has it open for writing")
        time.sleep(_LOCK_INTERVAL)


def _prove(disk: Disk, descriptor: int, kernel: Kernel, *, for_writing: bool) -> None:
    try:
        changed = _find_change(disk, descriptor, kernel)
        # A disk that is read-only to the kernel may be opened for writing all the same.
        unwritable = for_writing and changed is None and read_is_read_only(descriptor)
    except OSError as error:
        raise _opening_refused(disk, error, kernel) from error
    if changed is not None:
        raise refusal(
            "target-changed",
            f"{disk.node}: is not the disk that was listed: {changed}",
            "Look again: balenaflash devices",
        )
    if unwritable:
        raise refusal("target-read-only", f"{disk.node}: is read-only")


def _find_change(disk: Disk, descriptor: int, kernel: Kernel) -> str | None:
    status = os.fstat(descriptor)
    if not stat.S_ISBLK(status.st_mode):
        return "it is no block device"
    number = DeviceNumber.from_raw(status.st_rdev)
    if number != disk.device_number:
        return f"it is device {number}, not {disk.device_number}"
    if kernel.find_directory(number) != disk.sys_path:
        return "it is plugged in elsewhere"
    return _find_difference(
        # The order of what is most telling to people. What is unknown is not compared.
        ("size in bytes", read_size(descriptor), disk.size),
        ("sector size", read_logical_sector_size(descriptor), disk.logical_sector_size),
        ("serial number", read_serial(disk.sys_path), disk.serial),
        ("disk sequence number", read_disk_sequence(descriptor), disk.disk_sequence),
    )


def _find_difference(*facts: tuple[str, int | str | None, int | str | None]) -> str | None:
    for name, found, listed in facts:
        if found is not None and listed is not None and found != listed:
            return f"its {name} is {found}, not {listed}"
    return None


def _reread_partition_table(descriptor: int) -> None:
    try:
        reread_partition_table(descriptor)
    except OSError as error:
        # EINVAL: it has no partitions (a loop device without -P), or the kernel has no
        # partition parsers. EBUSY: a partition is open. EACCES, EPERM: not root. Otherwise
        # the disk failed or is gone, which writing or reading has told already. In each case
        # the kernel reads the table when the disk is plugged in next.
        harmless = {errno.EINVAL, errno.EBUSY, errno.EACCES, errno.EPERM}
        gone = {errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.EIO}
        if error.errno not in harmless | gone:
            raise
