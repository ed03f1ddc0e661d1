"""Recognise by content which container an image is in, or name the foreign format.

Magic numbers are those of each format's own description; most are also in file(1)'s.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from balenaflash.errors import ImageError
from balenaflash.source.base import RandomAccess, Source
from balenaflash.source.container.bzip2 import BZIP2, recognise_bzip2
from balenaflash.source.container.decoder import (
    Compressed,
    Decoder,
    Origin,
    Peeked,
    PlainDecoder,
    shell_name,
)
from balenaflash.source.container.streams import GZIP, streams_of
from balenaflash.source.container.xz import XZ, recognise_xz
from balenaflash.source.container.zip import find_streamed, find_zipped
from balenaflash.source.container.zip_decoding import END_MAGIC, LOCAL_MAGIC
from balenaflash.source.container.zstd import ZSTD, ZSTD_MAGIC, recognise_zstd
from balenaflash.units import KIB

_LONGEST_MAGIC = 6  # bytes, of xz


def recognise(
    origin: Origin, member: str | None = None, warn: Callable[[str], None] = lambda _: None
) -> Compressed | None:
    """The container of the image in ``origin``; ``None`` if it is not one of those known here.

    ``member`` is the name of the image in a zip file, and is ignored for other containers. A member
    that is itself compressed is decoded too, so that the result is the image. ``warn`` is called
    with warnings that are known only at the end.

    Raises:
        ImageError: ``origin`` cannot be read, or is a container without a usable image in it.
    """
    peeked = Peeked(origin)
    # The second is the start of an empty zip file.
    if not peeked.peek(_LONGEST_MAGIC).startswith((LOCAL_MAGIC, END_MAGIC)):
        return _recognise_streams(peeked)
    if peeked.seekable and peeked.size is not None:
        zipped = find_zipped(peeked, peeked.size, member)
        return _look_inside(peeked.name, zipped, is_repeatable=True)
    zipped = find_streamed(peeked, member, warn)
    return _look_inside(peeked.name, zipped, is_repeatable=False)


def _recognise_streams(peeked: Peeked) -> Compressed | None:
    start = peeked.peek(_LONGEST_MAGIC)
    if start.startswith(GZIP.magics):
        return streams_of(peeked, GZIP)
    if start.startswith(BZIP2.magics):
        return recognise_bzip2(peeked)
    if start.startswith(XZ.magics):
        return recognise_xz(peeked)
    if start.startswith(ZSTD.magics):
        return recognise_zstd(peeked)
    return None


def _look_inside(name: str, zipped: Compressed, *, is_repeatable: bool) -> Compressed:
    """``zipped``, or the image that is compressed in its member.

    ``is_repeatable`` is True if ``zipped`` can be decoded more than once.

    Raises:
        ImageError: the member's start cannot be decoded.
    """

    def open_member() -> tuple[Compressed | None, Decoder]:
        member = Peeked(_MemberOrigin(f"{name} ({zipped.member})", zipped.open_decoder()))
        inner = _recognise_streams(member)
        return inner, PlainDecoder(member) if inner is None else inner.open_decoder()

    inner, decoder = open_member()
    if not is_repeatable:
        size = zipped.size if inner is None else None
        return replace(zipped, opener=lambda _at: decoder, size=size)
    decoder.close()
    if inner is None:
        return zipped
    return replace(zipped, opener=lambda _at: open_member()[1], size=None, seekable=False)


class _MemberOrigin:
    """The content of a member, as an origin that is read once from the start."""

    size = None
    seekable = False
    is_local = False

    def __init__(self, name: str, decoder: Decoder) -> None:
        self.name = name
        self._decoder = decoder
        self._ended = False

    def read_at(self, offset: int, length: int) -> bytes:
        del offset  # the end of the bytes read before
        if self._ended:
            return b""
        buffer = bytearray(length)
        filled = self._decoder.readinto(memoryview(buffer))
        self._ended = filled < length
        return bytes(memoryview(buffer)[:filled])

    def open_file(self) -> None:
        """The bytes are not in a file."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A foreign format, recognised by ``starts`` at the offset ``place``."""

    what: str
    hint: str
    starts: tuple[bytes, ...]
    place: int = 0
    reads_stored: bool = False
    """True if the program in the hint can read the file even if it is compressed."""


_CONVERT = "Convert it first: qemu-img convert -O raw {} image.img"
_UNPACK = "Unpack it first: 7z x {}"
_PAGE = "Open the address in a browser: it may ask for a login, or not be that of an image."
_ANSWER = "It is probably a server's error message: read it, and use the address of the image."
_OTHER = "Use a disk image: its name mostly ends in .img, .img.gz or .zip."

_ISO = _Kind(
    "the image of a CD (ISO 9660)",
    "Use the image of a disk: those of balenaOS end in .img or .zip.",
    (b"CD001",),
    32 * KIB + 1,  # ECMA-119, section 8.1.2: in the 17th sector of 2048 bytes
)

