"""How a medium behaves, and what it counts while it does."""

import errno as errors
from dataclasses import dataclass
from enum import StrEnum

END = 1 << 62
"""An offset past every medium, in bytes."""


class Operation(StrEnum):
    """What the kernel asks of a medium."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"


class Kind(StrEnum):
    """What goes wrong."""

    ERROR = "error"
    """The request fails with an errno, and nothing of it is stored."""

    DROP = "drop"
    """The write is acknowledged, and what of it lies in the range is not stored."""

    FLIP = "flip"
    """Bits of one byte are stored, or read, inverted."""


class Beyond(StrEnum):
    """What a counterfeit card does past its real size; it never reports an error."""

    DISCARD = "discard"
    """Writes vanish, reads give zeros."""

    WRAP = "wrap"
    """The address is taken modulo the real size, so that earlier data is overwritten."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, each time a request touches ``[start, end)``."""

    operation: Operation
    kind: Kind
    start: int = 0
    end: int = END
    count: int | None = None
    """How many requests it hits; ``None`` for all of them."""

    errno: int = errors.EIO
    mask: int = 0
    """The bits a flip inverts, in the byte at ``start``."""


def write_error(
    start: int = 0, end: int = END, *, errno: int = errors.EIO, count: int | None = None
) -> Fault:
    """Writes that touch ``[start, end)`` fail; the kernel passes few errnos on unchanged."""
    return Fault(Operation.WRITE, Kind.ERROR, start, end, count, errno)


def read_error(
    start: int = 0, end: int = END, *, errno: int = errors.EIO, count: int | None = None
) -> Fault:
    """Reads that touch ``[start, end)`` fail."""
    return Fault(Operation.READ, Kind.ERROR, start, end, count, errno)


def flush_error(*, count: int | None = None) -> Fault:
    """Flushes fail; ``fsync`` reports each once to every descriptor that was open."""
    return Fault(Operation.FLUSH, Kind.ERROR, count=count)


def dropped_write(start: int = 0, end: int = END, *, count: int | None = None) -> Fault:
    """Writes to ``[start, end)`` succeed and store nothing there."""
    return Fault(Operation.WRITE, Kind.DROP, start, end, count)


def bit_flip(offset: int, *, mask: int = 1, on_read: bool = False) -> Fault:
    """The byte at ``offset`` is stored (or read) with the bits of ``mask`` inverted."""
    operation = Operation.READ if on_read else Operation.WRITE
    return Fault(operation, Kind.FLIP, offset, offset + 1, mask=mask)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Everything a medium can be told; the default is a healthy and fast one."""

    faults: tuple[Fault, ...] = ()
    real_size: int | None = None
    """Bytes that a counterfeit card really has; ``None`` for an honest one."""

    beyond: Beyond = Beyond.DISCARD
    vanish_after: int | None = None
    """Bytes written after which every request fails with ENODEV; ``None`` for never."""

    gone: bool = False
    """Whether it has vanished already, and its size with it."""

    volatile: bool = False
    """Whether what was not flushed is lost when the behaviour is set anew, as by a power cut."""

    cache_lost_after: int | None = None
    """Bytes written after which what was not flushed is lost, once and without a word."""

    write_bps: float | None = None
    """Bytes a second, as ``read_bps``; ``None`` for as fast as it goes."""

    read_bps: float | None = None
    op_ms: float = 0.0
    """Milliseconds that each request costs beside its bytes."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What reached the medium since its behaviour was last set."""

    writes: int = 0
    bytes_written: int = 0
    """Bytes that were acknowledged, dropped ones too."""

    reads: int = 0
    bytes_read: int = 0
    flushes: int = 0
    unflushed: int = 0
    """Bytes acknowledged since the last flush that succeeded."""

    discards: int = 0
    injected: int = 0
    """Requests that a fault has hit."""
