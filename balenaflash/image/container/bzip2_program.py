"""bzip2 decoded by lbzip2, where that is installed: its decoder is faster than libbz2's.

It checks every CRC and says by its exit status whether all was right; only what does not follow a
stream at once, be it another stream, it leaves out without a word. So that is looked at here.
"""

import os
import shutil
import subprocess
import threading
from collections import deque
from typing import IO

from balenaflash.errors import ImageError
from balenaflash.extent import MIB
from balenaflash.image.container.bzip2_blocks import END_MAGIC, MAGIC_BITS, find_bits
from balenaflash.image.container.decoder import Input, corrupt, cut_short, trailing_garbage
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin
from balenaflash.image.container.parallel import usable_cores

_PROGRAM = "lbzip2"
_MAGIC = b"BZh"
_READ_AHEAD = MIB  # bytes that each of its threads has before it, lbzip2 2.5; seen by lseek
_CRC_BITS = 32
_CUT_SHORT = "unexpected end of file"  # lbzip2 2.5, src/decompress.c
_TOLD = 200  # characters of what the program says


def find_program() -> str | None:
    """The path of the program; ``None`` where it is not installed."""
    return shutil.which(_PROGRAM)


class ProgramDecoder:
    """A `balenaflash.image.container.decoder.Decoder` in a process of its own."""

    def __init__(self, origin: Origin, program: str) -> None:
        self._done = 0
        threads = usable_cores()
        self._tail_size = 2 * (threads + 1) * _READ_AHEAD
        # A file it reads by itself: passing the bytes on takes time that decoding needs.
        self._file = origin.open_file()
        self._process = subprocess.Popen(
            [program, "-dc", "-n", str(threads)],
            stdin=subprocess.PIPE if self._file is None else self._file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # What any user may ask for (pipe(7)); with 64 KiB both sides would wake far more often.
            pipesize=MIB,
            # A Ctrl-C is for this program to deal with.
            start_new_session=True,
        )
        self._origin = origin
        self._feeder = None
        if self._process.stdin is not None:
            self._feeder = _Feeder(Input(origin), self._process.stdin, self._tail_size)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = 0
        while filled < len(buffer) and self._process.stdout is not None:
            count = self._process.stdout.readinto(buffer[filled:])  # type: ignore[attr-defined]  # IO[bytes] of bufsize=0 is a FileIO
            if not count:
                if not filled:
                    self._check_end()
                break
            filled += count
        self._done += filled
        return filled

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        if self._feeder is not None:
            self._feeder.close()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._process.wait()

    def _check_end(self) -> None:
        """Raise unless all was read and decoded.

        Raises:
            ImageError: it was not, or something follows.
        """
        tail, rest = self._end_of_input()
        name, place = self._origin.name, rest.position
        if self._process.wait():
            told = b"" if self._process.stderr is None else self._process.stderr.read(_TOLD)
            why = told.decode(errors="replace").strip().rpartition(": ")[2] or "it is not sound"
            if why == _CUT_SHORT:
                raise cut_short(name, Container.BZIP2, place, self._done)
            raise corrupt(name, Container.BZIP2, place, self._done, f"cannot be decoded: {why}")
        end = _end_of_streams(tail)
        if tail[end:].strip(b"\0"):
            raise trailing_garbage(name, Container.BZIP2, place - len(tail) + end, self._done)
        while data := rest.read():
            if data.strip(b"\0"):
                place = rest.position - len(data)
                raise trailing_garbage(name, Container.BZIP2, place, self._done)

    def _end_of_input(self) -> tuple[bytes, Input]:
        """The last bytes that the program has read, and what it has not.

        Raises:
            ImageError: they cannot be read.
        """
        if self._feeder is not None:
            return self._feeder.end()
        # The program shares the descriptor's offset.
        place = 0 if self._file is None else os.lseek(self._file, 0, os.SEEK_CUR)
        start = max(0, place - self._tail_size)
        return self._origin.read_at(start, place - start), Input(self._origin, place)


def _end_of_streams(tail: bytes) -> int:
    """Where the first stream ends that no other follows at once; 0 if there is none."""
    ends = sorted((end + MAGIC_BITS + _CRC_BITS + 7) // 8 for end in find_bits(tail, END_MAGIC))
    return next((end for end in ends if not tail.startswith(_MAGIC, end)), 0)


class _Feeder:
    """A thread that passes the bytes of an origin on to a program."""

    def __init__(self, source: Input, stdin: IO[bytes], tail_size: int) -> None:
        self._input = source
        self._stdin = stdin
        self._tail = deque[bytes](maxlen=tail_size // MIB + 1)
        self._failure: ImageError | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._feed, name="feed-lbzip2", daemon=True)
        self._thread.start()

    def end(self) -> tuple[bytes, Input]:
        """When no more is passed on: the last bytes that were, and what was not.

        Raises:
            ImageError: reading failed.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return b"".join(self._tail), self._input

    def close(self) -> None:
        """Return when nothing more is passed on; the program has ended."""
        self._closing = True
        self._thread.join()

    def _feed(self) -> None:
        try:
            with self._stdin:
                while not self._closing and (data := self._input.read(MIB)):
                    self._tail.append(data)
                    view = memoryview(data)
                    while view:
                        view = view[self._stdin.write(view) :]
        except BrokenPipeError:
            return  # it has ended, and its status says why
        except ImageError as error:
            self._failure = error
