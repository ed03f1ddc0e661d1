"""Signals: the first stops work at the next block, the second at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from balenaflash.cli.session import Session
from balenaflash.cli.standard_streams import write_error

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible(session: Session) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, and note which it was."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        session.signal = number
        raise KeyboardInterrupt

    with _handlers(interrupt):
        yield


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

    def request(number: int, _frame: FrameType | None) -> None:
        session.signal = number
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        # Not printed: the signal may arrive in the middle of a print.
        write_error(b"\nInterrupted: finishing the block; once more to leave now.\n")

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
