"""The progress of long work, the request to stop it, and the reason for a delay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """A part of the work, with a total of its own."""

    WRITE = "write"
    VERIFY = "verify"
    READ = "read"
    BUILD = "build"


class Progress(Protocol):
    """Receives the progress of some work and shows it."""

    def begin(self, phase: Phase, total: int | None) -> None:
        """``phase`` starts; ``total`` is in bytes, ``None`` when unknown."""

    def advance(self, size: int) -> None:
        """``size`` more bytes are done: accepted by the medium, or read from it."""

    def end(self) -> None:
        """The phase has ended or failed."""


class _NoProgress:
    def begin(self, phase: Phase, total: int | None) -> None:
        pass

    def advance(self, size: int) -> None:
        pass

    def end(self) -> None:
        pass


NO_PROGRESS: Progress = _NoProgress()
"""Shows nothing."""


@contextmanager
def phase(progress: Progress, name: Phase, total: int | None) -> Iterator[None]:
    """Begin the phase ``name``, and end it when the block ends or fails."""
    progress.begin(name, total)
    try:
        yield
    finally:
        progress.end()


Stop = Callable[[], bool]
"""Called between two chunks; True if the user wants to stop."""


_listeners: list[Callable[[str], None]] = []


def listen_for_delays(listener: Callable[[str], None]) -> None:
    """Replace the function that receives the reasons for delays; any thread may call it."""
    _listeners[:] = [listener]


def report_delay(reason: str) -> None:
    """Report the reason for a delay, one sentence."""
    for listener in _listeners:
        listener(reason)
