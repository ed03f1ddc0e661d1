"""Progress on stderr, as bars, lines or events.

A separate thread writes all of it, so that a terminal or pipe that blocks does not delay a write
to a target.
"""

import functools
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePath
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, ClassVar, Never, Protocol

import click

from balenaflash.cli.output import json_line, printable, say
from balenaflash.cli.session import ProgressStyle, Session
from balenaflash.progress import NO_PROGRESS, Phase, Progress
from balenaflash.units import format_size

_INTERVAL = 0.1
"""Seconds between two drawings of the bars."""

_PATIENCE = 1.0
"""Seconds that work waits for its messages to be written."""

_SIZE = (80, 24)
"""Columns and lines if the terminal does not report its size."""

_ERASE_BELOW = "\x1b[J"
_UP = "\x1b[{}A"

if TYPE_CHECKING:
    from tqdm import tqdm


class Bar(Protocol):
    """A line that changes."""

    row: int
    """Its place among the bars."""

    def render(self, width: int) -> str:
        """The current line, at most ``width`` columns wide."""


def is_terminal() -> bool:
    """True if stderr is a terminal on which lines can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class LiveDisplay:
    """Bars and lines on stderr. Any thread may call it, and so may a signal handler `say`."""

    def __init__(self) -> None:
        # Reentrant: a signal handler may call put() while the same thread is in put().
        self._lines: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._bars: tuple[Bar, ...] = ()
        self._changing = threading.Lock()
        self._drawn: list[str] = []
        """The bars on the terminal, the cursor at the end of the last."""

        self._thread: threading.Thread | None = None

    @property
    def is_active(self) -> bool:
        """True if bars are on the terminal, which other text would break."""
        return bool(self._bars)

    def say(self, line: str) -> None:
        """Show a line, above the bars if there are any."""
        self._lines.put(line)
        self._start()

    def add(self, bar: Bar) -> None:
        """Show a bar until it is removed."""
        with self._changing:
            self._bars = tuple(sorted((*self._bars, bar), key=lambda each: each.row))
        self._lines.put(threading.Event())  # wakes the thread, which waits while no bar is shown
        self._start()

    def remove(self, bar: Bar, *, leaves: bool) -> None:
        """Remove a bar; with ``leaves`` its last state stays as a line."""
        if leaves:
            self._lines.put(bar.render(_columns()))
        with self._changing:
            self._bars = tuple(each for each in self._bars if each is not bar)

    def flush(self) -> None:
        """Return when all messages are written, or soon if stderr blocks."""
        written = threading.Event()
        self._lines.put(written)
        self._start()
        written.wait(_PATIENCE)

    def _start(self) -> None:
        if self._thread is not None:
            return  # without the lock, which the code that a signal interrupted may hold
        with self._changing:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="display", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            items: list[str | threading.Event] = []
            # Without bars it waits for the next line.
            with suppress(Empty):
                items.append(self._lines.get(timeout=_INTERVAL if self._bars else None))
                while True:
                    items.append(self._lines.get_nowait())
            self._draw([each for each in items if isinstance(each, str)])
            for each in items:
                if isinstance(each, threading.Event):
                    each.set()

    def _draw(self, lines: list[str]) -> None:
        bars = self._bars
        if not (lines or bars or self._drawn):
            return
        columns = _columns()
        erased = self._erasing(columns)
        self._drawn = [each.render(columns) for each in bars[: max(_terminal_size()[1] - 1, 1)]]
        said = "".join(f"{line}\n" for line in lines)
        click.echo(f"{erased}{said}" + "\n".join(self._drawn), err=True, nl=False)

    def _erasing(self, columns: int) -> str:
        """The control sequence that erases the bars, also on a terminal that became narrower."""
        if not self._drawn:
            return ""
        rows = sum(max(1, -(-len(line) // (columns + 1))) for line in self._drawn)
        up = _UP.format(rows - 1) if rows > 1 else ""
        return f"\r{up}{_ERASE_BELOW}"


def _columns() -> int:
    """Columns for a line: one fewer than the terminal has, which may wrap at the last."""
    return max(_terminal_size()[0] - 1, 1)


def _terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # not a terminal
        return _SIZE
    # A serial console reports 0 columns and lines.
    return (size.columns or _SIZE[0], size.lines or _SIZE[1])


DISPLAY = LiveDisplay()
"""The one display of this process, which has one stderr."""


_EVENT_INTERVAL = 0.25
"""Seconds between two JSON events, at least."""

_LINE_INTERVAL = 10.0
"""Seconds between two lines in a log, at least."""

_RATE_WINDOW = 5.0
"""Seconds over which the rate of a bar is measured."""

_LEAST_BAR = 6
"""Minimum columns of a bar; on a narrow terminal less is shown beside it."""

_SPEED_WIDTH = len("1000.0 MiB/s")

_WIDE = 60
"""Minimum columns for showing the whole path of a target."""


def progress_for(session: Session) -> Progress:
    """The progress display that the user asked for."""
    return _shown(session) or NO_PROGRESS


class TargetsDisplay:
    """Progress and end of each of several targets; a single one is shown as by `progress_for`."""

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
        """The progress of each target, in order."""
        return [each or NO_PROGRESS for each in self._shown]

    def finish(self, number: int, exit_status: int, text: str) -> None:
        """Show the outcome of one of several targets at once; the others may take long."""
        if len(self._names) == 1:
            return
        shown = self._shown[number]
        if isinstance(shown, _Events):
            shown.finish(exit_status)
        elif not self._is_quiet:
            DISPLAY.say(printable(f"{self._names[number]}: {text}"))
        DISPLAY.flush()  # before any other message


def show_waiting(session: Session, text: str) -> None:
    """Show the reason for a delay."""
    if not session.quiet:
        show_line(f"balenaflash: {printable(text)}")


def show_line(line: str) -> None:
    """Show ``line`` on stderr, above any bars."""
    if DISPLAY.is_active:
        DISPLAY.say(printable(line))
    else:
        say(line)


@functools.cache
def tqdm_class() -> "type[tqdm[Never]]":
    """The class that draws bars; it takes as long to load as half of an ``inspect``."""
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
    """Counts bytes, and lets a subclass show them at most every ``interval`` seconds."""

    interval: ClassVar[float]

    def __init__(self) -> None:
        self.phase = Phase.WRITE
        self.total: int | None = None
        self.done = 0
        self.started = self._told = 0.0
        self.target: str | None = None
        self.row = 0

    def name_target(self, name: str, row: int) -> None:
        """Show the progress of ``name``, the ``row``-th of several targets."""
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
        """Show the state of the phase; ``event`` is begin, advance or end."""


class _Bar(_Counter):
    """A line with a bar, rate and time left, which the display redraws."""

    interval = float("inf")

    def __init__(self) -> None:
        super().__init__()
        self._samples: deque[tuple[float, int]] = deque()

    def tell(self, event: str) -> None:
        if event == "begin":
            self._samples.clear()
            DISPLAY.add(self)
        elif event == "end":
            # For several targets another line shows the outcome.
            DISPLAY.remove(self, leaves=self.target is None)

    def render(self, width: int) -> str:
        """The line, at most ``width`` columns wide."""
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
        # Room for the widest numbers keeps the line from changing its form.
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
        """Bytes per second in the last seconds, which shows that a card stalls."""
        self._samples.append((now, self.done))
        while len(self._samples) > 2 and self._samples[1][0] < now - _RATE_WINDOW:  # noqa: PLR2004 - two make a rate
            self._samples.popleft()
        since, before = self._samples[0]
        return (self.done - before) / (now - since) if now > since else self.rate


class _Lines(_Counter):
    """A line at the start and end of a phase and occasionally between; no carriage returns."""

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
        """Report the end of all work on the target; with status 0 it may be removed."""
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
