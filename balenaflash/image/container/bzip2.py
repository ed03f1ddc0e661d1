"""bzip2: large files by lbzip2, where that is installed; all others by libbz2, in this process.

lbzip2 uses all processors. libbz2 has the last word on everything that is not as it should be, so
that a file is judged in one way.
"""

import bz2
from dataclasses import dataclass

from balenaflash.extent import MIB
from balenaflash.image.container.bzip2_program import find_lbzip2, open_program
from balenaflash.image.container.decoder import Decoder, Input
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin, Peeked
from balenaflash.image.container.stream import StreamDecoder, StreamFormat

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
