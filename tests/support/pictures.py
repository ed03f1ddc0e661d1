"""Small pictures."""

import struct
import zlib


def chunk(kind: bytes, content: bytes) -> bytes:
    """PNG specification, section 5.3."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    *chunks: bytes, width: int = 2, height: int = 1, tail: bytes = b"\x08\x00\x00\x00\x00"
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">II", width, height) + tail)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


PIXELS = chunk(b"IDAT", zlib.compress(b"\x00\x00\xff"))


END = chunk(b"IEND", b"")


SMALL = png(PIXELS, END)
