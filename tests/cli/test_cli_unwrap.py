"""``unwrap`` as its users meet it."""

import gzip
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from boot_volume import edited, extract, file_tree
from builders import BuiltImage, Layout, build_image, run
from commandline import RunBalenaflash, clean_environment
from commandline import run as run_balenaflash
from flashers import SETTINGS, change_root, put
from imagecopies import MakeImage
from imageserver import Behaviour, direct_and_tidy, serve
from mountlock import no_mounts_of_others

from balenaflash.units import MIB

__all__ = ["direct_and_tidy"]

DECODERS = {".gz": ("gzip", "-dc"), ".xz": ("xz", "-dc"), ".zst": ("zstd", "-dqc")}


@pytest.fixture
def flasher(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16, flasher=True)


def unwrapped(balenaflash: RunBalenaflash, flasher: BuiltImage, out: Path, *options: str) -> Path:
    result = balenaflash("unwrap", *options, flasher.path, out)
    assert result.returncode == 0, result.stderr
    return out


def boot_files(flasher: BuiltImage, out: Path, folder: Path) -> dict[str, bytes]:
    assert flasher.inner is not None
    return file_tree(extract(replace(flasher.inner, path=out), folder))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    """A flasher for tests that leave it as it is."""
    return build_image(
        tmp_path_factory.mktemp("flasher") / "flasher.img", Layout.GPT_FAT16, flasher=True
    )


