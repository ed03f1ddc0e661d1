"""SHA-256 of what passes, computed by a thread beside."""

import hashlib
from queue import SimpleQueue
from threading import BoundedSemaphore, Thread

_WAITING = 8
"""Blocks that may wait to be hashed; the sender is held up by more."""


class RunningDigest:
    """SHA-256 over blocks in the order they are given."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._blocks: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = BoundedSemaphore(_WAITING)
        self._thread = Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def update(self, block: bytes) -> None:
        """Hash ``block`` after all before it; waits while too many are in line."""
        self._room.acquire()
        self._blocks.put(block)

    def hexdigest(self) -> str:
        """The digest of everything given, in lower-case hexadecimal; nothing can follow."""
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Hash what is in line and end the thread; a second call does nothing."""
        if self._thread.is_alive():
            self._blocks.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._hash.update(block)
            self._room.release()
