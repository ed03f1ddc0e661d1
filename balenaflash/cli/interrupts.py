"""Signals: the first stops work at the next block, the second at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from balenaflash.cli.live_display import DISPLAY
from balenaflash.cli.session import Session
from balenaflash.cli.standard_streams import write_error

_STOPPING = "Interrupted: finishing the block; once more to leave now."
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_TOGETHER = 0.05
"""Seconds within which signals are one: a supervisor may send two, to a process and its group."""


@contextmanager
def interruptible(session: Session) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, and note which it was.

    One more, while the first is being answered, ends the process at once.
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
    """Let signals through that were kept waiting, and those to come.

    Raises:
        KeyboardInterrupt: one was waiting, within `interruptible`.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def die_by(number: int) -> None:
    """End this process by the signal ``number``, as a parent expects of one that it stops."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class StopRequest:
    """Whether the user has asked to stop; asked by the core between two blocks."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        """Whether to stop now."""
        return self.requested


@contextmanager
def stop_at_next_block(session: Session) -> Iterator[StopRequest]:
    """Within the block the first signal only sets the request; the second one interrupts.

    A write that is cut off inside a request to the kernel gains nothing: the kernel finishes
    it all the same, and what was written would not be known.
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
            # Not printed: the signal may arrive in the middle of a print.
            write_error(f"\n{_STOPPING}\n".encode())

    with _handlers(request):
        yield stop


@contextmanager
def _handlers(handler: object) -> Iterator[None]:
    # A parent may have set a signal to be ignored (nohup): that stays so.
    active = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in active}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
