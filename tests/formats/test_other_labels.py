"""Disk labels that are neither msdos nor GPT, and what libparted does beside reading them."""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import _ped
import pytest
from builders import ENVIRONMENT, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage
from tablefiles import boot_record, write_at

from balenaflash.errors import ImageError
from balenaflash.formats.partitions.table import read_table
from balenaflash.source.base import open_source

pytestmark = pytest.mark.needs("parted")

MIB = 1 << 20
RECORD = boot_record((0x0C, 2048, 16384))
"""A valid boot record, in which a mark of another label can be put."""


def all_labels() -> list[str]:
    """Every type of label that this libparted knows."""
    names, found = list[str](), _ped.disk_type_get_next()
    while found is not None:
        names.append(str(found.name))
        try:
            found = _ped.disk_type_get_next(found)
        except IndexError:
            found = None
    return names


def marked(offset: int, mark: bytes) -> bytes:
    return RECORD[:offset] + mark + RECORD[offset + len(mark) :]


def amiga() -> bytes:
    """A rigid disk block whose big-endian words add up to 0."""
    block = bytearray(marked(0, b"RDSK" + struct.pack(">I", 64)))
    total = sum(word for (word,) in struct.iter_unpack(">I", block[:256]))
    struct.pack_into(">I", block, 8, -total & 0xFFFFFFFF)
    return bytes(block)


def sun() -> bytes:
    """Its mark stands before 55 AA, and all 16-bit words give 0 by exclusive or."""
    block, total = bytearray(marked(508, b"\xda\xbe")), 0
    for (word,) in struct.iter_unpack(">H", block):
        total ^= word
    struct.pack_into(">H", block, 0, total)
    return bytes(block)


RECORDS = {
    "aix": marked(0, b"\xc9\xc2\xd4\xc1"),
    "amiga": amiga(),
    "atari": RECORD,  # it has no mark
    "bsd": marked(64, struct.pack("<I", 0x82564557)),
    "dvh": marked(0, struct.pack(">I", 0x0BE5A941)),
    "gpt": boot_record((0xEE, 1, 32767)),
    "loop": marked(0, b"GNU Parted Loopback 0"),
    "mac": marked(0, b"ER"),
    "msdos": RECORD,
    "pc98": marked(4, b"IPL1"),
    "sun": sun(),
}
"""Boot records that may be read as those labels, and as msdos."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 16 * MIB)
    return path


def kind_or_code(path: Path) -> str:
    """The kind of the table, or the code of the one error there may be."""
    try:
        with open_source(path) as source:
            return read_table(source).kind
    except ImageError as error:
        return error.code


def test_every_label_of_libparted_is_tried() -> None:
    assert set(RECORDS) == set(all_labels())


@pytest.mark.parametrize("label", sorted(RECORDS))
def test_a_boot_record_with_the_mark_of_another_label_is_a_table_or_refused(
    label: str, disk: Path
) -> None:
    write_at(disk, 0, RECORDS[label])
    printed = subprocess.run(
        ["parted", "-ms", disk, "print"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    is_msdos = ":msdos:" in printed
    assert kind_or_code(disk) == ("msdos" if is_msdos else "table-invalid")


@pytest.mark.parametrize("label", sorted(set(RECORDS) - {"aix"}))  # parted cannot make that one
def test_a_label_that_parted_has_made_is_read_or_refused(label: str, disk: Path) -> None:
    subprocess.run(
        ["parted", "-s", disk, "mklabel", label], env=ENVIRONMENT, check=True, capture_output=True
    )
    expected = {"gpt": "gpt", "msdos": "msdos", "pc98": "table-invalid"}
    assert kind_or_code(disk) == expected.get(label, "table-missing")


@pytest.mark.parametrize(
    "command",
    [
        lambda disk: ["inspect", disk],
        lambda disk: ["boot", "ls", disk],
        lambda disk: ["config", "set", disk, "hostname=x"],
        lambda disk: ["write", disk, disk.with_name("copy.img")],
        lambda disk: ["bmap", "create", disk],
    ],
)
def test_the_mark_of_aix_ends_every_command_in_3(
    command: Callable[[Path], list[str | Path]], disk: Path, balenaflash: RunBalenaflash
) -> None:
    """pyparted raises NotImplementedError for it."""
    write_at(disk, 0, RECORDS["aix"])
    run = balenaflash(*command(disk))
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    assert "AIX" in run.stderr
    assert "Traceback" not in run.stderr


def test_no_program_is_run_by_path_to_read_a_table(
    image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    """libparted asks dmidecode what machine this is."""
    programs, ran = tmp_path / "programs", tmp_path / "ran"
    programs.mkdir()
    for name in ("dmidecode", "udevadm", "sh", "true"):
        (programs / name).write_text(f"#!/bin/sh\necho {name} >> {ran}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    built = image(Layout.GPT_FAT16)
    assert balenaflash("inspect", built.path, environment={"PATH": path}).returncode == 0
    assert not ran.exists(), ran.read_text()
