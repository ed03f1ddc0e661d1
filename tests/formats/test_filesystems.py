"""Filesystems told by their first bytes; what they are is what blkid says."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from builders import ENVIRONMENT, Layout, run
from fakes import MemorySource
from hypothesis import given
from hypothesis import strategies as st
from imagecopies import MakeImage
from tablefiles import read_at, write_at

from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.filesystems import Filesystem, recognise_filesystem
from balenaflash.source.base import open_source
from balenaflash.units import Extent

MIB = 1 << 20
pytestmark = pytest.mark.needs("util-linux")


def probe_file(path: Path) -> Filesystem | None:
    with open_source(path) as source:
        return recognise_filesystem(source, Extent(0, source.size))


def blkid(path: Path, extent: Extent | None = None) -> Filesystem | None:
    """What ``blkid -p`` says of a file, or of a part of it."""
    place = [] if extent is None else ["-O", str(extent.start), "-S", str(extent.size)]
    command = ["blkid", "-p", "-o", "export", *place, str(path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 2}, done.stderr  # 2: nothing was found
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if "TYPE" not in found:
        return None
    # The export format puts a backslash before characters that a shell would take apart.
    values = {name: value.replace("\\", "") for name, value in found.items()}
    return Filesystem(values["TYPE"], values.get("LABEL"), values.get("UUID"))


@pytest.mark.parametrize("layout", Layout)
def test_every_partition_of_an_image_is_what_blkid_says(layout: Layout, image: MakeImage) -> None:
    for flasher in (False, True):
        built = image(layout, flasher=flasher)
        with open_source(built.path) as source:
            for partition in built.partitions:
                if partition.label is None:
                    continue
                found = recognise_filesystem(source, partition.extent)
                assert found == blkid(built.path, partition.extent)
                assert (found.type if found else None) == partition.filesystem
                if found:
                    assert found.label == partition.label


@pytest.mark.needs("dosfstools", "e2fsprogs")
@pytest.mark.parametrize(
    "command",
    [
        "mkfs.vfat -F 12 -n tiny -C {} 1440",
        "mkfs.vfat -F 16 -C {} 40960",
        "mkfs.vfat -F 32 -C {} 40960",
        "mkfs.vfat -F 32 -n LABEL -s 8 -C {} 524288",
        "mkfs.vfat -n BIGSECTORS -S 4096 -C {} 40960",
        "mkfs.vfat -n ONEFAT -f 1 -C {} 40960",
        "mkfs.vfat -n NOTE -R 32 -C {} 40960",
        "mkfs.vfat -n MBR --mbr=y -C {} 40960",
        "mkfs.ext2 -q -L second {} 8M",
        "mkfs.ext3 -q -L third {} 16M",
        "mkfs.ext4 -q -L fourth {} 16M",
        "mkfs.ext4 -q -O ^has_journal -L sixteen-letters- {} 16M",
        "mkfs.ext4 -q -b 4096 {} 16M",
        "mkswap -L swapped {}",
    ],
)
def test_a_filesystem_is_what_blkid_says(command: str, tmp_path: Path) -> None:
    path = tmp_path / "fs.img"
    if command.startswith("mkswap"):
        path.touch(0o600)
        os.truncate(path, 4 * MIB)
    run(*command.format(path).split())
    found = probe_file(path)
    assert found is not None
    assert found == blkid(path)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(
            struct.pack("<4s4I6H", b"hsqs", 1, 0, 131072, 0, 1, 17, 0, 1, 4, 0), id="squashfs"
        ),
        pytest.param(
            b"LUKS\xba\xbe\0\2"
            + bytes(16)
            + b"sealed".ljust(48, b"\0")
            + bytes(96)
            + b"1b4e28ba-2fa1-11d2-883f-0016d3cca427".ljust(40, b"\0"),
            id="luks2",
        ),
        pytest.param(
            b"LUKS\xba\xbe\0\1" + bytes(160) + b"1b4e28ba-2fa1-11d2-883f-0016d3cca427", id="luks1"
        ),
    ],
)
def test_a_header_is_what_blkid_says(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "header.img"
    path.write_bytes(header.ljust(4 * MIB, b"\0"))
    found, expected = probe_file(path), blkid(path)
    assert found is not None
    assert expected is not None
    assert (found.type, found.label) == (expected.type, expected.label)


@pytest.mark.needs("dosfstools", "mtools")
@pytest.mark.parametrize("fat", ["16", "32"])
def test_the_label_of_the_root_directory_counts(fat: str, tmp_path: Path) -> None:
    path = tmp_path / "fat.img"
    run("mkfs.vfat", "-F", fat, "-n", "DIRECTORY", "-C", path, "40960")
    write_at(path, 43 if fat == "16" else 71, b"BOOTSECTOR ")
    assert probe_file(path) == blkid(path)
    found = probe_file(path)
    assert found is not None
    assert found.label == "DIRECTORY"


ODD_FATS: dict[str, list[tuple[str | None, bytes]]] = {
    # what is written where, as (offset in the boot sector, bytes) or (None, slot of the root)
    "no signature": [("signature", b"\0")],
    "signature of an id alone": [("signature", b"\x28")],
    "code in place of the fields": [("signature", b"\0\x12\x34\x56\x78CODE BYTES ")],
    "an id of zeros": [("id", bytes(4))],
    "a label in the boot sector alone": [("label", b"resin-boot "), (None, bytes(32))],
    "no label anywhere": [("label", b"NO NAME    "), (None, bytes(32))],
    "NO NAME in the directory": [(None, b"NO NAME    \x08" + bytes(20))],
    "0x05 for 0xE5": [(None, b"\x05TE\x80        "[:11] + b"\x08" + bytes(20))],
    "a deleted label": [(None, b"\xe5TE        \x08" + bytes(20))],
    "a label with a cluster": [(None, b"CLUSTERED  \x08" + bytes(14) + b"\5\0" + bytes(4))],
    "a directory with a label's bit": [(None, b"DIRECTORY  \x18" + bytes(20))],
    "a part of a long name": [(None, b"AL\0O\0N\0G\0\0\0\x0f" + bytes(20))],
    "a letter of code page 850": [(None, b"\xb5\x9dBOOT     \x08" + bytes(20))],
    "spaces in front": [(None, b"  SPACED   \x08" + bytes(20))],
    "a dot in it": [(None, b"A.B C.D    \x08" + bytes(20))],
    "bytes of zero": [(None, b"ZERO\0\0\0\0\0\0\0\x08" + bytes(20))],
    "small letters": [(None, b"resin-boot \x08" + bytes(20))],
}


@pytest.mark.needs("dosfstools")
@pytest.mark.parametrize("fat", ["16", "32"])
@pytest.mark.parametrize("odd", ODD_FATS)
def test_the_label_and_id_of_an_odd_fat_are_what_blkid_says(
    odd: str, fat: str, tmp_path: Path
) -> None:
    path = tmp_path / "fat.img"
    run("mkfs.vfat", "-F", fat, "-n", "DIRECTORY", "-C", path, "40960")
    fields = 38 if fat == "16" else 66
    places = {"signature": fields, "id": fields + 1, "label": fields + 5}
    # Of the root directory the first slot is the label (fatgen103 has where it begins).
    (reserved,) = struct.unpack("<H", read_at(path, 14, 2))
    size = struct.unpack("<I", read_at(path, 36, 4))[0] if fat == "32" else 0
    size = size or struct.unpack("<H", read_at(path, 22, 2))[0]
    root = (reserved + 2 * size) * 512
    assert read_at(path, root, 11) == b"DIRECTORY  "
    for place, content in ODD_FATS[odd]:
        write_at(path, root if place is None else places[place], content)
    found = probe_file(path)
    assert found is not None
    command = ["blkid", "-p", "-o", "value", "-s", "LABEL", str(path)]
    label = subprocess.run(command, capture_output=True, check=False).stdout.rstrip(b"\n")
    assert (found.label or "") == label.decode("cp850")
    said = run("blkid", "-p", "-o", "value", "-s", "UUID", "-s", "TYPE", path).split()
    assert sorted(said) == sorted(filter(None, ["vfat", found.uuid]))
    with open_source(path) as source:
        volume = FatVolume.open(source, Extent(0, path.stat().st_size))
        assert volume.label == found.label


@pytest.mark.needs("dosfstools", "mtools")
def test_a_label_behind_the_first_cluster_is_found(tmp_path: Path) -> None:
    path = tmp_path / "fat.img"
    run("mkfs.vfat", "-F", "32", "-s", "1", "-C", path, "40960")
    for number in range(40):
        (tmp_path / f"file{number}").touch()
    run("mcopy", "-i", path, *sorted(tmp_path.glob("file*")), "::")
    run("mlabel", "-i", path, "::LATE")
    write_at(path, 71, b"NO NAME    ")
    found = probe_file(path)
    assert found == blkid(path)
    assert found is not None
    assert found.label == "LATE"


@pytest.mark.needs("dosfstools")
def test_a_root_directory_that_runs_in_a_circle_is_left(tmp_path: Path) -> None:
    path = tmp_path / "fat.img"
    run("mkfs.vfat", "-F", "32", "-s", "1", "-C", path, "40960")
    (reserved,) = struct.unpack("<H", read_at(path, 14, 2))
    (table,) = struct.unpack("<I", read_at(path, 36, 4))
    write_at(path, reserved * 512 + 2 * 4, struct.pack("<I", 2))  # cluster 2 follows itself
    root = (reserved + 2 * table) * 512
    write_at(path, root, (b"A" * 11 + b"\x20" + bytes(20)) * 16)
    found = probe_file(path)
    assert found is not None
    assert found.label is None


@pytest.mark.parametrize("content", [bytes(MIB), b"", b"\xff" * 4096, b"\xeb\x3c\x90" * 2048])
def test_what_holds_no_filesystem_has_none(content: bytes) -> None:
    assert recognise_filesystem(MemorySource(content), Extent(0, len(content))) is None


@given(st.binary(min_size=512, max_size=8192))
def test_random_bytes_are_never_a_fat(content: bytes) -> None:
    # Even with the marks that every boot sector has.
    marked = b"\xeb\x3c\x90" + content[3:510] + b"\x55\xaa" + content[512:]
    for data in (content, marked):
        found = recognise_filesystem(MemorySource(data), Extent(0, len(data)))
        assert found is None or found.type != "vfat"


@given(cut=st.integers(0, 4096), data=st.data())
def test_a_partition_that_ends_early_is_read_no_further(cut: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 4096))
    content = bytes(1080) + b"\x53\xef" + bytes(4096)
    recognise_filesystem(MemorySource(content[: start + cut]), Extent(start, start + 2 * cut))
