"""What bytes of an image are: data, zero, or free in its filesystems.

Only what is free may be left as it is on a target. Zeros that a filesystem uses, or that lie
where no filesystem is understood, must read back as zeros: holes of a sparse image file are
found inside kernels and databases, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from balenaflash.units import KIB, Extent

BLOCK_SIZE = 4 * KIB
"""Bytes of the blocks that are told apart; they begin at multiples of it, from the image's start.

The block size of most filesystems, of a page, and of what most media write in one piece.
"""

_STEP = 16 * BLOCK_SIZE
"""Bytes looked at in one piece first: a call for each block takes longer than the comparing."""

_ZEROS = bytes(_STEP)


class Kind(StrEnum):
    """What must become of bytes on a target."""

    DATA = "data"
    """Not all zero: to be written."""

    ZERO = "zero"
    """All zero: to be written, or zeroed by the device."""

    FREE = "free"
    """In no use, whatever the image holds there: may be left as it is."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of one kind."""

    extent: Extent
    """In bytes from the start of the image."""

    kind: Kind


def classify(
    buffer: memoryview, offset: int, free: Sequence[Extent], *, coarse: bool = False
) -> tuple[Run, ...]:
    """The runs of ``buffer``, which holds the bytes of an image from ``offset`` on.

    They are in order, cover all of it, and two neighbours are of different kinds. ``free`` are
    the free ranges of the image, ascending and disjoint; of these only whole blocks count that
    lie in the buffer. Any other block is data if one byte of it, in this buffer, is not zero.
    With ``coarse`` zeros are looked for in pieces of 64 KiB, which takes a fraction of the time.
    """
    end = offset + len(buffer)
    runs: list[Run] = []
    position = offset
    for extent in _whole_blocks(free, Extent(offset, end)):
        _append_used(runs, buffer, offset, Extent(position, extent.start), coarse=coarse)
        _append(runs, extent, Kind.FREE)
        position = extent.end
    _append_used(runs, buffer, offset, Extent(position, end), coarse=coarse)
    return tuple(runs)


def _whole_blocks(free: Sequence[Extent], bounds: Extent) -> list[Extent]:
    """The whole blocks inside each of ``free`` and inside ``bounds``.

    Two ranges that meet in the middle of a block do not make it a free one: who reports them
    as two has a reason to.
    """
    inner = []
    for extent in free:
        start = -(-max(extent.start, bounds.start) // BLOCK_SIZE) * BLOCK_SIZE
        end = min(extent.end, bounds.end) // BLOCK_SIZE * BLOCK_SIZE
        if start < end:
            inner.append(Extent(start, end))
    return inner


def _append_used(
    runs: list[Run], buffer: memoryview, offset: int, extent: Extent, *, coarse: bool
) -> None:
    """Add the data and zeros of ``extent``, cut at multiples of a block."""
    start = extent.start
    while start < extent.end:
        end = min((start // _STEP + 1) * _STEP, extent.end)
        if is_zero(buffer[start - offset : end - offset]):
            _append(runs, Extent(start, end), Kind.ZERO)
        elif coarse:
            _append(runs, Extent(start, end), Kind.DATA)
        else:
            _append_blocks(runs, buffer, offset, Extent(start, end))
        start = end


def _append_blocks(runs: list[Run], buffer: memoryview, offset: int, extent: Extent) -> None:
    start = extent.start
    while start < extent.end:
        end = min((start // BLOCK_SIZE + 1) * BLOCK_SIZE, extent.end)
        zero = is_zero(buffer[start - offset : end - offset])
        _append(runs, Extent(start, end), Kind.ZERO if zero else Kind.DATA)
        start = end


def is_zero(buffer: memoryview) -> bool:
    """Whether ``buffer``, of at most 64 KiB, is all zeros.

    ``startswith`` compares with memcmp, and without a copy. Measured on 4 MiB: 7 GB/s; a copy
    and ``==`` 2 to 6, ``rstrip`` 0.1, comparing memoryviews 0.1, a regular expression 0.1.
    """
    return _ZEROS.startswith(buffer)


def _append(runs: list[Run], extent: Extent, kind: Kind) -> None:
    """Add a run that begins where the last one ends."""
    if runs and runs[-1].kind is kind:
        extent = Extent(runs.pop().extent.start, extent.end)
    runs.append(Run(extent, kind))
