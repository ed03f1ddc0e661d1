"""bzip2: large files by lbzip2 if it is installed, all others by libbz2 in this process.

lbzip2 uses all processors. Anything unusual in a file is judged by libbz2 alone, so that the
result is the same with lbzip2 and without.
"""

import bz2
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress

from balenaflash.programs import find_system_program, minimal_environment
from balenaflash.source.container.decoder import (
    Compressed,
    Container,
    Decoder,
    Input,
    Origin,
    PiecesDecoder,
    corrupt,
    usable_cores,
)
from balenaflash.source.container.streams import StreamFormat, stream_pieces
from balenaflash.units import MIB

_WORTH_A_PROCESS = 4 * MIB  # bytes; less is decoded before a process has started
_NOBODY = 65534  # user and group; the kernel's own number for an unknown user
_READ_AHEAD = MIB  # bytes that each thread of lbzip2 2.5 reads ahead; seen by lseek
_END_MAGIC = 0x177245385090  # at the end of a stream; section 2.2.2 of the specification below
_MAGIC_BITS = 48
_CRC_BITS = 32

BZIP2 = StreamFormat(
    container=Container.BZIP2,
    # The author wrote no specification. Joe Tsai's "BZIP2: Format Specification" (2016), section
    # 2.2.1: the last byte is the size of blocks, in 100,000 bytes.
    magics=tuple(b"BZh%d" % level for level in range(1, 10)),
    new_engine=bz2.BZ2Decompressor,
    failures=(OSError,),
    unpack="bzip2 -dk",
)


def recognise_bzip2(origin: Origin) -> Compressed:
    """The image in the bzip2 streams of ``origin``."""
    is_large = origin.size is not None and origin.size >= _WORTH_A_PROCESS
    program = find_system_program("lbzip2") if is_large else None
    return Compressed(Container.BZIP2, lambda _at: open_bzip2(origin, program))


def open_bzip2(origin: Origin, program: str | None = None) -> Decoder:
    """A decoder by lbzip2 at the path ``program``, or by libbz2 if that cannot be used.

    lbzip2 decodes only files, and reads them itself: to pass the bytes on takes time that the
    decoding needs. A file can also be read once more, to find out the fault in it.
    """
    file = None if program is None else origin.open_file()
    if program is not None and file is not None:
        # No more processes, no memory, or no right to be another user.
        with suppress(OSError):
            return ProgramDecoder(program, file, origin)
        os.close(file)
    return PiecesDecoder(stream_pieces(Input(origin), BZIP2))


class ProgramDecoder:
    """A decoder in a process of its own.

    ``program`` decodes ``file``, a descriptor with the bytes of ``origin``. `close` closes it.

    Raises:
        OSError: the process cannot be started; ``file`` stays open.
    """

    def __init__(self, program: str, file: int, origin: Origin) -> None:
        # Foreign data is not decoded with root's rights.
        user = _NOBODY if os.geteuid() == 0 else None
        self._process = subprocess.Popen(
            [program, "-dc", "-n", str(usable_cores())],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=minimal_environment(),
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            bufsize=0,
            # Any user may ask for this (pipe(7)); with 64 KiB both sides would wake far more often.
            pipesize=MIB,
            # A Ctrl-C is handled by this process alone.
            start_new_session=True,
        )
        self._file = file
        self._origin = origin
        self._done = 0
        self._rest: PiecesDecoder | None = None

    def readinto(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer) and self._rest is None:
            # A FileIO, by bufsize=0.
            count: int = self._process.stdout.readinto(buffer[filled:])  # type: ignore[union-attr]
            filled += count
            self._done += count
            if not count:
                self._rest = self._open_rest()
        if self._rest is not None:
            filled += self._rest.readinto(buffer[filled:])
        return filled

    def close(self) -> None:
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

    def _open_rest(self) -> PiecesDecoder:
        """A decoder of the bytes that the program has not decoded.

        Its exit status covers only the bytes that it has decoded; it silently ignores data that
        does not follow a stream at once.

        Raises:
            ImageError: the bytes that it has decoded are not the image's.
        """
        end = self._find_end() if self._process.wait() == 0 else None
        if end is not None:
            source = Input(self._origin, end)
            return PiecesDecoder(stream_pieces(source, BZIP2, self._done, after_stream=True))
        decoder = PiecesDecoder(stream_pieces(Input(self._origin), BZIP2))
        if not decoder.skip(self._done):
            why = "is decoded differently by lbzip2 and libbz2"
            raise corrupt(self._origin.name, Container.BZIP2, 0, self._done, why)
        return decoder

    def _find_end(self) -> int | None:
        """End of the first stream that is not followed by another at once; ``None`` if not found.

        Only the bytes before the program's position are searched.
        """
        # The program shares the descriptor's offset.
        place = os.lseek(self._file, 0, os.SEEK_CUR)
        start = max(0, place - 2 * (usable_cores() + 1) * _READ_AHEAD)
        tail = self._origin.read_at(start, place - start)
        for bit in sorted(_find_end_magics(tail)):
            end = (bit + _MAGIC_BITS + _CRC_BITS + 7) // 8
            if not tail.startswith(BZIP2.magics, end):
                return start + end
        return None


def _find_end_magics(data: bytes) -> Iterator[int]:
    """Offsets in bits of each ``_END_MAGIC`` in ``data``, in any order."""
    for shift in range(8):
        # The bytes that the magic fills alone; the two that it may share are compared afterwards.
        core = (_END_MAGIC << 8 - shift).to_bytes(7, "big")[1:6]
        place = data.find(core, 1)
        while place > 0:
            around = int.from_bytes(data[place - 1 : place + 6].ljust(7, b"\0"), "big")
            if around >> 8 - shift & (1 << _MAGIC_BITS) - 1 == _END_MAGIC:
                yield (place - 1) * 8 + shift
            place = data.find(core, place + 1)
