"""What moves on a terminal while work goes on: bars at its foot, and lines that pass above them.

A thread of its own writes all of it, so that a terminal or pipe that stands still holds up no
write to a target.
"""

import os
import sys
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

import click

_INTERVAL = 0.1
"""Seconds between two drawings of the bars."""

_PATIENCE = 1.0
"""Seconds that work waits for what it said to be written."""

_SIZE = (80, 24)
"""Columns and lines where the terminal does not tell."""

_ERASE_BELOW = "\x1b[J"
_UP = "\x1b[{}A"


class Bar(Protocol):
    """A line that changes."""

    row: int
    """Its place among the bars."""

    def render(self, width: int) -> str:
        """The line as it is now, of at most ``width`` columns."""


def is_terminal() -> bool:
    """Whether stderr is a terminal on which a line can be drawn anew."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class LiveDisplay:
    """Bars and lines on stderr. Any thread may call it, and so may a signal handler `say`."""

    def __init__(self) -> None:
        # Its put() may be interrupted by another one of the same thread: a signal handler's.
        self._lines: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._bars: tuple[Bar, ...] = ()
        self._changing = threading.Lock()
        self._drawn: list[str] = []
        """The bars as they stand on the terminal, the cursor at the end of the last."""

        self._thread: threading.Thread | None = None

    @property
    def is_active(self) -> bool:
        """Whether bars stand on the terminal, so that other text would spoil them."""
        return bool(self._bars)

    def say(self, line: str) -> None:
        """Show a line, above the bars if there are any."""
        self._lines.put(line)
        self._start()

    def add(self, bar: Bar) -> None:
        """Show a bar until it is removed."""
        with self._changing:
            self._bars = tuple(sorted((*self._bars, bar), key=lambda each: each.row))
        self._lines.put(threading.Event())  # awakes the thread, which waits while there is no bar
        self._start()

    def remove(self, bar: Bar, *, leaves: bool) -> None:
        """Show a bar no more; with ``leaves`` its last state stays as a line."""
        if leaves:
            self._lines.put(bar.render(_columns()))
        with self._changing:
            self._bars = tuple(each for each in self._bars if each is not bar)

    def flush(self) -> None:
        """Return when all that was said is written, or soon if stderr stands still."""
        written = threading.Event()
        self._lines.put(written)
        self._start()
        written.wait(_PATIENCE)

    def _start(self) -> None:
        if self._thread is not None:
            return  # without the lock, which what a signal handler interrupts may hold
        with self._changing:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="display", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            items: list[str | threading.Event] = []
            # Where nothing moves, it waits for the next line.
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
        self._drawn = [each.render(columns) for each in bars[: _rows()]]
        said = "".join(f"{line}\n" for line in lines)
        click.echo(f"{erased}{said}" + "\n".join(self._drawn), err=True, nl=False)

    def _erasing(self, columns: int) -> str:
        """What takes the bars off the terminal, which may have become narrower since."""
        if not self._drawn:
            return ""
        rows = sum(max(1, -(-len(line) // (columns + 1))) for line in self._drawn)
        up = _UP.format(rows - 1) if rows > 1 else ""
        return f"\r{up}{_ERASE_BELOW}"


def _columns() -> int:
    """Columns for a line: one fewer than there are, since in the last a terminal may wrap."""
    return max(_terminal_size()[0] - 1, 1)


def _rows() -> int:
    return max(_terminal_size()[1] - 1, 1)


def _terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # not a terminal
        return _SIZE
    # A serial console says that it has no columns and lines.
    return (size.columns or _SIZE[0], size.lines or _SIZE[1])


DISPLAY = LiveDisplay()
"""Of this process: there is one stderr."""
