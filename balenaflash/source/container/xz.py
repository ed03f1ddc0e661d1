"""xz: its index, and its blocks decoded on all processors by liblzma.

Sections are those of the xz file format, version 1.2.1.
"""

import lzma
import mmap
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from queue import Empty, SimpleQueue
from threading import Event

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import (
    CHUNK_SIZE,
    DOWNLOAD_AGAIN,
    Compressed,
    Container,
    Input,
    Origin,
    Pieces,
    PiecesDecoder,
    corrupt,
    cut_short,
    unsupported,
    usable_cores,
)
from balenaflash.source.container.streams import Engine, StreamFormat, engine_pieces, streams_of
from balenaflash.units import KIB, MIB

_MAGIC = b"\xfd7zXZ\0"  # section 2.1.1.1
_FOOTER_MAGIC = b"YZ"  # section 2.1.2.4
_FRAME_SIZE = 12  # bytes of a stream's header, and of its footer
_KNOWN_CHECKS = frozenset({0, 1, 4, 10})  # section 2.1.1.2: none, CRC-32, CRC-64, SHA-256
_ALIGNMENT = 4  # bytes, of blocks and indexes
_MAX_INTEGER = 9  # bytes of a variable-length integer, section 1.2
_MAX_SHIFT = 56  # of the ninth and last byte of a variable-length integer
_MAX_UNPADDED = 1 << 63  # section 4.3.1

_MAX_STREAMS = 1 << 16
"""Largest number of streams in an indexed file. Most have one; `compress` makes one of 24 MiB."""

_MAX_REMOTE_STREAMS = 32
"""The same over a network, where each needs a few requests, one after another."""

_MAX_BLOCKS = 1 << 16
"""Largest number of blocks: 1.5 TiB in those of xz -T0, 64 GiB in blocks of 1 MiB."""

_MAX_INDEX = _MAX_BLOCKS * 2 * _MAX_INTEGER + 20  # bytes: section 4, all fields besides records too

MEMORY_LIMIT = 256 * MIB
"""Bytes that decoding one block may need, above all its dictionary: with xz -9 it is 64 MiB."""

_MAX_AHEAD = 192 * MIB
"""Decoded bytes that wait in memory for the block before them: with xz -9 one block."""

_SPARE_AHEAD = 28 * MIB
"""Part of these for extra blocks, so that no thread waits: zeros are decoded in no time."""


def _new_engine() -> Engine:
    """An engine for one stream; its checksums are verified."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY_LIMIT)


def _find_unknown_check(header: bytes) -> str | None:
    """The checksum type in a stream's ``header``, if it is unknown.

    liblzma decodes such a stream without checking its content.
    """
    flags = header[6:8]
    is_sound = len(header) == _FRAME_SIZE and zlib.crc32(flags) == _number(header[8:])
    if not is_sound or (not flags[0] and flags[1] in _KNOWN_CHECKS):
        return None
    return f"has an unknown type of checksum (xz flags {flags.hex()})"


XZ = StreamFormat(
    container=Container.XZ,
    magics=(_MAGIC,),
    new_engine=_new_engine,
    failures=(lzma.LZMAError,),
    padding=4,  # section 2.2
    padding_between=True,
    header_size=_FRAME_SIZE,
    find_unknown=_find_unknown_check,
    too_large="Memory usage limit",
    unpack="xz -dk",
)


def recognise_xz(origin: Origin) -> Compressed:
    """The image in the xz streams of ``origin``.

    Raises:
        ImageError: the file does not end with an xz footer, or an index is damaged.
    """
    blocks = None
    if origin.seekable and origin.size is not None:
        blocks = _read_blocks(origin, origin.size)
    if blocks is None:
        return streams_of(origin, XZ)
    size = blocks[-1].start + blocks[-1].content_size if blocks else 0
    open_decoder = partial(_open_blocks, origin, blocks)
    return Compressed(Container.XZ, open_decoder, size, seekable=len(blocks) > 1)


@dataclass(frozen=True, slots=True)
class _Block:
    """One block of an xz file, which can be decoded alone."""

    stream_header: bytes
    """Header of its stream, which contains the type of the block's checksum."""

    offset: int
    """Offset of its first byte in the file."""

    unpadded_size: int
    """Bytes in the file without the padding to a multiple of four."""

    start: int
    """Offset in the image of its first byte."""

    content_size: int
    """Bytes of the image."""

    @property
    def stored_size(self) -> int:
        """Bytes in the file with the padding."""
        return _padded(self.unpadded_size)


@dataclass(frozen=True, slots=True)
class _Stream:
    start: int
    """Offset in the file of its header."""

    header: bytes
    records: list[tuple[int, int]]
    """Unpadded size and content size of each block."""


