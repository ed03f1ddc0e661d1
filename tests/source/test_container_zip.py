import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from capabilities import SEVEN_ZIP
from containers import (
    ORIGINS,
    MemoryOrigin,
    StreamOrigin,
    decoded,
    file_origin,
    noise,
    run,
    some_places,
)
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import Container, Origin
from balenaflash.source.container.recognise import recognise

needs_zip_tools = pytest.mark.needs("zip tools")

IMAGE = b"".join(part for seed in range(9) for part in (noise(seed, 9000), bytes(250_000)))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "balena.img"
    path.write_bytes(IMAGE)
    return path


def zipped(
    *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, zip64: bool = False
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(content)
    return file.getvalue()


COMMANDS = [
    ("zip", "-q", "out.zip", "balena.img"),
    ("zip", "-q", "-0", "out.zip", "balena.img"),
    ("zip", "-q", "-fz", "out.zip", "balena.img"),
    ("zip", "-q", "-Z", "bzip2", "out.zip", "balena.img"),
    ("bsdtar", "--format", "zip", "-cf", "out.zip", "balena.img"),
    (SEVEN_ZIP, "a", "-tzip", "-mm=LZMA", "out.zip", "balena.img"),
    (SEVEN_ZIP, "a", "-tzip", "-mm=xz", "out.zip", "balena.img"),
    (SEVEN_ZIP, "a", "-tzip", "-mm=Deflate64", "out.zip", "balena.img"),
]


@needs_zip_tools
@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_a_tool_packed_is_decoded(
    command: tuple[str, ...], image: Path, new_origin: Callable[[bytes], Origin]
) -> None:
    run(*command, cwd=image.parent)
    content = (image.parent / "out.zip").read_bytes()
    assert decoded(new_origin(content)) == IMAGE
    compressed = recognise(new_origin(content))
    assert compressed is not None
    assert (compressed.container, compressed.member) == (Container.ZIP, "balena.img")


@needs_zip_tools
@pytest.mark.parametrize("new_origin", ORIGINS)
def test_a_zip_file_written_to_a_pipe_is_decoded(new_origin: Callable[[bytes], Origin]) -> None:
    assert decoded(new_origin(run("zip", "-q", "-fz-", "-", "-", content=IMAGE))) == IMAGE


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@given(
    # What starts with a magic number is no raw image.
    content=st.binary(max_size=5000).map(lambda content: b"\0" + content),
    method=st.sampled_from(METHODS),
    zip64=st.booleans(),
    step=st.integers(1, 4000),
    new_origin=st.sampled_from(ORIGINS),
    at=st.integers(0, 5001),
)
def test_any_content_comes_back(
    content: bytes,
    method: int,
    zip64: bool,  # noqa: FBT001 - drawn by hypothesis
    step: int,
    new_origin: Callable[[bytes], Origin],
    at: int,
) -> None:
    stored = zipped(("a.img", content), method=method, zip64=zip64)
    assert decoded(new_origin(stored), step=step) == content
    if method == zipfile.ZIP_STORED and at <= len(content):
        assert decoded(MemoryOrigin(stored), step=step, at=at) == content[at:]


@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("name", ["a.img.gz", "deceptive.img"])
def test_a_compressed_member_is_decoded_too(
    name: str, new_origin: Callable[[bytes], Origin]
) -> None:
    for inner in (gzip.compress(IMAGE), lzma.compress(IMAGE)):
        stored = zipped((name, inner), method=zipfile.ZIP_STORED)
        assert decoded(new_origin(stored)) == IMAGE


def test_the_image_is_found_among_its_companions() -> None:
    stored = zipped(("d/", b""), ("d/a.bmap", b"x"), ("d/a.img", IMAGE), ("d/README", b"y"))
    assert decoded(MemoryOrigin(stored)) == IMAGE
    stored = zipped(("d/", b""), ("d/image", IMAGE), ("a.sha256", b"y"))
    assert decoded(MemoryOrigin(stored)) == IMAGE
    assert decoded(StreamOrigin(stored)) == IMAGE


def test_of_two_images_one_has_to_be_named() -> None:
    stored = zipped(("a/1.img", b"one"), ("a/2.img", b"two"))
    with pytest.raises(ImageError, match=r"2 files .*: 'a/1.img', 'a/2.img'") as caught:
        recognise(MemoryOrigin(stored))
    assert caught.value.code == "zip-member-ambiguous"
    assert caught.value.hint == "Name one of them with --member NAME."
    assert decoded(MemoryOrigin(stored), member="2.img") == b"two"
    assert decoded(MemoryOrigin(stored), member="a/1.img") == b"one"
    with pytest.raises(ImageError, match=r"contains no file '3\.img'"):
        recognise(MemoryOrigin(stored), "3.img")


@pytest.mark.parametrize("new_origin", ORIGINS)
def test_a_zip_file_without_a_file_is_refused(new_origin: Callable[[bytes], Origin]) -> None:
    for stored in (zipped(), zipped(("directory/", b""))):
        with pytest.raises(ImageError) as caught:
            recognise(new_origin(stored))
        assert caught.value.code == "zip-member-missing"


@needs_zip_tools
@pytest.mark.parametrize("new_origin", ORIGINS)
def test_an_encrypted_member_is_refused_by_name(
    image: Path, new_origin: Callable[[bytes], Origin]
) -> None:
    run("zip", "-q", "-P", "secret", "out.zip", image.name, cwd=image.parent)
    with pytest.raises(ImageError, match=r"'balena\.img' in it is encrypted"):
        recognise(new_origin((image.parent / "out.zip").read_bytes()))


STORED = zipped(("balena.img", IMAGE))


@pytest.mark.parametrize("new_origin", ORIGINS)
def test_a_zip_file_cut_anywhere_is_told(new_origin: Callable[[bytes], Origin]) -> None:
    size = len(STORED)
    places = [10, 35, *some_places(40, size), *range(size - 30, size)]
    for place in places:
        with pytest.raises(ImageError) as caught:
            decoded(new_origin(STORED[:place]))
        assert caught.value.code == "image-cut-short", place


@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("stored", [STORED, zipped(("a", IMAGE), method=0)], ids=["deflate", "no"])
def test_one_changed_byte_is_told_or_does_not_matter(
    stored: bytes, new_origin: Callable[[bytes], Origin]
) -> None:
    size = len(stored)
    places = [*range(4, 45), *range(size - 90, size), *some_places(4, size)]
    for place in places:
        changed = bytearray(stored)
        changed[place] ^= 1 << place % 8
        try:
            content = decoded(new_origin(bytes(changed)))
        except ImageError:
            continue
        assert content == IMAGE, place


def test_a_zip_file_on_disk_is_read_by_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(STORED)
    with file_origin(path) as origin:
        assert decoded(origin) == IMAGE


@pytest.mark.parametrize("new_origin", ORIGINS)
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_is_decoded_no_further_than_it_says(
    method: int, new_origin: Callable[[bytes], Origin]
) -> None:
    size = 20 * 1024 * 1024
    stored = zipped(("a.img", bytes(size)), method=method)
    # In the member's header and in the directory.
    told = stored.replace(size.to_bytes(4, "little"), (300_000).to_bytes(4, "little"))
    assert len(stored) < 50_000
    assert stored.count(size.to_bytes(4, "little")) == 2
    compressed = recognise(new_origin(told))
    assert compressed is not None
    buffer = memoryview(bytearray(size))
    buffer[:] = b"x" * size
    with pytest.raises(ImageError) as caught:
        compressed.open_decoder().readinto(buffer)
    assert caught.value.code == "image-corrupt"
    assert buffer[1 << 20 :] == b"x" * (size - (1 << 20))
