"""Zstandard (RFC 8878), by libzstd."""

import sys
from dataclasses import dataclass

from balenaflash.source.container.decoder import Container, Origin, Peeked
from balenaflash.source.container.streams import CompressedStreams, Engine, StreamFormat

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["WINDOW_LOG_MAX", "ZSTD_FAILURES", "new_zstd_engine", "recognise_zstd", "zstd"]

WINDOW_LOG_MAX = 27
"""Windows up to 128 MiB are decoded, as by zstd(1) without ``--long``."""

ZSTD_FAILURES = (zstd.ZstdError,)
"""What the engine raises for damaged data."""

_MAGIC = b"\x28\xb5\x2f\xfd"  # RFC 8878, section 3.1.1
_SKIPPABLE = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))  # section 3.1.2
_MAX_SKIPPED = 64 * 1024  # bytes of skippable frames in front of the first one with content
_MAX_BLOCKS = 1 << 18  # looked at to learn the size: 32 GiB of content in blocks of 128 KiB
_MAX_HEADER = 18  # section 3.1.1.1: magic, descriptor, window, dictionary and content size
_SKIPPABLE_HEADER = 8  # bytes: magic and size
_BLOCK_HEADER = 3  # bytes, section 3.1.1.2
_TWO_BYTES, _TWO_BYTE_BASE = 2, 256  # section 3.1.1.1.4: less than the base fits in one byte
_RLE = 1  # section 3.1.1.2.2: type of a block that is one byte, repeated


def new_zstd_engine() -> Engine:
    """An engine for one frame; its checksum, where it has one, is verified."""
    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
    )


ZSTD = StreamFormat(
    container=Container.ZSTD,
    magics=(_MAGIC, *_SKIPPABLE),
    new_engine=new_zstd_engine,
    failures=ZSTD_FAILURES,
    padding=None,
    too_large="too much memory",
    unpack="zstd -dk --long=31",
)


def recognise_zstd(origin: Peeked) -> CompressedStreams | None:
    """The image in zstd frames; ``None`` where there is no frame with content at the start.

    A skippable frame alone does not tell: lz4 has the same ones.
    """
    start = 0
    while start <= _MAX_SKIPPED and origin.peek(start + 4)[start:] in _SKIPPABLE:
        start += 8 + int.from_bytes(origin.peek(start + 8)[start + 4 :], "little")
    if start > _MAX_SKIPPED or origin.peek(start + 4)[start:] != _MAGIC:
        return None
    # Over a network the headers of all blocks, one in 128 KiB, would be the whole file.
    size = _read_size(origin) if origin.seekable and origin.is_local else None
    return CompressedStreams(origin, ZSTD, size)


def _read_size(origin: Origin) -> int | None:
    """Bytes of content of all frames, where each tells it and none is cut short."""
    offset = total = 0
    budget = _MAX_BLOCKS
    while offset != origin.size:
        start = origin.read_at(offset, _MAX_HEADER)
        budget -= 1
        if start[:4] in _SKIPPABLE and len(start) >= _SKIPPABLE_HEADER and budget > 0:
            offset += _SKIPPABLE_HEADER + int.from_bytes(start[4:8], "little")
            continue
        header = _read_header(start)
        if header is None:
            return None
        total += header.content_size
        end, budget = _behind_blocks(origin, offset + header.size, budget)
        if end is None:
            return None
        offset = end + (4 if header.has_checksum else 0)
    return total


@dataclass(frozen=True, slots=True)
class _FrameHeader:
    size: int
    """Of the header itself, in bytes."""

    content_size: int
    has_checksum: bool


def _read_header(start: bytes) -> _FrameHeader | None:
    """The header at the start of a frame; ``None`` where it does not tell the content's size.

    RFC 8878, section 3.1.1.1.
    """
    if start[:4] != _MAGIC or len(start) == len(_MAGIC):
        return None
    descriptor = start[4]
    is_single_segment = bool(descriptor & 0x20)
    length = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    offset = 5 + (0 if is_single_segment else 1) + dictionary
    field = start[offset : offset + length]
    if not length or len(field) < length:
        return None
    content_size = int.from_bytes(field, "little") + (_TWO_BYTE_BASE if length == _TWO_BYTES else 0)
    return _FrameHeader(offset + length, content_size, bool(descriptor & 4))


def _behind_blocks(origin: Origin, offset: int, budget: int) -> tuple[int | None, int]:
    """Where the blocks of a frame end, ``None`` if not found, and what is left of ``budget``."""
    while budget > 0:
        budget -= 1
        field = origin.read_at(offset, _BLOCK_HEADER)
        if len(field) < _BLOCK_HEADER:
            break
        header = int.from_bytes(field, "little")
        offset += _BLOCK_HEADER + (1 if header >> 1 & 3 == _RLE else header >> 3)
        if header & 1:
            return offset, budget
    return None, 0
