"""Signals: the first stops work at the next block, the second at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from balenaflash.cli.output import write_error
from balenaflash.cli.progress import DISPLAY
from balenaflash.cli.session import Session

_STOPPING = "Interrupted: finishing the block; once more to leave now."


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_TOGETHER = 0.05
"""Seconds in which signals count as one: a supervisor may signal a process and its group."""


@contextmanager
def interruptible(session: Session) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, and note which it was.

    A second signal while the first is handled ends the process at once.
    """
    first: float | None = None

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            session.signal = number
            first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - first > _TOGETHER:
            die_by(number)

    with _handlers(interrupt):
        yield


def unblock_signals() -> None:
    """Unblock signals, pending ones included.

    Raises:
        KeyboardInterrupt: one was pending, within `interruptible`.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def die_by(number: int) -> None:
    """End this process by the signal ``number``, as its parent expects after that signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class StopRequest:
    """The user's request to stop, polled between two blocks."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        """True if work is to stop."""
        return self.requested


@contextmanager
def stop_at_next_block(session: Session) -> Iterator[StopRequest]:
    """In the block, the first signal only sets the request; the second one interrupts.

    Interrupting a write inside a system call gains nothing: the kernel finishes it all the same,
    and the amount written would be unknown.
    """
    stop = StopRequest()
    first = 0.0

    def request(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        session.signal = number
        if stop.requested:
            if time.monotonic() - first > _TOGETHER:
                raise KeyboardInterrupt
            return
        stop.requested = True
        first = time.monotonic()
        if DISPLAY.is_active:
            DISPLAY.say(_STOPPING)
        else:
            # Not print(): the signal may arrive in the middle of a print.
            write_error(f"\n{_STOPPING}\n".encode())

    with _handlers(request):
        yield stop


@contextmanager
def _handlers(handler: object) -> Iterator[None]:
    # A signal that the parent set to be ignored (nohup) stays ignored.
    active = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in active}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
