"""Progress on stderr: bars for a terminal, lines for a log, events for a script."""

import functools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar, Never

from balenaflash.cli.answer import json_line, printable, say
from balenaflash.cli.live_display import DISPLAY, is_terminal
from balenaflash.cli.session import ProgressStyle, Session
from balenaflash.progress import NO_PROGRESS, Phase, Progress
from balenaflash.units import format_size

if TYPE_CHECKING:
    from tqdm import tqdm

_EVENT_INTERVAL = 0.25
"""Seconds between two JSON events, at least."""

_LINE_INTERVAL = 10.0
"""Seconds between two lines in a log, at least."""

_RATE_WINDOW = 5.0
"""Seconds over which the rate of a bar is measured."""

_LEAST_BAR = 6
"""Columns of a bar; where it would have fewer, less is shown beside it."""

_SPEED_WIDTH = len("1000.0 MiB/s")

_WIDE = 60
"""Columns from which on the whole path of a target is shown."""


def progress_for(session: Session) -> Progress:
    """What shows progress in the way the user asked for."""
    return _shown(session) or NO_PROGRESS


class TargetsDisplay:
    """The progress of each of several targets, and its end; of a single one as `progress_for`."""

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        self._is_quiet = session.quiet
        self._names = names
        self._shown: list[_Counter | None] = [_shown(session) for _ in names]
        if len(names) > 1:
            for row, (name, each) in enumerate(zip(names, self._shown, strict=True)):
                if each is not None:
                    each.name_target(name, row)

    @property
    def each(self) -> list[Progress]:
        """For each target, in their order."""
        return [each or NO_PROGRESS for each in self._shown]

    def finish(self, number: int, exit_status: int, text: str) -> None:
        """Say at once what became of one of several targets: the others may take long."""
        if len(self._names) == 1:
            return
        shown = self._shown[number]
        if isinstance(shown, _Events):
            shown.finish(exit_status)
        elif not self._is_quiet:
            DISPLAY.say(printable(f"{self._names[number]}: {text}"))
        DISPLAY.flush()  # before anything else is said


def show_line(line: str) -> None:
    """Show ``line`` on stderr, above the bars where there are some."""
    if DISPLAY.is_active:
        DISPLAY.say(printable(line))
    else:
        say(line)


@functools.cache
def tqdm_class() -> "type[tqdm[Never]]":
    """Draws a bar of parts of a character; it takes as long to load as half of an ``inspect``."""
    from tqdm import tqdm

    return tqdm


def _shown(session: Session) -> "_Counter | None":
    match session.progress:
        case ProgressStyle.AUTO if not session.quiet:
            return _Bar() if is_terminal() else _Lines()
        case ProgressStyle.BAR:
            return _Bar()
        case ProgressStyle.JSON:
            return _Events()
        case _:
            return None


class _Counter(ABC):
    """Counts, and tells a subclass at most every ``interval`` seconds."""

    interval: ClassVar[float]

    def __init__(self) -> None:
        self.phase = Phase.WRITE
        self.total: int | None = None
        self.done = 0
        self.started = self._told = 0.0
        self.target: str | None = None
        self.row = 0

    def name_target(self, name: str, row: int) -> None:
        """Tell of ``name``, which is one of several targets, the ``row``-th."""
        self.target, self.row = name, row

    def begin(self, phase: Phase, total: int | None) -> None:
        self.phase, self.total, self.done = phase, total, 0
        self.started = self._told = time.monotonic()
        self.tell("begin")

    def advance(self, size: int) -> None:
        self.done += size
        now = time.monotonic()
        if now - self._told >= self.interval:
            self._told = now
            self.tell("advance")

    def end(self) -> None:
        self.tell("end")
        DISPLAY.flush()

    @property
    def rate(self) -> float:
        """Bytes per second since the phase began."""
        return self.done / max(time.monotonic() - self.started, 1e-6)

    @abstractmethod
    def tell(self, event: str) -> None:
        """Show where the phase is; ``event`` is begin, advance or end."""


class _Bar(_Counter):
    """A line with a bar, rate and time left, drawn by the display as often as it likes."""

    interval = float("inf")

    def __init__(self) -> None:
        super().__init__()
        self._samples: deque[tuple[float, int]] = deque()

    def tell(self, event: str) -> None:
        if event == "begin":
            self._samples.clear()
            DISPLAY.add(self)
        elif event == "end":
            # Of one of several targets another line tells how it ended.
            DISPLAY.remove(self, leaves=self.target is None)

    def render(self, width: int) -> str:
        """The line, at most ``width`` columns of it."""
        now = time.monotonic()
        rate = self._recent_rate(now)
        speed = f"{format_size(int(rate))}/s"
        elapsed = tqdm_class().format_interval(now - self.started)
        if self.total is None:
            return f"{self._name(width)}: {format_size(self.done)} [{elapsed}, {speed}]"[:width]
        left = tqdm_class().format_interval((self.total - self.done) / rate) if rate else "?"
        part = self.done / self.total if self.total else 1
        start = f"{self._name(width)}: {int(part * 100):3d}%|"
        done, total = format_size(self.done), format_size(self.total)
        ends = (
            f"| {done} of {total} [{elapsed}<{left}, {speed}]",
            f"| {done}, {speed}, {left} left",
            f"| {speed}, {left} left",
            f"| {speed}",
            "|",
        )
        # Room is kept for the widest numbers, so that the line does not change its form.
        room = (
            width - _LEAST_BAR - len(start) - (len(total) - len(done)) - (_SPEED_WIDTH - len(speed))
        )
        end = next((each for each in ends if len(each) <= room), ends[-1])
        texts = (each.replace("{", "{{").replace("}", "}}") for each in (start, end))
        layout = "{bar}".join(texts)
        return tqdm_class().format_meter(part, 1, 0, ncols=width, bar_format=layout)[:width]

    def _name(self, width: int) -> str:
        if self.target is None:
            return self.phase.value
        name = printable(self.target)
        name = name if width >= _WIDE else PurePath(name).name
        return f"{name[-(width // 3) :]} {self.phase.value}"

    def _recent_rate(self, now: float) -> float:
        """Bytes per second of late: a card that stalls is seen to."""
        self._samples.append((now, self.done))
        while len(self._samples) > 2 and self._samples[1][0] < now - _RATE_WINDOW:  # noqa: PLR2004 - two make a rate
            self._samples.popleft()
        since, before = self._samples[0]
        return (self.done - before) / (now - since) if now > since else self.rate


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
        DISPLAY.say(printable(line))


class _Events(_Counter):
    """One JSON object a line; ``done`` and ``total`` in bytes, ``rate`` in bytes a second."""

    interval = _EVENT_INTERVAL

    def tell(self, event: str) -> None:
        DISPLAY.say(json_line(self._event(event)))

    def finish(self, exit_status: int) -> None:
        """Tell that all work on the target has ended; with 0 it may be taken."""
        DISPLAY.say(json_line({**self._event("finished"), "exit_status": exit_status}))

    def _event(self, event: str) -> dict[str, object]:
        line: dict[str, object] = {
            "event": event,
            "phase": self.phase.value,
            "done": self.done,
            "total": self.total,
            "rate": round(self.rate),
        }
        return line if self.target is None else {**line, "target": self.target}
