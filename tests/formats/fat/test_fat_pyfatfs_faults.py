"""The faults of pyfatfs 1.1.0, each with what our editor does instead.

``stock_pyfatfs.py`` beside it shows them at work. The edit of each test breaks a volume, or gives a
wrong result, when stock pyfatfs makes it.
"""

import inspect
import random
import warnings
from pathlib import Path

import fat_reader
import pytest
import vfat
from pyfatfs import _exceptions as pyfatfs_exceptions

from balenaflash.errors import BalenaflashError, EditError, ImageError
from balenaflash.formats.fat.pyfatfs import _pyfatfs_errors
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.source.base import open_source
from balenaflash.units import Extent

pytestmark = pytest.mark.needs("dosfstools", "mtools")

EVERY_KIND = pytest.mark.parametrize("kind", ["fat12-2m", "fat16-16m", "fat32-40m"])


def filled(kind: str) -> FatVolume:
    return vfat.open_bytes(vfat.filled(kind)[0])


def result(kind: str, volume: FatVolume, image: Path) -> fat_reader.Volume:
    """What the edited volume holds, once fsck.vfat has nothing to say of it."""
    vfat.save(image, vfat.patched(vfat.filled(kind)[0], volume.changes()))
    assert vfat.fsck_says(image) == ""
    return fat_reader.read_volume(image.read_bytes())


@EVERY_KIND
def test_opening_writes_nothing(kind: str) -> None:
    volume = filled(kind)
    list(volume.walk())
    assert volume.problems() == ()
    assert volume.changes() == ()


@EVERY_KIND
@pytest.mark.parametrize("size", [100, 5000, 9000, 0])
def test_a_file_of_several_clusters_is_overwritten(kind: str, size: int, tmp_path: Path) -> None:
    """Stock leaves it empty, or its chain running into a free cluster."""
    volume = filled(kind)
    volume.write_file("/config.json", b"a" * 5000)
    volume.write_file("/config.json", b"b" * size)
    assert result(kind, volume, tmp_path / "v").entries["/config.json"].content == b"b" * size


@EVERY_KIND
def test_small_letters_of_8_3_names_are_names_like_others(kind: str, tmp_path: Path) -> None:
    """Stock makes a second GRUB.CFG, and GRUB goes on booting the first."""
    volume = filled(kind)
    for path in ("/splash", "/EFI/BOOT/grub.cfg", "/efi/boot/GRUB.CFG"):
        assert volume.find(path) is not None
    volume.write_file("/EFI/BOOT/grub.cfg", b"new")
    image = tmp_path / "v"
    stored = result(kind, volume, image)
    assert [path for path in stored.entries if path.upper() == "/EFI/BOOT/GRUB.CFG"] == [
        "/EFI/BOOT/grub.cfg"
    ]
    assert vfat.mtools("mtype", image, "::EFI/BOOT/grub.cfg") == b"new"


@EVERY_KIND
def test_a_shortened_file_lets_go_of_its_clusters(kind: str, tmp_path: Path) -> None:
    """Stock gives them to the next file while the first still points at them."""
    volume = filled(kind)
    size = volume.cluster_size
    volume.write_file("/first", b"a" * size * 2)
    volume.write_file("/first", b"small")
    volume.write_file("/second", b"b" * size * 2)
    volume.remove_file("/first")
    volume.write_file("/third", b"c" * size * 3)
    stored = result(kind, volume, tmp_path / "v")
    assert stored.entries["/second"].content == b"b" * size * 2
    assert stored.entries["/third"].content == b"c" * size * 3


