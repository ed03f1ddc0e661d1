"""The structural check against fsck.vfat: on damage made on purpose, and on damage at random."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import vfat

from balenaflash.errors import EditError
from balenaflash.formats.fat.fsck import Gravity

pytestmark = pytest.mark.needs("dosfstools", "mtools")

EVERY_KIND = pytest.mark.parametrize("kind", ["fat12-2m", "fat16-16m", "fat32-40m"])


class Damage:
    """A filled volume to be damaged byte by byte."""

    def __init__(self, kind: str) -> None:
        self.data = bytearray(vfat.filled(kind)[0])
        self.volume = vfat.open_bytes(bytes(self.data))
        self.layout = self.volume._core.layout

    def first_cluster(self, path: str) -> int:
        parent, name = self.volume._locate(path)
        record = parent.find(name)
        assert record is not None
        return record.fields.cluster

    def chain(self, path: str) -> list[int]:
        return list(self.volume._core.table.follow(self.first_cluster(path), path))

    def link(self, cluster: int, value: int) -> None:
        """Set an entry in every copy of the table."""
        self.volume._core.table[cluster] = value
        self.volume._core.table.flush()
        for copy in self.layout.tables:
            self.data[copy.start : copy.end] = self.volume._core.window.read_at(
                copy.start, copy.size
            )

    def free_cluster(self) -> int:
        return next(self.volume._core.table.free_runs()).start

    def slot(self, path: str) -> int:
        """Where in the volume the 8.3 slot of ``path`` begins."""
        parent, name = self.volume._locate(path)
        record = parent.find(name)
        assert record is not None
        left = (record.index + record.count - 1) * 32
        for extent in self.volume._directory_extents(parent.first, path):
            if left < extent.size:
                return extent.start + left
            left -= extent.size
        raise AssertionError(path)

    def set_size(self, path: str, size: int) -> None:
        struct.pack_into("<L", self.data, self.slot(path) + 28, size)

    def cluster_offset(self, path: str) -> int:
        return self.layout.cluster_offset(self.first_cluster(path))


def cross_link(damage: Damage) -> None:
    damage.link(damage.chain("/EFI/BOOT/bootx64.efi")[3], damage.first_cluster("/os-release"))


def loop(damage: Damage) -> None:
    chain = damage.chain("/EFI/BOOT/bootx64.efi")
    damage.link(chain[-1], chain[0])


def directory_loop(damage: Damage) -> None:
    cluster = damage.first_cluster("/EFI")
    damage.link(cluster, cluster)


def into_free(damage: Damage) -> None:
    damage.link(damage.chain("/EFI/BOOT/bootx64.efi")[5], 0)


def into_bad(damage: Damage) -> None:
    damage.link(damage.chain("/EFI/BOOT/bootx64.efi")[5], damage.volume._core.table.bad)


def out_of_range(damage: Damage) -> None:
    damage.link(damage.chain("/EFI/BOOT/bootx64.efi")[5], damage.layout.end_cluster)


def no_media(damage: Damage) -> None:
    damage.link(0, 0)


def too_short(damage: Damage) -> None:
    damage.set_size("/os-release", 1_000_000)


def wrong_dot(damage: Damage) -> None:
    damage.data[damage.cluster_offset("/EFI") + 26] ^= 0x01


def wrong_parent(damage: Damage) -> None:
    damage.data[damage.cluster_offset("/EFI/BOOT") + 32 + 26] ^= 0x01


def directory_without_cluster(damage: Damage) -> None:
    struct.pack_into("<H", damage.data, damage.slot("/splash") + 26, 0)


FORBIDDING: dict[Callable[[Damage], None], str] = {
    cross_link: "shares cluster",
    loop: "loops back to cluster",
    directory_loop: "loops back to cluster",
    into_free: "runs into a free cluster",
    into_bad: "runs into a bad cluster",
    out_of_range: "which does not exist",
    no_media: "first entry of the file allocation table",
    too_short: "1000000 bytes, but",
    wrong_dot: "'.' and '..' are wrong",
    wrong_parent: "'.' and '..' are wrong",
    directory_without_cluster: "a directory without a cluster",
}


@EVERY_KIND
@pytest.mark.parametrize("spoil", FORBIDDING, ids=lambda spoil: spoil.__name__)
def test_a_damaged_volume_is_told_and_read_but_not_edited(
    kind: str, spoil: Callable[[Damage], None], tmp_path: Path
) -> None:
    damage = Damage(kind)
    spoil(damage)
    image = tmp_path / "v"
    vfat.save(image, damage.data)
    assert vfat.fsck_says(image), "fsck.vfat agrees that it is damaged"
    volume = vfat.open_bytes(bytes(damage.data))
    assert any(FORBIDDING[spoil] in problem for problem in volume.problems())
    assert volume.read_file("/config.json") == vfat.filled(kind)[1]["/config.json"]
    edits: list[Callable[[], None]] = [
        lambda: volume.write_file("/config.json", b"edited"),
        lambda: volume.remove_file("/config.json"),
        lambda: volume.make_directory("/new"),
        lambda: volume.remove_directory("/splash"),
        lambda: volume.rename("/config.json", "/other"),
    ]
    for edit in edits:
        with pytest.raises(EditError, match="is damaged and is not edited") as refused:
            edit()
        assert refused.value.code == "volume-unsound"
    assert volume.changes() == ()


@EVERY_KIND
def test_two_entries_of_one_name_forbid_an_edit(kind: str) -> None:
    """As stock pyfatfs makes them; fsck.vfat finds them by the 8.3 name alone."""
    damage = Damage(kind)
    source, target = damage.slot("/UPPER.TXT"), damage.slot("/empty")
    damage.data[target : target + 13] = damage.data[source : source + 13]
    volume = vfat.open_bytes(bytes(damage.data))
    assert "/UPPER.TXT: has the same name, long or 8.3, as /UPPER.TXT" in volume.problems()
    with pytest.raises(EditError, match="has the same name"):
        volume.write_file("/UPPER.TXT", b"edited")


@EVERY_KIND
def test_entries_behind_the_end_of_a_directory_forbid_an_edit(kind: str) -> None:
    damage = Damage(kind)
    behind = damage.cluster_offset("/splash") + 32 * 6
    assert damage.data[behind - 32] == 0
    damage.data[behind : behind + 11] = b"GHOST   TXT"
    volume = vfat.open_bytes(bytes(damage.data))
    assert volume.problems() == ("/splash: 1 slots are in use after the end of the directory",)
    assert volume.find("/splash/ghost.txt") is None
    with pytest.raises(EditError, match="after the end"):
        volume.write_file("/splash/new", b"new")


def test_a_wrong_count_of_free_clusters_is_told_and_corrected(tmp_path: Path) -> None:
    """FSInfo is advice to drivers; a card that was pulled has it wrong."""
    damage = Damage("fat32-40m")
    assert damage.layout.fsinfo_offset is not None
    struct.pack_into("<L", damage.data, damage.layout.fsinfo_offset + 488, 7)
    volume = vfat.open_bytes(bytes(damage.data))
    assert [problem.partition(",")[0] for problem in volume.problems()] == [
        "FSInfo counts 7 free clusters"
    ]
    volume.write_file("/config.json", b"edited")
    image = tmp_path / "v"
    vfat.save(image, vfat.patched(bytes(damage.data), volume.changes()))
    assert vfat.fsck_says(image) == ""


def test_an_unsigned_fsinfo_is_left_alone() -> None:
    damage = Damage("fat32-40m")
    start = damage.layout.fsinfo_offset
    assert start is not None
    damage.data[start] = 0
    volume = vfat.open_bytes(bytes(damage.data))
    assert volume.problems() == ("the FSInfo sector has no signature",)
    volume.write_file("/config.json", b"edited")
    assert not any(patch.extent.contains(start) for patch in volume.changes())


def test_a_boot_sector_that_differs_from_its_backup_is_told() -> None:
    damage = Damage("fat32-40m")
    assert damage.layout.backup_offset is not None
    damage.data[damage.layout.backup_offset + 24] ^= 0xFF
    volume = vfat.open_bytes(bytes(damage.data))
    assert volume.problems() == ("the boot sector and its backup differ",)


def test_the_upper_bits_of_fat32_entries_are_kept() -> None:
    damage = Damage("fat32-40m")
    free = damage.free_cluster()
    for copy in damage.layout.tables:
        for cluster in (free, free + 1, 5):
            damage.data[copy.start + cluster * 4 + 3] |= 0xA0
    volume = vfat.open_bytes(bytes(damage.data))
    assert volume.problems() == ()
    volume.write_file("/new", bytes(100 * 512))
    after = vfat.patched(bytes(damage.data), volume.changes())
    for copy in damage.layout.tables:
        for cluster in (free, free + 1, 5):
            assert after[copy.start + cluster * 4 + 3] & 0xF0 == 0xA0
    assert vfat.open_bytes(after).problems() == ()


@pytest.mark.parametrize("seed", range(16))
@EVERY_KIND
def test_random_damage_to_the_table_is_found_whenever_fsck_finds_it(
    kind: str, seed: int, tmp_path: Path
) -> None:
    chance = random.Random(f"{kind} {seed}")  # noqa: S311 -- repeatable, not secret
    damage = Damage(kind)
    table = damage.volume._core.table
    used = [cluster for cluster in range(2, len(table)) if table[cluster]]
    for _ in range(chance.choice((1, 1, 2, 5))):
        # An end mark more often than not: several values are one, and mean no damage.
        marks = (damage.volume._core.table.last, damage.volume._core.table.least_last)
        value = chance.choice((*marks, chance.choice(used), chance.randrange(1 << 12)))
        damage.link(chance.choice(used), value)
    image = tmp_path / "v"
    vfat.save(image, damage.data)
    volume = vfat.open_bytes(bytes(damage.data))
    problems = volume.problems()
    assert bool(problems) == bool(vfat.fsck_says(image)), problems
    if all(fault.gravity is Gravity.REPAIRABLE for fault in volume.faults()):
        volume.repair()
        vfat.save(image, vfat.patched(bytes(damage.data), volume.changes()))
        assert vfat.fsck_says(image) == ""
        before, after = vfat.filled(kind)[1], vfat.mtools_reads(image)
        assert {path: after[path] for path in before} == before


def test_what_an_edit_would_break_is_not_given_out() -> None:
    """The last line of defence: an editor with a fault, as pyfatfs has it."""
    volume = vfat.open_bytes(vfat.filled("fat16-16m")[0])
    volume.write_file("/config.json", b"edited")
    free = next(volume._core.table.free_runs()).start
    volume._core.table[free] = volume._core.table.last
    volume.write_file("/os-release", b"edited")
    with pytest.raises(EditError, match="would break the volume: 1 cluster ") as refused:
        volume.changes()
    assert refused.value.code == "volume-unsound"
