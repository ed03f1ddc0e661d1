"""What a FAT volume does for those who edit a boot partition, beside not breaking it."""

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import fat_reader
import pytest
import vfat

from balenaflash.errors import EditError, ImageError
from balenaflash.formats.fat.volume import FatEntry, FatVolume
from balenaflash.source.base import RandomAccess, open_source
from balenaflash.source.layers import Patch
from balenaflash.units import GIB, MIB, Extent

pytestmark = pytest.mark.needs("dosfstools", "mtools")

KIND = "fat16-40m"
NOON = datetime(2031, 7, 9, 12, 30, 44)  # noqa: DTZ001 -- FAT knows no time zone
FAT_NOON = (51 << 9 | 7 << 5 | 9, 12 << 11 | 30 << 5 | 22)  # fatgen103, by hand


@pytest.fixture
def volume() -> FatVolume:
    return vfat.open_bytes(vfat.filled(KIND)[0])


def edited(volume: FatVolume) -> dict[str, fat_reader.Stored]:
    """What the changed sectors make of the volume."""
    return fat_reader.read_volume(vfat.patched(vfat.filled(KIND)[0], volume.changes())).entries


def test_a_file_is_found_in_any_case_and_by_its_short_name(volume: FatVolume) -> None:
    found = volume.find("/EFI/BOOT/grub.cfg")
    assert found is not None
    assert found == volume.find("efi/boot/GRUB.cfg")
    assert found.path == "/EFI/BOOT/grub.cfg"
    assert found.name == "grub.cfg"
    # The time the test's builder gave every file, in UTC: date -ud @1700000000
    assert found.modified == datetime(2023, 11, 14, 22, 13, 20)  # noqa: DTZ001 -- FAT knows no zone
    long = volume.find("/SYSTEM~1/BALENA~1.IGN")
    assert long is not None
    assert long.path.startswith("/system-connections/balena-")


def test_what_is_not_there_is_not_found(volume: FatVolume) -> None:
    assert volume.find("/missing") is None
    assert volume.find("/missing/config.json") is None
    assert volume.find("/config.json/below") is None
    assert volume.find("/") == FatEntry("/", is_directory=True, size=0, modified=None)


def test_a_directory_comes_before_what_it_holds(volume: FatVolume) -> None:
    seen = {""}
    for entry in volume.walk():
        assert entry.path.rpartition("/")[0] in seen
        if entry.is_directory:
            seen.add(entry.path)
    below = [entry.path for entry in volume.walk("/efi/boot")]
    assert "/EFI/BOOT/grub.cfg" in below
    assert all(path.startswith("/EFI/BOOT/") for path in below)


def test_the_volume_tells_its_measures(volume: FatVolume, tmp_path: Path) -> None:
    image = tmp_path / "v"
    vfat.save(image, vfat.filled(KIND)[0])
    stored = fat_reader.read_volume(image.read_bytes())
    assert volume.fat_bits == stored.bits
    assert volume.cluster_size == stored.cluster_size
    assert volume.total_bytes == stored.cluster_count * stored.cluster_size
    assert volume.free_bytes == stored.free_clusters * stored.cluster_size


