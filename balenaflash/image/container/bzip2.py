"""bzip2, by libbz2: blocks on all processors.

The format has no index, and blocks start at any bit. Their magic number of 48 bits is looked for,
and each block is decoded as a stream of its own, which also checks its CRC. Where the magic stands
in a block's data by chance, the block fails and is tried again together with what follows.

The author wrote no specification; sections are those of Joe Tsai's "BZIP2: Format Specification"
(2016).
"""

import bz2
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial

from balenaflash.errors import ImageError
from balenaflash.extent import MIB
from balenaflash.image.container.bzip2_blocks import (
    BLOCK_MAGIC,
    END_MAGIC,
    MAGIC_BITS,
    STREAM_HEADER,
    Bits,
    find_bits,
    split,
)
from balenaflash.image.container.bzip2_program import ProgramDecoder, find_program
from balenaflash.image.container.decoder import (
    Decoder,
    Input,
    corrupt,
    cut_short,
    trailing_garbage,
)
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin, Peeked
from balenaflash.image.container.parallel import PiecesDecoder, in_order, usable_cores

_MAGIC = b"BZh"
_LEVELS = b"123456789"  # section 2.2.1: the size of blocks, in 100,000 bytes
_PIECE_SIZE = MIB
_WORTH_A_PROCESS = 4 * MIB  # bytes; less is decoded before a process has started
_CRC_BITS = 32
_CRC_MASK = (1 << _CRC_BITS) - 1
_HEAD_BITS = MAGIC_BITS + _CRC_BITS  # of a block as of what ends a stream
_STREAM_HEADER = int.from_bytes(b"BZh9", "big")  # blocks of any size may follow it
_TAIL_SIZE = 64  # bytes at the end of a run in which a stream's end and header are looked for
_EMPTY_STREAMS = tuple(
    b"BZh" + bytes([level]) + END_MAGIC.to_bytes(6, "big") + bytes(4) for level in _LEVELS
)


def recognise_bzip2(origin: Peeked) -> "CompressedBzip2 | None":
    """The image in bzip2 streams; ``None`` where there is no such stream at the start."""
    if not _is_header(origin.peek(STREAM_HEADER)):
        return None
    size = len(origin.peek(_WORTH_A_PROCESS)) if origin.size is None else origin.size
    return CompressedBzip2(origin, None if size < _WORTH_A_PROCESS else find_program())


def _is_header(data: bytes) -> bool:
    return len(data) == STREAM_HEADER and data[:3] == _MAGIC and data[3] in _LEVELS


