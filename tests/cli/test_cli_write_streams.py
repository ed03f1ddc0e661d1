"""``write`` in its default mode, from files and streams: what is on the target then."""

import hashlib
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from fakes import RecordedProgress
from faultdev import MakeFaultDevice
from imagecopies import MakeImage
from loopdev import AttachLoop
from write_judges import (
    BLOCK,
    assert_sound,
    bytes_written,
    compress,
    differing_bytes,
    free_extents,
    whole_blocks,
)

from balenaflash.balena.image import BalenaImage
from balenaflash.commands.write import plan_image
from balenaflash.flashing.flash import FlashOptions, FlashReport, Target, flash
from balenaflash.flashing.plan import describe_place
from balenaflash.progress import NO_PROGRESS, Phase
from balenaflash.source.base import open_source
from balenaflash.targets.disks import find_disk
from balenaflash.targets.open_disk import open_disk
from balenaflash.units import MIB, Extent

EPOCH = {"SOURCE_DATE_EPOCH": "1600000000"}
STEPS = ("--step", 'config-set = "hostname=bench-7"', "--step", 'mkdir = "/lab"')
FLIPS = int(os.environ.get("BALENAFLASH_TEST_FLIPS", "10"))
CYCLES = int(os.environ.get("BALENAFLASH_TEST_CYCLES", "3"))