@EVERY_KIND
def test_a_full_volume_ends_where_the_partition_ends(kind: str, tmp_path: Path) -> None:
    """Stock counts the entries that fill up the table's last sector, and writes behind the end."""
    data, files = vfat.filled(kind)
    image = tmp_path / "image"
    vfat.save(image, b"\xaa" * 4096 + data + b"\xbb" * 1_000_000)
    extent = Extent(4096, 4096 + len(data))
    with open_source(image) as source:
        volume = FatVolume.open(source, extent)
        volume.make_directory("/fill")
        number = 0
        while volume.free_bytes:
            free = volume.free_bytes // volume.cluster_size
            size = max(free // 3, 1) * volume.cluster_size
            volume.write_file(f"/F{number:07}", bytes([number % 256]) * size)
            number += 1
        with pytest.raises(EditError, match="no space left") as refused:
            volume.write_file("/fill/more", b"one byte")
        patches = volume.changes()
    assert refused.value.code == "no-space"
    assert all(extent.encloses(patch.extent) for patch in patches)
    moved = vfat.patched(image.read_bytes(), patches)[extent.start : extent.end]
    vfat.save(tmp_path / "v", moved)
    assert vfat.fsck_says(tmp_path / "v") == ""
    stored = fat_reader.read_volume(moved)
    assert stored.free_clusters == 0
    assert all(stored.entries[path].content == content for path, content in files.items())


@EVERY_KIND
@pytest.mark.parametrize("kept", [0, 14, 62])
def test_what_was_deleted_from_a_directory_stays_deleted(
    kind: str, kept: int, tmp_path: Path
) -> None:
    """Stock leaves old entries in the tail of a directory that became shorter, and reads them."""
    volume = filled(kind)
    volume.make_directory("/many")
    for number in range(150):
        volume.write_file(f"/many/F{number:03}.TXT", b"%d" % number)
    for number in range(kept, 150):
        volume.remove_file(f"/many/F{number:03}.TXT")
    expected = {f"/many/F{number:03}.TXT" for number in range(kept)}
    stored = result(kind, volume, tmp_path / "v")
    assert {path for path in stored.entries if path.startswith("/many/")} == expected
    found = vfat.mtools_reads(tmp_path / "v")
    assert {path for path in found if path.startswith("/many/")} == expected
    reopened = vfat.open_bytes((tmp_path / "v").read_bytes())
    assert {entry.path for entry in reopened.entries("/many")} == expected


@EVERY_KIND
def test_an_empty_file_is_emptied_again(kind: str, tmp_path: Path) -> None:
    """Stock frees "cluster 0" for it, which is the mark of the table itself."""
    volume = filled(kind)
    volume.write_file("/empty", b"")
    volume.write_file("/config.json", b"")
    stored = result(kind, volume, tmp_path / "v")
    assert stored.entries["/empty"].clusters == stored.entries["/config.json"].clusters == ()


def test_a_full_root_refuses_new_entries_and_works_on(tmp_path: Path) -> None:
    """Stock keeps the entry in memory, so that every later edit of the root fails."""
    kind = "fat16-40m"
    volume = filled(kind)
    number = 0
    while volume._directory(0, "/").room_for(1) is not None:
        number += 1
        volume.write_file(f"/F{number:05}.TXT", b"1")
    free = volume.free_bytes
    with pytest.raises(EditError, match="the root directory is full") as refused:
        volume.write_file("/ONE_MORE.TXT", b"1")
    assert refused.value.code == "directory-full"
    assert volume.free_bytes == free
    assert volume.find("/ONE_MORE.TXT") is None
    with pytest.raises(EditError, match="the root directory is full"):
        volume.make_directory("/NEWDIR")
    volume.write_file("/F00003.TXT", b"new")
    volume.rename("/F00001.TXT", "/G00001.TXT")
    volume.remove_file("/F00002.TXT")
    volume.make_directory("/NEWDIR")
    stored = result(kind, volume, tmp_path / "v")
    assert stored.entries["/F00003.TXT"].content == b"new"
    assert {"/NEWDIR", "/G00001.TXT"} < stored.entries.keys()


@EVERY_KIND
def test_a_short_name_never_shadows_another_file(kind: str, tmp_path: Path) -> None:
    """Stock gives balena-wifi the 8.3 name BALENA-W (nathanhi/pyfatfs issue 45)."""
    volume = filled(kind)
    contents = {
        "/system-connections/balena-wifi": b"long",
        "/system-connections/balena-w": b"short",
        "/system-connections/balena-wired": b"wired",
    }
    for path, content in contents.items():
        volume.write_file(path, content)
    image = tmp_path / "v"
    stored = result(kind, volume, image)
    for path, content in contents.items():
        assert stored.entries[path].content == content
        assert vfat.mtools("mtype", image, f"::{path[1:]}") == content
    volume.remove_file("/system-connections/balena-w")
    assert "/system-connections/balena-wifi" in result(kind, volume, image).entries


@pytest.mark.parametrize(
    "name", ["foo.", "foo ", "a?b", "a*b", "tab\tname", "ctl\x01", "\udc80bad"]
)
def test_names_that_no_reader_opens_are_refused(name: str) -> None:
    volume = filled("fat16-40m")
    with pytest.raises(EditError) as refused:
        volume.write_file(f"/{name}", b"content")
    assert refused.value.code == "name-invalid"
    assert volume.changes() == ()


def test_a_name_of_255_characters_is_stored(tmp_path: Path) -> None:
    """Stock refuses more than 127."""
    volume = filled("fat16-40m")
    path = "/EFI/" + "n" * 255
    volume.write_file(path, b"long")
    assert result("fat16-40m", volume, tmp_path / "v").entries[path].content == b"long"


@EVERY_KIND
def test_random_contents_of_random_sizes_are_read_back(kind: str, tmp_path: Path) -> None:
    """Of 120 such runs, stock broke 55."""
    chance = random.Random(12)  # noqa: S311 -- repeatable, not secret
    volume = filled(kind)
    size = volume.cluster_size
    content = b""
    for _ in range(60):
        length = chance.choice((0, 1, size - 1, size, size + 1, 3 * size, 5000))
        content = content[: chance.randrange(len(content) + 1)] + chance.randbytes(length)
        content = content[: 20 * size]
        volume.write_file("/random.bin", content)
        assert volume.read_file("/random.bin") == content
    assert result(kind, volume, tmp_path / "v").entries["/random.bin"].content == content


def test_a_leftover_slot_of_a_long_name_hides_nothing(tmp_path: Path) -> None:
    """Stock refuses to read the directory; in the root that is the whole volume."""
    data = bytearray(vfat.filled("fat16-40m")[0])
    root = vfat.open_bytes(bytes(data))._core.layout.root
    assert root is not None
    slots = data[root.start : root.end]
    first_long = next(at for at in range(0, len(slots), 32) if slots[at + 11] == 0x0F)
    slots[first_long:first_long] = slots[first_long : first_long + 32]
    data[root.start : root.end] = slots[: root.size]
    volume = vfat.open_bytes(bytes(data))
    files = {entry.path for entry in volume.walk() if not entry.is_directory}
    assert files == vfat.filled("fat16-40m")[1].keys()
    assert volume.problems() == ("/: 1 slots of long names belong to no entry",)
    volume.write_file("/config.json", b"edited")
    image = tmp_path / "v"
    vfat.save(image, vfat.patched(bytes(data), volume.changes()))
    assert vfat.mtools("mtype", image, "::config.json") == b"edited"


@pytest.mark.parametrize("cut", [0, 511, 512, 20_000, 90_000, 1 << 20])
def test_a_cut_volume_is_refused(cut: int) -> None:
    with pytest.raises(ImageError):
        vfat.open_bytes(vfat.filled("fat16-40m")[0][:cut])


def test_an_edit_is_nothing_until_its_sectors_are_asked_for(tmp_path: Path) -> None:
    """Stock writes as it goes: killed half-way, it leaves a damaged volume two times in five."""
    image = tmp_path / "image"
    data = vfat.filled("fat16-40m")[0]
    vfat.save(image, data)
    with open_source(image) as source:
        volume = FatVolume.open(source, Extent(0, source.size))
        volume.write_file("/config.json", b"new")
        volume.remove_file("/os-release")
        assert volume.changes()
    assert image.read_bytes() == data


@pytest.mark.parametrize("kind", ["fat12-2m", "fat12-16m"])
def test_a_delete_as_the_last_edit_frees_the_clusters_of_fat12(kind: str, tmp_path: Path) -> None:
    volume = filled(kind)
    volume.write_file("/new.txt", b"n" * 20_000)
    result(kind, volume, tmp_path / "v")
    volume.remove_file("/new.txt")
    stored = result(kind, volume, tmp_path / "v")
    assert stored.free_clusters == fat_reader.read_volume(vfat.filled(kind)[0]).free_clusters


def test_few_sectors_are_written_for_a_small_edit() -> None:
    """Stock writes all of both tables at every step: 4.8 MB for 400 bytes on FAT32."""
    volume = filled("fat32-100m")
    volume.write_file("/config.json", b"c" * 400)
    # Content, directory, and the count of free clusters, which config.json has changed; tables.
    assert sum(len(patch.data) for patch in volume.changes()) <= 6 * 512


def test_labels_are_read_whole(tmp_path: Path) -> None:
    """Stock shows "resin-bo.ot"."""
    image = tmp_path / "v"
    vfat.save(image, vfat.filled("fat32-40m")[0])
    assert vfat.open_bytes(image.read_bytes()).label == "resin-boot"
    vfat.mtools("mlabel", image, "::flash-boot2")
    assert vfat.open_bytes(image.read_bytes()).label == "FLASH-BOOT2"
    vfat.mtools("mlabel", image, "-c", "::")
    assert vfat.open_bytes(image.read_bytes()).label is None


@EVERY_KIND
def test_every_name_comes_back_in_its_own_case(kind: str) -> None:
    files = vfat.filled(kind)[1]
    volume = filled(kind)
    found = {entry.path: entry for entry in volume.walk()}
    assert {path for path, entry in found.items() if not entry.is_directory} == files.keys()
    assert all(volume.read_file(path) == content for path, content in files.items())


@EVERY_KIND
def test_too_much_content_leaves_the_old_in_place(kind: str, tmp_path: Path) -> None:
    """Stock truncates first and asks for room then; a read-only file it truncates, and fails."""
    image = tmp_path / "v"
    data, files = vfat.filled(kind)
    vfat.save(image, data)
    vfat.mtools("mattrib", image, "+r", "::config.json")
    data = image.read_bytes()
    volume = vfat.open_bytes(data)
    with pytest.raises(EditError, match="no space left"):
        volume.write_file("/config.json", bytes(len(data)))
    assert volume.changes() == ()
    assert volume.read_file("/config.json") == files["/config.json"]
    volume.write_file("/config.json", b"new")
    vfat.save(image, vfat.patched(data, volume.changes()))
    stored = fat_reader.read_volume(image.read_bytes()).entries["/config.json"]
    assert stored.content == b"new"
    assert stored.attributes & 0x01, "read-only no longer"


@pytest.mark.parametrize("clusters", [4083, 4084, 4085, 4086])
def test_the_fat_type_is_that_of_linux_at_the_border(clusters: int, tmp_path: Path) -> None:
    """Stock forgets the root directory in its count, and takes a large FAT12 for FAT16."""
    image = tmp_path / "v"
    bits = 12 if clusters < 4085 else 16  # fatgen103, "FAT Type Determination"
    # One reserved sector, two tables, 32 sectors of root directory, clusters of one sector.
    table = -(-(clusters + 2) * bits // 8 // 512) + 1
    vfat.save(image, bytes((1 + 2 * table + 32 + clusters) * 512))
    boot = _boot_sector(sectors=1 + 2 * table + 32 + clusters, table=table)
    data = bytearray(image.read_bytes())
    data[:512] = boot
    for start in (512, 512 + table * 512):
        data[start : start + 4] = b"\xf8\xff\xff\0" if bits == 12 else b"\xf8\xff\xff\xff"
    vfat.save(image, data)
    assert vfat.fsck_says(image) == ""
    volume = vfat.open_bytes(bytes(data))
    assert volume.fat_bits == bits
    assert volume.total_bytes == clusters * 512
    volume.write_file("/file", b"x" * volume.free_bytes)
    vfat.save(image, vfat.patched(bytes(data), volume.changes()))
    assert vfat.fsck_says(image) == ""
    assert vfat.mtools("mtype", image, "::file") == b"x" * clusters * 512


def _boot_sector(*, sectors: int, table: int) -> bytes:
    head = b"\xeb\x3c\x90mkfs.fat" + (512).to_bytes(2, "little") + b"\x01" + b"\x01\0" + b"\x02"
    head += (512).to_bytes(2, "little") + sectors.to_bytes(2, "little") + b"\xf8"
    head += table.to_bytes(2, "little") + bytes(12) + b"\x80\0\x29" + b"\x01\x02\x03\x04"
    return (head + b"NO NAME    " + b"FAT     ").ljust(510, b"\0") + b"\x55\xaa"


def exception_classes() -> list[type[BaseException]]:
    """Every exception class that pyfatfs defines."""
    members = inspect.getmembers(pyfatfs_exceptions, inspect.isclass)
    classes: list[type[BaseException]] = [
        cls
        for _, cls in members
        if cls.__module__ == pyfatfs_exceptions.__name__ and issubclass(cls, BaseException)
    ]
    assert len(classes) >= 4
    return classes


@pytest.mark.parametrize("exception", exception_classes())
def test_every_exception_of_pyfatfs_is_mapped(exception: type[BaseException]) -> None:
    arguments = list(inspect.signature(exception).parameters.values())
    values = ["the fault" if argument.name == "msg" else 0 for argument in arguments]
    with (
        pytest.raises(BalenaflashError, match=r"boot\.img: .*the fault") as raised,
        _pyfatfs_errors("boot.img"),
    ):
        raise exception(*values)
    assert raised.value.__cause__ is not None


def test_warnings_of_pyfatfs_stay_with_us() -> None:
    data = bytearray(vfat.filled("fat16-40m")[0])
    data[37] |= 1  # of a card that was pulled: pyfatfs warns about it
    with warnings.catch_warnings(record=True) as caught:
        volume = vfat.open_bytes(bytes(data))
        volume.write_file("/config.json", b"edited")
    assert caught == []
    assert [fault.code for fault in volume.repairs] == ["fat-not-unmounted"]
