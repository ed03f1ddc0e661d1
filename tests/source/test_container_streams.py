import bz2
import gzip
import lzma
import os
import shutil
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from containers import ORIGINS, MemoryOrigin, StreamOrigin, decoded, noise, run, some_places
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.source.container import bzip2
from balenaflash.source.container.bzip2 import ProgramDecoder
from balenaflash.source.container.decoder import Decoder, FileOrigin, Origin
from balenaflash.source.container.recognise import recognise
from balenaflash.source.container.zstd import zstd
from balenaflash.units import MIB

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


@needs_compressors
@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("kind", ["gzip", "bzip2"])
def test_a_stream_behind_zeros_is_missed(kind: str, new_origin: Callable[[bytes], Origin]) -> None:
    stored = COMPRESSORS[kind](TAIL)
    content = stored + bytes(1000) + stored
    tool = subprocess.run((kind, "-dc"), input=content, capture_output=True, check=False)
    assert tool.stdout == TAIL, "it leaves the second one out"
    with pytest.raises(ImageError, match=f"ends at byte {len(stored)} ") as caught:
        decoded(new_origin(content))
    assert caught.value.code == "image-trailing-garbage"


def refused_by(tool: str, content: bytes) -> bool:
    tested = subprocess.run((tool, "-t"), input=content, capture_output=True, check=False)
    return tested.returncode != 0


@needs_compressors
@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("flag", [0x20, 0x40, 0x80])
def test_a_reserved_flag_of_gzip_is_not_passed_over(
    flag: int, new_origin: Callable[[bytes], Origin]
) -> None:
    stored = gzip.compress(TAIL)
    flagged = stored[:3] + bytes([flag]) + stored[4:]
    for content in (flagged, stored + flagged):
        assert refused_by("gzip", content)
        with pytest.raises(ImageError, match=f"flags \\({flag:#x}\\)") as caught:
            decoded(new_origin(content))
        assert caught.value.code == "image-unsupported"


