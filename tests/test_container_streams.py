import bz2
import gzip
import lzma
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from containers import ORIGINS, MemoryOrigin, StreamOrigin, decoded, noise, run, some_places
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.extent import MIB
from balenaflash.image.container import bzip2
from balenaflash.image.container.bzip2_blocks import Bits, split
from balenaflash.image.container.decoder import Input
from balenaflash.image.container.origin import FileOrigin, Origin
from balenaflash.image.container.recognise import recognise
from balenaflash.image.container.zstd import zstd

needs_compressors = pytest.mark.needs("compressors")


def image_like(size: int) -> bytes:
    """Text, noise and zeros."""
    parts = [b"balenaOS configuration " * 700, noise(4, 30_000), bytes(90_000)]
    content = b"".join(parts[number % 3] for number in noise(5, size // 20_000))
    return content[:size]


IMAGE = image_like(2_500_000)
TAIL = b"the second stream"

COMMANDS = {
    "gzip": (b"", [("gzip", "-9"), ("pigz", "-b", "128"), ("gzip", "-1")]),
    "xz": (bytes(8), [("xz", "-T2", "--block-size=300000"), ("xz", "-9"), ("xz", "-C", "sha256")]),
    "bzip2": (b"", [("bzip2",), ("lbzip2", "-1"), ("bzip2", "-5")]),
    "zstd": (b"", [("zstd",), ("zstd", "-T2", "--no-check"), ("pzstd", "-p", "2", "-q")]),
}
CASES = [(kind, command) for kind, (_, commands) in COMMANDS.items() for command in commands]


@needs_compressors
@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize(("kind", "command"), CASES, ids=str)
def test_what_a_tool_compressed_is_decoded(
    kind: str, command: tuple[str, ...], new_origin: Callable[[bytes], Origin]
) -> None:
    padding = COMMANDS[kind][0]
    stored = run(*command, "-c", content=IMAGE)
    assert decoded(new_origin(stored)) == IMAGE
    streams = stored + padding + run(*command, "-c", content=TAIL) + padding
    assert decoded(new_origin(streams)) == IMAGE + TAIL
    empty = run(*command, "-c", content=b"")
    assert decoded(new_origin(empty + stored + empty)) == IMAGE
    assert decoded(new_origin(empty)) == b""


@needs_compressors
@pytest.mark.parametrize("kind", COMMANDS)
def test_sizes_are_those_that_the_container_truly_tells(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(IMAGE)
    stored = run(*COMMANDS[kind][1][0], "-c", path)
    expected = {"gzip": None, "xz": len(IMAGE), "bzip2": None, "zstd": len(IMAGE)}[kind]
    for content, size in ((stored, expected), (stored * 2, expected and expected * 2)):
        compressed = recognise(MemoryOrigin(content))
        assert compressed is not None
        assert (compressed.container, compressed.size) == (kind, size)
        streamed = recognise(StreamOrigin(content))
        assert streamed is not None
        assert streamed.size is None


@needs_compressors
def test_a_zstd_frame_that_does_not_tell_its_size_leaves_all_unknown() -> None:
    stored = run("zstd", "-c", "--no-content-size", content=IMAGE)
    compressed = recognise(MemoryOrigin(zstd.compress(b"first") + stored))
    assert compressed is not None
    assert compressed.size is None


@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_zeros_behind_are_padding(
    compress: Callable[[bytes], bytes], new_origin: Callable[[bytes], Origin]
) -> None:
    assert decoded(new_origin(compress(TAIL) + bytes(6_000_001))) == TAIL


@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("garbage", [b"something else", bytes(70_000) + b"x" * 70_000])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd.compress])
def test_something_else_behind_is_told(
    compress: Callable[[bytes], bytes], garbage: bytes, new_origin: Callable[[bytes], Origin]
) -> None:
    with pytest.raises(ImageError) as caught:
        decoded(new_origin(compress(IMAGE) + garbage))
    codes = {"image-trailing-garbage"}
    if compress is lzma.compress and new_origin is MemoryOrigin:
        codes = {"image-cut-short"}  # what an xz file without a footer at its end may be as well
    assert caught.value.code in codes


@pytest.mark.parametrize(
    "content", [b"", b"\x1f", b"BZ", b"\x1f\x8b", b"PK", b"\0" * 512, b"BZhat"]
)
def test_what_no_magic_starts_is_raw(content: bytes) -> None:
    assert recognise(MemoryOrigin(content)) is None


STORED = {
    "gzip": gzip.compress(IMAGE),
    "xz": lzma.compress(IMAGE),
    "bzip2": bz2.compress(IMAGE),
    "zstd": zstd.compress(IMAGE, options={zstd.CompressionParameter.checksum_flag: 1}),
}


@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("kind", STORED)
def test_a_container_cut_anywhere_is_told(kind: str, new_origin: Callable[[bytes], Origin]) -> None:
    stored = STORED[kind] + STORED[kind]
    places = [20, len(stored) // 2 + 20, *(len(stored) - cut for cut in (1, 3, 5, 8, 12))]
    for place in [*places, *some_places(30, len(stored))]:
        with pytest.raises(ImageError) as caught:
            decoded(new_origin(stored[:place]))
        assert caught.value.code == "image-cut-short", place


@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("kind", STORED)
def test_one_changed_byte_is_told_or_does_not_matter(
    kind: str, new_origin: Callable[[bytes], Origin]
) -> None:
    stored = STORED[kind]
    size = len(stored)
    places = [*range(6, 20), *range(size - 20, size), *some_places(6, size)]
    for place in places:
        changed = bytearray(stored)
        changed[place] ^= 1 << place % 8
        origin = new_origin(bytes(changed))
        try:
            content = decoded(origin)
        except ImageError:
            continue
        assert content == IMAGE, place


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "zstd": zstd.compress,
}


@given(
    parts=st.lists(st.binary(max_size=2000), min_size=1, max_size=4),
    kind=st.sampled_from(sorted(COMPRESSORS)),
    step=st.integers(1, 3000),
    new_origin=st.sampled_from(ORIGINS),
)
def test_any_streams_give_what_was_put_in(
    parts: list[bytes], kind: str, step: int, new_origin: Callable[[bytes], Origin]
) -> None:
    stored = b"".join(map(COMPRESSORS[kind], parts))
    assert decoded(new_origin(stored), step=step) == b"".join(parts)


def test_bits_of_a_bzip2_block_that_look_like_the_next_one_are_given_back_to_it() -> None:
    block, *others = split(Input(MemoryOrigin(bz2.compress(IMAGE, 1)), 4))
    cut = 123_457
    places = (block.data[: cut // 8 + 1], block.data[cut // 8 :])
    head = Bits(places[0], block.first, cut, block.place)
    tail = Bits(places[1], cut % 8, block.length - cut, block.place + cut // 8)
    assert head + tail == block
    assert bzip2._decode(head, tail) == replace(bzip2._decode(block, others[0]), has_next=True)


@pytest.mark.parametrize("at", [1, 299_999, 300_000, 1_234_567, 2_499_999])
@needs_compressors
def test_blocks_of_xz_are_decoded_from_anywhere(at: int) -> None:
    stored = run("xz", "-T2", "--block-size=300000", "-c", content=IMAGE)
    compressed = recognise(MemoryOrigin(stored + stored))
    assert compressed is not None
    assert compressed.seekable
    assert decoded(MemoryOrigin(stored), at=at) == IMAGE[at:]


def test_an_image_of_zeros_does_not_fill_memory() -> None:
    stored = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    content = b"".join(stored.compress(zeros) for _ in range(64)) + stored.flush()
    decoder = recognise(MemoryOrigin(content))
    assert decoder is not None
    opened = decoder.open_decoder()
    assert opened.readinto(memoryview(bytearray(1000))) == 1000
    opened.close()


@needs_compressors
def test_a_stream_that_needs_much_memory_is_refused_with_the_command_to_type() -> None:
    stored = run("zstd", "-c", "--ultra", "-20", "--long=30", content=TAIL)
    with pytest.raises(ImageError, match="more memory") as caught:
        decoded(MemoryOrigin(stored))
    assert caught.value.code == "image-unsupported"
    assert caught.value.hint == "Unpack it first: zstd -dk --long=31 test"


OpenOrigin = Callable[[bytes], Origin]


@pytest.fixture(params=["memory", "file"])
def open_origin(request: pytest.FixtureRequest) -> Iterator[OpenOrigin]:
    """Gives what a program reads through a pipe, or by itself."""
    with TemporaryFile() as file:

        def in_file(stored: bytes) -> Origin:
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), stored, 0)
            return FileOrigin("test", file.fileno(), len(stored))

        yield in_file if request.param == "file" else MemoryOrigin


def decoded_by_program(origin: Origin) -> bytes:
    program = shutil.which("lbzip2")
    assert program is not None
    decoder = bzip2.CompressedBzip2(origin, program).open_decoder()
    with closing(decoder):
        found = bytearray()
        buffer = memoryview(bytearray(300_000))
        while count := decoder.readinto(buffer):
            found += buffer[:count]
    return bytes(found)


@needs_compressors
def test_lbzip2_decodes_the_same_and_is_believed_only_when_all_was_right(
    open_origin: OpenOrigin,
) -> None:
    stored = bz2.compress(IMAGE, 1)
    assert decoded_by_program(open_origin(stored)) == IMAGE
    assert decoded_by_program(open_origin(stored + stored + bytes(1000))) == IMAGE + IMAGE
    for place in some_places(len(stored), 10):
        with pytest.raises(ImageError) as cut:
            decoded_by_program(open_origin(stored[:place]))
        assert cut.value.code in {"image-cut-short", "image-corrupt"}
        spoilt = bytearray(stored)
        spoilt[place] ^= 1
        found = None
        with suppress(ImageError):
            found = decoded_by_program(open_origin(bytes(spoilt)))
        assert found in {None, IMAGE}
    with pytest.raises(ImageError) as behind:
        decoded_by_program(open_origin(stored + b"garbage"))
    assert behind.value.code == "image-trailing-garbage"
    assert f"ends at byte {len(stored)} " in str(behind.value)


@needs_compressors
@pytest.mark.parametrize("gap", [1, 100_000, 20 * MIB])
def test_a_stream_behind_zeros_that_lbzip2_leaves_out_is_missed(
    open_origin: OpenOrigin, gap: int
) -> None:
    stored = bz2.compress(IMAGE, 1)
    assert decoded_by_program(open_origin(stored + bytes(gap))) == IMAGE
    with pytest.raises(ImageError) as behind:
        decoded_by_program(open_origin(stored + bytes(gap) + stored))
    assert behind.value.code == "image-trailing-garbage"


@needs_compressors
def test_a_decoder_in_a_process_can_be_closed_in_the_middle(open_origin: OpenOrigin) -> None:
    decoder = bzip2.CompressedBzip2(open_origin(bz2.compress(IMAGE)), "lbzip2").open_decoder()
    assert decoder.readinto(memoryview(bytearray(1000))) == 1000
    decoder.close()
    decoder.close()
