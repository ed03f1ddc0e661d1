"""Block maps: which blocks of an image hold data, their checksums, and the file of a map.

A block map (``.bmap``) lies beside an image and lets bmaptool copy the blocks it lists alone. What
is here is the map itself; ``bmap_xml`` reads and writes its file, ``bmap_beside`` keeps the file
beside an image true to it.

Read with every number checked; written as format 2.0. The formats are told apart in the comments
of bmaptool's ``BmapCreate.py``: 1.3 brought SHA-1 checksums, 2.0 (for a while called 1.4) other
kinds of checksum and new names for them.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from xml.parsers import expat

from balenaflash.errors import ImageError
from balenaflash.source.base import Source
from balenaflash.units import MIB, Extent, format_size

CHECKSUM_TYPES = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
"""What a map may be hashed with, as ``hashlib`` names it; bmaptool itself writes sha256."""

_CHUNK_SIZE = MIB


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A run of blocks that hold data."""

    first: int
    """Number of the first block, from 0."""

    last: int
    """Number of the last block, itself included."""

    checksum: str | None = None
    """Hexadecimal digest of the blocks' bytes; ``None`` in a map without checksums."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Bmap:
    """A block map whose numbers agree with each other."""

    image_size: int
    """Bytes of the image it belongs to; the last block may be cut short by the image's end."""

    block_size: int
    """In bytes."""

    ranges: tuple[MappedRange, ...]
    """In order, none overlapping another; two may be adjacent."""

    checksum_type: str = "sha256"
    """One of ``CHECKSUM_TYPES``."""

    @property
    def blocks(self) -> int:
        """Number of blocks of the image, the last one counted whole."""
        return -(-self.image_size // self.block_size)

    @property
    def mapped_blocks(self) -> int:
        """Number of blocks that hold data."""
        return sum(mapped.blocks for mapped in self.ranges)

    def extent_of(self, mapped: MappedRange) -> Extent:
        """The bytes of the image that ``mapped`` stands for."""
        end = min((mapped.last + 1) * self.block_size, self.image_size)
        return Extent(mapped.first * self.block_size, end)


def differing_ranges(bmap: Bmap, source: Source) -> tuple[Extent, ...]:
    """The ranges of ``source`` that do not have the checksum their map gives, in order.

    Ranges without a checksum cannot differ; blocks that are not mapped are not looked at.

    Raises:
        ImageError: the map is of an image of another size, or ``source`` cannot be read.
    """
    require_same_size(bmap, source)
    return tuple(_differing(bmap, source, bmap.ranges))


def updated(
    bmap: Bmap, before: Source, after: Source, changed: Sequence[Extent]
) -> tuple[Bmap, tuple[Extent, ...]]:
    """The map of ``after``, and the ranges for which ``bmap`` was not true of ``before``.

    ``changed`` are the extents in which the two differ. Only ranges that they touch are read.
    Blocks that they touch and that were not mapped get ranges of their own. Where the second
    answer is not empty, something else changed the image since the map was made and may have
    used blocks that the map does not list: the map should then not be used.

    Raises:
        ImageError: the map is of an image of another size, or a source cannot be read.
    """
    require_same_size(bmap, before)
    blocks = _merged(_blocks_of(bmap, extent) for extent in changed)
    touched, untouched = _parted(bmap.ranges, blocks)
    untrue = tuple(_differing(bmap, before, touched))
    # All or none: bmaptool makes maps with and without checksums.
    has_checksums = all(mapped.checksum is not None for mapped in bmap.ranges)
    renewed = [
        replace(mapped, checksum=_digest(bmap, after, mapped) if has_checksums else None)
        for mapped in _merged([*touched, *blocks])
    ]
    return replace(bmap, ranges=tuple(sorted([*untouched, *renewed], key=_first_block))), untrue


def require_same_size(bmap: Bmap, source: Source) -> None:
    """Refuse a map that is of another image than ``source``.

    Raises:
        ImageError: their sizes differ.
    """
    if bmap.image_size != source.size:
        raise ImageError(
            f"{source.name}: has {source.size} bytes, but its block map is of an image of "
            f"{bmap.image_size} bytes",
            code="bmap-foreign",
        )


def _differing(bmap: Bmap, source: Source, ranges: Iterable[MappedRange]) -> Iterator[Extent]:
    for mapped in ranges:
        if mapped.checksum is not None and mapped.checksum != _digest(bmap, source, mapped):
            yield bmap.extent_of(mapped)


def _digest(bmap: Bmap, source: Source, mapped: MappedRange) -> str:
    extent = bmap.extent_of(mapped)
    digest = hashlib.new(bmap.checksum_type, usedforsecurity=False)
    for offset in range(extent.start, extent.end, _CHUNK_SIZE):
        digest.update(source.read(offset, min(_CHUNK_SIZE, extent.end - offset)))
    return digest.hexdigest()


def _blocks_of(bmap: Bmap, extent: Extent) -> MappedRange:
    return MappedRange(extent.start // bmap.block_size, (extent.end - 1) // bmap.block_size)


def _merged(ranges: Iterable[MappedRange]) -> list[MappedRange]:
    """``ranges`` in order and without checksums, those that overlap or are adjacent made one."""
    merged: list[MappedRange] = []
    for mapped in sorted(ranges, key=_first_block):
        if merged and mapped.first <= merged[-1].last + 1:
            last = max(merged[-1].last, mapped.last)
            merged[-1] = MappedRange(merged[-1].first, last)
        else:
            merged.append(MappedRange(mapped.first, mapped.last))
    return merged


def _parted(
    ranges: Iterable[MappedRange], blocks: Sequence[MappedRange]
) -> tuple[list[MappedRange], list[MappedRange]]:
    """Those of ``ranges`` that share a block with ``blocks``, which are in order, and the rest."""
    touched: list[MappedRange] = []
    untouched: list[MappedRange] = []
    for mapped in ranges:
        # The last run that does not begin behind the range is the only one to look at: those
        # before it end where it begins, or earlier.
        index = bisect_right(blocks, mapped.last, key=_first_block) - 1
        meets = index >= 0 and blocks[index].last >= mapped.first
        (touched if meets else untouched).append(mapped)
    return touched, untouched


def _first_block(mapped: MappedRange) -> int:
    return mapped.first


MAX_FILE_SIZE = 16 * MIB
"""Bytes; room for 140,000 ranges, where the map of a balenaOS image has some thousand."""

_MAX_IMAGE_SIZE = 2**63 - 1  # bytes, off_t
_BLOCK_SIZES = range(512, 16 * MIB + 1)  # bytes; bmaptool takes those of the filesystem it ran on
_DEPTH = 3  # of elements: bmap, BlockMap, Range
_NUMBER = re.compile(r"[0-9]{1,19}")
_RANGE = re.compile(r"([0-9]{1,19})(?:\s*-\s*([0-9]{1,19}))?")


@dataclass(frozen=True, slots=True)
class _Format:
    """How a version of the format names its checksums."""

    file_checksum: str | None
    """Element that holds the checksum of the file itself."""

    range_checksum: str | None
    """Attribute that holds the checksum of a range."""

    checksum_type: str | None
    """The only kind there is; ``None`` where an element of the file tells."""


_FORMAT_2 = _Format("BmapFileChecksum", "chksum", None)
_FORMATS: Mapping[str, _Format] = {
    "1.2": _Format(None, None, "sha256"),  # has none; a map made from it may get some
    "1.3": _Format("BmapFileSHA1", "sha1", "sha1"),
    "1.4": _FORMAT_2,
    "2.0": _FORMAT_2,
}

_HEAD = """\
<?xml version="1.0" ?>
<!-- Block map of an image: the blocks listed below hold data, the others need not be copied. -->

<bmap version="2.0">
    <!-- Image size in bytes: {human_size} -->
    <ImageSize> {bmap.image_size} </ImageSize>

    <!-- Size of a block in bytes -->
    <BlockSize> {bmap.block_size} </BlockSize>

    <!-- Count of blocks in the image file -->
    <BlocksCount> {bmap.blocks} </BlocksCount>

    <!-- Count of mapped blocks: {human_mapped} or {percent:.1f}% -->
    <MappedBlocksCount> {bmap.mapped_blocks} </MappedBlocksCount>

    <!-- Type of checksum used in this file -->
    <ChecksumType> {bmap.checksum_type} </ChecksumType>

    <!-- Checksum of this file, calculated with zeros in its place -->
    <BmapFileChecksum> {checksum} </BmapFileChecksum>

    <!-- Ranges of mapped blocks, the last block included, and the checksum of each -->
    <BlockMap>
"""
_FOOT = """\
    </BlockMap>
</bmap>
"""


def parse(content: bytes, name: str) -> Bmap:
    """The map in ``content``; ``name`` is what to call the file in messages.

    Raises:
        ImageError: it is not a block map of a known format, its numbers contradict each other,
            or its own checksum does not match.
    """
    reader = _Reader(name)
    reader.read(content)
    version = reader.version
    if version not in _FORMATS:
        raise ImageError(
            f"{name}: is a block map of version {version[:20]!r}, which is not known",
            code="bmap-unsupported",
        )
    layout = _FORMATS[version]
    checksum_type = layout.checksum_type or reader.text_of("ChecksumType")
    if checksum_type not in CHECKSUM_TYPES:
        raise _invalid(name, f"its checksums are of an unknown type, {checksum_type[:20]!r}")
    if layout.file_checksum is not None:
        _check_file(name, content, reader.text_of(layout.file_checksum), checksum_type)
    return _checked(reader, layout, checksum_type)


def serialise(bmap: Bmap) -> bytes:
    """The file of ``bmap``, in format 2.0."""
    digest_size = hashlib.new(bmap.checksum_type, usedforsecurity=False).digest_size
    zeros = "0" * (2 * digest_size)
    head = _HEAD.format(
        bmap=bmap,
        human_size=format_size(bmap.image_size),
        human_mapped=format_size(bmap.mapped_blocks * bmap.block_size),
        percent=100 * bmap.mapped_blocks / bmap.blocks,
        checksum=zeros,
    )
    content = "".join([head, *map(_range_line, bmap.ranges), _FOOT]).encode("ascii")
    checksum = _file_digest(content, bmap.checksum_type)
    return content.replace(zeros.encode(), checksum.encode(), 1)


def _range_line(mapped: MappedRange) -> str:
    checksum = "" if mapped.checksum is None else f' chksum="{mapped.checksum}"'
    blocks = f"{mapped.first}" if mapped.blocks == 1 else f"{mapped.first}-{mapped.last}"
    return f"        <Range{checksum}> {blocks} </Range>\n"


def _check_file(name: str, content: bytes, checksum: str, checksum_type: str) -> None:
    place = content.find(checksum.encode("utf-8", "surrogatepass"))
    zeros = b"0" * len(checksum)
    blank = content[:place] + zeros + content[place + len(zeros) :]
    if place < 0 or _file_digest(blank, checksum_type) != checksum:
        raise _invalid(name, "its own checksum does not match")


def _file_digest(content: bytes, checksum_type: str) -> str:
    return hashlib.new(checksum_type, content, usedforsecurity=False).hexdigest()


def _checked(reader: "_Reader", layout: _Format, checksum_type: str) -> Bmap:
    """The map, once its numbers are seen to agree."""
    bmap = Bmap(
        image_size=reader.number("ImageSize"),
        block_size=reader.number("BlockSize"),
        ranges=tuple(reader.mapped_ranges(layout.range_checksum, checksum_type)),
        checksum_type=checksum_type,
    )
    name = reader.name
    if not 0 < bmap.image_size <= _MAX_IMAGE_SIZE or bmap.block_size not in _BLOCK_SIZES:
        raise _invalid(name, "its image size or block size is out of range")
    if reader.number("BlocksCount") != bmap.blocks:
        raise _invalid(name, "its number of blocks does not match the image size")
    end = 0
    for mapped in bmap.ranges:
        if not end <= mapped.first <= mapped.last < bmap.blocks:
            raise _invalid(name, f"its range {mapped.first}-{mapped.last} is out of place")
        end = mapped.last + 1
    if reader.number("MappedBlocksCount") != bmap.mapped_blocks:
        raise _invalid(name, "its number of mapped blocks does not match its ranges")
    return bmap


@dataclass(slots=True)
class _Reader:
    """What the elements of a file hold; nothing that XML could make grow is accepted."""

    name: str
    version: str = ""
    _path: list[str] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _values: dict[str, str] = field(default_factory=dict)
    _ranges: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    _attributes: dict[str, str] = field(default_factory=dict)

    def read(self, content: bytes) -> None:
        """Take in the whole file."""
        if len(content) > MAX_FILE_SIZE:
            raise _invalid(self.name, f"it is larger than {format_size(MAX_FILE_SIZE)}")
        parser = expat.ParserCreate(encoding="utf-8")
        # Entities are declared in a document type only, and no block map has one: without it
        # there is nothing to expand and nothing outside the file to fetch.
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        try:
            parser.Parse(content, True)
        except expat.ExpatError as error:
            reason = f"it is not valid XML, line {error.lineno}: {expat.ErrorString(error.code)}"
            raise _invalid(self.name, reason) from error

    def text_of(self, element: str) -> str:
        """What the one element of that name holds."""
        if element not in self._values:
            raise _invalid(self.name, f"it has no {element}")
        return self._values[element]

    def number(self, element: str) -> int:
        """The number in the one element of that name."""
        text = self.text_of(element)
        if not _NUMBER.fullmatch(text):
            raise _invalid(self.name, f"its {element} is no number")
        return int(text)

    def mapped_ranges(self, attribute: str | None, checksum_type: str) -> list[MappedRange]:
        """The ranges as they stand there, their checksums from ``attribute``."""
        length = 2 * hashlib.new(checksum_type, usedforsecurity=False).digest_size
        is_checksum = re.compile(rf"[0-9a-f]{{{length}}}").fullmatch
        ranges = []
        for text, attributes in self._ranges:
            found = _RANGE.fullmatch(text)
            checksum = None if attribute is None else attributes.get(attribute)
            if not found or not (checksum is None or is_checksum(checksum)):
                raise _invalid(self.name, f"its range {text[:40]!r} is not valid")
            ranges.append(MappedRange(int(found[1]), int(found[2] or found[1]), checksum))
        return ranges

    def _refuse_doctype(self, *_declaration: object) -> None:
        raise _invalid(self.name, "it declares a document type, which no block map does")

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        self._path.append(element)
        if len(self._path) > _DEPTH:
            raise _invalid(self.name, "its elements are nested too deep")
        self._text.clear()
        self._attributes = attributes
        if self._path == ["bmap"]:
            self.version = attributes.get("version", "")

    def _end(self, element: str) -> None:
        text = "".join(self._text).strip()
        if self._path == ["bmap", "BlockMap", "Range"]:
            self._ranges.append((text, self._attributes))
        elif self._path == ["bmap", element] and element != "BlockMap":
            if element in self._values:
                raise _invalid(self.name, f"it has two of {element[:40]!r}")
            self._values[element] = text
        self._path.pop()
        self._text.clear()


def _invalid(name: str, reason: str) -> ImageError:
    return ImageError(f"{name}: is not a valid block map: {reason}", code="bmap-invalid")
