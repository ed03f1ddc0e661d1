"""Recognise by content which container an image is in, or name the foreign format.

Magic numbers are those of each format's own description; most are also in file(1)'s.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from balenaflash.errors import ImageError
from balenaflash.source.base import RandomAccess, Source
from balenaflash.source.container.decoder import (
    Compressed,
    Container,
    Decoder,
    Origin,
    Peeked,
    PlainDecoder,
)
from balenaflash.units import KIB

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
        from balenaflash.source.container.streams import (  # noqa: PLC0415 - see above
            GZIP,
            CompressedStreams,
        )

        return CompressedStreams(peeked, GZIP)
    if start.startswith(_BZIP2_START):
        from balenaflash.source.container.bzip2 import recognise_bzip2  # noqa: PLC0415

        return recognise_bzip2(peeked)
    if start == _XZ_START:
        from balenaflash.source.container.xz import recognise_xz  # noqa: PLC0415

        return recognise_xz(peeked)
    if start.startswith(_ZSTD_STARTS):
        from balenaflash.source.container.zstd import recognise_zstd  # noqa: PLC0415

        return recognise_zstd(peeked)
    return None


def _recognise_zip(peeked: Peeked, member: str | None, warn: Callable[[str], None]) -> Compressed:
    from balenaflash.source.container.zip import (  # noqa: PLC0415 - see above
        find_streamed,
        find_zipped,
    )

    is_seekable = peeked.seekable and peeked.size is not None
    outer: Compressed
    if is_seekable and peeked.size is not None:
        outer = find_zipped(peeked, peeked.size, member)
    else:
        outer = find_streamed(peeked, member, warn)
    return look_inside(peeked.name, outer, _recognise_streams, again=is_seekable)


@dataclass(frozen=True, slots=True)
class Nested:
    """A member of a zip file, decoded by what its own content asks for."""

    outer: Compressed
    size: int | None
    open_inner: Callable[[], Decoder]

    @property
    def container(self) -> Container:
        """The outer one."""
        return self.outer.container

    @property
    def member(self) -> str | None:
        """Its name in the outer one."""
        return self.outer.member

    @property
    def seekable(self) -> bool:
        """Never."""
        return False

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder from the start; see ``Compressed``."""
        if at:
            raise ValueError(at)
        return self.open_inner()


def look_inside(
    name: str, outer: Compressed, recognise: Callable[[Peeked], Compressed | None], *, again: bool
) -> Compressed:
    """``outer``, or the image that is compressed in its member by what ``recognise`` knows.

    ``again`` is whether ``outer`` can be decoded more than once.

    Raises:
        ImageError: the member's start cannot be decoded.
    """

    def open_member() -> tuple[Peeked, Compressed | None]:
        peeked = Peeked(_MemberOrigin(f"{name} ({outer.member})", outer.open_decoder()))
        return peeked, recognise(peeked)

    def reopen() -> Decoder:
        peeked, inner = open_member()
        return PlainDecoder(peeked) if inner is None else inner.open_decoder()

    peeked, inner = open_member()
    if not again:
        size = outer.size if inner is None else None
        return Nested(outer, size, inner.open_decoder if inner else lambda: PlainDecoder(peeked))
    return outer if inner is None else Nested(outer, None, reopen)


class _MemberOrigin:
    """The bytes of a member, as an origin to be read once from the start."""

    size = None
    seekable = False
    is_local = False

    def __init__(self, name: str, decoder: Decoder) -> None:
        self.name = name
        self._decoder = decoder
        self._ended = False

    def read_at(self, offset: int, length: int) -> bytes:
        """The next bytes; ``offset`` is where the last ones ended."""
        del offset
        if self._ended:
            return b""
        buffer = bytearray(length)
        filled = self._decoder.readinto(memoryview(buffer))
        self._ended = filled < length
        return bytes(memoryview(buffer)[:filled])

    def open_file(self) -> None:
        """They are in no file."""


_ISO_PLACE = 32 * KIB + 1  # ECMA-119, section 8.1.2: in the 17th sector of 2048 bytes
_ISO_MAGIC = b"CD001"
_TAR_PLACE = 257  # POSIX.1-2017, pax, ustar header
_VDI_PLACE = 64  # of a VDI file's signature, after a text that tells its maker
_HEAD = _ISO_PLACE + len(_ISO_MAGIC)

_CONVERT = "Convert it first: qemu-img convert -O raw {} image.img"
_UNPACK = "Unpack it first: 7z x {}"
_TAR = "Unpack it first, and give the image in it: tar -xf {}"
_PAGE = "Look at it in a browser: a login may be asked for, or the address is not the image's."
_ANSWER = "A server's error, most likely: look at it, and give the address of the image itself."
_OTHER = "Give a disk image: its name mostly ends in .img, .img.gz or .zip."


@dataclass(frozen=True, slots=True)
class _Kind:
    what: str
    hint: str
    starts: tuple[bytes, ...] = ()


