"""The picture shown at the start, and the size of a PNG image."""

import subprocess
from pathlib import Path

import pytest
from boot_volume import edited, extract, file_tree
from builders import BuiltImage, Layout
from hypothesis import given
from hypothesis import strategies as st
from imagecopies import MakeImage
from pictures import END, PIXELS, SMALL, chunk, png

from balenaflash.edits.files import PutFile, Remove
from balenaflash.edits.splash import OLD_SPLASH_PATH, SPLASH_PATH, SetSplash, read_png_size
from balenaflash.errors import EditError

needs_netpbm = pytest.mark.needs("netpbm")


def netpbm(picture: str, *options: str) -> bytes:
    """The PNG that pnmtopng makes of a picture in plain Netpbm format."""
    command = ["pnmtopng", "-quiet", *options]
    return subprocess.run(
        command, input=f"{picture}\n".encode(), capture_output=True, check=True
    ).stdout


@needs_netpbm
@pytest.mark.parametrize(
    ("picture", "options"),
    [
        ("P1 3 2 1 0 1 0 1 0", []),
        ("P2 3 2 255 1 2 3 4 5 6", []),
        ("P2 3 2 65535 1 2 3 4 5 60000", []),
        ("P2 3 2 255 1 2 3 4 5 6", ["-interlace"]),
        ("P3 3 2 255" + " 1 2 3" * 6, []),
        ("P3 3 2 255" + " 1 2 3" * 6, ["-force", "-interlace"]),
        ("P3 3 2 255" + " 255 0 0" * 6, ["-transparent", "red", "-text", "/dev/null"]),
    ],
)
def test_images_of_netpbm_are_png(picture: str, options: list[str]) -> None:
    assert read_png_size(netpbm(picture, *options), "logo.png") == (3, 2)


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"<svg/>", b""])
def test_other_images_are_not(start: bytes) -> None:
    with pytest.raises(EditError) as refusal:
        read_png_size(start + bytes(40), "logo")
    assert str(refusal.value) == "logo: is not a PNG image"


START = len(SMALL) - len(PIXELS) - len(END) - 9  # without bit depth to checksum of the header


@given(data=st.data())
def test_one_spoiled_byte_of_signature_or_header_type_is_found(data: st.DataObject) -> None:
    spoiled = bytearray(SMALL)
    spoiled[data.draw(st.integers(0, 15))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EditError):
        read_png_size(bytes(spoiled), "logo")


@given(size=st.integers(0, START - 1))
def test_an_image_cut_short_before_its_size_is_found(size: int) -> None:
    with pytest.raises(EditError):
        read_png_size(SMALL[:size], "logo")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(PIXELS, END, width=0), "0 x 1 pixels"),
        (png(PIXELS, END, height=1 << 31), "2147483648 pixels"),
        (png(PIXELS, END, tail=b"\x08\x00\x00\x00"), "does not begin with a PNG header"),
        (b"\x89PNG\r\n\x1a\n" + PIXELS + END, "does not begin with a PNG header"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0dIHDR", "ends at byte 16"),
    ],
)
def test_an_image_without_a_valid_header_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(EditError) as refusal:
        read_png_size(data, "logo.png")
    assert words in str(refusal.value)
    assert refusal.value.code == "png-invalid"


def test_the_picture_takes_the_place_of_the_old_one(image: MakeImage, tmp_path: Path) -> None:
    built = image(Layout.GPT_FAT16)
    with edited(built) as volume:
        SetSplash("logo.png", SMALL).apply(volume)
    expected = built.boot_files | {SPLASH_PATH: SMALL}
    assert file_tree(extract(built, tmp_path / "after")) == expected


@pytest.mark.parametrize(
    ("present", "used"),
    [
        ({SPLASH_PATH}, SPLASH_PATH),
        ({OLD_SPLASH_PATH}, OLD_SPLASH_PATH),
        ({OLD_SPLASH_PATH, SPLASH_PATH}, SPLASH_PATH),
        (set(), SPLASH_PATH),
    ],
)
def test_the_older_name_is_used_where_only_that_is_there(
    image: MakeImage, present: set[str], used: str
) -> None:
    built: BuiltImage = image(Layout.GPT_FAT16)
    with edited(built) as volume:
        Remove(SPLASH_PATH).apply(volume)
        for path in present:
            PutFile(path, b"old").apply(volume)
        if not present:
            Remove("/splash", recursive=True).apply(volume)
        changes = SetSplash("logo.png", SMALL).apply(volume)
        assert volume.read_file(used) == SMALL
    assert changes[-1].path == used


def test_what_is_no_png_changes_nothing(image: MakeImage) -> None:
    built = image(Layout.GPT_FAT16)
    with edited(built) as volume:
        with pytest.raises(EditError):
            SetSplash("logo.png", b"GIF89a").apply(volume)
        assert volume.changes() == ()


def test_a_large_picture_is_a_warning(image: MakeImage) -> None:
    with edited(image(Layout.GPT_FAT16)) as volume:
        padding = chunk(b"tEXt", bytes(2 << 20))
        large = png(padding, PIXELS, END, width=5000)
        assert len(SetSplash("logo.png", large).apply(volume)[-1].warnings) == 2
        assert SetSplash("logo.png", SMALL).apply(volume)[-1].warnings == ()
