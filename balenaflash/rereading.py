"""Reads of a disk that are repeated once, and the word about them.

A loose contact or a reader that overheats fails now and then, and is right the next time. Only the
same failure twice in a row is one of the medium.
"""

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

_PASSING = frozenset(
    {
        errno.EIO,
        # A bad sector, a transfer whose checksum was wrong, a reader that lost its card for a
        # moment: block/blk-core.c of Linux, BLK_STS_MEDIUM, _PROTECTION, _TARGET.
        errno.ENODATA,
        errno.EILSEQ,
        errno.EREMOTEIO,
    }
)

_Read = TypeVar("_Read")


class Rereads:
    """How often a disk had to be read again."""

    def __init__(self) -> None:
        self.failed = 0
        """Reads that failed, and succeeded the second time."""

        self.differing = 0
        """Reads that gave something else the second time."""

        self._counting = threading.Lock()

    def read(self, read: Callable[[], _Read]) -> _Read:
        """What ``read`` gives; where it fails in a way that may pass, what it gives then.

        Raises:
            OSError: it failed twice, or in a way that does not pass.
        """
        try:
            return read()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        found = read()
        with self._counting:
            self.failed += 1
        return found

    def read_twice(self, read: Callable[[], bytes]) -> bytes | None:
        """What ``read`` gives twice in two or three attempts; ``None`` if it never does."""
        first, second = read(), read()
        if first == second:
            return first
        with self._counting:
            self.differing += 1
        third = read()
        return third if third in {first, second} else None

    def warnings(self, name: str) -> tuple[str, ...]:
        """A sentence for each kind that happened to the disk ``name``."""
        end = "the reader or the cable is not reliable"
        found = []
        if self.failed:
            found.append(f"{name}: {_times(self.failed)} failed first and succeeded then: {end}.")
        if self.differing:
            found.append(f"{name}: {_times(self.differing)} gave something else then: {end}.")
        return tuple(found)


def _times(count: int) -> str:
    return "1 read was repeated: it" if count == 1 else f"{count} reads were repeated: they"