_KINDS = (
    _Kind("a QEMU disk (qcow2)", _CONVERT, (b"QFI\xfb",)),
    _Kind("a QEMU disk (QED)", _CONVERT, (b"QED\0",)),
    _Kind("a VMware disk (VMDK)", _CONVERT, (b"KDMV", b"COWD", b"# Disk DescriptorFile")),
    _Kind("a Hyper-V disk (VHDX)", _CONVERT, (b"vhdxfile",)),
    _Kind("a Virtual PC disk (VHD)", _CONVERT, (b"conectix",)),
    _Kind("a Parallels disk", _CONVERT, (b"WithoutFreeSpace", b"WithouFreSpacExt")),
    _Kind(
        "a sparse image of Android",
        "Convert it first: simg2img {} image.img",
        (b"\x3a\xff\x26\xed",),
    ),
    _Kind("a 7z archive", _UNPACK, (b"7z\xbc\xaf\x27\x1c",)),
    _Kind("a RAR archive", _UNPACK, (b"Rar!\x1a\x07",)),
    _Kind("a WIM archive of Windows", _UNPACK, (b"MSWIM\0\0\0",)),
    _Kind("a xar archive", "Unpack it first: bsdtar -xf {}", (b"xar!",)),
    _Kind("a cpio archive", "Unpack it first: cpio -i < {}", (b"070701", b"070702", b"070707")),
    _Kind("a Debian package", "Unpack it first: ar x {}", (b"!<arch>\n",)),
    _Kind("an RPM package", "Unpack it first: rpm2cpio {} | cpio -id", (b"\xed\xab\xee\xdb",)),
    _Kind(
        "compressed with lz4", "Decompress it first: lz4 -d {} image.img", (b"\x04\x22\x4d\x18",)
    ),
    _Kind("compressed with lzip", "Decompress it first: lzip -dc {} > image.img", (b"LZIP",)),
    _Kind("compressed with lzop", "Decompress it first: lzop -dc {} > image.img", (b"\x89LZO\0",)),
    _Kind("compressed with lzma", "Decompress it first: xz -dc {} > image.img", (b"]\0\0",)),
    _Kind("compressed with compress", "Decompress it first: zcat {} > image.img", (b"\x1f\x9d",)),
    # What is known is decoded once, so these are inside of something.
    _Kind("compressed twice, with gzip inside", "Decompress it once: zcat", (b"\x1f\x8b\x08",)),
    _Kind("compressed twice, with xz inside", "Decompress it once: xz -dc", (b"\xfd7zXZ\0",)),
    _Kind("compressed twice, with bzip2 inside", "Decompress it once: bzip2 -dc", (b"BZh",)),
    _Kind(
        "compressed twice, with zstd inside", "Decompress it once: zstd -dc", (b"\x28\xb5\x2f\xfd",)
    ),
    _Kind("a zip file in something compressed", "Decompress it once first.", (b"PK\3\4",)),
    _Kind("a PDF document", _OTHER, (b"%PDF-",)),
    _Kind("a program", _OTHER, (b"\x7fELF",)),
    _Kind(
        "a pointer of Git LFS, in place of the file",
        "Fetch the file itself, where the repository is: git lfs pull",
        (b"version https://git-lfs.github.com/spec/",),
    ),
)
_TAR_KIND = _Kind("a tar archive", _TAR)
_VDI_KIND = _Kind("a VirtualBox disk (VDI)", _CONVERT)
_ISO_KIND = _Kind(
    "the image of a CD (ISO 9660)", "Give the image of a disk: balenaOS comes as .img or .zip."
)
_HTML_KIND = _Kind("a web page", _PAGE)
_XML_KIND = _Kind("an XML document", _ANSWER)
_JSON_KIND = _Kind("a JSON document", _ANSWER)


def refuse_foreign(source: Source) -> None:
    """Refuse what is no disk image and known by its first bytes.

    Raises:
        ImageError: it is (``image-foreign``).
    """
    head = _read_head(source)
    kind = next((kind for kind in _KINDS if head.startswith(kind.starts)), None) or next(
        (kind for kind, is_it in _OTHERS if is_it(head)), None
    )
    if kind is not None:
        raise _foreign(source, kind)


def refuse_iso(source: Source) -> None:
    """Refuse the image of a CD, which may have a partition table besides.

    Raises:
        ImageError: it is one (``image-foreign``).
    """
    if _is_iso(_read_head(source)):
        raise _foreign(source, _ISO_KIND)


def _foreign(source: Source, kind: _Kind) -> ImageError:
    is_file = source.name != "-" and "://" not in source.name
    # What had to be decompressed is in no file; only tar takes it as it is.
    is_file = is_file and (isinstance(source, RandomAccess) or kind is _TAR_KIND)
    name = shlex.quote(source.name) if is_file else "FILE"
    return ImageError(
        f"{source.name}: is {kind.what}, not a disk image",
        code="image-foreign",
        hint=kind.hint.format(name),
    )


def _read_head(source: Source) -> bytes:
    """The first bytes, as many as there are."""
    size = _HEAD if source.size is None else min(source.size, _HEAD)
    try:
        return source.read(0, size)
    except ImageError:
        # A stream that ends here has a size now.
        if source.size is None or source.size >= size:
            raise
        return source.read(0, source.size)


def _is_iso(head: bytes) -> bool:
    return head[_ISO_PLACE:_HEAD] == _ISO_MAGIC


def _is_tar(head: bytes) -> bool:
    return head[_TAR_PLACE : _TAR_PLACE + 5] == b"ustar"


def _is_vdi(head: bytes) -> bool:
    return head[_VDI_PLACE : _VDI_PLACE + 4] == b"\x7f\x10\xda\xbe"


def _text(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:512].lower()


def _is_html(head: bytes) -> bool:
    text = _text(head)
    # XHTML begins as XML does.
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<!--")) or (
        text.startswith(b"<?xml") and b"<html" in text
    )


def _is_xml(head: bytes) -> bool:
    return _text(head).startswith((b"<?xml", b"<error"))


def _is_json(head: bytes) -> bool:
    return _text(head).startswith((b'{"', b"{\n", b"{\r", b"{ ", b'[{"', b"{}"))


_OTHERS: tuple[tuple[_Kind, Callable[[bytes], bool]], ...] = (
    (_TAR_KIND, _is_tar),
    (_VDI_KIND, _is_vdi),
    (_ISO_KIND, _is_iso),
    (_HTML_KIND, _is_html),
    (_XML_KIND, _is_xml),
    (_JSON_KIND, _is_json),
)