_KINDS = (
    _Kind("a QEMU disk (qcow2)", _CONVERT, (b"QFI\xfb",)),
    _Kind("a QEMU disk (QED)", _CONVERT, (b"QED\0",)),
    _Kind("a VMware disk (VMDK)", _CONVERT, (b"KDMV", b"COWD", b"# Disk DescriptorFile")),
    _Kind("a Hyper-V disk (VHDX)", _CONVERT, (b"vhdxfile",)),
    _Kind("a Virtual PC disk (VHD)", _CONVERT, (b"conectix",)),
    _Kind("a Parallels disk", _CONVERT, (b"WithoutFreeSpace", b"WithouFreSpacExt")),
    _Kind("a sparse image of Android", "Convert it first: simg2img {} image.img", (b":\xff&\xed",)),
    _Kind("a 7z archive", _UNPACK, (b"7z\xbc\xaf\x27\x1c",)),
    _Kind("a RAR archive", _UNPACK, (b"Rar!\x1a\x07",)),
    _Kind("a WIM archive of Windows", _UNPACK, (b"MSWIM\0\0\0",)),
    _Kind("a xar archive", "Unpack it first: bsdtar -xf {}", (b"xar!",)),
    _Kind("a cpio archive", "Unpack it first: cpio -i < {}", (b"070701", b"070702", b"070707")),
    _Kind("a Debian package", "Unpack it first: ar x {}", (b"!<arch>\n",)),
    _Kind("an RPM package", "Unpack it first: rpm2cpio {} | cpio -id", (b"\xed\xab\xee\xdb",)),
    _Kind("compressed with lz4", "Decompress it first: lz4 -d {} image.img", (b"\4\x22M\x18",)),
    _Kind("compressed with lzip", "Decompress it first: lzip -dc {} > image.img", (b"LZIP",)),
    _Kind("compressed with lzop", "Decompress it first: lzop -dc {} > image.img", (b"\x89LZO\0",)),
    _Kind("compressed with lzma", "Decompress it first: xz -dc {} > image.img", (b"]\0\0",)),
    _Kind("compressed with compress", "Decompress it first: zcat {} > image.img", (b"\x1f\x9d",)),
    # One container is decoded, so these are inside another one.
    _Kind("compressed twice, with gzip inside", _UNPACK, GZIP.magics, reads_stored=True),
    _Kind("compressed twice, with xz inside", _UNPACK, XZ.magics, reads_stored=True),
    _Kind("compressed twice, with bzip2 inside", _UNPACK, BZIP2.magics, reads_stored=True),
    _Kind("compressed twice, with zstd inside", _UNPACK, (ZSTD_MAGIC,), reads_stored=True),
    _Kind("a compressed zip file", _UNPACK, (LOCAL_MAGIC,), reads_stored=True),
    _Kind("a PDF document", _OTHER, (b"%PDF-",)),
    _Kind("a program", _OTHER, (b"\x7fELF",)),
    _Kind(
        "a pointer of Git LFS, in place of the file",
        "Fetch the file itself, in its repository: git lfs pull",
        (b"version https://git-lfs.github.com/spec/",),
    ),
    _Kind(
        "a tar archive",
        "Unpack it first, and use the image in it: tar -xf {}",
        (b"ustar",),
        257,  # POSIX.1-2017, pax, ustar header
        reads_stored=True,
    ),
    # The signature comes after a text with the program that made it.
    _Kind("a VirtualBox disk (VDI)", _CONVERT, (b"\x7f\x10\xda\xbe",), 64),
    _ISO,
)

_TEXTS = (
    _Kind("a web page", _PAGE, (b"<!doctype html", b"<html", b"<head", b"<script", b"<!--")),
    _Kind("an XML document", _ANSWER, (b"<?xml", b"<error")),
    _Kind("a JSON document", _ANSWER, (b'{"', b"{\n", b"{\r", b"{ ", b'[{"', b"{}")),
)
"""Formats of text, in lower case and without space in front."""

_HEAD = _ISO.place + len(_ISO.starts[0])  # bytes in which a format is recognised


def refuse_foreign(source: Source) -> None:
    """Refuse a file in a format that is known, but is not a disk image.

    Raises:
        ImageError: it is one (``image-foreign``).
    """
    head = _read_head(source)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:512].lower()
    if text.startswith(b"<?xml") and b"<html" in text:
        text = b"<html"  # XHTML begins as XML does
    candidates = ((head, _KINDS), (text, _TEXTS))
    for start, kinds in candidates:
        for kind in kinds:
            if start.startswith(kind.starts, kind.place):
                raise _foreign(source, kind)


def refuse_iso(source: Source) -> None:
    """Refuse the image of a CD, which may have a partition table as well.

    Raises:
        ImageError: it is one (``image-foreign``).
    """
    if _read_head(source).startswith(_ISO.starts, _ISO.place):
        raise _foreign(source, _ISO)


def _foreign(source: Source, kind: _Kind) -> ImageError:
    # The decompressed content is not in a file.
    is_file = isinstance(source, RandomAccess) or kind.reads_stored
    return ImageError(
        f"{source.name}: is {kind.what}, not a disk image",
        code="image-foreign",
        hint=kind.hint.format(shell_name(source.name) if is_file else "FILE"),
    )


def _read_head(source: Source) -> bytes:
    size = _HEAD if source.size is None else min(source.size, _HEAD)
    try:
        return source.read(0, size)
    except ImageError:
        # A stream that ends here has a size now.
        if source.size is None or source.size >= size:
            raise
        return source.read(0, source.size)
