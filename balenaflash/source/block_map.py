"""Block maps: which blocks of an image hold data, their checksums, and the file of a map.

A block map (``.bmap``) lies beside an image and lets bmaptool copy only the blocks it lists.
``map_beside`` keeps the file beside an image true to it.

Every number is checked when a map is read; maps are written as format 2.0. The comments of
bmaptool's ``BmapCreate.py`` describe the formats: 1.3 brought SHA-1 checksums, 2.0 (for a while
called 1.4) other kinds of checksum and new names for them.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from xml.parsers import expat

from balenaflash.errors import ImageError
from balenaflash.source.base import Source
from balenaflash.units import MIB, Extent, align_up, format_size, merge

CHECKSUM_TYPES = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
"""Kinds of checksum, as ``hashlib`` names them; bmaptool itself writes sha256."""

_CHUNK_SIZE = MIB


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A run of blocks that hold data."""

    first: int
    """Number of the first block, from 0."""

    last: int
    """Number of the last block, inclusive."""

    checksum: str | None = None
    """Hexadecimal digest of the blocks' bytes; ``None`` in a map without checksums."""

    @property
    def blocks(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Bmap:
    """A block map whose numbers agree with each other."""

    image_size: int
    """Size in bytes of the image it belongs to, which need not fill its last block."""

    block_size: int
    """Size of a block in bytes."""

    ranges: tuple[MappedRange, ...]
    """The ranges in order; none overlaps another, two may be adjacent."""

    checksum_type: str = "sha256"
    """One of ``CHECKSUM_TYPES``."""

    @property
    def blocks(self) -> int:
        """Number of blocks of the image, a partial one included."""
        return align_up(self.image_size, self.block_size) // self.block_size

    @property
    def mapped_blocks(self) -> int:
        """Number of blocks that hold data."""
        return sum(mapped.blocks for mapped in self.ranges)

    def extent_of(self, mapped: MappedRange) -> Extent:
        """Range in bytes of the image's blocks in ``mapped``."""
        end = min((mapped.last + 1) * self.block_size, self.image_size)
        return Extent(mapped.first * self.block_size, end)


def differing_ranges(bmap: Bmap, source: Source) -> tuple[Extent, ...]:
    """The ranges of ``source`` whose checksum is not that of the map, in order.

    Ranges without a checksum cannot differ; blocks that are not mapped are not read.

    Raises:
        ImageError: the map is of an image of another size, or ``source`` cannot be read.
    """
    require_same_size(bmap, source)
    return tuple(_differing(bmap, source, bmap.ranges))


def updated(
    bmap: Bmap, before: Source, after: Source, changed: Sequence[Extent]
) -> tuple[Bmap, tuple[Extent, ...]]:
    """The map of ``after``, and the ranges in which ``bmap`` was not true of ``before``.

    ``changed`` are the extents in which the two differ. Only ranges that they touch are read.
    Blocks that they touch and that were not mapped get ranges of their own. If the second
    result is not empty, another program has changed the image since the map was made and may have
    used blocks that the map does not list: the map should then not be used.

    Raises:
        ImageError: the map is of an image of another size, or a source cannot be read.
    """
    require_same_size(bmap, before)
    size = bmap.block_size
    blocks = [Extent(each.start // size, align_up(each.end, size) // size) for each in changed]
    touched, untouched = _parted(bmap.ranges, tuple(merge(sorted(blocks))))
    untrue = tuple(_differing(bmap, before, touched))
    # All or none: bmaptool makes maps with and without checksums.
    has_checksums = all(mapped.checksum is not None for mapped in bmap.ranges)
    blocks += [Extent(mapped.first, mapped.last + 1) for mapped in touched]
    renewed = [MappedRange(each.start, each.end - 1) for each in merge(sorted(blocks))]
    if has_checksums:
        renewed = [replace(each, checksum=_digest(bmap, after, each)) for each in renewed]
    ranges = tuple(sorted([*untouched, *renewed], key=attrgetter("first")))
    return replace(bmap, ranges=ranges), untrue


def require_same_size(bmap: Bmap, source: Source) -> None:
    """Refuse a map of another image than ``source``.

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


def _parted(
    ranges: Iterable[MappedRange], blocks: Sequence[Extent]
) -> tuple[list[MappedRange], list[MappedRange]]:
    """The ``ranges`` that share a block with ``blocks``, disjoint and in order, and the rest."""
    touched: list[MappedRange] = []
    untouched: list[MappedRange] = []
    for mapped in ranges:
        # Only the last run of blocks that begins inside the range or before it: those before
        # that one end earlier.
        index = bisect_right(blocks, mapped.last, key=attrgetter("start")) - 1
        meets = index >= 0 and blocks[index].end > mapped.first
        (touched if meets else untouched).append(mapped)
    return touched, untouched


MAX_FILE_SIZE = 16 * MIB
"""Bytes: room for 140,000 ranges; the map of a balenaOS image has some thousand."""

_MAX_IMAGE_SIZE = 2**63 - 1  # bytes, off_t
_BLOCK_SIZES = range(512, 16 * MIB + 1)  # bytes; bmaptool takes those of the filesystem it ran on
_DEPTH = 3  # of elements: bmap, BlockMap, Range
_NUMBER = re.compile(r"[0-9]{1,19}")
_RANGE = re.compile(r"([0-9]{1,19})(?:\s*-\s*([0-9]{1,19}))?")


@dataclass(frozen=True, slots=True)
class _Format:
    """Names of the checksums in a version of the format."""

    file_checksum: str | None
    """Element with the checksum of the file itself."""

    range_checksum: str | None
    """Attribute with the checksum of a range."""

    checksum_type: str | None
    """The only kind of checksum; ``None`` if an element of the file names it."""


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
    """The map in ``content``; ``name`` is the name of the file for messages.

    Raises:
        ImageError: it is not a block map of a known format, its numbers contradict each other,
            or its own checksum does not match.
    """
    if len(content) > MAX_FILE_SIZE:
        raise _invalid(name, f"it is larger than {format_size(MAX_FILE_SIZE)}")
    reader = _Reader(name)
    reader.read(content)
    version = reader.version
    if version not in _FORMATS:
        raise ImageError(
            f"{name}: is a block map of the unknown version {version[:20]!r}",
            code="bmap-unsupported",
        )
    known = _FORMATS[version]
    checksum_type = known.checksum_type or reader.text_of("ChecksumType")
    if checksum_type not in CHECKSUM_TYPES:
        raise _invalid(name, f"its checksums are of an unknown type, {checksum_type[:20]!r}")
    if known.file_checksum is not None:
        _check_file(name, content, reader.text_of(known.file_checksum), checksum_type)
    bmap = Bmap(
        image_size=reader.number("ImageSize"),
        block_size=reader.number("BlockSize"),
        ranges=tuple(reader.mapped_ranges(known.range_checksum, checksum_type)),
        checksum_type=checksum_type,
    )
    _require_agreement(bmap, reader)
    return bmap


def serialise(bmap: Bmap) -> bytes:
    """The file of ``bmap``, in format 2.0."""
    digest_size = hashlib.new(bmap.checksum_type, usedforsecurity=False).digest_size
    zeros = "0" * (2 * digest_size)
    lines = [
        _HEAD.format(
            bmap=bmap,
            human_size=format_size(bmap.image_size),
            human_mapped=format_size(bmap.mapped_blocks * bmap.block_size),
            percent=100 * bmap.mapped_blocks / bmap.blocks,
            checksum=zeros,
        )
    ]
    for mapped in bmap.ranges:
        checksum = "" if mapped.checksum is None else f' chksum="{mapped.checksum}"'
        blocks = f"{mapped.first}" if mapped.blocks == 1 else f"{mapped.first}-{mapped.last}"
        lines.append(f"        <Range{checksum}> {blocks} </Range>\n")
    content = "".join([*lines, _FOOT]).encode("ascii")
    checksum = _file_digest(content, bmap.checksum_type)
    return content.replace(zeros.encode(), checksum.encode(), 1)


def _check_file(name: str, content: bytes, checksum: str, checksum_type: str) -> None:
    place = content.find(checksum.encode("utf-8", "surrogatepass"))
    zeros = b"0" * len(checksum)
    blank = content[:place] + zeros + content[place + len(zeros) :]
    if place < 0 or _file_digest(blank, checksum_type) != checksum:
        raise _invalid(name, "its own checksum does not match")


def _file_digest(content: bytes, checksum_type: str) -> str:
    return hashlib.new(checksum_type, content, usedforsecurity=False).hexdigest()


def _require_agreement(bmap: Bmap, reader: "_Reader") -> None:
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


@dataclass(slots=True)
class _Reader:
    """The elements of a file, read without anything that XML could make grow.

    A tree of all elements would take over a gigabyte for a file of deeply nested ones.
    """

    name: str
    version: str = ""
    _path: list[str] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _values: dict[str, str] = field(default_factory=dict)
    _ranges: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    _attributes: dict[str, str] = field(default_factory=dict)

    def read(self, content: bytes) -> None:
        """Read the whole file."""
        parser = expat.ParserCreate(encoding="utf-8")
        # Entities are declared in a document type only, which no block map has. Without it there
        # is nothing to expand, and nothing to fetch from outside the file.
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
        """The text of the one element of that name."""
        if element not in self._values:
            raise _invalid(self.name, f"it has no {element}")
        return self._values[element]

    def number(self, element: str) -> int:
        """The number in the one element of that name."""
        text = self.text_of(element)
        if not _NUMBER.fullmatch(text):
            raise _invalid(self.name, f"its {element} is not a number")
        return int(text)

    def mapped_ranges(self, attribute: str | None, checksum_type: str) -> list[MappedRange]:
        """The ranges in the order of the file, their checksums from ``attribute``."""
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
