"""Which member of a zip file is the image: the same whichever way the file comes."""

import io
import os
import struct
import subprocess
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from capabilities import SEVEN_ZIP
from containers import decoded, file_origin, noise, run
from imageserver import Behaviour, direct_and_tidy, serve

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import Origin
from balenaflash.source.http import HttpOrigin
from balenaflash.source.location import parse_url
from balenaflash.source.pipe import PipeOrigin
from balenaflash.units import MIB

pytestmark = [pytest.mark.needs("zip tools"), pytest.mark.usefixtures("direct_and_tidy")]

__all__ = ["direct_and_tidy"]

IMAGE = b"".join(noise(seed, 9000) + bytes(50_000) for seed in range(9))
OTHER = b"not the image"
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        "
WAYS = ["file", "pipe", "http with ranges", "http without"]


@contextmanager
def piped(path: Path) -> Iterator[Origin]:
    reading, writing = os.pipe()

    def feed() -> None:
        # It may be refused before its end.
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            file.write(path.read_bytes())

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield PipeOrigin(reading)
    finally:
        os.close(reading)
        thread.join()


@contextmanager
def served(path: Path, *, ranges: bool) -> Iterator[Origin]:
    with (
        serve(Behaviour(path.read_bytes(), ranges=ranges)) as server,
        HttpOrigin(parse_url(server.url), pauses=()) as origin,
    ):
        yield origin


def come(way: str, path: Path, stack: ExitStack) -> Origin:
    if way == "file":
        return stack.enter_context(file_origin(path))
    if way == "pipe":
        return stack.enter_context(piped(path))
    return stack.enter_context(served(path, ranges=way == "http with ranges"))


def zipped(path: Path, *members: tuple[str, bytes], stored: bool = False) -> None:
    method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)


class _Unseekable(io.RawIOBase):
    """Where ``zipfile`` cannot go back, so that sizes and CRC follow each member."""

    def __init__(self) -> None:
        super().__init__()
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.content += bytes(data)
        return len(data)


def streamed(path: Path, *members: tuple[str, bytes]) -> None:
    file = _Unseekable()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    path.write_bytes(file.content)


def with_nameless(path: Path) -> None:
    """The name of the second member becomes a NUL, which ends it."""
    zipped(path, ("a.img", IMAGE), ("q", b""))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 46] = 0
    content[content.rindex(b"PK\3\4") + 30] = 0
    path.write_bytes(content)


def as_go_streams(path: Path) -> None:
    """As Go's archive/zip and Java stream what turns out to be larger than 4 GiB.

    The header has no zip64 field, and the sizes that follow the data have 8 bytes.
    """
    name = b"balena.img"
    packed = zlib.compress(IMAGE, 1, wbits=-15)
    crc = zlib.crc32(IMAGE)
    fields = struct.pack("<HHHHHIIIHH", 20, 8, 8, 0, 33, 0, 0, 0, len(name), 0)
    content = b"PK\3\4" + fields + name + packed
    content += b"PK\7\10" + struct.pack("<IQQ", crc, len(packed), len(IMAGE))
    extra = struct.pack("<HHQQQ", 1, 24, len(IMAGE), len(packed), 0)
    told = 0xFFFFFFFF
    fields = struct.pack(
        "<HHHHHHIIIHHHHHII",
        *(45, 45, 8, 8, 0, 33, crc, told, told, len(name), len(extra), 0, 0, 0, 0, told),
    )
    directory = b"PK\1\2" + fields + name + extra
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(content), 0)
    path.write_bytes(content + directory + b"PK\5\6" + end)


# Of this a decoder that is not told the size makes up one byte more, out of the last ones.
UNMARKED = (noise(14, 314) * 9)[:2014] + noise(98, 200)


def as_lzma_without_mark(path: Path) -> None:
    """LZMA from a .7z file, which never has an end marker, put into a zip file without one."""
    image = path.with_name("balena.img")
    image.write_bytes(UNMARKED)
    archive = path.with_name("a.7z")
    run(SEVEN_ZIP, "a", "-m0=LZMA:d=20:lc=3:lp=0:pb=2", "-mhc=off", archive, image)
    content = archive.read_bytes()
    after = 32 + struct.unpack_from("<Q", content, 12)[0]
    properties = bytes([3 + 9 * (0 + 5 * 2)]) + struct.pack("<I", 1 << 20)
    body = struct.pack("<BBH", 22, 1, 5) + properties + content[32:after]
    sizes = (zlib.crc32(UNMARKED), len(body), len(UNMARKED))
    fields = struct.pack("<HHHHHIIIHH", 63, 0, 14, 0, 33, *sizes, 9, 0)
    member = b"PK\3\4" + fields + b"image.img" + body
    directory = b"PK\1\2\x3f\0" + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"image.img"
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(member), 0)
    path.write_bytes(member + directory + b"PK\5\6" + end)


def made_of(
    *members: tuple[str, bytes], maker: Callable[..., None] = zipped
) -> Callable[[Path], None]:
    return lambda path: maker(path, *members)


LARGE = IMAGE + noise(1, 17 * MIB - len(IMAGE))

