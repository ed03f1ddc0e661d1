"""``sample`` makes an image that other tools find nothing wrong with."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import RunBalenaflash, clean_environment, run
from fakes import RecordedProgress
from mountlock import no_mounts_of_others

from balenaflash.commands import sample_files
from balenaflash.commands.sample import build_sample
from balenaflash.progress import Phase
from balenaflash.units import MIB

pytestmark = pytest.mark.needs("dosfstools", "e2fsprogs", "fdisk", "mtools", "util-linux")

EPOCH = "1700000000"  # 2023-11-14 22:13:20 UTC
SECTOR = 512
VARIANTS = [("msdos", "16"), ("msdos", "32"), ("gpt", "16"), ("gpt", "32")]
LABELS = ["resin-boot", "resin-rootA", "resin-rootB", "resin-state", "resin-data"]
TOOLS = {"mkfs.vfat": "dosfstools", "sfdisk": "fdisk", "mkfs.ext4": "e2fsprogs"}


def output(*command: str | Path) -> str:
    """Standard output of a tool that must succeed."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make(out: Path, *options: str, **environment: str) -> None:
    environment = {"SOURCE_DATE_EPOCH": EPOCH, **environment}
    result = run("sample", *options, out, environment=environment)
    assert (result.returncode, result.stdout.count("\n")) == (0, 1), result.stderr