def xz_of(content: bytes, *, check: int = 1, index: bytes = b"") -> bytes:
    """``content`` in xz, with another kind of check, of 4 bytes, and other bytes of its index."""
    stored = lzma.compress(content, check=lzma.CHECK_CRC32)
    flags = bytes([0, check])
    index_size = (int.from_bytes(stored[-8:-4], "little") + 1) * 4
    body = index or stored[-12 - index_size : -16]
    tail = ((len(body) + 4) // 4 - 1).to_bytes(4, "little") + flags
    parts = [
        stored[:6] + flags + zlib.crc32(flags).to_bytes(4, "little"),
        stored[12 : -12 - index_size],
        body + zlib.crc32(body).to_bytes(4, "little"),
        zlib.crc32(tail).to_bytes(4, "little") + tail + b"YZ",
    ]
    return b"".join(parts)


@needs_compressors
@pytest.mark.parametrize("new_origin", ORIGINS)
def test_an_unknown_check_of_xz_is_told(new_origin: Callable[[bytes], Origin]) -> None:
    assert decoded(new_origin(xz_of(TAIL))) == TAIL
    for content in (xz_of(TAIL, check=2), xz_of(TAIL) + xz_of(TAIL, check=3)):
        assert refused_by("xz", content)
        with pytest.raises(ImageError, match=r"checksum \(xz flags 000[23]\)") as caught:
            decoded(new_origin(content))
        assert caught.value.code == "image-unsupported"


@needs_compressors
@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("change", ["padding", "longer padding", "long integer"])
def test_an_xz_index_is_checked_as_by_xz(
    change: str, new_origin: Callable[[bytes], Origin]
) -> None:
    content = b"Hello\n" * 40
    stored = lzma.compress(content, check=lzma.CHECK_CRC32)
    index = stored[-12 - (int.from_bytes(stored[-8:-4], "little") + 1) * 4 : -16]
    records = index.rstrip(b"\0")
    assert len(records) < len(index), "it has padding"
    changed = {
        "padding": index[:-1] + b"\1",
        "longer padding": index + bytes(4),
        "long integer": (b"\0\x81\0" + records[2:]).ljust(8, b"\0"),
    }[change]
    assert not refused_by("xz", xz_of(content, index=index))
    assert refused_by("xz", xz_of(content, index=changed))
    with pytest.raises(ImageError) as caught:
        decoded(new_origin(xz_of(content, index=changed)))
    assert caught.value.code == "image-corrupt"


@needs_compressors
def test_an_xz_block_that_ends_before_the_end_in_the_index_is_damage() -> None:
    whole = lzma.compress(TAIL, check=lzma.CHECK_CRC32)
    claimed = whole[12:]  # the block, and the end of a stream
    index = (b"\0\1" + bytes([len(claimed), len(TAIL)])).ljust(4, b"\0")
    assert len(claimed) < 128, "one byte is enough for it"
    index += zlib.crc32(index).to_bytes(4, "little")
    tail = (len(index) // 4 - 1).to_bytes(4, "little") + whole[6:8]
    content = whole + index + zlib.crc32(tail).to_bytes(4, "little") + tail + b"YZ"
    assert refused_by("xz", content)
    with pytest.raises(ImageError, match="ends before the block's end") as caught:
        decoded(MemoryOrigin(content))
    assert caught.value.code == "image-corrupt"


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


@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("kind", COMPRESSORS)
def test_many_streams_with_nothing_in_them_are_refused(
    kind: str, new_origin: Callable[[bytes], Origin]
) -> None:
    image = COMPRESSORS[kind](IMAGE[:10_000])
    empty = COMPRESSORS[kind](b"")
    assert decoded(new_origin(image + empty * 2_000 + image)) == IMAGE[:10_000] * 2
    with pytest.raises(ImageError, match=r"more than 100000 .* less than 4096 bytes") as caught:
        decoded(new_origin(image + empty * 100_001 + image))
    assert caught.value.code == "image-unsupported"


def test_an_xz_index_of_many_blocks_takes_little_memory() -> None:
    count = 1_000_000
    stream = lzma.compress(b"", check=lzma.CHECK_CRC32)
    integer = bytes([count & 127 | 128, count >> 7 & 127 | 128, count >> 14])
    index = b"\0" + integer + b"\x08\x01" * count
    index += bytes(-len(index) % 4)
    index += zlib.crc32(index).to_bytes(4, "little")
    tail = (len(index) // 4 - 1).to_bytes(4, "little") + stream[6:8]
    footer = zlib.crc32(tail).to_bytes(4, "little") + tail + b"YZ"
    origin = MemoryOrigin(stream[:12] + bytes(8 * count) + index + footer)
    tracemalloc.start()
    try:
        compressed = recognise(origin)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert compressed is not None
    assert not compressed.seekable, "decoded in order, by liblzma, which keeps no index"
    assert peak < 8 * MIB


class CountingOrigin(MemoryOrigin):
    """A container on a server."""

    is_local = False
    requests = 0

    def read_at(self, offset: int, length: int) -> bytes:
        self.requests += 1
        return super().read_at(offset, length)


def test_streams_of_an_xz_file_on_a_server_are_not_asked_for_one_by_one() -> None:
    stored = lzma.compress(IMAGE[:5000])
    for count, is_looked_up in ((20, True), (1000, False)):
        origin = CountingOrigin(stored * count)
        compressed = recognise(origin)
        assert compressed is not None
        assert compressed.seekable is is_looked_up
        assert origin.requests < 200
        assert decoded(origin) == IMAGE[:5000] * count


@pytest.fixture
def in_file() -> Iterator[Callable[[bytes], FileOrigin]]:
    """Gives what a program reads by itself."""
    with TemporaryFile() as file:

        def new_origin(stored: bytes) -> FileOrigin:
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), stored, 0)
            return FileOrigin("test", file.fileno(), len(stored))

        yield new_origin


def judged(decoder: Decoder) -> bytes | tuple[str, str]:
    """The image, or the error's code and its words up to the place in the image.

    That is as near as what was asked for at a time.
    """
    found = bytearray()
    buffer = memoryview(bytearray(300_000))
    with closing(decoder):
        try:
            while count := decoder.readinto(buffer):
                found += buffer[:count]
        except ImageError as error:
            return error.code, str(error).partition(" (byte")[0]
    return bytes(found)


def judged_by_both(origin: FileOrigin) -> bytes | tuple[str, str]:
    program = shutil.which("lbzip2")
    assert program is not None
    decoder = bzip2.open_bzip2(origin, program)
    assert isinstance(decoder, ProgramDecoder)
    verdict = judged(decoder)
    assert verdict == judged(bzip2.open_bzip2(origin))
    return verdict


@needs_compressors
def test_a_bzip2_file_is_judged_in_one_way_with_lbzip2_and_without(
    in_file: Callable[[bytes], FileOrigin],
) -> None:
    stored = bz2.compress(IMAGE, 1)
    assert judged_by_both(in_file(stored)) == IMAGE
    assert judged_by_both(in_file(stored + stored + bytes(1000))) == IMAGE + IMAGE
    for place in some_places(5, len(stored)):
        cut = judged_by_both(in_file(stored[:place]))
        assert cut[0] == "image-cut-short", place
        spoilt = bytearray(stored)
        spoilt[place] ^= 1
        assert judged_by_both(in_file(bytes(spoilt)))[0] == "image-corrupt", place
    for length in range(1, 10):
        assert judged_by_both(in_file(stored + stored[:length]))[0] == "image-cut-short"
    code, words = judged_by_both(in_file(stored + b"garbage"))
    assert code == "image-trailing-garbage"
    assert str(words).endswith(f"ends at byte {len(stored)}")


@needs_compressors
def test_a_bzip2_block_larger_than_its_header_allows_is_damage(
    in_file: Callable[[bytes], FileOrigin],
) -> None:
    stored = bytearray(bz2.compress(noise(1, 350_000), 9))
    stored[3] = ord("1")
    for program in ("bzip2", "lbzip2"):
        assert refused_by(program, bytes(stored))
    assert judged_by_both(in_file(bytes(stored)))[0] == "image-corrupt"


@needs_compressors
@pytest.mark.parametrize("gap", [1, 100_000, 20 * MIB])
def test_a_bzip2_stream_behind_zeros_is_missed(
    in_file: Callable[[bytes], FileOrigin], gap: int
) -> None:
    # bzip2 and lbzip2 end with status 0, and leave it out.
    stored = bz2.compress(IMAGE, 1)
    assert judged_by_both(in_file(stored + bytes(gap))) == IMAGE
    code, words = judged_by_both(in_file(stored + bytes(gap) + stored))
    assert code == "image-trailing-garbage"
    assert str(words).endswith(f"ends at byte {len(stored)}")


@needs_compressors
def test_an_image_is_whole_although_lbzip2_was_killed(
    in_file: Callable[[bytes], FileOrigin],
) -> None:
    decoder = bzip2.open_bzip2(in_file(bz2.compress(IMAGE * 4)), "lbzip2")
    assert isinstance(decoder, ProgramDecoder)
    buffer = memoryview(bytearray(len(IMAGE)))
    assert decoder.readinto(buffer) == len(IMAGE)
    decoder._process.kill()
    rest = judged(decoder)
    assert bytes(buffer) == IMAGE
    assert rest == IMAGE * 3


@needs_compressors
def test_a_decoder_in_a_process_can_be_closed_in_the_middle(
    in_file: Callable[[bytes], FileOrigin],
) -> None:
    decoder = bzip2.open_bzip2(in_file(bz2.compress(IMAGE)), "lbzip2")
    assert decoder.readinto(memoryview(bytearray(1000))) == 1000
    decoder.close()
    decoder.close()