@dataclass(frozen=True, slots=True)
class CompressedBzip2:
    """An image in bzip2 streams."""

    origin: Origin

    program: str | None = None
    """Path of the program that decodes it; ``None``: it is decoded here."""

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
        if self.program is not None:
            return ProgramDecoder(self.origin, self.program)
        return PiecesDecoder(_pieces(self.origin))


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run of bits turned out to be."""

    place: int
    """Offset in the file of its first byte."""

    pieces: list[bytes] | None
    """The content of a block; ``None`` where there is no sound block."""

    crc: int = 0
    """Of the block, as it says itself."""

    end_crc: int | None = None
    """Of all blocks of the stream together; ``None`` where the stream does not end here."""

    rest: bytes = b""
    """What follows the stream's end, up to the next block's magic."""

    has_next: bool = False
    """Whether the run that follows is no block by itself, and is contained in this one."""

    is_last: bool = False


def _pieces(origin: Origin) -> Generator[bytes, None, None]:
    """The image, piece by piece, streams and blocks checked on the way."""
    runs = in_order(_jobs(Input(origin)), usable_cores())
    check = _StreamCheck(origin.name)
    is_contained = False
    try:
        for run in runs:
            if not is_contained:
                check.take(run)
                yield from run.pieces or ()
            is_contained = not is_contained and run.has_next
    finally:
        runs.close()


def _jobs(source: Input) -> Iterator[Callable[[], _Run]]:
    before: Bits | None = None
    for bits in split(source):
        if before is not None:
            yield partial(_decode, before, bits)
        before = bits
    if before is not None:
        yield partial(_decode, before, None)


def _decode(bits: Bits, following: Bits | None) -> _Run:
    run = _decode_run(bits, is_last=following is None)
    if run.pieces is None and following is not None:
        # The magic that ends this run may be a block's data.
        both = _decode_run(bits + following, is_last=False)
        if both.pieces is not None:
            return replace(both, has_next=True)
    return run


def _decode_run(bits: Bits, *, is_last: bool) -> _Run:
    value = bits.value
    if bits.length < _HEAD_BITS or value >> bits.length - MAGIC_BITS != BLOCK_MAGIC:
        return _Run(bits.place, None, rest=bits.data, is_last=is_last)
    for end in _possible_ends(bits, is_last=is_last):
        pieces, crc = _decode_block(value >> bits.length - end, end)
        if pieces is None:
            continue
        behind = end + _HEAD_BITS
        if behind > bits.length:
            return _Run(bits.place, pieces, crc, is_last=is_last)
        end_crc = value >> bits.length - behind & _CRC_MASK
        rest = bits.data[(bits.first + behind + 7) // 8 :]
        return _Run(bits.place, pieces, crc, end_crc, rest, is_last=is_last)
    return _Run(bits.place, None, is_last=is_last)


def _possible_ends(bits: Bits, *, is_last: bool) -> Iterator[int]:
    """How many bits a block at the start of ``bits`` may have, the likeliest first."""
    tail = max(0, len(bits.data) - _TAIL_SIZE)
    if not is_last:
        yield from (tail * 8 + end - bits.first for end in find_bits(bits.data[tail:], END_MAGIC))
        yield bits.length
    yield from (end - bits.first for end in find_bits(bits.data, END_MAGIC))
    if is_last:
        yield bits.length


def _decode_block(value: int, length: int) -> tuple[list[bytes] | None, int]:
    """The content of the block of ``length`` bits, if it is sound, and its CRC."""
    if length < _HEAD_BITS:
        return None, 0
    crc = value >> length - _HEAD_BITS & _CRC_MASK
    # A stream of this block alone; its CRC is the block's, section 2.2.2.
    stream = ((_STREAM_HEADER << length | value) << MAGIC_BITS | END_MAGIC) << _CRC_BITS | crc
    size = 8 * STREAM_HEADER + length + _HEAD_BITS
    data = (stream << -size % 8).to_bytes((size + 7) // 8, "big")
    engine = bz2.BZ2Decompressor()
    pieces = []
    try:
        while not engine.eof and (data or not engine.needs_input):
            if piece := engine.decompress(data, _PIECE_SIZE):
                pieces.append(piece)
            data = b""
    except OSError:
        return None, crc
    return (pieces if engine.eof and not engine.unused_data else None), crc


class _StreamCheck:
    """Sees to it that blocks make whole streams, and streams a whole file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._crc = 0
        self._done = 0
        self._is_open = False

    def take(self, run: _Run) -> None:
        """Check ``run`` and what it ends.

        Raises:
            ImageError: it is not what should come here.
        """
        if run.pieces is None and (self._is_open or not run.rest):
            if run.is_last:
                raise cut_short(self._name, Container.BZIP2, run.place, self._done)
            raise self._corrupt(run, "cannot be decoded")
        if run.pieces is not None:
            self._add(run, run.pieces)
        if not self._is_open:
            self._crc = 0
            self._is_open = self._check_between(run)
        if run.is_last and self._is_open:
            raise cut_short(self._name, Container.BZIP2, run.place, self._done)

    def _add(self, run: _Run, pieces: list[bytes]) -> None:
        if not self._is_open:
            raise self._corrupt(run, "has a block without a stream")
        self._done += sum(map(len, pieces))
        self._crc = (self._crc << 1 & _CRC_MASK | self._crc >> _CRC_BITS - 1) ^ run.crc
        if run.end_crc is not None:
            if run.end_crc != self._crc:
                raise self._corrupt(run, "does not have the CRC that its stream should")
            self._is_open = False

    def _check_between(self, run: _Run) -> bool:
        """Whether another stream begins in what is between or behind streams."""
        rest = run.rest.lstrip(b"\0")
        while rest.startswith(_EMPTY_STREAMS):
            rest = rest[len(_EMPTY_STREAMS[0]) :].lstrip(b"\0")
        if not rest:
            return False
        if _is_header(rest):
            return True
        if not self._done:
            raise self._corrupt(run, "does not start with a block")
        raise trailing_garbage(self._name, Container.BZIP2, run.place, self._done)

    def _corrupt(self, run: _Run, why: str) -> ImageError:
        return corrupt(self._name, Container.BZIP2, run.place, self._done, why)