def _read_blocks(origin: Origin, size: int) -> list[_Block] | None:
    """The blocks of all streams of an xz file of ``size`` bytes.

    Headers, footers, padding and indexes are checked; the blocks are not read. ``None`` if there
    are so many streams or blocks that they are better decoded one after another.

    Raises:
        ImageError: the file does not end with an xz footer, or an index is damaged.
    """
    most_streams = _MAX_STREAMS if origin.is_local else _MAX_REMOTE_STREAMS
    streams: list[_Stream] = []
    count, end = 0, size
    while end:
        end = _skip_padding(origin, end)
        stream = _read_stream(origin, end, _MAX_BLOCKS - count)
        if stream is None or len(streams) == most_streams:
            return None
        count += len(stream.records)
        streams.append(stream)
        end = stream.start
    blocks: list[_Block] = []
    position = 0
    for stream in reversed(streams):
        offset = stream.start + _FRAME_SIZE
        for unpadded_size, content_size in stream.records:
            blocks.append(_Block(stream.header, offset, unpadded_size, position, content_size))
            offset += _padded(unpadded_size)
            position += content_size
    return blocks


def _skip_padding(origin: Origin, end: int) -> int:
    """End of the stream before ``end``, from which padding separates it."""
    stop, length = end, _FRAME_SIZE
    while stop:
        start = max(0, stop - length)
        rest = origin.read_at(start, stop - start).rstrip(b"\0")
        if rest:
            # The footer's magic is not zero, so all zeros after it are padding.
            stop = start + len(rest)
            break
        stop, length = start, 64 * KIB
    if (end - stop) % 4:
        raise _no_footer(origin, end)
    return stop


def _read_stream(origin: Origin, end: int, most: int) -> _Stream | None:
    """The stream whose footer ends at ``end``; ``None`` if it has more than ``most`` blocks."""
    footer = origin.read_at(max(0, end - _FRAME_SIZE), _FRAME_SIZE)
    if len(footer) < _FRAME_SIZE or footer[10:] != _FOOTER_MAGIC:
        raise _no_footer(origin, end)
    if zlib.crc32(footer[4:10]) != _number(footer[:4]):
        raise _damaged(origin, end, "has a footer whose checksum is wrong")
    index_size = (_number(footer[4:8]) + 1) * 4
    index_start = end - _FRAME_SIZE - index_size
    if index_start < _FRAME_SIZE:
        raise _damaged(origin, end, "has an index larger than the file")
    if index_size > _MAX_INDEX:
        return None
    records = _parse_index(origin, origin.read_at(index_start, index_size), end, most)
    if records is None:
        return None
    start = index_start - sum(_padded(size) for size, _ in records) - _FRAME_SIZE
    if start < 0:
        raise _damaged(origin, end, "has blocks larger than the file")
    header = origin.read_at(start, _FRAME_SIZE)
    _check_header(origin, start, header, footer[8:10])
    return _Stream(start, header, records)


def _check_header(origin: Origin, start: int, header: bytes, flags: bytes) -> None:
    if header[:6] != _MAGIC or zlib.crc32(header[6:8]) != _number(header[8:]):
        raise _damaged(origin, start, "does not start at the offset in its index")
    if header[6:8] != flags:
        raise _damaged(origin, start, "has a header and a footer that differ")
    unknown = _find_unknown_check(header)
    if unknown is not None:
        raise unsupported(origin.name, unknown)


def _parse_index(origin: Origin, index: bytes, end: int, most: int) -> list[tuple[int, int]] | None:
    """The records of an index (section 4) if there are at most ``most``.

    ``end`` is the end of its stream.
    """
    if index[0] or zlib.crc32(index[:-4]) != _number(index[-4:]):
        raise _damaged(origin, end, "has an index whose checksum is wrong")
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
        raise _damaged(origin, end, "has an invalid index")
    return records


def _integers(data: bytes) -> Iterator[tuple[int, int]]:
    """The variable-length integers (section 1.2) in ``data``, each with the offset of its end."""
    value = shift = 0
    for place, byte in enumerate(data):
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if shift and not byte:
                return  # longer than necessary
            yield value, place + 1
            value = shift = 0
            continue
        shift += 7
        if shift > _MAX_SHIFT:
            return


def _integer(value: int) -> bytes:
    """``value`` as a variable-length integer (section 1.2)."""
    data = bytearray()
    while value >> 7:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _no_footer(origin: Origin, place: int) -> ImageError:
    return ImageError(
        f"{origin.name}: has no xz footer at its end (byte {place}): the file is truncated, or "
        "other data follows the image",
        code="image-cut-short",
        hint=DOWNLOAD_AGAIN,
    )


def _damaged(origin: Origin, place: int, why: str) -> ImageError:
    return corrupt(origin.name, Container.XZ, place, 0, why)


def _open_blocks(origin: Origin, blocks: Sequence[_Block], at: int) -> PiecesDecoder:
    first = max(0, bisect_right(blocks, at, key=lambda block: block.start) - 1)
    decoder = PiecesDecoder(_pieces(origin, blocks[first:]))
    if blocks:
        decoder.skip(at - blocks[first].start)
    return decoder


