"""What can be written and then read back, whatever it is."""

from enum import Enum, auto
from typing import Protocol

from balenaflash.rereading import Rereads


class Begun(Enum):
    """How far writing an image had come when it ended early."""

    NOTHING = auto()
    """Nothing was written."""

    FIRST_WRITE = auto()
    """The first write, which zeroes the start, failed."""

    START_ZEROED = auto()
    PART = auto()
    """Some of the image was written; the start is zeroed."""


class Medium(Protocol):
    """A target that is open.

    Offsets are in bytes from its start. Offsets and lengths are multiples of
    ``alignment``, and the memory of buffers starts at a page (``mmap`` gives such memory).
    The last chunk of an image that does not fill a sector is padded with zeros by the
    caller: a device cannot be written in smaller units.
    """

    @property
    def name(self) -> str:
        """What to call it in messages: the node, or the path as the user gave it."""

    @property
    def size(self) -> int:
        """Bytes from start to end, as they were at opening."""

    @property
    def capacity(self) -> int:
        """Bytes that it can hold: its size; of a file, which grows, what there is room for."""

    @property
    def alignment(self) -> int:
        """The unit of reading and writing in bytes: the logical sector; 1 of a file."""

    @property
    def was_emptied(self) -> bool:
        """Whether what it held before was dropped when it was opened."""

    @property
    def rereads(self) -> Rereads:
        """Reads that had to be repeated."""

    def describe_unfinished(self, begun: Begun) -> str:
        """What it holds when writing ends early, as the end of a sentence."""

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer`` at ``offset``.

        Raises:
            WriteError: with code ``write-failed``. What lies in the range is undefined.
        """

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, if the medium can be told so without sending them.

        Raises:
            WriteError: as ``write``.
        """

    def flush(self) -> None:
        """Return when everything written is on the medium, not in a cache of any kind.

        Raises:
            WriteError: with code ``write-failed``. Anything written since the flush before
                may be lost; flushing again fails too, since the kernel tells it only once.
        """

    def begin_read_back(self) -> None:
        """Flush, and from here on read what the medium holds, not what the kernel remembers.

        Raises:
            WriteError: as ``flush``.
        """

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on.

        Raises:
            WriteError: with code ``read-back-failed``: the same read failed twice, or it ends
                before.
        """
