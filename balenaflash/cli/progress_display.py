"""Progress on stderr: a bar for a terminal, lines for a log, events for a script."""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Never

from balenaflash.cli.answer import printable, say, say_json
from balenaflash.cli.session import ProgressStyle, Session
from balenaflash.extent import format_size
from balenaflash.progress import NO_PROGRESS, Phase, Progress

if TYPE_CHECKING:
    from tqdm import tqdm

_EVENT_INTERVAL = 0.25
"""Seconds between two JSON events, at least."""

_LINE_INTERVAL = 10.0
"""Seconds between two lines in a log, at least."""


_SIZE = (80, 24)
"""Columns and lines where the terminal does not tell."""


def progress_for(session: Session) -> Progress:
    """What shows progress in the way the user asked for."""
    style = session.progress
    if style is ProgressStyle.AUTO:
        if session.quiet:
            return NO_PROGRESS
        return _Bar() if sys.stderr.isatty() else _Lines()
    if style is ProgressStyle.BAR:
        return _Bar()
    if style is ProgressStyle.JSON:
        return _Events()
    return NO_PROGRESS


def progress_of_targets(session: Session, names: Sequence[str]) -> list[Progress]:
    """What shows the progress of each of several targets; of a single one as `progress_for`."""
    if len(names) == 1:
        return [progress_for(session)]
    shown: list[Progress] = []
    for row, name in enumerate(names):
        progress = progress_for(session)
        if isinstance(progress, _Bar | _Counter):
            progress.name_target(name, row)
        shown.append(progress)
    return shown


def show_line(line: str) -> None:
    """Show ``line`` on stderr, above the bars where there are some."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(printable(line), file=sys.stderr)
    else:
        say(line)


def _terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # not a terminal
        return _SIZE
    # A serial console says that it has no columns and lines; tqdm would then show nothing.
    return (size.columns or _SIZE[0], size.lines or _SIZE[1])


class _Bar:
    """A tqdm bar with rate and time left."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None
        self._prefix = ""
        self._row: int | None = None

    def name_target(self, name: str, row: int) -> None:
        """Be one of several bars: that of ``name``, ``row`` lines down."""
        self._prefix, self._row = f"{printable(name)} ", row

    def begin(self, phase: Phase, total: int | None) -> None:
        from tqdm import tqdm  # takes as long to load as half of what reads an image

        width, height = _terminal_size()
        self._bar = tqdm(
            total=total,
            desc=f"{self._prefix}{phase.value}",
            position=self._row,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=sys.stderr,
            ncols=width,
            nrows=height,
        )

    def advance(self, size: int) -> None:
        if self._bar is not None:
            self._bar.update(size)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Counter(ABC):
    """Counts, and tells a subclass at most every ``interval`` seconds."""

    interval: float

    def __init__(self) -> None:
        self.phase = Phase.WRITE
        self.total: int | None = None
        self.done = 0
        self._started = self._told = 0.0
        self.target: str | None = None

    def name_target(self, name: str, _row: int) -> None:
        """Tell of ``name``, which is one of several targets."""
        self.target = name

    def begin(self, phase: Phase, total: int | None) -> None:
        self.phase, self.total, self.done = phase, total, 0
        self._started = self._told = time.monotonic()
        self.tell("begin")

    def advance(self, size: int) -> None:
        self.done += size
        now = time.monotonic()
        if now - self._told >= self.interval:
            self._told = now
            self.tell("advance")

    def end(self) -> None:
        self.tell("end")

    @property
    def rate(self) -> float:
        """Bytes per second since the phase began."""
        return self.done / max(time.monotonic() - self._started, 1e-6)

    @abstractmethod
    def tell(self, event: str) -> None:
        """Show where the phase is; ``event`` is begin, advance or end."""


class _Lines(_Counter):
    """A line at the start and end of a phase and now and then between; no carriage returns."""

    interval = _LINE_INTERVAL

    def tell(self, event: str) -> None:
        prefix = f"{self.target}: " if self.target else ""
        total = "unknown" if self.total is None else format_size(self.total)
        if event == "begin":
            line = f"{prefix}{self.phase}: {total}"
        else:
            word = "done" if event == "end" and self.done == self.total else "so far"
            rate = format_size(int(self.rate))
            line = f"{prefix}{self.phase}: {format_size(self.done)} of {total} {word}, {rate}/s"
        say(line)


class _Events(_Counter):
    """One JSON object a line; ``done`` and ``total`` in bytes, ``rate`` in bytes a second."""

    interval = _EVENT_INTERVAL

    def tell(self, event: str) -> None:
        line: dict[str, object] = {
            "event": event,
            "phase": self.phase.value,
            "done": self.done,
            "total": self.total,
            "rate": round(self.rate),
        }
        if self.target is not None:
            line["target"] = self.target
        say_json(line, err=True)