def _pieces(origin: Origin, blocks: Sequence[_Block]) -> Pieces:
    """The content of ``blocks``; other threads start when the first one was read to its end.

    A reader of a few bytes here and there needs one block each time.
    """
    workers, begun = _count_workers(blocks)
    for block in blocks[:1] if workers > 1 else blocks:
        yield from _decode(origin.name, block, _stored(origin, block))
    if workers > 1:
        yield from _pieces_in_order(_jobs(origin, blocks[1:]), workers, begun)


def _count_workers(blocks: Sequence[_Block]) -> tuple[int, int]:
    """Number of blocks to decode at a time, and of blocks begun or finished.

    The first of them is read while it is decoded; each of the others has its bytes, as stored or as
    decoded, in memory. Each has a dictionary, which need not be larger than a block.
    """
    largest = max((max(block.content_size, block.stored_size) for block in blocks), default=0)
    workers = min(usable_cores(), max(len(blocks), 1), 1 + _MAX_AHEAD // max(largest, 1))
    spare = _SPARE_AHEAD // max(largest, 1) - (workers - 1)
    return workers, workers + max(0, min(spare, workers))


_Job = Callable[[], Iterator[bytes]]


def _jobs(origin: Origin, blocks: Sequence[_Block]) -> Iterator[_Job]:
    for block in blocks:
        stored = deque([*_stored(origin, block), b""])
        # Stored bytes leave the memory as they are decoded.
        yield partial(_decode, origin.name, block, iter(stored.popleft, b""))


def _stored(origin: Origin, block: _Block) -> Iterator[bytes]:
    source = Input(origin, block.offset)
    left = block.stored_size
    while left and (data := source.read(min(CHUNK_SIZE, left))):
        left -= len(data)
        yield data


def _decode(name: str, block: _Block, stored: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces of a block, decoded as the only one of a stream.

    The index and footer of that stream are made here from the file's index, so that liblzma itself
    refuses a block whose size differs from the index.
    """
    engine = _new_engine()
    inputs = chain([block.stream_header], stored, [_index_and_footer(block)])
    done = 0
    try:
        for piece in engine_pieces(engine, inputs):
            done += len(piece)
            yield piece
    except lzma.LZMAError as error:
        raise XZ.failure(name, block.offset, block.start + done, error) from error
    if not engine.eof:
        raise cut_short(name, Container.XZ, block.offset + block.stored_size, block.start + done)
    if any(inputs):
        why = "ends before the block's end in the index"
        raise corrupt(name, Container.XZ, block.offset, block.start + done, why)


def _index_and_footer(block: _Block) -> bytes:
    """End of a stream that contains ``block`` alone (sections 4 and 2.1.2)."""
    records = _integer(1) + _integer(block.unpadded_size) + _integer(block.content_size)
    index = (b"\0" + records).ljust(_padded(1 + len(records)), b"\0")
    index += zlib.crc32(index).to_bytes(4, "little")
    tail = (len(index) // 4 - 1).to_bytes(4, "little") + block.stream_header[6:8]
    return index + zlib.crc32(tail).to_bytes(4, "little") + tail + _FOOTER_MAGIC


_Flow = SimpleQueue[memoryview | None]
"""The pieces of a job, and ``None`` at its end."""


def _pieces_in_order(jobs: Iterator[_Job], workers: int, begun: int) -> Pieces:
    """The pieces of each of ``jobs``, in order, made by ``workers`` threads.

    The pieces of the current job are returned as they are made; those of later jobs wait in
    memory. At most ``begun`` jobs are begun or finished at a time: with as many as workers, each
    waits whenever the job before takes longer. The reading thread advances ``jobs``. An exception
    in a job is raised in its turn.
    """
    flows: deque[tuple[_Flow, Future[None]]] = deque()
    buffers = _Buffers()
    closed = Event()
    executor = ThreadPoolExecutor(workers)
    try:
        while True:
            for job in islice(jobs, begun - len(flows)):
                flow: _Flow = SimpleQueue()
                flows.append((flow, executor.submit(_make_pieces, job, flow, buffers, closed)))
            if not flows:
                return
            flow, made = flows.popleft()
            for piece in iter(flow.get, None):
                yield piece
                buffers.reuse(piece)
            made.result()
    finally:
        closed.set()
        executor.shutdown(cancel_futures=True)


def _make_pieces(job: _Job, flow: _Flow, buffers: "_Buffers", closed: Event) -> None:
    try:
        for piece in job():
            if closed.is_set():
                return
            flow.put(buffers.keep(piece))
    finally:
        flow.put(None)


class _Buffers:
    """Memory for waiting pieces, used again and again.

    The heap keeps freed memory for the thread that has freed it, so that with separate objects
    every thread would hold the most it ever used.
    """

    def __init__(self) -> None:
        self._free: SimpleQueue[memoryview] = SimpleQueue()

    def keep(self, piece: bytes) -> memoryview:
        """A copy of ``piece`` that is valid until `reuse`."""
        try:
            buffer = self._free.get_nowait()
        except Empty:
            buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        buffer[: len(piece)] = piece
        return buffer[: len(piece)]

    def reuse(self, kept: memoryview) -> None:
        """Use the memory of ``kept`` for another piece."""
        self._free.put(memoryview(kept.obj))
