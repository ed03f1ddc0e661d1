"""``inspect`` as users meet it, and what every command says of an image that is none."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage
from loopdev import AttachLoop

from balenaflash.units import MIB


@pytest.mark.parametrize("flasher", [False, True])
@pytest.mark.parametrize("layout", list(Layout))
def test_partitions_and_boot_partition_are_those_asked_of_parted(
    layout: Layout,
    flasher: bool,  # noqa: FBT001 - a parameter of the test
    image: MakeImage,
    balenaflash: RunBalenaflash,
) -> None:
    built = image(layout, flasher=flasher)
    run = balenaflash("inspect", "--json", built.path)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)["result"]
    assert result["size"] == built.path.stat().st_size
    assert result["container"] == "raw"
    assert result["table"]["kind"] == layout.table
    assert [
        (item["number"], item["start"], item["start"] + item["size"])
        for item in result["partitions"]
    ] == [(item.number, item.extent.start, item.extent.end) for item in built.partitions]
    assert [
        item["filesystem"]["label"] if item["filesystem"] else None for item in result["partitions"]
    ] == [item.label if item.filesystem else None for item in built.partitions]
    assert result["boot_partition"]["number"] == built.boot_number
    assert result["balena"]["kind"] == ("flasher" if flasher else "raw")


def test_board_and_version_are_those_of_the_boot_files(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.GPT_FAT16)
    board = json.loads(built.boot_files["/device-type.json"])
    release = dict(
        line.split("=", 1) for line in built.boot_files["/os-release"].decode().splitlines()
    )
    facts = json.loads(balenaflash("inspect", "--json", built.path).stdout)["result"]["balena"]
    assert facts["slug"] == board["slug"]
    assert facts["arch"] == board["arch"]
    assert facts["machine"] == board["yocto"]["machine"]
    assert facts["os_version"] == release["VERSION"].strip('"')
    assert facts["image_name"] == built.boot_files["/image-version-info"].decode().strip()


def test_secrets_are_masked_unless_asked_for(
    image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT16)
    secret = "0123456789abcdef" * 2
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"deviceApiKey": secret, "hostname": "lab-1"}))
    subprocess.run(
        ["mcopy", "-o", "-i", f"{built.path}@@{built.boot_extent.start}", config, "::/config.json"],
        check=True,
    )
    text = balenaflash("inspect", built.path)
    plain = balenaflash("inspect", "--json", built.path)
    shown = balenaflash("inspect", "--json", "--show-secrets", built.path)
    assert secret not in text.stdout + text.stderr + plain.stdout
    assert "lab-1" in text.stdout
    assert json.loads(shown.stdout)["result"]["config"]["deviceApiKey"] == secret


def test_a_flashed_device_is_inspected_like_its_image(
    image: MakeImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.GPT_BOARD)
    from_file = json.loads(balenaflash("inspect", "--json", built.path).stdout)["result"]
    node = attach_loop(built.path)
    from_disk = json.loads(balenaflash("inspect", "--json", node).stdout)["result"]
    assert from_disk.pop("container") == "block-device"
    assert from_file.pop("container") == "raw"
    assert from_disk.pop("path") == str(node)
    assert from_file.pop("path") == str(built.path)
    assert from_disk == from_file


def test_looking_changes_nothing(image: MakeImage, balenaflash: RunBalenaflash) -> None:
    built = image(Layout.GPT_FAT16)
    built.path.chmod(0o444)
    before = built.path.stat()
    digest = hashlib.sha256(built.path.read_bytes()).hexdigest()
    assert balenaflash("inspect", built.path).returncode == 0
    after = built.path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert hashlib.sha256(built.path.read_bytes()).hexdigest() == digest
    assert [path.name for path in built.path.parent.iterdir()] == [built.path.name]


def test_names_in_the_image_cannot_reach_the_terminal_as_commands(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.GPT_FAT16)
    subprocess.run(
        ["sgdisk", "--change-name=5:evil\x1b[2Jname", built.path], check=True, capture_output=True
    )
    run = balenaflash("inspect", built.path)
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout + run.stderr
    assert "evil\\x1b[2Jname" in run.stdout


# What is no image: one line, status 3, no traceback, nothing on stdout.


def make_bad_image(kind: str, good: BuiltImage, folder: Path) -> Path:  # noqa: C901 - a case each
    path = folder / "bad.img"
    match kind:
        case "truncated":
            os.truncate(good.path, good.path.stat().st_size // 2)
            return good.path
        case "truncated in its table":
            os.truncate(good.path, 700)
            return good.path
        case "empty":
            path.touch()
        case "text":
            path.write_text("This is no image.\n" * 1000)
        case "random":
            path.write_bytes(os.urandom(4 * MIB))
        case "zeros":
            path.write_bytes(bytes(4 * MIB))
        case "directory":
            path.mkdir()
        case "without boot partition":
            path.touch()
            os.truncate(path, 64 * MIB)
            script = "label: gpt\nstart=8192, size=40960, name=something\n"
            subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True)
        case _:
            assert kind == "missing"
    return path


@pytest.mark.parametrize("layout", [Layout.GPT_FAT16, Layout.MSDOS_FAT16])
@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "truncated in its table",
        "empty",
        "text",
        "random",
        "zeros",
        "directory",
        "missing",
        "without boot partition",
    ],
)
def test_what_is_no_image_is_said_in_one_line(
    kind: str, layout: Layout, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    bad = make_bad_image(kind, image(layout), folder)
    commands: list[list[str | Path]] = [
        ["inspect", bad],
        ["boot", "ls", bad],
        ["boot", "rm", bad, "/config.json"],
        ["boot", "use-internal", bad],
        ["write", "--yes", bad, tmp_path / "out.img"],
        ["verify", bad, bad],
    ]
    for command in commands:
        run = balenaflash(*command)
        assert (run.returncode, run.stdout) == (3, ""), (command, run.stderr)
        first, *hints = run.stderr.splitlines()
        assert first.startswith(f"balenaflash: {bad}: "), run.stderr
        assert all(line.startswith("  ") for line in hints)
        assert len(hints) <= 1
    assert not (tmp_path / "out.img").exists()
