"""xz (file format 1.2.1): its index, and its blocks decoded on all processors by liblzma.

Sections are those of the xz file format, version 1.2.1.
"""

import lzma
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import (
    DOWNLOAD_AGAIN,
    Compressed,
    Container,
    Decoder,
    Input,
    Origin,
    Peeked,
    corrupt,
    cut_short,
)
from balenaflash.source.container.parallel import PiecesDecoder, pieces_in_order, usable_cores
from balenaflash.source.container.streams import (
    CompressedStreams,
    Engine,
    StreamFormat,
    not_known,
    too_large,
)
from balenaflash.units import KIB, MIB

STREAM_MAGIC = b"\xfd7zXZ\0"  # section 2.1.1.1
_FOOTER_MAGIC = b"YZ"  # section 2.1.2.4
FRAME_SIZE = 12
"""Bytes of a stream's header, and of its footer."""

_MAX_STREAMS = 1 << 16
"""Streams of a file that are looked for. Most files have one; `compress` makes one of 24 MiB."""

_MAX_REMOTE_STREAMS = 32
"""The same over a network, where each takes a few requests, one after another."""

_MAX_BLOCKS = 1 << 16
"""Blocks of a file that are kept: 1.5 TiB in those of xz -T0, 64 GiB in blocks of 1 MiB."""

_MAX_INTEGER = 9  # bytes of a variable-length integer, section 1.2
_MAX_INDEX = (
    _MAX_BLOCKS * 2 * _MAX_INTEGER + 20
)  # bytes: section 4, with all that is beside records
_KNOWN_CHECKS = frozenset({0, 1, 4, 10})  # section 2.1.1.2: none, CRC-32, CRC-64, SHA-256
_ALIGNMENT = 4  # bytes, of blocks and indexes
_MAX_SHIFT = 56  # of the ninth and last byte of a variable-length integer, section 1.2
_MAX_UNPADDED = 1 << 63  # section 4.3.1


@dataclass(frozen=True, slots=True)
class Block:
    """One block of an xz file, which decodes by itself."""

    stream_header: bytes
    """Of the stream it is in: it tells how the block is checked."""

    offset: int
    """Of its first byte in the file."""

    unpadded_size: int
    """Its bytes in the file without the padding to a multiple of four."""

    start: int
    """Offset in the image of the first byte that it holds."""

    content_size: int
    """Bytes of the image that it holds."""

    @property
    def stored_size(self) -> int:
        """Its bytes in the file with the padding."""
        return _padded(self.unpadded_size)


def read_blocks(origin: Origin, size: int) -> tuple[Block, ...] | None:
    """The blocks of all streams of an xz file of ``size`` bytes.

    Headers, footers, padding and indexes are checked; the blocks are not read. ``None`` if there
    are so many streams or blocks that they are better decoded one after another.

    Raises:
        ImageError: the file does not end as an xz file does, or an index is not true.
    """
    most_streams = _MAX_STREAMS if origin.is_local else _MAX_REMOTE_STREAMS
    streams: list[_Stream] = []
    count, end = 0, size
    while end:
        end = _behind_footer(origin, end)
        stream = _read_stream(origin, end, _MAX_BLOCKS - count)
        if stream is None or len(streams) == most_streams:
            return None
        count += len(stream.records)
        streams.append(stream)
        end = stream.start
    return tuple(_blocks(reversed(streams)))


@dataclass(frozen=True, slots=True)
class _Stream:
    start: int
    """Offset in the file of its header."""

    header: bytes
    records: list[tuple[int, int]]
    """Unpadded size and content size of each block."""


def _blocks(streams: Iterable[_Stream]) -> Iterator[Block]:
    position = 0
    for stream in streams:
        offset = stream.start + FRAME_SIZE
        for unpadded_size, content_size in stream.records:
            block = Block(stream.header, offset, unpadded_size, position, content_size)
            yield block
            offset += block.stored_size
            position += content_size


def _behind_footer(origin: Origin, end: int) -> int:
    """Where the stream ends that stands, with padding behind it, in front of ``end``."""
    stop, length = end, FRAME_SIZE
    while stop:
        start = max(0, stop - length)
        rest = origin.read_at(start, stop - start).rstrip(b"\0")
        if rest:
            # The footer's magic is not zero, so that every zero behind it is padding.
            stop = start + len(rest)
            break
        stop, length = start, 64 * KIB
    if (end - stop) % 4:
        raise _no_footer(origin, end)
    return stop


