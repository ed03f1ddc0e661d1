"""The messages of ``/dev/fuse`` that one regular file needs.

Layouts and numbers are those of ``linux/fuse.h``, protocol 7.31 (Linux 5.4); numbers are in
the byte order of the machine.
"""

import stat
import struct
from dataclasses import dataclass
from enum import IntEnum

MAX_WRITE = 1 << 20  # bytes in one request; 256 pages, FUSE_MAX_MAX_PAGES
BUFFER_SIZE = MAX_WRITE + 8192  # the largest request and its headers

_IN_HEADER = struct.Struct("=IIQQIIIHH")  # fuse_in_header
_OUT_HEADER = struct.Struct("=IiQ")  # fuse_out_header
_TRANSFER = struct.Struct("=QQIIQII")  # fuse_read_in, fuse_write_in
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_ATTR_OUT = struct.Struct("=QII" + "QQQQQQIIIIIIIIII")  # fuse_attr_out, fuse_attr
_OPEN_OUT = struct.Struct("=QII")
_WRITE_OUT = struct.Struct("=II")
_FALLOCATE_IN = struct.Struct("=QQQII")
_STATFS_OUT = struct.Struct("=QQQQQIIII24x")

_PROTOCOL = (7, 31)
_ROOT = 1  # FUSE_ROOT_ID; here it is the file itself
_WANTED = (
    (1 << 0)  # FUSE_ASYNC_READ
    | (1 << 5)  # FUSE_BIG_WRITES
    | (1 << 15)  # FUSE_ASYNC_DIO
    | (1 << 18)  # FUSE_PARALLEL_DIROPS
    | (1 << 22)  # FUSE_MAX_PAGES
)
_FOPEN_DIRECT_IO = 1 << 0
_FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6


class Opcode(IntEnum):
    """Requests that are answered; the kernel is told ENOSYS for any other."""

    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43


WITHOUT_ANSWER = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})


@dataclass(frozen=True, slots=True)
class Request:
    """What the kernel asks."""

    opcode: int
    unique: int
    body: memoryview
    """What follows the header; valid until the buffer is used again."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """The range of a read, a write or a discard, in bytes."""

    offset: int
    length: int


def parse_request(message: memoryview) -> Request:
    """One message as it was read from ``/dev/fuse``."""
    _, opcode, unique, *_ = _IN_HEADER.unpack_from(message)
    return Request(opcode, unique, message[_IN_HEADER.size :])


def parse_transfer(body: memoryview) -> Transfer:
    """The range in the body of a READ or WRITE."""
    _, offset, length, *_ = _TRANSFER.unpack_from(body)
    return Transfer(offset, length)


def parse_fallocate(body: memoryview) -> Transfer:
    """The range in the body of a FALLOCATE."""
    _, offset, length, *_ = _FALLOCATE_IN.unpack_from(body)
    return Transfer(offset, length)


def written_data(body: memoryview, length: int) -> memoryview:
    """The bytes that a WRITE brings along."""
    return body[_TRANSFER.size : _TRANSFER.size + length]


def answer_header(unique: int, *, length: int, errno: int) -> bytes:
    """What goes before ``length`` bytes of an answer; ``errno`` is 0 for success."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + length, -errno, unique)


def init_answer(body: memoryview) -> bytes:
    """Agree on the protocol, and on requests of up to ``MAX_WRITE`` bytes."""
    _, minor, read_ahead, flags = _INIT_IN.unpack_from(body)
    major, newest = _PROTOCOL
    pages = MAX_WRITE // 4096
    limits = (64, 48, MAX_WRITE, 1, pages, 0, 0)
    return _INIT_OUT.pack(major, min(minor, newest), read_ahead, flags & _WANTED, *limits)


def attributes(size: int) -> bytes:
    """A regular file of ``size`` bytes; the kernel is to ask again each time."""
    blocks = -(-size // 512)
    times = (0, 0, 0, 0, 0, 0)
    mode = stat.S_IFREG | 0o600
    return _ATTR_OUT.pack(0, 0, 0, _ROOT, size, blocks, *times, mode, 1, 0, 0, 0, 4096, 0)


def open_answer() -> bytes:
    """Opened past the page cache of FUSE, which would hide every fault that reports no error."""
    return _OPEN_OUT.pack(0, _FOPEN_DIRECT_IO | _FOPEN_PARALLEL_DIRECT_WRITES, 0)


def write_answer(length: int) -> bytes:
    """``length`` bytes were accepted."""
    return _WRITE_OUT.pack(length, 0)


def statfs_answer() -> bytes:
    """A filesystem with room; nobody decides anything by it."""
    return _STATFS_OUT.pack(1 << 30, 1 << 29, 1 << 29, 1, 0, 4096, 255, 4096, 0)
