"""A large allocation table takes little memory, and what a repair may change is bounded."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from builders import run
from commandline import clean_environment

pytestmark = pytest.mark.needs("dosfstools", "mtools", "GNU time")

GIB = 1 << 30
START = 4 << 20
LIMIT = 120 << 10
"""KiB of memory at most, whatever the volume; the table alone has 64 MiB."""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A sparse FAT32 of 8 GiB with clusters of 512 bytes."""
    image = tmp_path / "large.img"
    with image.open("wb") as file:
        file.truncate(8 * GIB + START)
    table = f"label: dos\n8192,{8 * GIB // 512},c,*\n"
    subprocess.run(["sfdisk", "-q", image], input=table.encode(), check=True)
    options = ["-F", "32", "-s", "1", "-n", "resin-boot", "--offset", "8192"]
    run("mkfs.vfat", *options, image, str(8 * GIB // 1024))
    for name, content in (("device-type.json", '{"slug": "x"}'), ("config.json", "{}")):
        (tmp_path / name).write_text(content)
        run("mcopy", "-i", f"{image}@@{START}", tmp_path / name, "::")
    return image


def run_measured(folder: Path, *arguments: str | Path) -> tuple[int, int, str]:
    """Exit status, KiB of memory, and what went to standard error.

    GNU time starts the program: a child's peak is at least what its parent had as it forked.
    """
    measured = folder / "memory"
    command = ["/usr/bin/time", "--quiet", "--format=%M", f"--output={measured}", sys.executable]
    run = subprocess.run(
        [*command, "-m", "balenaflash", *map(str, arguments)],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return run.returncode, int(measured.read_text()), run.stderr


def test_a_large_table_is_read_and_edited_in_little_memory(large: Path) -> None:
    status, memory, said = run_measured(large.parent, "inspect", large)
    assert (status, said) == (0, "")
    assert memory < LIMIT
    status, memory, said = run_measured(large.parent, "config", "set", large, "hostname=a")
    assert status == 0, said
    assert memory < LIMIT
    shown = run("mtype", "-i", f"{large}@@{START}", "::config.json")
    assert json.loads(shown) == {"hostname": "a"}


def test_a_repair_of_most_of_a_large_table_is_refused_in_little_memory(large: Path) -> None:
    """Millions of clusters in use by no file are no leftover of an edit."""
    with large.open("r+b") as file:
        file.seek(START)
        boot = file.read(512)
        reserved, size = (
            struct.unpack_from("<H", boot, 14)[0],
            struct.unpack_from("<L", boot, 36)[0],
        )
        for copy in range(2):
            file.seek(START + (reserved + copy * size) * 512 + (1 << 20))
            for _ in range(20):
                file.write(struct.pack("<L", 0x0FFF_FFFF) * (1 << 18))
    before = large.stat().st_mtime_ns
    status, memory, said = run_measured(large.parent, "config", "set", large, "hostname=a")
    assert status == 3
    assert "a repair would change more than 16.0 MiB" in said
    assert memory < LIMIT
    assert large.stat().st_mtime_ns == before