@pytest.fixture(scope="module")
def raw(original: BuiltImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it was unwrapped into, in a directory of its own."""
    return unwrapped(run_balenaflash, original, tmp_path_factory.mktemp("raw") / "raw.img")


@pytest.mark.needs("bmaptool")
def test_a_raw_image_is_sparse_and_its_block_map_is_right(raw: Path, tmp_path: Path) -> None:
    assert names(raw.parent) == ["raw.img", "raw.img.bmap"]
    assert raw.stat().st_blocks * 512 < 10 * MIB < 100 * MIB < raw.stat().st_size
    # bmaptool compares the map with itself, and each range with the image.
    run("bmaptool", "copy", "--bmap", f"{raw}.bmap", raw, tmp_path / "copy.img")


@pytest.mark.parametrize("way", ["pipe", "pipe, gz", "http without ranges"])
@pytest.mark.usefixtures("direct_and_tidy")
def test_a_flasher_that_can_be_read_only_once_is_unwrapped_too(
    way: str, original: BuiltImage, raw: Path, tmp_path: Path
) -> None:
    content = original.path.read_bytes()
    given = gzip.compress(content, 1) if way == "pipe, gz" else content
    out = tmp_path / "out.img"
    with serve(Behaviour(given, ranges=False)) as server:
        is_piped = way.startswith("pipe")
        answer = subprocess.run(
            [sys.executable, "-m", "balenaflash", "unwrap", "-" if is_piped else server.url, out],
            input=given if is_piped else b"",
            env=clean_environment(),
            capture_output=True,
            check=False,
        )
    assert answer.returncode == 0, answer.stderr
    run("cmp", out, raw)


@pytest.mark.parametrize("suffix", DECODERS)
def test_a_compressed_image_is_the_raw_one(
    balenaflash: RunBalenaflash, original: BuiltImage, raw: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"raw.img{suffix}"
    answer = balenaflash("unwrap", "--json", original.path, out)
    result = json.loads(answer.stdout)["result"]
    assert (result["bmap"], result["file_size"]) == (None, out.stat().st_size)
    assert result["container"] == out.suffix.removeprefix(".").replace("gz", "gzip").replace(
        "zst", "zstd"
    )
    with (tmp_path / "decoded").open("wb") as file:
        subprocess.run([*DECODERS[suffix], out], stdout=file, check=True)
    run("cmp", tmp_path / "decoded", raw)


def test_a_compressed_flasher_is_unwrapped_from_a_pipe(
    original: BuiltImage, raw: Path, tmp_path: Path
) -> None:
    out = tmp_path / "raw.img"
    command = f"gzip -1 -c '{original.path}' | {sys.executable} -m balenaflash unwrap - '{out}'"
    done = subprocess.run(
        ["sh", "-c", command], env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    run("cmp", out, raw)


def test_a_dry_run_tells_every_step_and_writes_nothing(
    balenaflash: RunBalenaflash, original: BuiltImage, tmp_path: Path
) -> None:
    answer = balenaflash("unwrap", "--dry-run", "--json", original.path, tmp_path / "raw.img")
    result = json.loads(answer.stdout)["result"]
    assert (answer.returncode, result["dry_run"], result["file_size"]) == (0, True, None)
    assert set(result) == {
        *("flasher", "out", "dry_run", "inner_image", "size", "slug", "os_version"),
        *("expected_devices", "steps", "changes", "recipe", "container", "file_size", "bmap"),
        *("repairs", "warnings", "warning_codes"),
    }
    assert result["slug"] == "generic-amd64"
    assert result["inner_image"] == "/opt/balena-image-generic-amd64.balenaos-img"
    states = {step["code"]: step["state"] for step in result["steps"]}
    assert states == {
        "secure-boot": "not-needed",
        "verify-signature": "not-needed",
        "disk-encryption": "not-needed",
        "image": "done-by-unwrap",
        "bootloader": "not-needed",
        "splash": "done-by-unwrap",
        "system-connections": "done-by-unwrap",
        "dispatcher": "not-needed",
        "system-proxy": "done-by-unwrap",
        "bootloader-config": "done-by-unwrap",
        "bootloader-config-legacy": "done-by-unwrap",
        "bootloader-environment": "not-needed",
        "secure-boot-programs": "not-needed",
        "config-json": "done-by-unwrap",
        "board-hook": "not-needed",
    }
    assert names(tmp_path) == []


def test_edits_are_made_after_the_flashers(
    balenaflash: RunBalenaflash, original: BuiltImage, tmp_path: Path
) -> None:
    step = 'config-set = "hostname=unwrapped-7"'
    out = unwrapped(balenaflash, original, tmp_path / "raw.img", "--step", step)
    files = boot_files(original, out, tmp_path / "files")
    expected = {**json.loads(original.boot_files["/config.json"]), "hostname": "unwrapped-7"}
    assert json.loads(files["/config.json"]) == expected
    assert files["/EFI/BOOT/grub.cfg"] == original.boot_files["/grub.cfg_internal"]


def test_what_is_there_is_replaced_only_when_told(
    balenaflash: RunBalenaflash, original: BuiltImage, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for name in ("raw.img", "raw.img.bmap"):
        (place / name).write_text("precious")
        refused = balenaflash("unwrap", original.path, place / "raw.img")
        assert (refused.returncode, refused.stdout) == (4, "")
        assert f"{name}: is there already" in refused.stderr
        assert (place / name).read_text() == "precious"
        if name == "raw.img":
            (place / name).unlink()
    unwrapped(balenaflash, original, place / "raw.img", "--overwrite")
    assert b"<bmap version" in (place / "raw.img.bmap").read_bytes()
    assert names(place) == ["raw.img", "raw.img.bmap"]


def test_the_flasher_itself_is_never_replaced(
    balenaflash: RunBalenaflash, flasher: BuiltImage
) -> None:
    before = flasher.path.stat()
    result = balenaflash("unwrap", "--overwrite", flasher.path, flasher.path)
    assert (result.returncode, result.stdout) == (4, "")
    assert "is the flasher itself" in result.stderr
    assert flasher.path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("", 4, "is a directory"),
        ("raw.zip", 3, "images cannot be written as .zip"),
        ("nowhere/raw.img", 4, "there is no directory"),
        ("/dev/sdnone", 4, "/dev is not a place for files"),
    ],
)
def test_a_place_that_cannot_hold_it_is_refused(
    balenaflash: RunBalenaflash,
    original: BuiltImage,
    tmp_path: Path,
    name: str,
    status: int,
    words: str,
) -> None:
    result = balenaflash("unwrap", original.path, tmp_path / name)
    assert (result.returncode, result.stdout) == (status, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.needs("root")
@pytest.mark.parametrize("name", ["raw.img", "raw.img.gz"])
def test_a_full_disk_leaves_nothing_behind(original: BuiltImage, tmp_path: Path, name: str) -> None:
    # In a mount namespace of its own, a filesystem of 1 MiB lies over the place.
    command = [sys.executable, "-m", "balenaflash", "unwrap"]
    script = f'mount -t tmpfs -o size=1m tmpfs {tmp_path}; "$@"; echo $?; ls -A {tmp_path}'
    with no_mounts_of_others():
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                script,
                "sh",
                *command,
                original.path,
                tmp_path / name,
            ],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert "there is no room left" in done.stderr
    assert done.stdout == "5\n"


@pytest.mark.parametrize("wanted", [True, "true"])
def test_secure_boot_is_refused_unless_told(
    balenaflash: RunBalenaflash, flasher: BuiltImage, tmp_path: Path, wanted: object
) -> None:
    config = {**json.loads(flasher.boot_files["/config.json"]), "installer": {"secureboot": wanted}}
    with edited(flasher) as volume:
        volume.write_file("/config.json", json.dumps(config).encode())
    out = tmp_path / "raw.img"
    refused = balenaflash("unwrap", "--json", flasher.path, out)
    [problem] = json.loads(refused.stdout)["errors"]
    assert (refused.returncode, problem["code"]) == (3, "secure-boot-requested")
    assert "--ignore-secure-boot" in problem["hint"]
    assert not out.exists()
    told = balenaflash("unwrap", "--json", "--ignore-secure-boot", flasher.path, out)
    steps = {each["code"]: each for each in json.loads(told.stdout)["result"]["steps"]}
    assert told.returncode == 0
    for code in ("secure-boot", "disk-encryption"):
        assert steps[code]["state"] == "needs-board"
        assert "not encrypted" in steps[code]["meaning"]
    files = boot_files(flasher, out, tmp_path / "files")
    assert json.loads(files["/config.json"]) == {
        key: value for key, value in config.items() if key != "installer"
    }


def steps_of(
    balenaflash: RunBalenaflash, flasher: BuiltImage, out: Path
) -> dict[str, Mapping[str, str]]:
    answer = balenaflash("unwrap", "-n", "--json", flasher.path, out)
    assert answer.returncode == 0, answer.stderr
    return {each["code"]: each for each in json.loads(answer.stdout)["result"]["steps"]}


def test_what_only_the_board_can_do_is_told_with_what_it_means(
    balenaflash: RunBalenaflash, image: MakeImage, tmp_path: Path
) -> None:
    flasher = image(Layout.GPT_BOARD, flasher=True)
    change_root(flasher, "mkdir /usr/bin")
    put(flasher, "/usr/bin/resin-init-flasher-board", b"#!/bin/sh\nflash_erase /dev/mtd0\n")
    inner = "balena-image-jetson-agx-orin-devkit-64gb.balenaos-img"
    put(
        flasher,
        SETTINGS,
        f'INTERNAL_DEVICE_KERNEL="mmcblk*"\nBALENA_IMAGE={inner}\n'
        "BOOTLOADER_FLASH_DEVICE=mmcblk0boot0\nBOOTLOADER_IMAGE=boot0.img\n"
        "BOOTLOADER_BLOCK_SIZE_OFFSET=512\nBOOTLOADER_SKIP_OUTPUT_BLOCKS=0\n".encode(),
    )
    steps = steps_of(balenaflash, flasher, tmp_path / "raw.img")
    assert steps["bootloader"]["state"] == "needs-board"
    assert "mmcblk0boot0" in steps["bootloader"]["meaning"]
    assert steps["board-hook"]["state"] == "needs-board"
    assert "QSPI" in steps["board-hook"]["action"]
    assert "flash chip" in steps["board-hook"]["meaning"]
