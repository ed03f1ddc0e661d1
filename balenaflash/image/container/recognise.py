"""Which container an image is in, told by its content."""

from balenaflash.image.container.bzip2 import recognise_bzip2
from balenaflash.image.container.decoder import Compressed
from balenaflash.image.container.deflate import GZIP
from balenaflash.image.container.nested import look_inside
from balenaflash.image.container.origin import Origin, Peeked
from balenaflash.image.container.stream import CompressedStreams
from balenaflash.image.container.xz import recognise_xz
from balenaflash.image.container.zip_directory import find_zipped
from balenaflash.image.container.zip_header import LOCAL_MAGIC
from balenaflash.image.container.zip_stream import END_MAGIC, find_streamed
from balenaflash.image.container.zstd import recognise_zstd


def recognise(origin: Origin, member: str | None = None) -> Compressed | None:
    """What ``origin`` is compressed or packed with; ``None`` where it is none of what is known.

    ``member`` is the name of the image in a container that has members; it is of no meaning for
    the others. A member that is compressed itself is decoded too, so that what comes is the image.

    Raises:
        ImageError: it cannot be read, or is a container without a usable image in it.
    """
    peeked = Peeked(origin)
    if peeked.peek(len(LOCAL_MAGIC)) in {LOCAL_MAGIC, END_MAGIC}:
        return _recognise_zip(peeked, member)
    return _recognise_streams(peeked)


def _recognise_streams(peeked: Peeked) -> Compressed | None:
    if peeked.peek(len(GZIP.magics[0])) in GZIP.magics:
        return CompressedStreams(peeked, GZIP)
    return recognise_bzip2(peeked) or recognise_xz(peeked) or recognise_zstd(peeked)


def _recognise_zip(peeked: Peeked, member: str | None) -> Compressed:
    is_seekable = peeked.seekable and peeked.size is not None
    outer: Compressed
    if is_seekable and peeked.size is not None:
        outer = find_zipped(peeked, peeked.size, member)
    else:
        outer = find_streamed(peeked, member)
    return look_inside(peeked.name, outer, _recognise_streams, again=is_seekable)