@pytest.fixture(scope="module", params=VARIANTS, ids="-fat".join)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of each kind; tests leave it as it is."""
    table, fat_bits = request.param
    out = tmp_path_factory.mktemp("sample") / f"{table}-{fat_bits}.img"
    make(out, "--table", table, "--fat", fat_bits)
    return out


def partitions(image: Path) -> list[tuple[int, int]]:
    """Start and size in bytes of each partition that holds something, as sfdisk reads them."""
    table = json.loads(output("sfdisk", "--json", image))["partitiontable"]
    held = [each for each in table["partitions"] if each["type"] not in {"f", "5"}]
    return [(each["start"] * SECTOR, each["size"] * SECTOR) for each in held]


@pytest.fixture(scope="module")
def volumes(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """What lies in each partition, in files of their own."""
    folder = tmp_path_factory.mktemp("volumes")
    paths = []
    for number, (start, size) in enumerate(partitions(sample)):
        path = folder / f"{number}"
        place = [f"skip={start}", f"count={size}", "iflag=skip_bytes,count_bytes", "conv=sparse"]
        output("dd", f"if={sample}", f"of={path}", "bs=1M", "status=none", *place)
        paths.append(path)
    yield paths
    shutil.rmtree(folder)


def test_the_table_is_sound_and_has_the_layout_of_balenaos(sample: Path) -> None:
    assert "No errors detected" in output("sfdisk", "--verify", sample)
    starts = [start // MIB for start, _ in partitions(sample)]
    gap = 4 if sample.name.startswith("msdos") else 0
    assert starts == [4, 44, 68, 92 + gap, 112 + 2 * gap]
    table = json.loads(output("sfdisk", "--json", sample))["partitiontable"]
    first = table["partitions"][0]
    if gap:
        assert (table["label"], first["bootable"]) == ("dos", True)
        assert first["type"] == ("c" if "32" in sample.name else "e")
        assert [each["node"][-1] for each in table["partitions"]] == list("123456")
    else:
        assert [each["name"] for each in table["partitions"]] == LABELS
        assert first["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"


def test_every_filesystem_is_sound_and_has_its_label(volumes: list[Path], sample: Path) -> None:
    labels = [output("blkid", "-p", "-o", "value", "-s", "LABEL", each).strip() for each in volumes]
    assert labels == LABELS
    assert f"FAT{sample.stem[-2:]}" in output("blkid", "-p", "-o", "full", volumes[0]).upper()
    output("fsck.vfat", "-n", volumes[0])
    for volume in volumes[1:]:
        output("e2fsck", "-fn", volume)


def test_the_boot_partition_holds_what_is_said(volumes: list[Path]) -> None:
    boot = volumes[0]
    for path, content in sample_files.boot_files().items():
        read = subprocess.run(["mtype", "-i", boot, f"::{path}"], capture_output=True, check=True)
        assert read.stdout == content, path
    listed = output("mdir", "-/", "-b", "-a", "-i", boot, "::").split()
    files = {name[2:] for name in listed if not name.endswith("/")}
    assert files == {*sample_files.boot_files(), "/balenaos.fingerprint"}


def test_the_fingerprint_is_that_of_md5sum(volumes: list[Path], tmp_path: Path) -> None:
    output("mcopy", "-s", "-i", volumes[0], "::*", tmp_path)
    fingerprint = (tmp_path / "balenaos.fingerprint").read_text(encoding="utf-8")
    files = sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    )
    listed = [path for path in files if path not in {"config.json", "balenaos.fingerprint"}]
    expected = subprocess.check_output(["md5sum", *listed], cwd=tmp_path, text=True)
    assert fingerprint == expected


def test_the_root_filesystem_belongs_to_root(volumes: list[Path]) -> None:
    listing = output("debugfs", "-R", "ls -l /etc", volumes[1])
    owners = {tuple(line.split()[3:5]) for line in listing.splitlines() if line.strip()}
    assert owners == {("0", "0")}
    text = output("debugfs", "-R", "cat /etc/os-release", volumes[1])
    assert 'PRETTY_NAME="balenaOS' in text


def test_the_logo_is_a_picture_of_its_size() -> None:
    logo = sample_files.logo(3, 2)
    assert logo.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, rest = {}, logo[8:]
    while rest:
        size = int.from_bytes(rest[:4], "big")
        kind, data, checksum = rest[4:8], rest[8 : 8 + size], rest[8 + size : 12 + size]
        assert zlib.crc32(kind + data) == int.from_bytes(checksum, "big")
        chunks[kind], rest = data, rest[12 + size :]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[b"IHDR"] == bytes([0, 0, 0, 3, 0, 0, 0, 2, 8, 2, 0, 0, 0])
    assert len(zlib.decompress(chunks[b"IDAT"])) == 2 * (1 + 3 * 3)  # filter byte, then RGB


def test_the_image_is_sparse(sample: Path) -> None:
    assert sample.stat().st_blocks * 512 < 16 * MIB < sample.stat().st_size


def test_swapping_the_bootloader_configuration_changes_something() -> None:
    files = sample_files.boot_files()
    assert files["/grub.cfg_internal"] != files["/EFI/BOOT/grub.cfg"]


def test_the_same_moment_makes_the_same_bytes(tmp_path: Path) -> None:
    one, other, later = (tmp_path / name for name in ("one", "other", "later"))
    make(one)
    time.sleep(2)  # FAT counts in two seconds
    make(other, TZ="JST-9")
    make(later, SOURCE_DATE_EPOCH="1700000100")
    assert sha256(one) == sha256(other) != sha256(later)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    progress = RecordedProgress()
    report = build_sample(tmp_path / "out", table="gpt", fat_bits=16, progress=progress)
    size = 140 * MIB  # the five partitions
    assert progress.phases == [(Phase.BUILD, size, size)]
    assert report.size == report.path.stat().st_size


def test_a_file_that_is_there_is_kept_unless_told(
    balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    out = tmp_path / "sample.img"
    out.write_text("precious", encoding="utf-8")
    result = balenaflash("sample", out)
    assert (result.returncode, result.stdout) == (4, "")
    assert "is there already" in result.stderr
    assert out.read_text(encoding="utf-8") == "precious"
    make(out, "--overwrite")
    assert out.stat().st_size > 100 * MIB
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("/dev", "is a directory"),
        ("/dev/sdnone", "/dev is not a place for files"),
        ("/nowhere/sample.img", "there is no directory /nowhere"),
        ("/proc/sample.img", "No such file or directory"),
    ],
)
def test_a_place_that_cannot_hold_it_is_refused(
    balenaflash: RunBalenaflash, out: str, words: str
) -> None:
    result = balenaflash("sample", "--overwrite", out)
    assert (result.returncode, result.stdout) == (4, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_not_a_regular_file_is_not_replaced(
    balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = balenaflash("sample", "--overwrite", pipe)
    assert (result.returncode, result.stdout) == (4, "")
    assert "not a regular file" in result.stderr
    assert pipe.is_fifo()


def test_the_tools_are_found_where_an_ordinary_user_has_no_path_to(tmp_path: Path) -> None:
    make(tmp_path / "sample.img", PATH="/usr/bin:/bin")


def sample_with(tool: str, other: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Make a sample in a mount namespace of its own, where ``other`` lies over the tool."""
    there = Path(shutil.which(tool) or "").resolve()
    hidden = f'mount --bind {other} {there} && exec "$@"'
    command = [sys.executable, "-m", "balenaflash", "sample", str(place)]
    with no_mounts_of_others():
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", hidden, "sh", *command],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.mark.needs("root")
@pytest.mark.parametrize("tool", TOOLS)
def test_a_missing_tool_is_named_with_its_package(tmp_path: Path, tool: str) -> None:
    result = sample_with(tool, Path("/dev/null"), tmp_path / "sample.img")
    assert (result.returncode, result.stdout) == (3, "")
    assert f"{tool}: not installed" in result.stderr
    assert f"apt install {TOOLS[tool]}" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("root")
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_fails_leaves_nothing_behind(tmp_path: Path, tool: str) -> None:
    broken = tmp_path / tool
    broken.write_text("#!/bin/sh\necho 'not today' >&2\nexit 9\n", encoding="utf-8")
    broken.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    result = sample_with(tool, broken, place / "sample.img")
    assert (result.returncode, result.stdout) == (3, "")
    assert f"{tool} failed with status 9: not today" in result.stderr
    assert list(place.iterdir()) == []
