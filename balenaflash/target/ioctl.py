"""The requests of block devices that Python does not know, as typed functions.

Each takes an open descriptor of a block device and lets the kernel's ``OSError`` through;
only the caller knows what the device is called. Requests are those of linux/fs.h.
"""

import errno
import fcntl
import struct

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
