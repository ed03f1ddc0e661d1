"""bzip2: large files by lbzip2 where it is installed, all others by libbz2 in this process.

lbzip2 uses all processors. libbz2 has the last word on everything that is not as it should be, so
that a file is judged in one way.
"""

import bz2
import os
import subprocess
from dataclasses import dataclass

from balenaflash.programs import find_system_program, minimal_environment
from balenaflash.source.container.decoder import Container, Decoder, Input, Origin, Peeked, corrupt
from balenaflash.source.container.parallel import usable_cores
from balenaflash.source.container.streams import StreamDecoder, StreamFormat
from balenaflash.units import MIB

_END_MAGIC = 0x177245385090  # what ends a stream; section 2.2.2 of the format's specification
_MAGIC_BITS = 48
_CRC_BITS = 32
_NOBODY = 65534  # user and group; the kernel's own number for whom it does not know
_READ_AHEAD = MIB  # bytes that each of its threads has before it, lbzip2 2.5; seen by lseek


def find_lbzip2() -> str | None:
    """The path of the program; ``None`` where it is not installed."""
    return find_system_program("lbzip2")


def open_program(program: str, origin: Origin, layout: StreamFormat) -> "ProgramDecoder | None":
    """A decoder by lbzip2; ``None`` if ``origin`` is not in a file, or it cannot be started.

    A file it reads by itself: passing the bytes on takes time that decoding needs. And a file can
    be read once more, to tell what is wrong with it.
    """
    file = origin.open_file()
    if file is None:
        return None
    threads = usable_cores()
    # What somebody else has compressed is not decoded with root's rights.
    user = _NOBODY if os.geteuid() == 0 else None
    try:
        process = subprocess.Popen(
            [program, "-dc", "-n", str(threads)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=minimal_environment(),
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            bufsize=0,
            # What any user may ask for (pipe(7)); with 64 KiB both sides would wake far more often.
            pipesize=MIB,
            # A Ctrl-C is for this program to deal with.
            start_new_session=True,
        )
    except OSError:
        os.close(file)
        return None  # no more processes, no memory, no right to be another user
    return ProgramDecoder(process, file, origin, layout)


class ProgramDecoder:
    """A `balenaflash.source.container.decoder.Decoder` in a process of its own.

    ``process`` decodes what is in ``file``, the bytes of ``origin``.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], file: int, origin: Origin, layout: StreamFormat
    ) -> None:
        self._process = process
        self._file = file
        self._origin = origin
        self._format = layout
        self._done = 0
        self._rest: StreamDecoder | None = None

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = 0
        while filled < len(buffer) and self._rest is None:
            count = self._read(buffer[filled:])
            filled += count
            self._done += count
            if not count:
                self._rest = self._open_rest()
        if self._rest is not None:
            filled += self._rest.readinto(buffer[filled:])
        return filled

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._rest is not None:
            self._rest.close()

    def _read(self, buffer: memoryview) -> int:
        stdout = self._process.stdout
        count: int = stdout.readinto(buffer)  # type: ignore[union-attr]  # a FileIO, by bufsize=0
        return count

    def _open_rest(self) -> StreamDecoder:
        """A decoder of what the program has left out.

        It says by its exit status whether all was right with what it has decoded, and leaves out
        without a word what does not follow a stream at once.

        Raises:
            ImageError: what it has decoded is not right.
        """
        end = self._find_end() if self._process.wait() == 0 else None
        if end is not None:
            return StreamDecoder(
                Input(self._origin, end), self._format, is_behind=True, done=self._done
            )
        decoder = StreamDecoder(Input(self._origin), self._format)
        left = self._done
        buffer = memoryview(bytearray(min(left, MIB)))
        while left and (count := decoder.readinto(buffer[:left])):
            left -= count
        if left:
            name = self._origin.name
            raise corrupt(name, self._format.container, 0, self._done, "is decoded in two ways")
        return decoder

    def _find_end(self) -> int | None:
        """Where the first stream ends that no other follows at once, as far as that is seen."""
        # The program shares the descriptor's offset.
        place = os.lseek(self._file, 0, os.SEEK_CUR)
        start = max(0, place - 2 * (usable_cores() + 1) * _READ_AHEAD)
        tail = self._origin.read_at(start, place - start)
        for bit in _find_bits(tail, _END_MAGIC):
            end = (bit + _MAGIC_BITS + _CRC_BITS + 7) // 8
            if not tail.startswith(self._format.magics, end):
                return start + end
        return None


def _find_bits(data: bytes, magic: int) -> list[int]:
    """Where, in bits, the 48 bits of ``magic`` stand in ``data``, in order."""
    found: list[int] = []
    for shift in range(8):
        pattern = (magic << 8 - shift).to_bytes(7, "big")
        # The bytes that the magic fills; what it shares with others is compared behind.
        core, start = (pattern[:6], 0) if shift == 0 else (pattern[1:6], 1)
        place = data.find(core, start)
        while place >= 0:
            around = int.from_bytes(data[place - start : place - start + 7].ljust(7, b"\0"), "big")
            if around >> 8 - shift & (1 << _MAGIC_BITS) - 1 == magic:
                found.append((place - start) * 8 + shift)
            place = data.find(core, place + 1)
    return sorted(found)


_WORTH_A_PROCESS = 4 * MIB  # bytes; less is decoded before a process has started

BZIP2 = StreamFormat(
    container=Container.BZIP2,
    # The author wrote no specification. Joe Tsai's "BZIP2: Format Specification" (2016), section
    # 2.2.1: the last byte is the size of blocks, in 100,000 bytes.
    magics=tuple(b"BZh%d" % level for level in range(1, 10)),
    new_engine=bz2.BZ2Decompressor,
    failures=(OSError,),
    unpack="bzip2 -dk",
)


def recognise_bzip2(origin: Peeked) -> "CompressedBzip2 | None":
    """The image in bzip2 streams; ``None`` where there is no such stream at the start."""
    if origin.peek(len(BZIP2.magics[0])) not in BZIP2.magics:
        return None
    is_large = origin.size is not None and origin.size >= _WORTH_A_PROCESS
    return CompressedBzip2(origin, find_lbzip2() if is_large else None)


@dataclass(frozen=True, slots=True)
class CompressedBzip2:
    """An image in bzip2 streams."""

    origin: Origin

    program: str | None = None
    """Path of lbzip2, if it is to decode them; it is given none but a file."""

    @property
    def container(self) -> Container:
        """What it is compressed with."""
        return Container.BZIP2

    @property
    def size(self) -> None:
        """The format does not tell it."""

    @property
    def member(self) -> None:
        """There are no members."""

    @property
    def seekable(self) -> bool:
        """Never: what comes before a byte has to be decoded first."""
        return False

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder from the start; see ``Compressed``."""
        if at:
            raise ValueError(at)
        decoder = None
        if self.program is not None:
            decoder = open_program(self.program, self.origin, BZIP2)
        return decoder or StreamDecoder(Input(self.origin), BZIP2)
