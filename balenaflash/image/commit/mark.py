"""The mark of an edit under way, in the volume itself, where an undo record may be lost.

It lies in the state byte of a FAT boot sector (linux/msdos_fs.h, ``state``; offset 37, in FAT32
65). Bit 0 there means "not unmounted": Linux warns of it when it mounts the volume, fsck.vfat
finds it. The upper four bits are zero everywhere else; ours tell an edit that was cut off apart
from a card that was pulled. Linux and fsck.vfat leave them as they are.
"""

from dataclasses import dataclass

from balenaflash.image.commit.store import ReadBackDiffersError, Store

_NOT_UNMOUNTED = 0x01
_EDIT = 0xB0
_OTHERS = 0x0E  # bits that stay as they are: 0x02 asks for a surface scan


def is_edit_marked(state: int) -> bool:
    """Whether the state byte tells of an edit under way.

    A program that clears "not unmounted", such as fsck.vfat, has accepted the volume as it is.
    """
    return state & ~_OTHERS == _EDIT | _NOT_UNMOUNTED


@dataclass(frozen=True, slots=True)
class EditMark:
    """Where an edit is marked, and what is there otherwise."""

    offset: int
    """Offset of the byte, in bytes from the start of the image."""

    before: int
    """Value of the byte before the edit."""

    after: int
    """Value of the byte after the edit."""

    @property
    def marked(self) -> int:
        """Value of the byte during the edit."""
        return self.before & _OTHERS | _EDIT | _NOT_UNMOUNTED


class MarkedStore:
    """A store seen as if the mark were not there: its byte reads as before the edit, and stays."""

    def __init__(self, store: Store, mark: EditMark | None) -> None:
        self._store = store
        self._mark = mark

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._store.size

    @property
    def is_marked(self) -> bool:
        """Whether the edit has begun and has not ended; true where it is not marked at all."""
        return self._mark is None or self._state() == self._mark.marked

    @property
    def alignment(self) -> int:
        """As `Store.alignment`."""
        return self._store.alignment

    def begin(self) -> None:
        """Set the mark, on the medium too, before the first byte of the edit is written.

        Raises:
            StoreFailedError: it may be there or not.
            ReadBackDiffersError: it is not what was written.
        """
        if self._mark is not None:
            self._put(self._mark.offset, self._mark.marked)

    def end(self, *, undone: bool) -> None:
        """Remove the mark, after the last byte was flushed; errors as `begin`."""
        if self._mark is None:
            return
        value = self._mark.before if undone else self._mark.after
        if self._state() != value:
            self._put(self._mark.offset, value)

    def read(self, offset: int, length: int) -> bytes:
        """As `Store.read`."""
        return self._hidden(offset, self._store.read(offset, length))

    def read_back(self, offset: int, length: int) -> bytes:
        """As `Store.read_back`."""
        return self._hidden(offset, self._store.read_back(offset, length))

    def write(self, offset: int, content: memoryview) -> None:
        """As `Store.write`; the mark stays."""
        place = self._place(offset, len(content))
        if place is not None and self._mark is not None:
            marked = bytearray(content)
            marked[place] = self._mark.marked
            content = memoryview(marked)
        self._store.write(offset, content)

    def flush(self) -> None:
        """As `Store.flush`."""
        self._store.flush()

    def _hidden(self, offset: int, content: bytes) -> bytes:
        place = self._place(offset, len(content))
        if place is None or self._mark is None:
            return content
        known = {self._mark.after, self._mark.marked}
        if content[place] not in known:
            return content
        return content[:place] + bytes([self._mark.before]) + content[place + 1 :]

    def _place(self, offset: int, length: int) -> int | None:
        """Index of the byte in ``[offset, offset + length)``, if it is there."""
        if self._mark is None or not offset <= self._mark.offset < offset + length:
            return None
        return self._mark.offset - offset

    def _state(self) -> int:
        byte = b"" if self._mark is None else self._store.read(self._mark.offset, 1)
        return byte[0] if byte else -1

    def _put(self, offset: int, value: int) -> None:
        unit = self._store.alignment
        start = offset - offset % unit
        sector = bytearray(self._store.read(start, unit))
        sector[offset - start] = value
        self._store.write(start, memoryview(sector))
        self._store.flush()
        if self._store.read_back(start, unit) != sector:
            raise ReadBackDiffersError(start)