def _read_stream(origin: Origin, end: int, most: int) -> _Stream | None:
    """The stream whose footer ends at ``end``; ``None`` if it has more than ``most`` blocks."""
    footer = origin.read_at(max(0, end - FRAME_SIZE), FRAME_SIZE)
    if len(footer) < FRAME_SIZE or footer[10:] != _FOOTER_MAGIC:
        raise _no_footer(origin, end)
    if zlib.crc32(footer[4:10]) != _number(footer[:4]):
        raise _untrue(origin, end, "has a footer whose checksum is wrong")
    index_size = (_number(footer[4:8]) + 1) * 4
    index_start = end - FRAME_SIZE - index_size
    if index_start < FRAME_SIZE:
        raise _untrue(origin, end, "has an index larger than the file")
    if index_size > _MAX_INDEX:
        return None
    records = _parse_index(origin, origin.read_at(index_start, index_size), end, most)
    if records is None:
        return None
    start = index_start - sum(_padded(size) for size, _ in records) - FRAME_SIZE
    if start < 0:
        raise _untrue(origin, end, "has blocks larger than the file")
    header = origin.read_at(start, FRAME_SIZE)
    _check_header(origin, start, header, footer[8:10])
    return _Stream(start, header, records)


def _check_header(origin: Origin, start: int, header: bytes, flags: bytes) -> None:
    if header[:6] != STREAM_MAGIC or zlib.crc32(header[6:8]) != _number(header[8:]):
        raise _untrue(origin, start, "does not start where its index says")
    if header[6:8] != flags:
        raise _untrue(origin, start, "has a header and a footer that differ")
    unknown = find_unknown_check(header)
    if unknown is not None:
        raise not_known(origin.name, unknown)


def find_unknown_check(header: bytes) -> str | None:
    """What a stream's ``header`` says of its checksums that is not understood.

    liblzma decodes such a stream without checking its content.
    """
    flags = header[6:8]
    is_sound = len(header) == FRAME_SIZE and zlib.crc32(flags) == _number(header[8:])
    if not is_sound or (not flags[0] and flags[1] in _KNOWN_CHECKS):
        return None
    return f"has a kind of checksum (xz flags {flags.hex()}) that is not known"


def _parse_index(origin: Origin, index: bytes, end: int, most: int) -> list[tuple[int, int]] | None:
    """The records of an index (section 4) if there are at most ``most``.

    ``end`` is where its stream ends.
    """
    if index[0] or zlib.crc32(index[:-4]) != _number(index[-4:]):
        raise _untrue(origin, end, "has an index whose checksum is wrong")
    numbers = _integers(index[1:-4])
    count, end_of_records = next(numbers, (0, 0))
    if count > most:
        return None
    records = []
    for _ in range(count):
        unpadded_size, _end = next(numbers, (0, 0))
        content_size, end_of_records = next(numbers, (0, 0))
        records.append((unpadded_size, content_size))
    padding = index[1 + end_of_records : -4]
    is_sound = end_of_records and len(padding) < _ALIGNMENT and not any(padding)  # section 4.4
    if not is_sound or not all(0 < size < _MAX_UNPADDED for size, _ in records):
        raise _untrue(origin, end, "has an index that makes no sense")
    return records


def _integers(data: bytes) -> Iterator[tuple[int, int]]:
    """The variable-length integers (section 1.2) in ``data``, each with where it ends."""
    value = shift = 0
    for place, byte in enumerate(data):
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if shift and not byte:
                return  # longer than it need be
            yield value, place + 1
            value = shift = 0
            continue
        shift += 7
        if shift > _MAX_SHIFT:
            return


def _no_footer(origin: Origin, place: int) -> ImageError:
    return ImageError(
        f"{origin.name}: does not end as an xz file does, at byte {place}: it is cut short, or "
        "something else follows the image",
        code="image-cut-short",
        hint=DOWNLOAD_AGAIN,
    )


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _padded(size: int) -> int:
    return (size + 3) // 4 * 4


def _untrue(origin: Origin, place: int, why: str) -> ImageError:
    return corrupt(origin.name, Container.XZ, place, 0, why)


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
