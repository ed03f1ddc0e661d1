"""Deflate (RFC 1951), gzip (RFC 1952) and their CRC-32, by ISA-L."""

from isal import igzip_lib, isal_zlib

from balenaflash.image.container.kinds import Container
from balenaflash.image.container.stream import Engine, StreamFormat

# The stub calls the class an instance.
DEFLATE_FAILURES: tuple[type[Exception], ...] = (igzip_lib.error,)  # type: ignore[assignment]
"""What the engines here raise for damaged data."""

# RFC 1952, section 2.3.1; 2.3.1.2: the reserved flags "must give an error indication", as what
# follows may then mean something else.
_GZIP_HEADER = 4  # bytes that end with the flags
_FLAGS = 3
_RESERVED = 0xE0


def new_deflate_engine() -> Engine:
    """An engine for deflate without header and trailer, as zip has it."""
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)


def crc32(data: bytes, value: int = 0) -> int:
    """The CRC-32 of gzip and zip, ``value`` being that of the bytes before."""
    return isal_zlib.crc32(data, value)


def _new_gzip_engine() -> Engine:
    # With this flag, unlike its neighbours, CRC-32 and length are checked too.
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)


def _find_reserved(header: bytes) -> str | None:
    flags = header[_FLAGS] if len(header) == _GZIP_HEADER else 0
    if not flags & _RESERVED:
        return None
    return f"has gzip flags ({flags:#04x}) that are not known"


GZIP = StreamFormat(
    container=Container.GZIP,
    magics=(b"\x1f\x8b\x08",),  # RFC 1952, section 2.3.1: the magic, and deflate as the method
    new_engine=_new_gzip_engine,
    failures=DEFLATE_FAILURES,
    unpack="gzip -dk",
    header_size=_GZIP_HEADER,
    find_unknown=_find_reserved,
)
