import hashlib
from contextlib import suppress
from pathlib import Path

import pytest
from bmaptool import BLOCK, copied_by_bmaptool, needs_bmaptool
from fakes import MemorySource
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.source.block_map import Bmap, MappedRange, parse, serialise, updated
from balenaflash.source.layers import Overlay, Patch
from balenaflash.source.map_beside import read_bmap

# Written by hand after the comments of BmapCreate.py; checksums by
#   sed 's/@/0000000000000000000000000000000000000000/' FILE | sha1sum
OLD_1_2 = """<?xml version="1.0" ?>
<bmap version="1.2">
    <ImageSize> 20000 </ImageSize>
    <BlockSize> 4096 </BlockSize>
    <BlocksCount> 5 </BlocksCount>
    <MappedBlocksCount> 3 </MappedBlocksCount>
    <BlockMap>
        <Range> 0 - 1 </Range>
        <Range> 4 </Range>
    </BlockMap>
</bmap>
"""
OLD_1_3 = """<?xml version="1.0" ?>
<bmap version="1.3">
    <ImageSize> 20000 </ImageSize>
    <BlockSize> 4096 </BlockSize>
    <BlocksCount> 5 </BlocksCount>
    <MappedBlocksCount> 3 </MappedBlocksCount>
    <BmapFileSHA1> @ </BmapFileSHA1>
    <BlockMap>
        <Range sha1="{first}"> 0-1 </Range>
        <Range sha1="{last}"> 4 </Range>
    </BlockMap>
</bmap>
"""


def signed_1_3(image: bytes) -> bytes:
    text = OLD_1_3.format(
        first=hashlib.sha1(image[: 2 * BLOCK]).hexdigest(),  # noqa: S324 -- the format's
        last=hashlib.sha1(image[4 * BLOCK :]).hexdigest(),  # noqa: S324 -- the format's
    )
    digest = hashlib.sha1(text.replace("@", "0" * 40).encode()).hexdigest()  # noqa: S324 -- same
    return text.replace("@", digest).encode()


@needs_bmaptool
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_an_old_map_is_read_and_brought_up_to_date_as_a_new_one(
    tmp_path: Path, version: str
) -> None:
    image = b"a" * 2 * BLOCK + bytes(2 * BLOCK) + b"b" * (20000 - 4 * BLOCK)
    path, old = tmp_path / "image", tmp_path / "old.bmap"
    path.write_bytes(image)
    old.write_bytes(OLD_1_2.encode() if version == "1.2" else signed_1_3(image))
    assert copied_by_bmaptool(path, old) == image  # the hand-written file is a true one
    before = MemorySource(image)
    patch = Patch(3 * BLOCK, b"new")
    after = Overlay(before, [patch])
    new, untrue = updated(read_bmap(old), before, after, [patch.extent])
    assert untrue == ()
    path.write_bytes(after.read(0, len(image)))
    old.write_bytes(serialise(new))
    assert copied_by_bmaptool(path, old) == path.read_bytes()


GOOD = serialise(Bmap(40960, BLOCK, (MappedRange(1, 2, "a" * 64), MappedRange(5, 5, "b" * 64))))


def resealed(content: bytes) -> bytes:
    """``content`` with a checksum of its own that is right again."""
    checksum = GOOD.split(b"<BmapFileChecksum> ")[1][:64]
    blank = content.replace(checksum, b"0" * 64)
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"2.0"', b'"3.0"', "version '3.0'"),
        (b"<ImageSize> 40960", b"<ImageSize> 0", "out of range"),
        (b"<ImageSize> 40960", b"<ImageSize> -1", "ImageSize is not a number"),
        (b"<ImageSize> 40960", b"<ImageSize> 4_0960", "ImageSize is not a number"),
        (b"<ImageSize> 40960", b"<ImageSize> " + b"9" * 5000, "ImageSize is not a number"),
        (b"<ImageSize> 40960", b"<ImageSize> 9999999999999999999", "out of range"),
        (b"<BlockSize> 4096", b"<BlockSize> 0", "out of range"),
        (b"<BlocksCount> 10", b"<BlocksCount> 11", "number of blocks"),
        (b"<MappedBlocksCount> 3", b"<MappedBlocksCount> 4", "number of mapped blocks"),
        (b"> 1-2 <", b"> 2-1 <", "range 2-1 is out of place"),
        (b"> 1-2 <", b"> 4-5 <", "range 5-5 is out of place"),
        (b"> 5 <", b"> 10 <", "range 10-10 is out of place"),
        (b"> 5 <", b"> five <", "range 'five' is not valid"),
        (b"b" * 64, b"b" * 63, "range '5' is not valid"),
        (b"> sha256 <", b"> shake_128 <", "unknown type, 'shake_128'"),
        (b"<BlockSize> 4096 </BlockSize>", b"", "no BlockSize"),
        (b"<BlockMap>", b"<BlockSize>1</BlockSize><BlockMap>", "two of 'BlockSize'"),
        (b"<BlockMap>", b"<BlockMap>" + b"<a>" * 1000, "nested too deep"),
        (b"</bmap>", b"", "not valid XML"),
        (b"<bmap", b'<!DOCTYPE b [<!ENTITY a "aa">]><bmap', "document type"),
        (b"<bmap", b'<!DOCTYPE b SYSTEM "file:///etc/passwd"><bmap', "document type"),
        (b"<Range", b"&a;<Range", "not valid XML"),
    ],
)
def test_a_map_that_contradicts_itself_is_refused_by_name_of_the_fault(
    old: bytes, new: bytes, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(ImageError, match="is") as refused:
        parse(resealed(GOOD.replace(old, new, 1)), "x.bmap")
    assert message in str(refused.value)
    assert str(refused.value).startswith("x.bmap: ")


def test_the_checksum_of_the_file_itself_is_checked() -> None:
    with pytest.raises(ImageError, match="its own checksum does not match"):
        parse(GOOD.replace(b"40960 </I", b"40959 </I"), "x.bmap")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_spoiled_map_is_refused_or_says_the_same(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ImageError):
        assert parse(bytes(content), "x.bmap") == parse(GOOD, "good")


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"x\.bmap: is"):
        parse(content, "x.bmap")
