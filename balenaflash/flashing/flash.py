"""Write an image to one or more media, flush them, read them back, and repair what differs.

The image is read once for all targets. Each target has a thread and a pace of its own.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from balenaflash.errors import BalenaflashError, LeftError
from balenaflash.flashing.feed import ChunkQueue, Feed, WorkerThread
from balenaflash.flashing.plan import ChunkDigest, WritePlan
from balenaflash.flashing.probe import check_end
from balenaflash.flashing.read_back import Difference, read_back
from balenaflash.flashing.repair import Repair, Repairer
from balenaflash.flashing.writer import Writer, Written
from balenaflash.formats.partitions.model import Partition
from balenaflash.progress import Phase, Progress, Stop, phase
from balenaflash.source.base import Source
from balenaflash.source.layers import Patch
from balenaflash.targets.medium import Medium
from balenaflash.units import Extent

_WRITES = 4
"""Chunks on their way to all media at a time, of the few that are in memory."""

_READS = 8
"""Chunks being read from all media at a time, 4 MiB of memory each; a fast disk wants that many."""

_LEAST_REQUESTS = 2
"""Chunks on their way for each medium, at least: with one it is idle between two requests."""

_SIGNAL_INTERVAL = 0.1
"""Seconds between two moments in which a signal can be handled."""


@dataclass(frozen=True, slots=True)
class Target:
    """A medium that is open for writing, and how to write it."""

    medium: Medium
    progress: Progress
    gpt_move: tuple[Patch, ...] = ()
    """Bytes that it shall hold in place of the image's, or past the image, to use the whole disk.

    See `balenaflash.flashing.disk_end.plan_gpt_move`.
    """

    may_be_fake: bool = False
    """True to test first that its end exists."""


@dataclass(frozen=True, slots=True)
class FlashReport:
    """Report on one target that was written."""

    partitions: tuple[Partition, ...]
    """Partitions of the image, with those that were found while it was read."""

    image_size: int
    bytes_written: int
    """Bytes that were written or zeroed."""

    bytes_equal: int
    """Bytes that the target held already and that were not written."""

    write_seconds: float
    bytes_read_back: int | None
    """Bytes that were read back; ``None`` if that was not asked for."""

    verify_seconds: float | None
    repaired: tuple[Difference, ...] = ()
    """Ranges that read back wrong, were written again, and read back right."""

    unsteady_reads: int = 0
    """Chunks of 4 MiB that read back wrong once and right the second time."""

    failed_reads: int = 0
    """Reads of the target that failed once and succeeded the second time."""

    wiped: tuple[Extent, ...] = ()
    """Sectors past the image that held the backup of an earlier partition table."""

    gpt_moved: bool = False
    """True if the backup GPT was moved to the end of the disk."""


Outcome = FlashReport | BalenaflashError


@dataclass(frozen=True, slots=True)
class FlashOptions:
    """Options that hold for all targets."""

    read_back: bool = True
    skip_equal: bool = False
    """Read first, and write only what differs."""


def flash(
    source: Source,
    plan: WritePlan,
    targets: Sequence[Target],
    *,
    options: FlashOptions,
    stop: Stop,
    finished: Callable[[int, Outcome], None] = lambda _number, _outcome: None,
) -> tuple[Outcome, ...]:
    """Write and flush each target and, if asked for, read it back, compare and repair it.

    ``finished`` is called in the caller's thread as soon as a target is done, while the work on
    others goes on.

    The outcomes are in the order of ``targets``: a report, or the failure that ended the work on
    that target alone. If the user leaves at once, it is a `LeftError` for each that is not done.
    Any other exception is raised: a bug.
    """
    limit = max(target.medium.capacity for target in targets)
    has_digests = options.read_back or options.skip_equal
    jobs: list[_Job] = []
    try:
        with Feed(source, plan, len(targets), limit=limit, has_digests=has_digests) as feed:
            jobs = [
                _Job(source, feed, chunks, target, options, stop, len(targets))
                for chunks, target in zip(feed.queues, targets, strict=True)
            ]
            for job in jobs:
                job.thread.start()
            _wait_for(jobs, finished)
    except KeyboardInterrupt:
        if not jobs or any(job.thread.ident is None for job in jobs):
            raise
    return tuple(job.outcome for job in jobs)


def _wait_for(jobs: "Sequence[_Job]", finished: Callable[[int, Outcome], None]) -> None:
    """Return when all jobs have ended; report each at once."""
    running = list(enumerate(jobs))
    while running:
        for number, job in tuple(running):
            # Short, since signals are handled between two waits only.
            job.thread.join(_SIGNAL_INTERVAL / len(jobs))
            if not job.thread.is_alive():
                running.remove((number, job))
                if job.thread.crash is None:
                    finished(number, job.outcome)


@dataclass(slots=True, eq=False)
class _Job:
    """The work on one target."""

    source: Source
    feed: Feed
    chunks: ChunkQueue
    target: Target
    options: FlashOptions
    stop: Stop
    target_count: int
    thread: WorkerThread = field(init=False)
    _outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.thread = WorkerThread("target", self._run)

    @property
    def outcome(self) -> Outcome:
        if self.thread.crash is not None:
            raise self.thread.crash
        if self._outcome is None:
            return LeftError(
                f"{self.target.medium.name}: left before the work on it had ended; "
                "what it holds is not known",
                hint="Write it again from the start.",
            )
        return self._outcome

    def _run(self) -> None:
        try:
            self._outcome = self._flash()
        except BalenaflashError as error:
            self._outcome = error
        finally:
            self.chunks.close()

    def _flash(self) -> FlashReport:
        medium, plan = self.target.medium, self.feed.plan
        if self.target.may_be_fake:
            check_end(medium)
        started = time.monotonic()
        with phase(self.target.progress, Phase.WRITE, plan.size_to_write):
            written = self._write(plan)
        ended = time.monotonic()
        plan = self.feed.plan
        mended, read, verify_seconds = Repair(), None, None
        if self.options.read_back:
            medium.begin_read_back()
            differing = self._read_back(written)
            if differing:
                repairer = Repairer(self.source.fork(), medium, plan, written, self.stop)
                mended = repairer.repair(differing, lambda: self._read_back(written))
            read = sum(digest.size for digest in written.unproven)
            verify_seconds = time.monotonic() - ended
        return FlashReport(
            (*plan.table.partitions, *plan.logical),
            written.image_size,
            written.size,
            sum(digest.size for digest in written.equal),
            ended - started,
            read,
            verify_seconds,
            mended.repaired,
            mended.unsteady,
            medium.rereads.failed,
            written.wiped,
            gpt_moved=bool(self.target.gpt_move),
        )

    def _write(self, plan: WritePlan) -> Written:
        return Writer(
            self.target.medium,
            plan,
            self.chunks,
            self.target.progress,
            self.stop,
            max(_LEAST_REQUESTS, _WRITES // self.target_count),
            self.options.skip_equal,
            tuple(sorted(self.target.gpt_move)),
        ).write_all()

    def _read_back(self, written: Written) -> list[ChunkDigest]:
        return read_back(
            self.target.medium,
            written.unproven,
            self.target.progress,
            self.stop,
            max(_LEAST_REQUESTS, _READS // self.target_count),
        )