CASES: dict[str, tuple[Callable[[Path], None], str | None, str]] = {
    "Finder": (made_of(("a.img", IMAGE), ("__MACOSX/._a.img", APPLE_DOUBLE)), None, "a.img"),
    "Finder, in front": (
        made_of(("__MACOSX/._a.img", APPLE_DOUBLE), ("._a.img", OTHER), ("a.img", IMAGE)),
        None,
        "a.img",
    ),
    "droppings behind": (
        made_of(("a.img", IMAGE), *((name, OTHER) for name in (".DS_Store", "desktop.ini"))),
        None,
        "a.img",
    ),
    "droppings in front, streamed": (
        made_of(("Thumbs.db", OTHER), ("d/", b""), ("x.md", b""), ("a.img", IMAGE), maker=streamed),
        None,
        "a.img",
    ),
    "programs around": (
        made_of(("flash.sh", OTHER), ("a.img", IMAGE), ("flash.exe", OTHER)),
        None,
        "a.img",
    ),
    "Etcher's": (
        made_of((".meta/manifest.json", b"{}"), (".meta/logo.img", OTHER), ("a.img", IMAGE)),
        None,
        "a.img",
    ),
    "without a suffix": (
        made_of(("NOTICE", OTHER), ("a.wic", IMAGE), ("flash-it", OTHER)),
        None,
        "a.wic",
    ),
    "alone without a suffix": (
        made_of(("README", OTHER), ("d/image", IMAGE), ("LICENSE", OTHER), maker=streamed),
        None,
        "d/image",
    ),
    "large without a suffix": (
        made_of(("NOTICE", OTHER), ("image", LARGE), ("FAQ", OTHER), maker=streamed),
        None,
        "image",
    ),
    "the first by name": (made_of(("a.img", IMAGE), ("b.img", OTHER)), "a.img", "a.img"),
    "the second by name": (
        made_of(("a.img", OTHER), ("d/b.img", IMAGE), ("c.img", OTHER), maker=streamed),
        "b.img",
        "d/b.img",
    ),
    "a hidden one by name": (made_of((".b.img", IMAGE), ("a.img", OTHER)), ".b.img", ".b.img"),
    "nameless": (with_nameless, None, "a.img"),
    "8-byte sizes": (as_go_streams, None, "balena.img"),
    "LZMA without a mark": (as_lzma_without_mark, None, "image.img"),
}


def unpacked(path: Path, member: str) -> bytes:
    """A member as libarchive has it; as 7-Zip has it where that knows no such zip file."""
    try:
        return run("bsdtar", "-xOf", path, member)
    except subprocess.CalledProcessError:
        return run(SEVEN_ZIP, "x", "-so", path, member)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_the_image_is_the_same_whichever_way_a_zip_file_comes(
    case: str, way: str, tmp_path: Path
) -> None:
    make, wanted, member = CASES[case]
    path = tmp_path / "case.zip"
    make(path)
    with ExitStack() as stack:
        found = decoded(come(way, path, stack), member=wanted)
    assert found == unpacked(path, member)
    assert found in {IMAGE, LARGE, UNMARKED}


REFUSED: dict[str, tuple[Callable[[Path], None], str | None, str]] = {
    "nothing that may be it": (
        made_of(("README", OTHER), (".DS_Store", OTHER), ("d/", b"")),
        None,
        "zip-member-missing",
    ),
    "no such name": (made_of(("a.img", IMAGE), maker=streamed), "b.img", "zip-member-missing"),
    "two without a suffix": (
        made_of(("one", IMAGE), ("two", IMAGE), maker=streamed),
        None,
        "zip-member-ambiguous",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", REFUSED)
def test_a_zip_file_is_refused_alike_before_anything_is_decoded(
    case: str, way: str, tmp_path: Path
) -> None:
    make, wanted, code = REFUSED[case]
    path = tmp_path / "case.zip"
    make(path)
    with ExitStack() as stack:
        origin = come(way, path, stack)
        with pytest.raises(ImageError) as caught:
            decoded(origin, member=wanted)
    assert caught.value.code == code


@pytest.mark.parametrize("way", WAYS)
def test_of_two_members_with_one_name_the_first_is_the_image(way: str, tmp_path: Path) -> None:
    path = tmp_path / "case.zip"
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(path, ("a.img", IMAGE), ("a.img", OTHER))
    with ExitStack() as stack:
        assert decoded(come(way, path, stack)) == IMAGE


@pytest.mark.parametrize("way", ["pipe", "http without"])
def test_of_two_images_in_a_stream_the_first_is_the_image(way: str, tmp_path: Path) -> None:
    path = tmp_path / "case.zip"
    zipped(path, ("a.img", IMAGE), ("b.img", OTHER), ("notes.txt", OTHER))
    warnings: list[str] = []
    with ExitStack() as stack:
        assert decoded(come(way, path, stack), warn=warnings.append) == IMAGE
    (warning,) = warnings
    assert "'a.img', 'b.img'; 'a.img', the first, was used" in warning


@pytest.mark.parametrize(
    ("members", "wanted"),
    [(["a.img", "b.img"], "a.img"), (["a.img", "notes.txt", ".DS_Store"], None)],
)
def test_what_lies_after_the_image_in_a_stream_is_no_cause_for_a_warning(
    members: list[str], wanted: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "case.zip"
    zipped(path, *((member, IMAGE) for member in members))
    warnings: list[str] = []
    with ExitStack() as stack:
        decoded(come("pipe", path, stack), member=wanted, warn=warnings.append)
    assert not warnings


def test_lzma_of_no_known_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "case.zip"
    as_lzma_without_mark(path)
    content = bytearray(path.read_bytes())
    content[6] |= 8  # the sizes follow the data
    path.write_bytes(content)
    unknown = "the length of 'image.img' in it is unknown"
    with piped(path) as origin, pytest.raises(ImageError, match=unknown) as caught:
        decoded(origin)
    assert caught.value.code == "image-unsupported"
