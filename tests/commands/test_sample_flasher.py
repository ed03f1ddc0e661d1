"""``sample --flasher`` makes a flasher that carries what ``sample`` makes."""

import json
import subprocess
from pathlib import Path

import pytest
from commandline import run

pytestmark = pytest.mark.needs("dosfstools", "e2fsprogs", "fdisk", "mtools")

EPOCH = "1700000000"
LABELS = ["flash-boot", "flash-rootA", "flash-rootB"]
INNER = "/opt/balena-image-generic-amd64.balenaos-img"


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make(out: Path, *options: str) -> Path:
    result = run("sample", *options, out, environment={"SOURCE_DATE_EPOCH": EPOCH})
    assert (result.returncode, result.stdout.count("\n")) == (0, 1), result.stderr
    return out


@pytest.fixture(scope="module", params=["gpt", "msdos"])
def table(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def flasher(table: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of each kind of table; tests leave it as it is."""
    return make(tmp_path_factory.mktemp("sample") / "flasher.img", "--flasher", "--table", table)


def partitions(image: Path) -> list[tuple[int, int]]:
    """Start and size in bytes of each partition but the extended one."""
    table = json.loads(output("sfdisk", "--json", image))["partitiontable"]
    held = [each for each in table["partitions"] if each["type"] not in {"f", "5"}]
    return [(each["start"] * 512, each["size"] * 512) for each in held]


def volume(image: Path, number: int, out: Path) -> Path:
    start, size = partitions(image)[number]
    place = [f"skip={start}", f"count={size}", "iflag=skip_bytes,count_bytes", "conv=sparse"]
    output("dd", f"if={image}", f"of={out}", "bs=1M", "status=none", *place)
    return out


def test_its_filesystems_are_sound_and_the_last_partitions_empty(
    flasher: Path, tmp_path: Path
) -> None:
    volumes = [volume(flasher, number, tmp_path / f"{number}") for number in range(5)]
    labels = [output("blkid", "-p", "-o", "value", "-s", "LABEL", each) for each in volumes[:3]]
    assert [label.strip() for label in labels] == LABELS
    output("fsck.vfat", "-n", volumes[0])
    for each in volumes[1:3]:
        output("e2fsck", "-fn", each)
    assert [each.stat().st_blocks for each in volumes[3:]] == [0, 0]


def test_it_carries_what_sample_makes(flasher: Path, table: str, tmp_path: Path) -> None:
    root = volume(flasher, 1, tmp_path / "root")
    output("debugfs", "-R", f"dump {INNER} {tmp_path / 'inner'}", root)
    output("cmp", tmp_path / "inner", make(tmp_path / "raw.img", "--table", table))


def test_the_same_moment_makes_the_same_bytes(flasher: Path, table: str, tmp_path: Path) -> None:
    output("cmp", flasher, make(tmp_path / "again.img", "--flasher", "--table", table))


def test_it_is_unwrapped_with_its_network(flasher: Path, tmp_path: Path) -> None:
    out = tmp_path / "raw.img"
    answer = run("unwrap", "--json", flasher, out)
    assert answer.returncode == 0, answer.stderr
    states = {step["state"] for step in json.loads(answer.stdout)["result"]["steps"]}
    assert states == {"done-by-unwrap", "not-needed"}
    boot = volume(out, 0, tmp_path / "boot")
    assert "id=sample" in output("mtype", "-i", boot, "::/system-connections/sample")
    grub = output("mtype", "-i", boot, "::/EFI/BOOT/grub.cfg")
    assert grub == output(
        "mtype", "-i", volume(flasher, 0, tmp_path / "own"), "::grub.cfg_internal"
    )
