"""Zstandard (RFC 8878), by libzstd."""

import sys

from balenaflash.source.container.decoder import Compressed, Container, Origin, Peeked
from balenaflash.source.container.streams import Engine, StreamFormat, streams_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["ZSTD", "ZSTD_MAGIC", "recognise_zstd", "zstd"]

_WINDOW_LOG_MAX = 27  # windows up to 128 MiB are decoded, as by zstd(1) without ``--long``

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""Start of a frame with content (RFC 8878, section 3.1.1)."""

_SKIPPABLE = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))  # section 3.1.2
_SKIPPABLE_HEADER = 8  # bytes: magic and size
_MAX_SKIPPED = 64 * 1024  # bytes of skippable frames before the first one with content
_MAX_BLOCKS = 1 << 18  # read to learn the size: 32 GiB of content in blocks of 128 KiB
_MAX_HEADER = 18  # bytes; section 3.1.1.1: magic, descriptor, window, dictionary and content size
_BLOCK_HEADER = 3  # bytes, section 3.1.1.2
_TWO_BYTES, _TWO_BYTE_BASE = 2, 256  # section 3.1.1.1.4: less than the base fits in one byte
_RLE = 1  # section 3.1.1.2.2: type of a block that is one byte, repeated
_CHECKSUM = 4  # bytes; section 3.1.1


def _new_engine() -> Engine:
    """An engine for one frame; its checksum, if it has one, is verified."""
    parameter = zstd.DecompressionParameter.window_log_max
    return zstd.ZstdDecompressor(options={parameter: _WINDOW_LOG_MAX})


ZSTD = StreamFormat(
    container=Container.ZSTD,
    magics=(ZSTD_MAGIC, *_SKIPPABLE),
    new_engine=_new_engine,
    failures=(zstd.ZstdError,),
    padding=None,
    too_large="too much memory",
    unpack="zstd -dk --long=31",
)


def recognise_zstd(origin: Peeked) -> Compressed | None:
    """The image in the zstd frames of ``origin``; ``None`` if no frame with content comes first.

    A skippable frame alone is not enough: lz4 has the same ones.
    """
    start = 0
    while start <= _MAX_SKIPPED and origin.peek(start + 4)[start:] in _SKIPPABLE:
        header = origin.peek(start + _SKIPPABLE_HEADER)[start:]
        start += _SKIPPABLE_HEADER + int.from_bytes(header[4:], "little")
    if start > _MAX_SKIPPED or origin.peek(start + 4)[start:] != ZSTD_MAGIC:
        return None
    # Over a network the headers of all blocks, one in 128 KiB, would be the whole file.
    size = _read_size(origin) if origin.seekable and origin.is_local else None
    return streams_of(origin, ZSTD, size)


def _read_size(origin: Origin) -> int | None:
    """Bytes of content of all frames; ``None`` if a frame does not state it or is incomplete."""
    offset = total = 0
    budget = _MAX_BLOCKS
    while offset != origin.size:
        start = origin.read_at(offset, _MAX_HEADER)
        budget -= 1
        if start[:4] in _SKIPPABLE and len(start) >= _SKIPPABLE_HEADER and budget > 0:
            offset += _SKIPPABLE_HEADER + int.from_bytes(start[4:8], "little")
            continue
        header = _parse_header(start)
        if header is None:
            return None
        header_size, content_size, checksum_size = header
        total += content_size
        end, budget = _end_of_blocks(origin, offset + header_size, budget)
        if end is None:
            return None
        offset = end + checksum_size
    return total


def _parse_header(start: bytes) -> tuple[int, int, int] | None:
    """Sizes in bytes of a frame's header, content and checksum (RFC 8878, section 3.1.1.1).

    ``None`` if the header does not state the size of the content.
    """
    if start[:4] != ZSTD_MAGIC or len(start) == len(ZSTD_MAGIC):
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
    return offset + length, content_size, _CHECKSUM if descriptor & 4 else 0


def _end_of_blocks(origin: Origin, offset: int, budget: int) -> tuple[int | None, int]:
    """End of the blocks of a frame, ``None`` if not found, and the rest of ``budget``."""
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