def rounded(size: int) -> int:
    return -(-size // MIB) * MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def make_device(attach_loop: AttachLoop, path: Path, size: int) -> Path:
    """A loop device full of 0xFF."""
    path.write_bytes(b"\xff" * rounded(size))
    return attach_loop(path)


def piped(source: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """``balenaflash ARGS`` with ``source`` coming through a pipe."""
    with subprocess.Popen(["cat", source], stdout=subprocess.PIPE) as cat:
        return subprocess.run(
            [sys.executable, "-m", "balenaflash", *map(str, args)],
            stdin=cat.stdout,
            env=clean_environment(),
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=120,
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("layout", "form", "is_edited"),
    [
        (Layout.GPT_FAT16, "raw", False),
        (Layout.GPT_FAT16, "gz", True),
        (Layout.MSDOS_FAT32, "gz", False),
        (Layout.MSDOS_FAT32, "raw", True),
        (Layout.MSDOS_FAT16, "-", False),
    ],
)
def test_every_file_and_every_byte_that_is_not_free_is_on_a_disk_that_held_something_else(
    layout: Layout,
    form: str,
    image: MakeImage,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
    *,
    is_edited: bool,
) -> None:
    built = image(layout)
    size = built.path.stat().st_size
    node = make_device(attach_loop, tmp_path / "disk", size + 8 * MIB)
    steps = STEPS if is_edited else ()
    given = compress(built.path) if form == "gz" else built.path
    written_before = bytes_written(node)
    if form == "-":
        run = piped(given, "write", "--yes", "-", node)
    else:
        run = balenaflash("write", "--yes", given, node, *steps, environment=EPOCH)
    assert run.returncode == 0, run.stderr
    written = bytes_written(node) - written_before
    if is_edited:
        assert balenaflash("edit", built.path, *steps, environment=EPOCH).returncode == 0
    free = free_extents(built, built.path)
    assert differing_bytes(built.path, node, free) == []
    needed = size - sum(extent.size for extent in whole_blocks(free))
    assert written <= needed * 1.01 + MIB
    assert_sound(built, built.path, node, tmp_path / "mounts")
    with node.open("rb") as device:
        device.seek(rounded(size))
        assert set(device.read()) == {0xFF}, "bytes behind the image are left alone"


@pytest.mark.parametrize("form", ["raw", "gz"])
def test_a_dry_run_counts_as_others_do(
    form: str,
    image: MakeImage,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
) -> None:
    built = image(Layout.MSDOS_FAT32)
    content = built.path.read_bytes()
    node = make_device(attach_loop, tmp_path / "disk", len(content))
    given = compress(built.path) if form == "gz" else built.path
    run = balenaflash("write", "--dry-run", "--json", given, node)
    assert run.returncode == 0, run.stderr
    plan = {each.pop("partition"): each for each in json.loads(run.stdout)["result"]["plan"]}
    # The head is written whole, so nothing in it counts as free; no partition reaches into it.
    free = whole_blocks(free_extents(built, built.path))
    for partition in built.partitions:
        if partition.label is None:
            continue
        inside = [each for each in free if partition.extent.encloses(each)]
        expected = {"free": sum(each.size for each in inside), "zero": 0, "data": 0}
        unused = {block for each in inside for block in range(each.start, each.end, BLOCK)}
        for start in range(partition.extent.start, partition.extent.end, BLOCK):
            if start not in unused:
                block = content[start : start + BLOCK]
                expected["data" if any(block) else "zero"] += len(block)
        assert plan[partition.number] == {kind: size for kind, size in expected.items() if size}
    assert sum(size for counts in plan.values() for size in counts.values()) == len(content)


@pytest.mark.parametrize("form", ["raw", "gz"])
def test_an_image_from_standard_input(form: str, gpt: BuiltImage, tmp_path: Path) -> None:
    given = compress(gpt.path) if form == "gz" else gpt.path
    copy = tmp_path / "copy.img"
    run = piped(given, "write", "--json", "--sha256", sha256(gpt.path).upper(), "-", copy)
    assert run.returncode == 0, run.stderr
    assert sha256(copy) == sha256(gpt.path)
    assert json.loads(run.stdout)["result"]["bytes_read_back"] == gpt.path.stat().st_size


def test_of_two_images_in_a_zip_file_from_a_pipe_the_second_is_named(
    gpt: BuiltImage, tmp_path: Path
) -> None:
    packed, out = tmp_path / "two.zip", tmp_path / "out.img"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gpt.path, "first.img")
        archive.writestr("second.img", b"another")
    run = piped(packed, "write", "--yes", "--json", "-", out)
    result = json.loads(run.stdout)["result"]
    assert (run.returncode, result["warning_codes"]) == (0, ["zip-member-ambiguous"])
    assert "'second.img'" in result["warnings"][0]
    assert sha256(out) == sha256(gpt.path)


def test_bytes_behind_all_partitions_come_along_from_a_pipe_as_from_a_file(
    image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT16)
    with built.path.open("ab") as file:
        file.write(random.Random(1).randbytes(9 * MIB + 512))  # noqa: S311 - no key
    packed = compress(built.path)
    for number, run in enumerate(
        [
            balenaflash("write", built.path, tmp_path / "0"),
            balenaflash("write", packed, tmp_path / "1"),
            piped(built.path, "write", "-", tmp_path / "2"),
        ]
    ):
        assert run.returncode == 0, run.stderr
        assert sha256(tmp_path / str(number)) == sha256(built.path)


def test_a_disk_too_small_for_a_stream_is_refused_by_the_table_or_fails_at_the_end(
    image: MakeImage, attach_loop: AttachLoop, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT16)
    size = built.path.stat().st_size
    small = make_device(attach_loop, tmp_path / "small", size - 8 * MIB)
    run = piped(built.path, "write", "--yes", "-", small)
    assert (run.returncode, run.stdout) == (4, "")
    assert (tmp_path / "small").read_bytes().count(0xFF) == rounded(size - 8 * MIB)
    with built.path.open("ab") as file:
        file.write(random.Random(1).randbytes(40 * MIB))  # noqa: S311 - no key
    tight = make_device(attach_loop, tmp_path / "tight", size + MIB)
    run = piped(built.path, "write", "--yes", "-", tight)
    assert (run.returncode, run.stdout) == (5, "")
    assert f"{tight}: is too small" in run.stderr
    assert "will not boot" in run.stderr
    with tight.open("rb") as device:
        assert not any(device.read(MIB))
    run = piped(built.path, "verify", "-", tight)
    assert (run.returncode, run.stdout) == (6, "")


def test_the_sum_of_the_file_and_that_of_the_image_are_both_accepted(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    packed = compress(gpt.path)
    for number, (given, known) in enumerate(
        [(gpt.path, gpt.path), (packed, packed), (packed, gpt.path)]
    ):
        copy = tmp_path / f"copy-{number}"
        run = balenaflash("write", "--sha256", sha256(known), given, copy)
        assert run.returncode == 0, run.stderr
        assert sha256(copy) == sha256(gpt.path)


def test_an_image_with_another_sum_never_boots(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    wrong = hashlib.sha256(b"another").hexdigest()
    node = make_device(attach_loop, tmp_path / "disk", gpt.path.stat().st_size)
    before = sha256(tmp_path / "disk")
    run = balenaflash("write", "--yes", "--json", "--sha256", wrong, gpt.path, node)
    assert run.returncode == 3
    assert json.loads(run.stdout)["errors"][0]["code"] == "sha256-differs"
    assert sha256(tmp_path / "disk") == before
    # The sum of what is in a container is known at its end.
    packed = compress(gpt.path)
    run = balenaflash("write", "--yes", "--json", "--sha256", wrong, packed, node)
    assert run.returncode == 7
    assert json.loads(run.stdout)["errors"][0]["code"] == "image-failed"
    assert "its SHA-256 is" in json.loads(run.stdout)["errors"][0]["message"]
    with node.open("rb") as device:
        assert not any(device.read(MIB))
    run = balenaflash("write", "--sha256", wrong, packed, tmp_path / "copy.img")
    assert (run.returncode, run.stdout) == (7, "")
    assert not (tmp_path / "copy.img").exists()
    assert balenaflash("write", "--sha256", "abc", packed, tmp_path / "x").returncode == 2


def test_an_image_that_ends_too_early_is_told_apart_from_a_failing_card(
    gpt: BuiltImage, attach_loop: AttachLoop, tmp_path: Path
) -> None:
    size = gpt.path.stat().st_size
    cut = tmp_path / "cut.gz"
    cut.write_bytes(compress(gpt.path).read_bytes()[:-4])  # half of the trailer of RFC 1952, 2.3.1
    node = make_device(attach_loop, tmp_path / "disk", size)
    run = piped(cut, "write", "--yes", "--json", "-", node)
    assert run.returncode == 7, run.stderr
    envelope = json.loads(run.stdout)
    assert (envelope["exit_status"], envelope["errors"][0]["code"]) == (7, "image-failed")
    assert "holds part of the image and will not boot" in run.stderr
    with node.open("rb") as device:
        assert not any(device.read(MIB))


def test_a_member_is_refused_of_what_has_none(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    for given in (gpt.path, compress(gpt.path)):
        run = balenaflash("write", "--member", "other.img", given, tmp_path / "copy.img")
        assert (run.returncode, run.stdout) == (3, ""), run.stderr
        assert not (tmp_path / "copy.img").exists()


def test_a_card_that_has_the_image_is_not_written_and_later_only_what_changed(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    node = make_device(attach_loop, tmp_path / "disk", gpt.path.stat().st_size)
    command = ("write", "--yes", "--json", "--skip-equal", "--all", gpt.path, node)
    first = json.loads(balenaflash(*command).stdout)["result"]
    assert first["bytes_written"] == gpt.path.stat().st_size
    before = bytes_written(node)
    second = json.loads(balenaflash(*command).stdout)["result"]
    assert (second["bytes_written"], second["bytes_equal"]) == (0, first["bytes_written"])
    assert bytes_written(node) == before
    with node.open("r+b", buffering=0) as device:
        for offset in (9 * MIB, 10 * MIB, 70 * MIB):
            device.seek(offset)
            device.write(b"changed".ljust(512))
        os.fsync(device)
    third = json.loads(balenaflash(*command).stdout)["result"]
    # Two chunks of 4 MiB, and the head, which was zeroed before either was touched.
    assert third["bytes_written"] == 9 * MIB
    assert differing_bytes(gpt.path, node, []) == []


def test_a_difference_in_a_logical_partition_of_a_stream_is_named(
    image: MakeImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT16)
    packed = compress(built.path)
    node = make_device(attach_loop, tmp_path / "disk", built.path.stat().st_size)
    assert balenaflash("write", "--yes", packed, node).returncode == 0
    last = built.partitions[-1]
    place = last.extent.start + 1024 + 56  # the magic number of ext4
    with node.open("r+b", buffering=0) as device:
        device.seek(place - place % 512)
        sector = bytearray(device.read(512))
        sector[place % 512] ^= 1
        device.seek(place - place % 512)
        device.write(sector)
        os.fsync(device)
    for options in ((), ("--all",)):
        run = balenaflash("verify", *options, packed, node)
        assert run.returncode == 6, run.stderr
        if not options:
            assert f"at byte {place} (partition {last.number}," in run.stderr


class FlippingProgress(RecordedProgress):
    """Has a bit of the medium flip when the read-back begins."""

    def __init__(self, flip: "list[tuple[int, int]]", device: object) -> None:
        super().__init__()
        self._flip = flip
        self._device = device

    def begin(self, phase: Phase, total: int | None) -> None:
        super().begin(phase, total)
        if phase is Phase.VERIFY and self._flip:
            place, mask = self._flip.pop()
            (before,) = self._device.raw(place, 1)  # type: ignore[attr-defined]
            self._device.fill(bytes([before ^ mask]), place)  # type: ignore[attr-defined]


def test_one_bit_that_flips_on_the_medium_is_found_named_and_repaired(
    gpt: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    chance = random.Random(20)  # noqa: S311 - no key
    device = fault_device(size=rounded(gpt.path.stat().st_size))
    free = whole_blocks(free_extents(gpt, gpt.path))
    used: list[Extent] = []
    position = 0
    for extent in (*free, Extent(gpt.path.stat().st_size, gpt.path.stat().st_size)):
        if position < extent.start:
            used.append(Extent(position, extent.start))
        position = extent.end
    content = gpt.path.read_bytes()
    with open_source(gpt.path) as source:
        plan = plan_image(BalenaImage(source))
        for _ in range(FLIPS):
            (extent,) = chance.choices(used, [each.size for each in used])
            place, mask = chance.randrange(extent.start, extent.end), 1 << chance.randrange(8)
            progress = FlippingProgress([(place, mask)], device)
            with open_disk(find_disk(device.node)) as medium:
                (report,) = flash(
                    source,
                    plan,
                    [Target(medium, progress)],
                    options=FlashOptions(),
                    stop=lambda: False,
                )
            assert isinstance(report, FlashReport), f"{place}: {report}"
            (repaired,) = report.repaired
            assert repaired.first_byte == place
            assert describe_place(plan, place)
            assert device.raw(extent.start, extent.size) == content[extent.start : extent.end]


def test_a_healthy_device_never_raises_an_alarm(
    gpt: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    device = fault_device(size=rounded(gpt.path.stat().st_size))
    free = free_extents(gpt, gpt.path)
    with open_source(gpt.path) as source:
        plan = plan_image(BalenaImage(source))
        for cycle in range(CYCLES):
            for offset in range(0, device.size, MIB):
                device.fill(bytes([255 - cycle]) * MIB, offset)
            with open_disk(find_disk(device.node)) as medium:
                (report,) = flash(
                    source,
                    plan,
                    [Target(medium, NO_PROGRESS)],
                    options=FlashOptions(),
                    stop=lambda: False,
                )
            assert isinstance(report, FlashReport), report
            assert (report.repaired, report.unsteady_reads) == ((), 0)
            assert differing_bytes(gpt.path, device.node, free) == []
