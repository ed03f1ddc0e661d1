"""The bytes of a medium, and the faults applied on the way to them and back."""

import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from faultdev.behaviour import END, Behaviour, Beyond, Fault, Kind, Operation, Stats

_FALLOC_FL_KEEP_SIZE = 1  # fallocate(2), linux/falloc.h; os.posix_fallocate takes no mode
_FALLOC_FL_PUNCH_HOLE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)
_BURST = 1 << 20  # bytes that an idle medium takes at once, as a card's own buffer does


class Medium:
    """A backing file that behaves as told. Safe to use from several threads.

    Every method that fails raises OSError with the errno the kernel shall see.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._lock = threading.Lock()
        self._idle_at = 0.0
        self._stats = Stats()
        self._cache: list[tuple[int, bytes]] = []
        """What was stored where before each write since the last flush, if that may be lost."""

        self._set(Behaviour())

    @property
    def size(self) -> int:
        """Bytes the medium claims to have; zero once it has gone."""
        return 0 if self._behaviour.gone else self._size

    @property
    def stats(self) -> Stats:
        """What happened since the behaviour was last set."""
        with self._lock:
            return self._stats

    def set(self, behaviour: Behaviour) -> None:
        """Behave differently from the next request on, and count from zero."""
        with self._lock:
            self._lose_cache()
            self._set(behaviour)

    def write(self, offset: int, data: bytearray) -> int:
        """Store ``data``, or not, and give the number of bytes acknowledged.

        ``data`` belongs to the medium from here on.
        """
        self._pay(len(data), self._behaviour.write_bps)
        present = self._admit(len(data))
        for fault in self._hits(Operation.WRITE, offset, len(data)):
            match fault.kind:
                case Kind.ERROR:
                    raise OSError(fault.errno, "write fault")
                case Kind.DROP:
                    self._keep_old(fault, offset, data)
                case Kind.FLIP:
                    data[fault.start - offset] ^= fault.mask
        self._store(offset, memoryview(data)[:present])
        self._add(writes=1, bytes_written=present, unflushed=present)
        self._lose_cache_in_time()
        if present < len(data):
            raise OSError(errno.ENODEV, "the medium vanished")
        return len(data)

    def read(self, offset: int, length: int) -> bytearray:
        """The bytes stored from ``offset`` on, fewer at the end of the medium."""
        self._pay(length, self._behaviour.read_bps)
        self._admit(0)
        data = bytearray(max(0, min(length, self._size - offset)))
        hits = self._hits(Operation.READ, offset, len(data))
        for fault in hits:
            if fault.kind is Kind.ERROR:
                raise OSError(fault.errno, "read fault")
        self._load(offset, memoryview(data))
        for fault in hits:
            data[fault.start - offset] ^= fault.mask
        self._add(reads=1, bytes_read=len(data))
        return data

    def flush(self) -> None:
        """Make sure of everything acknowledged so far; memory needs no more than counting."""
        self._pay(0, None)
        self._admit(0)
        for fault in self._hits(Operation.FLUSH, 0, 1)[:1]:
            raise OSError(fault.errno, "flush fault")
        with self._lock:
            self._cache.clear()
            self._stats = replace(self._stats, flushes=self._stats.flushes + 1, unflushed=0)

    def zero(self, offset: int, length: int) -> None:
        """Let ``[offset, offset + length)`` read as zeros, as after a discard."""
        self._admit(0)
        for start, size in self._places(offset, length):
            if start is not None:
                self._remember(start, size)
                self._punch_hole(start, size)
        self._add(discards=1)

    def _set(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._left = [END if fault.count is None else fault.count for fault in behaviour.faults]
        self._stats = Stats()
        self._admitted = 0

    def _admit(self, length: int) -> int:
        """How many of ``length`` bytes come before the medium vanishes.

        Raises:
            OSError: it has vanished (ENODEV).
        """
        with self._lock:
            limit = 0 if self._behaviour.gone else self._behaviour.vanish_after
            if limit is None:
                return length
            if self._admitted >= limit:
                raise OSError(errno.ENODEV, "the medium has vanished")
            admitted = min(length, limit - self._admitted)
            self._admitted += admitted
            return admitted

    def _hits(self, operation: Operation, offset: int, length: int) -> list[Fault]:
        with self._lock:
            hit = []
            for index, fault in enumerate(self._behaviour.faults):
                touched = max(offset, fault.start) < min(offset + length, fault.end)
                if fault.operation is operation and touched and self._left[index]:
                    self._left[index] -= 1
                    hit.append(fault)
            if hit:
                self._stats = replace(self._stats, injected=self._stats.injected + 1)
        return hit

    def _add(self, **counts: int) -> None:
        with self._lock:
            sums = {name: getattr(self._stats, name) + count for name, count in counts.items()}
            self._stats = replace(self._stats, **sums)

    def _pay(self, length: int, bps: float | None) -> None:
        """Wait as long as the medium needs: one after the other, whoever asks."""
        cost = self._behaviour.op_ms / 1000 + (length / bps if bps else 0)
        if not cost:
            return
        # Without some credit a writer would be punished for the gaps between its own requests.
        credit = _BURST / bps if bps else 0
        with self._lock:
            now = time.monotonic()
            self._idle_at = max(self._idle_at, now - credit) + cost
            pause = self._idle_at - now
        if pause > 0:
            time.sleep(pause)

    def _places(self, offset: int, length: int) -> Iterator[tuple[int | None, int]]:
        """Where a range really lies: offset in the backing file, or nowhere, and length."""
        real = self._behaviour.real_size or self._size
        wrap = self._behaviour.beyond is Beyond.WRAP
        end = offset + length
        while offset < end:
            start = offset % real if wrap else offset
            size = min(end - offset, real - start) if start < real else end - offset
            yield (start if start < real else None), size
            offset += size

    def _store(self, offset: int, data: memoryview) -> None:
        done = 0
        for start, size in self._places(offset, len(data)):
            if start is not None:
                self._remember(start, size)
                os.pwrite(self._descriptor, data[done : done + size], start)
            done += size

    def _remember(self, start: int, size: int) -> None:
        """Keep what is about to be overwritten, if the write may be lost."""
        if self._behaviour.volatile:
            with self._lock:
                self._cache.append((start, os.pread(self._descriptor, size, start)))

    def _lose_cache(self) -> None:
        while self._cache:
            start, before = self._cache.pop()
            os.pwrite(self._descriptor, before, start)

    def _lose_cache_in_time(self) -> None:
        with self._lock:
            limit = self._behaviour.cache_lost_after
            if limit is not None and self._stats.bytes_written >= limit:
                self._lose_cache()
                self._behaviour = replace(self._behaviour, cache_lost_after=None)

    def _keep_old(self, fault: Fault, offset: int, data: bytearray) -> None:
        """Put what is stored already where ``data`` is not to be stored."""
        start, end = max(offset, fault.start), min(offset + len(data), fault.end)
        self._load(start, memoryview(data)[start - offset : end - offset])

    def _load(self, offset: int, buffer: memoryview) -> None:
        done = 0
        for start, size in self._places(offset, len(buffer)):
            if start is not None:
                os.preadv(self._descriptor, [buffer[done : done + size]], start)
            done += size

    def _punch_hole(self, start: int, size: int) -> None:
        mode = ctypes.c_int(_FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE)
        place = (ctypes.c_int64(start), ctypes.c_int64(size))
        if _LIBC.fallocate(ctypes.c_int(self._descriptor), mode, *place):
            raise OSError(ctypes.get_errno(), "fallocate")
