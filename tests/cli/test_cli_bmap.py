"""``bmap create`` and ``bmap check`` as their users meet them."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from bmaptool import bmaptool, needs_bmaptool
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage
from loopdev import AttachLoop

from balenaflash.commands.bmap import create
from balenaflash.errors import TargetRefusedError
from balenaflash.progress import NO_PROGRESS


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@needs_bmaptool
def test_the_map_is_made_where_bmaptool_finds_it(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    done = balenaflash("bmap", "create", built.path)
    assert done.returncode == 0, done.stderr
    path = built.path.with_name(f"{built.path.name}.bmap")
    assert done.stdout.startswith(f"{path}: made; ")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert "build: 132.0 MiB of 132.0 MiB done" in done.stderr
    # bmaptool reads the map beside the image unless it is told not to.
    bmaptool("copy", built.path, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_blocks < built.path.stat().st_size // 512 // 2
    checked = balenaflash("bmap", "check", built.path)
    assert (checked.returncode, checked.stdout.split(":")[0]) == (0, str(path))
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_json_tells_the_bytes_of_each_kind_and_progress_is_events(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    out = tmp_path / "made.bmap"
    done = balenaflash("bmap", "create", "--json", "--progress", "json", built.path, "-o", out)
    answer = json.loads(done.stdout)
    assert (answer["command"], answer["status"]) == ("bmap create", "ok")
    result = answer["result"]
    assert result.keys() == {
        *("image", "bmap", "image_size", "block_size", "mapped_blocks", "ranges", "warnings"),
        *("data_bytes", "zero_bytes", "free_bytes", "warning_codes"),
    }
    assert (result["bmap"], result["warnings"]) == (str(out), [])
    size = built.path.stat().st_size
    assert result["image_size"] == size
    assert result["data_bytes"] + result["zero_bytes"] + result["free_bytes"] == size
    assert result["mapped_blocks"] * 4096 == result["data_bytes"] + result["zero_bytes"]
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert (events[-1]["event"], events[-1]["done"], events[-1]["total"]) == ("end", size, size)

    checked = balenaflash("bmap", "check", "--json", built.path, "--bmap", out)
    assert checked.returncode == 0
    result = json.loads(checked.stdout)["result"]
    assert result.keys() == {
        *("image", "bmap", "image_size", "checksum_type", "ranges", "compared_bytes"),
        *("left_out_in_use_bytes", "matches", "warnings", "warning_codes"),
    }
    assert (result["matches"], result["left_out_in_use_bytes"]) == (True, 0)


def test_a_map_that_is_there_is_replaced_only_when_told(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    path = built.path.with_name(f"{built.path.name}.bmap")
    path.write_text("precious")
    done = balenaflash("bmap", "create", built.path)
    assert (done.returncode, done.stdout, path.read_text()) == (4, "", "precious")
    assert "is there already" in done.stderr
    assert "--overwrite" in done.stderr
    assert balenaflash("bmap", "create", built.path, "--overwrite").returncode == 0
    assert balenaflash("bmap", "check", built.path).returncode == 0


def test_neither_the_image_nor_a_folder_nor_a_device_becomes_a_map(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(built.path)
    for place, words in (
        (tmp_path / "link", "is the image itself"),
        (tmp_path, "is a directory"),
        (Path("/dev/null"), "a character device"),
        (Path("/dev/new.bmap"), "not a place for files"),
        (tmp_path / "nowhere" / "a.bmap", "there is no directory"),
    ):
        with pytest.raises(TargetRefusedError, match=words):
            create(built.path, place, overwrite=True, progress=NO_PROGRESS)
    done = balenaflash("bmap", "create", built.path, "--overwrite", "-o", built.path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "is the image itself" in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == [built.path.name, "link"]


def test_of_a_block_device_the_map_goes_where_it_is_told(
    built: BuiltImage, balenaflash: RunBalenaflash, attach_loop: AttachLoop, tmp_path: Path
) -> None:
    node = attach_loop(built.path, read_only=True)
    assert balenaflash("bmap", "create", node).returncode == 4
    out = tmp_path / "card.bmap"
    assert balenaflash("bmap", "create", node, "-o", out).returncode == 0
    assert balenaflash("bmap", "check", built.path, "--bmap", out).returncode == 0


def test_each_range_that_differs_is_named(built: BuiltImage, balenaflash: RunBalenaflash) -> None:
    balenaflash("bmap", "create", built.path)
    root = next(each for each in built.partitions if each.label == "resin-rootA")
    flip(built.path, 5)
    flip(built.path, root.extent.start + 1024)
    done = balenaflash("bmap", "check", built.path)
    assert (done.returncode, done.stdout) == (3, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("balenaflash:")]
    assert len(lines) == 2
    assert "bytes 0 to " in lines[0]
    assert f"bytes {root.extent.start} to " in lines[1]
    answer = json.loads(balenaflash("bmap", "check", "--json", built.path).stdout)
    assert (answer["exit_status"], answer["result"]) == (3, None)
    assert [error["code"] for error in answer["errors"]] == ["bmap-differs"] * 2


def test_a_changed_map_is_told_from_a_changed_image(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    path = built.path.with_name(f"{built.path.name}.bmap")
    balenaflash("bmap", "create", built.path)
    flip(path, path.read_bytes().index(b"chksum=") + 20)
    done = balenaflash("bmap", "check", built.path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert f"{path}: is not a valid block map: its own checksum does not match" in done.stderr


def test_an_image_without_a_map_or_of_another_size_is_refused(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    done = balenaflash("bmap", "check", built.path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "has no block map beside it" in done.stderr
    assert "balenaflash bmap create" in done.stderr
    balenaflash("bmap", "create", built.path)
    with built.path.open("ab") as file:
        file.write(b"more")
    done = balenaflash("bmap", "check", built.path)
    assert done.returncode == 3
    assert "is of an image of 138412032 bytes" in done.stderr


@needs_bmaptool
@pytest.mark.parametrize("program", ["gzip", "xz"])
def test_the_map_of_a_compressed_image_is_that_of_the_image_in_it(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path, program: str
) -> None:
    subprocess.run([program, "-1", "-k", built.path], check=True)
    (packed,) = (each for each in tmp_path.iterdir() if each.suffix in {".gz", ".xz"})
    done = balenaflash("bmap", "create", packed)
    assert done.returncode == 0, done.stderr
    assert packed.with_name(f"{packed.name}.bmap").is_file()
    bmaptool("copy", packed, tmp_path / "copy")
    # The copy is new, so what is not written is zero, as it is in the image.
    subprocess.run(["cmp", tmp_path / "copy", built.path], check=True)
    assert balenaflash("bmap", "check", packed).returncode == 0


def test_standard_input_needs_a_file_to_be_named(balenaflash: RunBalenaflash) -> None:
    done = balenaflash("bmap", "create", "-")
    assert (done.returncode, done.stdout) == (4, "")
    assert "Name a file with -o." in done.stderr
    assert balenaflash("bmap", "check", "-").returncode == 3


@needs_bmaptool
def test_a_map_made_of_holes_is_warned_of(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    bmaptool("create", "-o", tmp_path / "holes.bmap", built.path)
    done = balenaflash("bmap", "check", built.path, "--bmap", tmp_path / "holes.bmap")
    assert done.returncode == 0
    assert "warning: " in done.stderr
    assert "that the image has in use" in done.stderr


def test_an_image_that_is_none_makes_no_map(balenaflash: RunBalenaflash, tmp_path: Path) -> None:
    path = tmp_path / "noise.img"
    path.write_bytes(b"no partition table" * 1000)
    done = balenaflash("bmap", "create", path)
    assert (done.returncode, done.stdout) == (3, "")
    assert [each.name for each in tmp_path.iterdir()] == ["noise.img"]
