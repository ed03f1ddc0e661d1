"""Logical partitions in compressed and piped images: found, or said not to be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from imagecopies import MakeImage
from tablefiles import boot_record, sfdisk_extents, write_at

from balenaflash.balena.image import BalenaImage
from balenaflash.commands.disk_report import follow_logical, report_disk
from balenaflash.formats.partitions.model import PartitionKind
from balenaflash.source.opening import open_for_reading

pytestmark = pytest.mark.needs("fdisk")

MIB = 1 << 20


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.MSDOS_FAT32)


def packed(path: Path, *command: str) -> Path:
    """The output of a compressor, beside the image."""
    out = path.with_suffix(f".{command[0]}")
    with path.open("rb") as source, out.open("wb") as target:
        subprocess.run(command, stdin=source, stdout=target, check=True)
    return out


def piped(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """``inspect -`` of what cat writes into a pipe."""
    command = [sys.executable, "-m", "balenaflash", "inspect", *options, "-"]
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(
            command,
            stdin=cat.stdout,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert cat.stdout is not None
        cat.stdout.close()
    return done


def partitions_of(layout: dict[str, object]) -> dict[int, tuple[int, int]]:
    listed = layout["partitions"]
    assert isinstance(listed, list)
    return {each["number"]: (each["start"], each["start"] + each["size"]) for each in listed}


def by_sfdisk(path: Path) -> dict[int, tuple[int, int]]:
    return {number: (each.start, each.end) for number, each in sfdisk_extents(path).items()}


@pytest.mark.parametrize(
    "compressor", [["gzip", "-1"], ["xz", "-0", "--block-size=8MiB"], ["zstd", "-1"]]
)
def test_every_partition_of_a_compressed_image_is_listed(
    compressor: list[str], built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    run = balenaflash("inspect", "--json", packed(built.path, *compressor, "-c"))
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)["result"]
    assert partitions_of(result) == by_sfdisk(built.path)
    assert {5, 6} <= set(partitions_of(result))
    assert result["table"]["complete"] is True
    assert result["warnings"] == []


def test_every_partition_of_an_image_in_a_compressed_flasher_is_listed(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.MSDOS_FAT32, flasher=True)
    run = balenaflash("inspect", "--json", packed(built.path, "gzip", "-c", "-1"))
    assert run.returncode == 0, run.stderr
    inner = json.loads(run.stdout)["result"]["flasher"]["image"]["layout"]
    assert built.inner is not None
    expected = {
        each.number: (each.extent.start, each.extent.end) for each in built.inner.partitions
    }
    assert partitions_of(inner) == expected
    assert inner["table"]["complete"] is True


@pytest.fixture
def far(built: BuiltImage) -> Path:
    """The image with its logical partitions 400 MiB further on, past the reach of a pipe."""
    extents = sfdisk_extents(built.path)
    primary = [(0x0C if n == 1 else 0x83, extents[n]) for n in (1, 2, 3)]
    start = (extents[4].start + 400 * MIB) // 512
    os.truncate(built.path, (start + 40 * 2048) * 512)
    entries = [(kind, each.start // 512, each.size // 512) for kind, each in primary]
    write_at(built.path, 446, boot_record(*entries, (0x0F, start, 40 * 2048))[446:])
    write_at(built.path, start * 512, boot_record((0x83, 2048, 4096), (0x05, 8192, 8192)))
    write_at(built.path, (start + 8192) * 512, boot_record((0x83, 2048, 4096)))
    return built.path


def test_what_a_pipe_does_not_reach_is_said_not_to_be_read(far: Path) -> None:
    run = piped(far, "--json")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)["result"]
    known = by_sfdisk(far)
    assert {5, 6} <= set(known)
    assert partitions_of(result) == {number: known[number] for number in (1, 2, 3, 4)}
    assert result["table"]["complete"] is False
    assert result["warnings"] == [
        "The logical partitions in partition 4 were not read: they are too far into the stream."
    ]


def test_an_extended_partition_that_was_not_read_is_not_drawn_as_empty(
    far: Path, balenaflash: RunBalenaflash
) -> None:
    unread, whole = piped(far), balenaflash("inspect", far)
    assert unread.returncode == whole.returncode == 0
    assert "4 (not read)" in unread.stdout
    assert "logical partitions in partition 4 were not read" in unread.stderr
    assert "    (gap)" in whole.stdout, "a gap in the extended partition is drawn further in"
    assert "    (gap)" not in unread.stdout


def test_a_compressed_file_is_followed_as_far_as_it_may_be(far: Path) -> None:
    archive = packed(far, "gzip", "-c", "-1")
    found = dict[int, set[int]]()
    for limit in (4 * MIB, 1024 * MIB):
        with open_for_reading(archive) as opened:
            disk = BalenaImage(opened.source)
            report = report_disk(disk, show_secrets=False)
            report = follow_logical(disk, report, limit=limit)
        found[limit] = {
            each.number for each in report.table.partitions if each.kind is PartitionKind.LOGICAL
        }
    assert found == {4 * MIB: set(), 1024 * MIB: {5, 6}}