REFUSED: dict[str, tuple[Callable[[FatVolume], object], str]] = {
    "read what is missing": (lambda v: v.read_file("/missing"), "no-such-file"),
    "read below a file": (lambda v: v.read_file("/config.json/x"), "not-a-directory"),
    "read a directory": (lambda v: v.read_file("/EFI"), "is-a-directory"),
    "read the root": (lambda v: v.read_file("/"), "is-a-directory"),
    "list what is missing": (lambda v: v.entries("/missing"), "no-such-file"),
    "list a file": (lambda v: v.entries("/config.json"), "not-a-directory"),
    "walk a file": (lambda v: list(v.walk("/config.json")), "not-a-directory"),
    "climb": (lambda v: v.find("/EFI/../config.json"), "path-invalid"),
    "write in what is missing": (lambda v: v.write_file("/no/x", b""), "no-such-file"),
    "write below a file": (lambda v: v.write_file("/config.json/x", b""), "not-a-directory"),
    "write a directory": (lambda v: v.write_file("/EFI", b""), "is-a-directory"),
    "write the root": (lambda v: v.write_file("/", b""), "is-a-directory"),
    "write a bad name": (lambda v: v.write_file("/a:b", b""), "name-invalid"),
    "write by climbing": (lambda v: v.write_file("/../x", b""), "path-invalid"),
    "write too much": (lambda v: v.write_file("/x", bytes(41 * MIB)), "no-space"),
    "remove what is missing": (lambda v: v.remove_file("/missing"), "no-such-file"),
    "remove a directory as a file": (lambda v: v.remove_file("/EFI"), "is-a-directory"),
    "make what is there": (lambda v: v.make_directory("/efi"), "file-exists"),
    "make the root": (lambda v: v.make_directory("/"), "is-a-directory"),
    "make a bad name": (lambda v: v.make_directory("/x."), "name-invalid"),
    "make too deep": (lambda v: v.make_directory("/EFI/" + "x" * 1020), "path-invalid"),
    "remove a file as a directory": (
        lambda v: v.remove_directory("/config.json"),
        "not-a-directory",
    ),
    "remove a full directory": (lambda v: v.remove_directory("/EFI"), "directory-not-empty"),
    "remove the root": (lambda v: v.remove_directory("/"), "is-a-directory"),
    "move what is missing": (lambda v: v.rename("/missing", "/x"), "no-such-file"),
    "move onto another": (lambda v: v.rename("/config.json", "/os-release"), "file-exists"),
    "move to what is missing": (lambda v: v.rename("/config.json", "/no/x"), "no-such-file"),
    "move to a bad name": (lambda v: v.rename("/config.json", "/x?"), "name-invalid"),
    "move into itself": (lambda v: v.rename("/EFI", "/EFI/BOOT/x"), "path-invalid"),
    "move into itself by its short name": (
        lambda v: v.rename("/system-connections", "/SYSTEM~1/x"),
        "path-invalid",
    ),
    "move the root": (lambda v: v.rename("/", "/x"), "is-a-directory"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_edit_that_cannot_be_made_changes_nothing(what: str, volume: FatVolume) -> None:
    attempt, code = REFUSED[what]
    with pytest.raises(EditError) as refused:
        attempt(volume)
    assert refused.value.code == code
    assert volume.changes() == ()
    volume.write_file("/config.json", b"goes on working")
    assert edited(volume)["/config.json"].content == b"goes on working"


def test_a_file_of_four_gibibytes_is_too_large(volume: FatVolume) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 4 * GIB

    with pytest.raises(EditError) as refused:
        volume.write_file("/huge", Huge())
    assert refused.value.code == "file-too-large"


def test_a_failure_to_read_the_image_undoes_the_edit_it_interrupts() -> None:
    class Source(RandomAccess):
        """Breaks on reading free clusters, which only an edit looks at."""

        name = "breaking image"
        size = len(vfat.filled(KIND)[0])
        breaks = False

        def read(self, offset: int, length: int) -> bytes:
            if self.breaks and offset > 20 * MIB:
                raise ImageError("breaking image: cannot be read")
            return vfat.filled(KIND)[0][offset : offset + length]

        def readinto(self, offset: int, buffer: memoryview) -> None:
            buffer[:] = self.read(offset, len(buffer))

    source = Source()
    volume = FatVolume.open(source, Extent(0, source.size))
    volume.write_file("/first", b"1")
    before = volume.changes()
    source.breaks = True
    with pytest.raises(ImageError):
        volume.write_file("/second", bytes(range(256)) * 4 * 25_000)
    source.breaks = False
    assert volume.find("/second") is None
    assert volume.changes() == before


def test_a_name_that_no_longer_fits_leaves_the_old_one(volume: FatVolume) -> None:
    while volume._directory(0, "/").room_for(1) is not None:
        volume.write_file(f"/F{len(volume.entries())}", b"1")
    before = volume.changes()
    with pytest.raises(EditError) as refused:
        volume.rename("/empty", "/a name that takes more slots than the old one did")
    assert refused.value.code == "directory-full"
    with pytest.raises(EditError):
        volume.write_file("/one more", b"x" * 10_000)
    assert volume.find("/empty") is not None
    assert volume.changes() == before


def test_times_are_those_asked_for(volume: FatVolume) -> None:
    volume.write_file("/new", b"new", modified=NOON)
    volume.write_file("/config.json", b"edited", modified=NOON)
    found = volume.find("/new")
    assert found is not None
    assert found.modified == NOON
    stored = edited(volume)
    assert stored["/new"].modified == stored["/new"].created == FAT_NOON
    assert stored["/config.json"].modified == FAT_NOON
    before = fat_reader.read_volume(vfat.filled(KIND)[0]).entries["/config.json"]
    assert stored["/config.json"].created == before.created


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(1970, 1, 1), datetime(1980, 1, 1)),  # noqa: DTZ001 -- FAT knows no time zone
        (datetime(2200, 1, 1), datetime(2107, 12, 31, 23, 59, 58)),  # noqa: DTZ001 -- the same
        (datetime(2024, 2, 29, 23, 59, 59), datetime(2024, 2, 29, 23, 59, 58)),  # noqa: DTZ001
    ],
)
def test_a_time_that_fat_cannot_express_becomes_the_nearest(
    moment: datetime, expected: datetime, volume: FatVolume
) -> None:
    volume.write_file("/new", b"new", modified=moment)
    found = volume.find("/new")
    assert found is not None
    assert found.modified == expected


