"""Write an image to one or more media, flush them, read them back, and repair what differs.

The image is read once for all; each target then goes at its own pace, in a thread of its own.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from balenaflash.errors import BalenaflashError, LeftError
from balenaflash.flashing.chunks import ChunkRecord
from balenaflash.flashing.feed import ChunkQueue, Feeds
from balenaflash.flashing.plan import WritePlan
from balenaflash.flashing.probe import check_end
from balenaflash.flashing.read_back import Difference, read_back
from balenaflash.flashing.repair import NO_REPAIR, Repair, changed_by_repair, find_lasting, repair
from balenaflash.flashing.writer import Writer, Written
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
"""For each medium: one would leave it idle between two requests."""

_SIGNAL_INTERVAL = 0.1
"""Seconds between two looks at whether the user wants to leave at once."""


@dataclass(frozen=True, slots=True)
class Target:
    """A medium that is open for writing, and who is told how far it is."""

    medium: Medium
    progress: Progress
    gpt_move: tuple[Patch, ...] = ()
    """What it holds in place of bytes of the image, or past it, to use the whole disk.

    As `balenaflash.flashing.disk_end.plan_gpt_move` has it.
    """

    may_be_fake: bool = False
    """Whether to look first if its end is there."""


@dataclass(frozen=True, slots=True)
class FlashReport:
    """What was done to one target."""

    image_size: int
    bytes_written: int
    """Bytes that were written or zeroed."""

    bytes_equal: int
    """Bytes that the target held already, and that were not written."""

    write_seconds: float
    bytes_read_back: int | None
    """``None`` when the read-back was not asked for."""

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
    """Whether the backup GPT was moved to the end of the disk."""


Outcome = FlashReport | BalenaflashError


@dataclass(frozen=True, slots=True)
class FlashOptions:
    """How it is to be done."""

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
    """Write, flush and, unless told not to, read back, compare and repair.

    ``finished`` is called in the thread of the caller as soon as the work on a target has ended,
    while that on others goes on.

    The outcomes are in the order of ``targets``: a report, or the failure that ended the work on
    that target alone. Where the user leaves at once, it is `LeftError` for each that is not done.
    Whatever else ends it is raised: a bug.
    """
    limit = max(target.medium.capacity for target in targets)
    compares = options.read_back or options.skip_equal
    jobs: list[_Job] = []
    try:
        with Feeds(source, plan, limit=limit, has_digests=compares) as feeds:
            jobs = [
                _Job(source, plan, target, options, stop, feeds, len(targets)) for target in targets
            ]
            feeds.start([job.queue for job in jobs])
            for job in jobs:
                job.start()
            _wait_for(jobs, finished)
    except KeyboardInterrupt:
        if not jobs or not all(job.was_started for job in jobs):
            raise
    return tuple(job.outcome for job in jobs)


def _wait_for(jobs: "Sequence[_Job]", finished: Callable[[int, Outcome], None]) -> None:
    """Return when all have ended, and tell of each at once."""
    running = list(enumerate(jobs))
    while running:
        ended = [(number, job) for number, job in running if job.has_ended()]
        running = [each for each in running if each not in ended]
        for number, job in ended:
            if job.crash is None:
                finished(number, job.outcome)


@dataclass(slots=True)
class _Job:
    """The work on one target."""

    source: Source
    plan: WritePlan
    target: Target
    options: FlashOptions
    stop: Stop
    feeds: Feeds
    target_count: int
    queue: ChunkQueue = field(init=False)
    _outcome: Outcome | None = None
    crash: BaseException | None = None
    """What ended it, if it was a bug."""

    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.queue = ChunkQueue(self.feeds.start_alone)
        # A daemon: a medium that hangs in the kernel must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="target", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def was_started(self) -> bool:
        return self._thread.ident is not None

    def has_ended(self) -> bool:
        """Whether it has ended, or does so in a moment: short enough to be awake for signals."""
        self._thread.join(_SIGNAL_INTERVAL / self.target_count)
        return not self._thread.is_alive()

    @property
    def outcome(self) -> Outcome:
        if self.crash is not None:
            raise self.crash
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
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self.crash = error
        finally:
            self.queue.close()

    def _flash(self) -> FlashReport:
        medium, progress = self.target.medium, self.target.progress
        if self.target.may_be_fake:
            check_end(medium)
        started = time.monotonic()
        with phase(progress, Phase.WRITE, self.plan.size_to_write):
            written = self._write()
        ended = time.monotonic()
        equal = sum(record.size for record in written.equal)
        mended, read, verify_seconds = NO_REPAIR, None, None
        if self.options.read_back:
            medium.begin_read_back()
            differing = self._read_back(written)
            mended = self._repair(written, differing) if differing else NO_REPAIR
            read = sum(record.size for record in written.unproven)
            verify_seconds = time.monotonic() - ended
        return FlashReport(
            written.image_size,
            written.size,
            equal,
            ended - started,
            read,
            verify_seconds,
            mended.repaired,
            mended.unsteady,
            medium.rereads.failed,
            written.wiped,
            gpt_moved=bool(self.target.gpt_move),
        )

    def _write(self) -> Written:
        return Writer(
            self.target.medium,
            self.plan,
            self.queue,
            self.target.progress,
            self.stop,
            max(_LEAST_REQUESTS, _WRITES // self.target_count),
            self.options.skip_equal,
            tuple(sorted(self.target.gpt_move)),
        ).write_all()

    def _read_back(self, written: Written) -> list[ChunkRecord]:
        return read_back(
            self.target.medium,
            written.unproven,
            self.target.progress,
            self.stop,
            written=written.size,
            requests=max(_LEAST_REQUESTS, _READS // self.target_count),
        )

    def _repair(self, written: Written, differing: list[ChunkRecord]) -> Repair:
        medium = self.target.medium
        mended = repair(self.source.fork(), medium, self.plan, written, differing, self.stop)
        if not mended.repaired:
            return mended
        # What is written to a counterfeit turns up elsewhere: so all is read once more.
        again = self._read_back(written)
        changed = find_lasting(medium, again)
        if changed:
            raise changed_by_repair(self.source.fork(), medium, self.plan, written, changed)
        return replace(mended, unsteady=mended.unsteady + len(again))
