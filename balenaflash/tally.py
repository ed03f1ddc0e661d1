"""How much of an image is data, zero and free, partition by partition."""

import mmap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from balenaflash.image.chunks import CHUNK_SIZE
from balenaflash.image.contents import Kind, Run, classify
from balenaflash.image.source import Source
from balenaflash.image.table.model import Partition
from balenaflash.planning import WritePlan
from balenaflash.progress import Phase, Progress, phase


@dataclass(frozen=True, slots=True)
class Tally:
    """Bytes of each kind, as `balenaflash.image.contents.Kind` has them."""

    partition: int | None
    """Number of the partition; ``None`` for what lies outside of all."""

    bytes: Mapping[Kind, int]


def tally(source: Source, plan: WritePlan, progress: Progress) -> tuple[Tally, ...]:
    """Read all of ``source`` and count; in the order of the partitions, what is outside last.

    Raises:
        ImageError: it cannot be read.
    """
    counts = defaultdict[int | None, Counter[Kind]](Counter)
    cursor = plan.free_space(source)
    buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
    with phase(progress, Phase.READ, plan.least_size):
        for extent in chain([plan.head], plan.body(source)):
            free = [] if cursor is None else cursor.take(extent)
            view = buffer[: extent.size]
            with source.sequential():
                source.readinto(extent.start, view)
            for run in classify(view, extent.start, free):
                _count(counts, plan.partitions, run)
            progress.advance(extent.size)
    numbers = [each.number for each in plan.partitions]
    return tuple(Tally(number, dict(counts[number])) for number in (*numbers, None))


def _count(
    counts: Mapping[int | None, Counter[Kind]], partitions: Iterable[Partition], run: Run
) -> None:
    """Count ``run`` to the partitions that it lies in."""
    outside = run.extent.size
    for partition in partitions:
        extent = partition.extent
        size = min(extent.end, run.extent.end) - max(extent.start, run.extent.start)
        if size > 0:
            counts[partition.number][run.kind] += size
            outside -= size
    if outside:
        counts[None][run.kind] += outside
