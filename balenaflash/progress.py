"""The progress of long work, the request to stop it, and the reason for a delay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """What is going on, each with a total of its own."""

    WRITE = "write"
    VERIFY = "verify"
    READ = "read"
    BUILD = "build"


class Progress(Protocol):
    """Told by the core, shown by somebody else."""

    def begin(self, phase: Phase, total: int | None) -> None:
        """``phase`` starts; ``total`` is in bytes, ``None`` when unknown."""

    def advance(self, size: int) -> None:
        """``size`` more bytes are done: accepted by the medium, or read from it."""

    def end(self) -> None:
        """The phase is over, well or not."""


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
    """Begin ``name``, and end it whatever happens in between."""
    progress.begin(name, total)
    try:
        yield
    finally:
        progress.end()


Stop = Callable[[], bool]
"""Asked between two chunks: whether the user wants to stop."""


_listeners: list[Callable[[str], None]] = []


def listen(listener: Callable[[str], None]) -> None:
    """Have ``listener`` told from now on, in place of whoever was; from any thread."""
    _listeners[:] = [listener]


def tell(text: str) -> None:
    """Tell ``text``, one sentence, to who listens."""
    for listener in _listeners:
        listener(text)
