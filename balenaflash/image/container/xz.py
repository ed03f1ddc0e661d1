"""xz (file format 1.2.1), by liblzma: blocks on all processors where there are several."""

import lzma
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from balenaflash.errors import ImageError
from balenaflash.extent import KIB, MIB
from balenaflash.image.container.decoder import (
    Compressed,
    Decoder,
    Input,
    corrupt,
    cut_short,
)
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin, Peeked
from balenaflash.image.container.parallel import PiecesDecoder, pieces_in_order, usable_cores
from balenaflash.image.container.stream import (
    CompressedStreams,
    Engine,
    StreamFormat,
    too_large,
)
from balenaflash.image.container.xz_index import (
    FRAME_SIZE,
    STREAM_MAGIC,
    Block,
    find_unknown_check,
    read_blocks,
)

MEMORY_LIMIT = 256 * MIB
"""What decoding one block may take, above all its dictionary: of xz -9 it is 64 MiB."""

_MAX_AHEAD = 192 * MIB
"""Decoded bytes that wait in memory for the block before them: of xz -9 one block."""

_SPARE_AHEAD = 28 * MIB
"""Of these, what may wait so that no thread does: blocks take from no time, for zeros, to long."""

_PIECE_SIZE = 256 * KIB


def new_xz_engine() -> Engine:
    """An engine for one stream; its checksums are verified."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY_LIMIT)


XZ = StreamFormat(
    container=Container.XZ,
    magics=(STREAM_MAGIC,),
    new_engine=new_xz_engine,
    failures=(lzma.LZMAError,),
    padding=4,  # section 2.2
    padding_between=True,
    header_size=FRAME_SIZE,
    find_unknown=find_unknown_check,
    too_large="Memory usage limit",
    unpack="xz -dk",
)


def recognise_xz(origin: Peeked) -> Compressed | None:
    """The image in xz streams; ``None`` where there is no such stream at the start.

    Raises:
        ImageError: the file does not end as an xz file does, or an index is not true.
    """
    if origin.peek(len(STREAM_MAGIC)) != STREAM_MAGIC:
        return None
    blocks = None
    if origin.seekable and origin.size is not None:
        blocks = read_blocks(origin, origin.size)
    return CompressedStreams(origin, XZ) if blocks is None else CompressedBlocks(origin, blocks)


@dataclass(frozen=True, slots=True)
class CompressedBlocks:
    """An image in an xz file whose index was read."""

    origin: Origin
    blocks: tuple[Block, ...]

    @property
    def container(self) -> Container:
        """What it is compressed with."""
        return Container.XZ

    @property
    def size(self) -> int:
        """Bytes of the image, by the indexes."""
        return self.blocks[-1].start + self.blocks[-1].content_size if self.blocks else 0

    @property
    def member(self) -> None:
        """There are no members."""

    @property
    def seekable(self) -> bool:
        """Whether there are several blocks, each of which decodes by itself."""
        return len(self.blocks) > 1

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder from the image's byte ``at`` on; see ``Compressed``."""
        first = max(0, bisect_right(self.blocks, at, key=lambda block: block.start) - 1)
        blocks = self.blocks[first:]
        decoder = PiecesDecoder(_pieces(self.origin, blocks))
        if blocks:
            decoder.skip(at - blocks[0].start)
        return decoder


def _workers(blocks: Sequence[Block]) -> tuple[int, int]:
    """How many blocks to decode at a time, and how many to have begun or done.

    The first of them is taken as it is decoded; each of the others has its bytes, as stored or as
    decoded, in memory. Each has a dictionary, which need not be larger than a block.
    """
    largest = max((max(block.content_size, block.stored_size) for block in blocks), default=0)
    workers = min(usable_cores(), max(len(blocks), 1), 1 + _MAX_AHEAD // max(largest, 1))
    spare = _SPARE_AHEAD // max(largest, 1) - (workers - 1)
    return workers, workers + max(0, min(spare, workers))


def _pieces(origin: Origin, blocks: Sequence[Block]) -> Generator[bytes | memoryview, None, None]:
    """The content of ``blocks``; only who reads the first one to its end has others worked on.

    Who looks something up reads a little here and there, and needs one block each time.
    """
    workers, begun = _workers(blocks)
    if workers < 2:  # noqa: PLR2004 - nothing to share
        yield from _one_by_one(origin, blocks)
        return
    yield from _one_by_one(origin, blocks[:1])
    decoded = pieces_in_order(_jobs(origin, blocks[1:]), workers, begun)
    try:
        yield from decoded
    finally:
        decoded.close()


def _jobs(origin: Origin, blocks: Sequence[Block]) -> Iterator[Callable[[], Iterator[bytes]]]:
    for block in blocks:
        stored = deque(_stored(origin, block))
        yield partial(_decode, origin.name, block, _used_up(stored))


def _used_up(stored: deque[bytes]) -> Iterator[bytes]:
    """Each of ``stored``, which does not keep it."""
    while stored:
        yield stored.popleft()


def _one_by_one(origin: Origin, blocks: Sequence[Block]) -> Generator[bytes, None, None]:
    for block in blocks:
        yield from _decode(origin.name, block, _stored(origin, block))


def _stored(origin: Origin, block: Block) -> Iterator[bytes]:
    source = Input(origin, block.offset)
    left = block.stored_size
    while left and (data := source.read(min(Input.CHUNK_SIZE, left))):
        left -= len(data)
        yield data


def _decode(name: str, block: Block, stored: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces of a block, decoded as a stream that has no other.

    The index and footer of that stream are made here, by the file's index: so liblzma itself
    finds a block that is not as long as the index says.
    """
    engine = new_xz_engine()
    done = 0
    try:
        for data in chain([block.stream_header], stored, [_index_and_footer(block)]):
            piece = engine.decompress(data, _PIECE_SIZE)
            while piece:
                done += len(piece)
                yield piece
                piece = (
                    b"" if engine.needs_input or engine.eof else engine.decompress(b"", _PIECE_SIZE)
                )
    except (lzma.LZMAError, EOFError) as error:
        raise _failed(name, block, done, error) from error
    if not engine.eof:
        raise cut_short(name, Container.XZ, block.offset + block.stored_size, block.start + done)


def _index_and_footer(block: Block) -> bytes:
    """The end of a stream that holds ``block`` alone; sections 4 and 2.1.2."""
    records = _integer(1) + _integer(block.unpadded_size) + _integer(block.content_size)
    index = (b"\0" + records).ljust(-(-(1 + len(records)) // 4) * 4, b"\0")
    index += zlib.crc32(index).to_bytes(4, "little")
    tail = (len(index) // 4 - 1).to_bytes(4, "little") + block.stream_header[6:8]
    return index + zlib.crc32(tail).to_bytes(4, "little") + tail + b"YZ"


def _integer(value: int) -> bytes:
    """``value`` as a variable-length integer; section 1.2."""
    data = bytearray()
    while value >> 7:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _failed(name: str, block: Block, done: int, error: Exception) -> ImageError:
    if XZ.too_large in str(error):
        return too_large(name, XZ)
    why = f"cannot be decoded: {error}"
    return corrupt(name, Container.XZ, block.offset, block.start + done, why)
