"""bzip2 decoded by lbzip2, where that is installed: its decoder is faster than libbz2's.

It checks every CRC and says by its exit status whether all was right; only what follows the last
stream it leaves out without a word, so that is looked at here.
"""

import shutil
import subprocess
import threading

from balenaflash.errors import ImageError
from balenaflash.extent import KIB, MIB
from balenaflash.image.container.bzip2_blocks import END_MAGIC, MAGIC_BITS, find_bits
from balenaflash.image.container.decoder import Input, corrupt, cut_short, trailing_garbage
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin

_PROGRAM = "lbzip2"
_TAIL_SIZE = 64 * KIB  # bytes at the end in which the last stream has to end
_CRC_BITS = 32
_CUT_SHORT = "unexpected end of file"  # lbzip2 2.5, src/decompress.c
_TOLD = 200  # characters of what the program says


def find_program() -> str | None:
    """The path of the program; ``None`` where it is not installed."""
    return shutil.which(_PROGRAM)


class ProgramDecoder:
    """A `balenaflash.image.container.decoder.Decoder` in a process of its own."""

    def __init__(self, origin: Origin, program: str) -> None:
        self._input = Input(origin)
        self._done = 0
        self._tail = b""
        self._failure: ImageError | None = None
        self._closing = False
        self._process = subprocess.Popen(
            [program, "-dc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # What any user may ask for (pipe(7)); with 64 KiB both sides would wake far more often.
            pipesize=MIB,
            # A Ctrl-C is for this program to deal with.
            start_new_session=True,
        )
        self._feeder = threading.Thread(target=self._feed, name="feed-lbzip2", daemon=True)
        self._feeder.start()

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
        self._closing = True
        if self._process.poll() is None:
            self._process.kill()
        self._feeder.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process.wait()

    def _feed(self) -> None:
        stdin = self._process.stdin
        if stdin is None:
            return
        try:
            with stdin:
                while not self._closing and (data := self._input.read(MIB)):
                    self._tail = (self._tail + data)[-_TAIL_SIZE:]
                    view = memoryview(data)
                    while view:
                        view = view[stdin.write(view) :]
        except BrokenPipeError:
            return  # it has ended, and its status says why
        except ImageError as error:
            self._failure = error

    def _check_end(self) -> None:
        """Raise unless all was read and decoded.

        Raises:
            ImageError: it was not, or something follows.
        """
        self._feeder.join()
        if self._failure is not None:
            raise self._failure
        name, place = self._input.name, self._input.position
        if self._process.wait():
            told = b"" if self._process.stderr is None else self._process.stderr.read(_TOLD)
            why = told.decode(errors="replace").strip().rpartition(": ")[2] or "it is not sound"
            if why == _CUT_SHORT:
                raise cut_short(name, Container.BZIP2, place, self._done)
            raise corrupt(name, Container.BZIP2, place, self._done, f"cannot be decoded: {why}")
        ends = list(find_bits(self._tail, END_MAGIC))
        last = (max(ends) + MAGIC_BITS + _CRC_BITS + 7) // 8 if ends else 0
        if self._tail[last:].strip(b"\0"):
            place -= len(self._tail) - last
            raise trailing_garbage(name, Container.BZIP2, place, self._done)
