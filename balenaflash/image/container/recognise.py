"""Which container an image is in, told by its content."""

from collections.abc import Callable

from balenaflash.image.container.decoder import Compressed
from balenaflash.image.container.origin import Origin, Peeked

_ZIP_STARTS = (b"PK\3\4", b"PK\5\6")  # APPNOTE 6.3.10, 4.3.7 and, of an empty one, 4.3.16
_GZIP_START = b"\x1f\x8b\x08"  # RFC 1952, 2.3.1: the magic, and deflate as the method
_BZIP2_START = b"BZh"
_XZ_START = b"\xfd7zXZ\0"  # The .xz File Format 1.2.1, 2.1.1.1
_ZSTD_STARTS = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16)))
"""RFC 8878, 3.1.1 of a frame with content, and 3.1.2 of the sixteen kinds to be skipped."""


def recognise(
    origin: Origin, member: str | None = None, warn: Callable[[str], None] = lambda _: None
) -> Compressed | None:
    """What ``origin`` is compressed or packed with; ``None`` where it is none of what is known.

    ``member`` is the name of the image in a container that has members; it is of no meaning for
    the others. A member that is compressed itself is decoded too, so that what comes is the image.
    ``warn`` is called with what turns out only at the end, and is no failure.

    Raises:
        ImageError: it cannot be read, or is a container without a usable image in it.
    """
    peeked = Peeked(origin)
    if peeked.peek(4) in _ZIP_STARTS:
        return _recognise_zip(peeked, member, warn)
    return _recognise_streams(peeked)


# What decodes a container is loaded when there is one: all of it takes longer to load than a raw
# image takes to be looked into.


def _recognise_streams(peeked: Peeked) -> Compressed | None:
    start = peeked.peek(len(_XZ_START))
    if start.startswith(_GZIP_START):
        from balenaflash.image.container.deflate import GZIP  # noqa: PLC0415 - see above
        from balenaflash.image.container.stream import CompressedStreams  # noqa: PLC0415

        return CompressedStreams(peeked, GZIP)
    if start.startswith(_BZIP2_START):
        from balenaflash.image.container.bzip2 import recognise_bzip2  # noqa: PLC0415

        return recognise_bzip2(peeked)
    if start == _XZ_START:
        from balenaflash.image.container.xz import recognise_xz  # noqa: PLC0415

        return recognise_xz(peeked)
    if start.startswith(_ZSTD_STARTS):
        from balenaflash.image.container.zstd import recognise_zstd  # noqa: PLC0415

        return recognise_zstd(peeked)
    return None


def _recognise_zip(peeked: Peeked, member: str | None, warn: Callable[[str], None]) -> Compressed:
    from balenaflash.image.container.nested import look_inside  # noqa: PLC0415 - see above
    from balenaflash.image.container.zip_directory import find_zipped  # noqa: PLC0415
    from balenaflash.image.container.zip_stream import find_streamed  # noqa: PLC0415

    is_seekable = peeked.seekable and peeked.size is not None
    outer: Compressed
    if is_seekable and peeked.size is not None:
        outer = find_zipped(peeked, peeked.size, member)
    else:
        outer = find_streamed(peeked, member, warn)
    return look_inside(peeked.name, outer, _recognise_streams, again=is_seekable)
