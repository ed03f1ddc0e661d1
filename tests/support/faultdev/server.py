"""The process behind a fault device: mounts one file and answers the kernel for it.

It is a process of its own, because a thread of the test would stop with the test: whoever waits
for a write that nobody answers cannot be killed. It ends when its control connection is closed,
hence also when the test run dies.
"""

import argparse
import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from faultdev import protocol
from faultdev.medium import Medium
from faultdev.protocol import Opcode, Request

if TYPE_CHECKING:
    from faultdev.behaviour import Behaviour

_THREADS = 4
_MNT_DETACH = 2  # umount2(2), linux/fs.h
_MS_NOSUID = 2  # mount(2), linux/mount.h
_MS_NODEV = 4
_PR_SET_IO_FLUSHER = 57  # prctl(2): the kernel must not wait for this disk to free memory for it
_LIBC = ctypes.CDLL(None, use_errno=True)


class Server:
    """Answers requests for one mounted file."""

    def __init__(self, medium: Medium, channel: int) -> None:
        self._medium = medium
        self._channel = channel

    def serve(self) -> None:
        """Answer until the file is unmounted. Run in several threads."""
        buffer = memoryview(bytearray(protocol.BUFFER_SIZE))
        while True:
            try:
                length = os.readv(self._channel, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:  # request withdrawn
                    continue
                raise
            self._answer(protocol.parse_request(buffer[:length]))

    def _answer(self, request: Request) -> None:
        if request.opcode in protocol.WITHOUT_ANSWER:
            return
        code = errno.EIO
        answer: bytes | bytearray = b""
        try:
            answer = self._handle(request)
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            # After a bug too: who asks without an answer can never be killed.
            self._send(request.unique, answer, code)

    def _send(self, unique: int, answer: bytes | bytearray, code: int) -> None:
        header = protocol.answer_header(unique, length=len(answer), errno=code)
        try:
            os.writev(self._channel, [header, answer])
        except OSError as error:
            # The one who asked was killed, or the file unmounted.
            if error.errno not in {errno.ENOENT, errno.ENODEV}:
                raise

    def _handle(self, request: Request) -> bytes | bytearray:
        match request.opcode:
            case Opcode.READ:
                wanted = protocol.parse_transfer(request.body)
                return self._medium.read(wanted.offset, wanted.length)
            case Opcode.WRITE:
                return self._write(request)
            case Opcode.FSYNC:
                self._medium.flush()
                return b""
            case Opcode.FALLOCATE:
                place = protocol.parse_fallocate(request.body)
                self._medium.zero(place.offset, place.length)
                return b""
            case _:
                return self._describe(request)

    def _write(self, request: Request) -> bytes:
        place = protocol.parse_transfer(request.body)
        data = bytearray(protocol.written_data(request.body, place.length))
        return protocol.write_answer(self._medium.write(place.offset, data))

    def _describe(self, request: Request) -> bytes:
        match request.opcode:
            case Opcode.INIT:
                return protocol.init_answer(request.body)
            case Opcode.GETATTR | Opcode.SETATTR:
                return protocol.attributes(self._medium.size)
            case Opcode.OPEN:
                return protocol.open_answer()
            case Opcode.STATFS:
                return protocol.statfs_answer()
            case Opcode.RELEASE | Opcode.FLUSH | Opcode.DESTROY:
                return b""
            case _:
                raise OSError(errno.ENOSYS, "not a request for a disk")


def mount(point: Path) -> int:
    """Mount a file over the regular file ``point``; gives the channel to the kernel."""
    channel = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    kind = "rootmode=100000,user_id=0,group_id=0"  # a regular file as root of the filesystem
    options = f"fd={channel},{kind},max_read={protocol.MAX_WRITE}".encode()
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    if _LIBC.mount(b"faultdev", bytes(point), b"fuse.faultdev", flags, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(point))
    return channel


def unmount(point: Path) -> None:
    """Take the file out of sight at once; it ends when its last user has gone."""
    _LIBC.umount2(bytes(point), _MNT_DETACH)


def obey(control: Connection, medium: Medium) -> None:
    """Take orders until the other end is closed: a `Behaviour` is set, and stats are sent."""
    with contextlib.suppress(EOFError):
        while True:
            order: Behaviour | None = control.recv()
            if order is not None:
                medium.set(order)
                control.send(None)
            else:
                control.send(medium.stats)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("control", type=int, help="descriptor of the control connection")
    parser.add_argument("point", type=Path, help="regular file to mount over")
    parser.add_argument("backing", type=Path)
    parser.add_argument("size", type=int)
    options = parser.parse_args(arguments)
    _LIBC.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    backing = os.open(options.backing, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(backing, options.size)
    medium = Medium(backing, options.size)
    server = Server(medium, mount(options.point))
    for _ in range(_THREADS):
        threading.Thread(target=server.serve, daemon=True).start()
    with Connection(options.control) as control:
        control.send(None)  # ready
        obey(control, medium)
    unmount(options.point)


if __name__ == "__main__":
    main()
