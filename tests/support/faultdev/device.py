"""The loop device over a medium with faults, as a test uses it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import loopdev

from faultdev.behaviour import Behaviour, Beyond, Fault, Stats

_MEMORY = Path("/dev/shm")  # noqa: S108 - a disk in memory, in a private folder there
_ATTRIBUTE_LIFE = 1.2
"""Seconds until the kernel asks the server again for what it knows of the medium, and more."""

_TESTS = Path(__file__).resolve().parents[1]


class MakeFaultDevice(Protocol):
    """The fixture ``fault_device``."""

    def __call__(self, *, size: int, sector_size: int = 512) -> "FaultDevice":
        """A healthy device of ``size`` bytes, gone when the test ends."""


class FaultDevice:
    """A block device of zeros that can be told to fail; use it as a context manager."""

    def __init__(self, size: int, *, sector_size: int = 512) -> None:
        self.size = size
        self._folder = Path(
            tempfile.mkdtemp(prefix="faultdev-", dir=_MEMORY if _MEMORY.is_dir() else None)
        )
        self.medium = self._folder / "medium"
        """The file below the loop device."""
        self._backing = self._folder / "backing"
        self.medium.touch()
        self._start_server()
        try:
            self.node = loopdev.attach(self.medium, sector_size=sector_size, direct_io=True)
        except BaseException:
            self._stop_server()
            raise
        # Attaching flushes, which is not to be counted.
        self.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Detach and clean up; fails when somebody still has the device open."""
        # A slow or failing medium would hold up what is still to be written back.
        self.set()
        try:
            loopdev.detach(self.node, self.medium)
        finally:
            self._stop_server()

    def set(
        self,
        *,
        faults: Sequence[Fault] = (),
        real_size: int | None = None,
        beyond: Beyond = Beyond.DISCARD,
        vanish_after: int | None = None,
        volatile: bool = False,
        cache_lost_after: int | None = None,
        write_bps: float | None = None,
        read_bps: float | None = None,
        op_ms: float = 0.0,
    ) -> None:
        """Behave so from now on, in place of all that was set before; stats start at zero.

        The keywords are those of `Behaviour`; without any the medium is healthy.
        """
        self._order(
            Behaviour(
                faults=tuple(faults),
                real_size=real_size,
                beyond=beyond,
                vanish_after=vanish_after,
                volatile=volatile,
                cache_lost_after=cache_lost_after,
                write_bps=write_bps,
                read_bps=read_bps,
                op_ms=op_ms,
            )
        )

    def vanish(self) -> None:
        """Be pulled out: every request fails, and the size of the device is zero."""
        self._order(Behaviour(gone=True))
        self.medium.stat()  # lets the kernel learn the new size
        subprocess.run(["losetup", "--set-capacity", self.node], check=True)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Within the block no request is answered, as by a server that is down.

        Whoever looks at the medium waits until then, and cannot be killed.
        """
        self._server.send_signal(signal.SIGSTOP)
        time.sleep(_ATTRIBUTE_LIFE)
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def stats(self) -> Stats:
        """What reached the medium since `set` was last called."""
        self._control.send(None)
        answer: Stats = self._control.recv()
        return answer

    def raw(self, offset: int, length: int) -> bytes:
        """What the medium holds at ``[offset, offset + length)``, past every cache and fault."""
        descriptor = os.open(self._backing, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def fill(self, data: bytes, offset: int = 0) -> None:
        """Put ``data`` on the medium, as an earlier owner would have left it."""
        descriptor = os.open(self._backing, os.O_WRONLY)
        try:
            os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)

    def _order(self, behaviour: Behaviour) -> None:
        self._control.send(behaviour)
        self._control.recv()

    def _start_server(self) -> None:
        ours, theirs = socket.socketpair()
        self._control = Connection(ours.detach())
        # Neither site-packages nor coverage: a server of plain Python starts in 40 ms.
        command = [sys.executable, "-S", "-m", "faultdev.server", str(theirs.fileno())]
        command += [str(self.medium), str(self._backing), str(self.size)]
        with theirs:
            self._server = subprocess.Popen(command, cwd=_TESTS, pass_fds=[theirs.fileno()])
        self._control.recv()

    def _stop_server(self) -> None:
        self._control.close()
        self._server.wait(timeout=10)
        shutil.rmtree(self._folder)