def test_the_source_date_epoch_makes_edits_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    def edit() -> tuple[tuple[Patch, ...], FatEntry | None]:
        volume = vfat.open_bytes(vfat.filled(KIND)[0])
        volume.write_file("/new", b"new")
        volume.make_directory("/directory")
        return volume.changes(), volume.find("/directory")

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    patches, found = first = edit()
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert edit() == first
    assert patches
    assert found == FatEntry(
        "/directory",
        is_directory=True,
        size=0,
        modified=datetime(2023, 11, 14, 22, 13, 20),  # noqa: DTZ001 -- date -ud @1700000000
    )


@pytest.mark.parametrize("epoch", ["yesterday", "9" * 40])
def test_a_source_date_epoch_that_is_no_time_is_told(
    epoch: str, volume: FatVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(EditError, match="SOURCE_DATE_EPOCH"):
        volume.write_file("/new", b"new")
    assert volume.changes() == ()


def test_new_files_have_the_archive_bit_and_old_ones_keep_theirs(tmp_path: Path) -> None:
    image = tmp_path / "v"
    vfat.save(image, vfat.filled(KIND)[0])
    vfat.mtools("mattrib", image, "+s", "+h", "-a", "::config.json")
    volume = vfat.open_bytes(image.read_bytes())
    volume.write_file("/new", b"new")
    volume.write_file("/config.json", b"edited")
    vfat.save(image, vfat.patched(image.read_bytes(), volume.changes()))
    stored = fat_reader.read_volume(image.read_bytes()).entries
    assert stored["/new"].attributes == 0x20
    assert stored["/config.json"].attributes == 0x26


def test_a_moved_file_keeps_all_but_its_name(volume: FatVolume) -> None:
    before = fat_reader.read_volume(vfat.filled(KIND)[0]).entries["/EFI/BOOT/bootx64.efi"]
    volume.rename("/EFI/BOOT/bootx64.efi", "/EFI/a new and longer name.efi")
    stored = edited(volume)
    after = stored["/EFI/a new and longer name.efi"]
    assert "/EFI/BOOT/bootx64.efi" not in stored
    assert after.clusters == before.clusters
    assert after.content == before.content
    assert after.slots[-19:] == before.slots[-19:], "times, cluster and size"


def test_a_moved_directory_keeps_its_clusters_and_knows_its_parent(volume: FatVolume) -> None:
    before = fat_reader.read_volume(vfat.filled(KIND)[0]).entries
    volume.rename("/EFI/BOOT", "/overlays/boot")
    volume.rename("/overlays", "/EFI/Overlays")
    stored = edited(volume)  # the reader follows ".." everywhere
    after = stored["/EFI/Overlays/boot/grub.cfg"]
    assert after == before["/EFI/BOOT/grub.cfg"]
    assert stored["/EFI/Overlays/boot"].clusters == before["/EFI/BOOT"].clusters
    volume.rename("/EFI/Overlays", "/overlays")
    assert "/overlays/boot/grub.cfg" in edited(volume)


def test_a_name_can_change_its_case_only(volume: FatVolume) -> None:
    volume.rename("/config.json", "/Config.JSON")
    volume.rename("/Config.JSON", "/Config.JSON")
    assert [path for path in edited(volume) if path.lower() == "/config.json"] == ["/Config.JSON"]


def test_a_rewritten_file_keeps_its_clusters(volume: FatVolume) -> None:
    before = fat_reader.read_volume(vfat.filled(KIND)[0]).entries["/EFI/BOOT/bootx64.efi"]
    count = len(before.clusters)
    volume.write_file("/EFI/BOOT/bootx64.efi", b"x" * (count - 3) * volume.cluster_size)
    assert edited(volume)["/EFI/BOOT/bootx64.efi"].clusters == before.clusters[: count - 3]
    volume.write_file("/EFI/BOOT/bootx64.efi", b"y" * (count + 9) * volume.cluster_size)
    grown = edited(volume)["/EFI/BOOT/bootx64.efi"].clusters
    assert grown[: count - 3] == before.clusters[: count - 3]


def test_a_new_file_lies_in_one_piece_where_there_is_room(volume: FatVolume) -> None:
    size = volume.cluster_size
    for number in range(10):
        volume.write_file(f"/piece{number}", b"x" * size)
    for number in range(0, 10, 2):  # holes of one cluster
        volume.remove_file(f"/piece{number}")
    volume.write_file("/large", b"x" * size * 20)
    clusters = edited(volume)["/large"].clusters
    assert clusters == tuple(range(clusters[0], clusters[0] + 20))


def test_a_file_lies_in_pieces_where_there_is_no_other_room(volume: FatVolume) -> None:
    size = volume.cluster_size
    volume.make_directory("/pieces")
    for number in range(30):
        volume.write_file(f"/pieces/{number}", b"x" * size)
    volume.write_file("/rest", b"x" * volume.free_bytes)
    for number in range(0, 30, 2):
        volume.remove_file(f"/pieces/{number}")
    assert volume.free_bytes == 15 * size
    volume.write_file("/scattered", bytes(range(256)) * (15 * size // 256))
    assert edited(volume)["/scattered"].content == bytes(range(256)) * (15 * size // 256)


def test_an_edit_and_its_contrary_leave_the_content_as_it_was(volume: FatVolume) -> None:
    before = fat_reader.read_volume(vfat.filled(KIND)[0]).entries
    volume.make_directory("/made")
    volume.write_file("/made/file", b"x" * 10_000)
    volume.remove_file("/made/file")
    volume.remove_directory("/made")
    assert edited(volume) == before


@pytest.mark.parametrize("kind", ["fat16-40m", "fat32-100m"])
def test_a_small_edit_of_a_large_image_is_quick_and_small(kind: str, tmp_path: Path) -> None:
    data = vfat.filled(kind)[0]
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 * GIB)
        file.seek(4 * MIB)
        file.write(data)
    extent = Extent(4 * MIB, 4 * MIB + len(data))
    with open_source(image) as source:
        began = time.process_time()
        volume = FatVolume.open(source, extent)
        volume.write_file("/config.json", os.urandom(1024))
        patches = volume.changes()
        took = time.process_time() - began
    assert sum(len(patch.data) for patch in patches) < 100 * 1024
    assert took < 0.5  # seconds of CPU; 0.1 where this was written
    with open_source(image) as source:
        volume = FatVolume.open(source, extent)
        volume.write_file("/large", os.urandom(10 * MIB))
        patches = volume.changes()
    assert sum(len(patch.data) for patch in patches) < 11 * MIB


def test_an_image_that_ends_inside_the_partition_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    vfat.save(image, vfat.filled(KIND)[0][: 30 * MIB])
    with (
        open_source(image) as source,
        pytest.raises(ImageError, match="inside the partition") as refused,
    ):
        FatVolume.open(source, Extent(0, 40 * MIB))
    assert refused.value.code == "image-truncated"
