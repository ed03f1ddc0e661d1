"""The boot partition is found, and what its files tell is told."""

import os
from collections.abc import Mapping
from pathlib import Path

import boot_tree
import pytest
from builders import BOARDS, Layout, build_image, copy_in, place, run, write_tree
from imagecopies import MakeImage
from tablefiles import read_at, rewrite_primary, write_at

from balenaflash.balena.image import (
    BalenaFacts,
    BalenaImage,
    BootPartition,
    ImageKind,
    is_cloned,
)
from balenaflash.errors import ImageError
from balenaflash.formats.filesystems import Filesystem
from balenaflash.source.base import open_source
from balenaflash.units import Extent

MIB = 1 << 20
BOOT_OFFSET = 4 * MIB
pytestmark = pytest.mark.needs("dosfstools", "e2fsprogs", "mtools", "parted")


def find(path: Path) -> BootPartition:
    with open_source(path) as source:
        return BalenaImage(source).boot


def facts_of(path: Path) -> BalenaFacts:
    with open_source(path) as source:
        return BalenaImage(source).facts


def relabel(path: Path, label: str) -> None:
    """Change the label of the FAT at 4 MiB, in the boot sector and the root directory."""
    run("mlabel", "-i", f"{path}@@{BOOT_OFFSET}", f"::{label}")


def rename(path: Path, name: str) -> None:
    """Change the name of the first partition of a GPT."""
    array = bytearray(read_at(path, 1024, 128 * 128))
    array[56:128] = name.encode("utf-16-le").ljust(72, b"\0")
    rewrite_primary(path, bytes(array))


def remove(path: Path, *names: str) -> None:
    """Delete files of the FAT at 4 MiB."""
    run("mdel", "-i", f"{path}@@{BOOT_OFFSET}", *(f"::{name}" for name in names))


@pytest.mark.parametrize("layout", Layout)
def test_the_boot_partition_is_found_in_every_layout(layout: Layout, image: MakeImage) -> None:
    for flasher, label in ((False, "resin-boot"), (True, "flash-boot")):
        built = image(layout, flasher=flasher)
        boot = find(built.path)
        assert boot.partition.number == built.boot_number
        assert boot.partition.extent == built.boot_extent
        assert label in boot.reason
        assert boot.warnings == ()


@pytest.mark.parametrize("label", ["balena-boot", "resin-conf", "flash-conf", "RESIN-BOOT"])
def test_older_names_are_known(label: str, image: MakeImage) -> None:
    path = image(Layout.MSDOS_FAT16).path
    relabel(path, label)
    assert label.lower() in find(path).reason


def test_a_name_in_the_gpt_is_enough(image: MakeImage) -> None:
    path = image(Layout.GPT_FAT16).path
    relabel(path, "OTHER")
    boot = find(path)
    assert boot.reason == "Its name in the GPT is resin-boot."


def test_without_a_known_name_the_content_decides(image: MakeImage) -> None:
    path = image(Layout.GPT_FAT16).path
    relabel(path, "OTHER")
    rename(path, "other")
    boot = find(path)
    assert boot.partition.number == 1
    assert "/device-type.json" in boot.reason


def test_the_content_decides_against_an_esp_before_it(tmp_path: Path) -> None:
    built = build_image(tmp_path / "board.img", Layout.GPT_BOARD)
    start = built.boot_extent.start
    run("mlabel", "-i", f"{built.path}@@{start}", "::OTHER")
    array = bytearray(read_at(built.path, 1024, 128 * 128))
    name = (built.boot_number - 1) * 128 + 56
    array[name : name + 72] = bytes(72)
    rewrite_primary(built.path, bytes(array))
    assert find(built.path).partition.number == built.boot_number


def test_partition_1_is_a_guess_with_a_warning(image: MakeImage) -> None:
    path = image(Layout.MSDOS_FAT16).path
    relabel(path, "OTHER")
    remove(path, "device-type.json")
    boot = find(path)
    assert boot.partition.number == 1
    assert len(boot.warnings) == 1


def test_a_second_partition_of_the_same_name_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "two.img"
    path.touch()
    os.truncate(path, 64 * MIB)
    run(
        *("parted", "-s", path, "unit", "MiB", "mklabel", "msdos"),
        *("mkpart", "primary", "fat16", "4", "24", "mkpart", "primary", "fat16", "24", "44"),
    )
    fat = tmp_path / "fat.img"
    run("mkfs.vfat", "-n", "resin-boot", "-C", fat, "20480")
    place(fat, path, 4 * MIB)
    place(fat, path, 24 * MIB)
    boot = find(path)
    assert boot.partition.extent == Extent(4 * MIB, 24 * MIB)
    assert boot.warnings == ("Partition 2 is called resin-boot too; the first one is used.",)


def test_a_name_without_a_fat_is_not_enough(image: MakeImage) -> None:
    path = image(Layout.GPT_FAT16).path
    write_at(path, BOOT_OFFSET, bytes(MIB))
    with pytest.raises(ImageError, match="none of its 5 partitions is a FAT") as caught:
        find(path)
    assert caught.value.code == "boot-partition-missing"


def test_a_fat_that_is_not_balenas_is_named_in_the_refusal(tmp_path: Path) -> None:
    path = tmp_path / "other.img"
    path.touch()
    os.truncate(path, 64 * MIB)
    run(
        *("parted", "-s", path, "unit", "MiB", "mklabel", "msdos"),
        *("mkpart", "primary", "ext4", "4", "24", "mkpart", "primary", "fat16", "24", "44"),
    )
    fat = tmp_path / "fat.img"
    run("mkfs.vfat", "-n", "STICK", "-C", fat, "20480")
    place(fat, path, 24 * MIB)
    with pytest.raises(ImageError, match="partition 2") as caught:
        find(path)
    assert caught.value.code == "boot-partition-missing"


@pytest.mark.parametrize("layout", Layout)
def test_the_facts_are_those_of_the_files(layout: Layout, image: MakeImage) -> None:
    built = image(layout)
    board = BOARDS[layout]
    facts = facts_of(built.path)
    assert facts == BalenaFacts(
        kind=ImageKind.RAW,
        slug=board.slug,
        name=board.name,
        arch=board.arch,
        machine=board.machine,
        os_version=boot_tree.OS_VERSION,
        image_name=f"balena-image-{board.machine}",
        config={**boot_tree.CONFIG, "deviceType": board.slug},
        fingerprint_present=True,
        is_clone=False,
        warnings=(),
    )
    assert facts.config is not None
    assert list(facts.config) == list(boot_tree.CONFIG)


def test_a_flasher_is_one_and_its_version_unknown(image: MakeImage) -> None:
    facts = facts_of(image(Layout.MSDOS_FAT16, flasher=True).path)
    assert facts.kind is ImageKind.FLASHER
    assert facts.slug == "intel-nuc"
    assert facts.os_version is None
    assert facts.warnings == ()


def test_without_a_flag_file_the_label_tells_a_flasher(image: MakeImage) -> None:
    path = image(Layout.MSDOS_FAT16, flasher=True).path
    remove(path, "balena-image-flasher")
    assert facts_of(path).kind is ImageKind.FLASHER


def test_without_flag_file_and_label_the_kind_is_unknown(image: MakeImage) -> None:
    path = image(Layout.MSDOS_FAT16).path
    remove(path, "balena-image")
    assert facts_of(path).kind is None


def put(path: Path, files: Mapping[str, bytes], folder: Path) -> None:
    """Files into the FAT at 4 MiB, in place of those that are there."""
    write_tree(folder, files)
    sources = sorted(folder.iterdir())
    run("mcopy", "-o", "-i", f"{path}@@{BOOT_OFFSET}", *sources, "::")


def test_a_doubled_key_is_told_and_not_shown(image: MakeImage, tmp_path: Path) -> None:
    path = image(Layout.MSDOS_FAT16).path
    put(path, {"/config.json": b'{"hostname": "a", "hostname": "b"}'}, tmp_path / "new")
    facts = facts_of(path)
    assert facts.config is None
    assert facts.warnings == ("/config.json: the key 'hostname' occurs twice",)


def test_two_flag_files_are_a_warning(image: MakeImage, tmp_path: Path) -> None:
    path = image(Layout.MSDOS_FAT16).path
    put(path, {"/balena-image-flasher": b""}, tmp_path / "new")
    facts = facts_of(path)
    assert facts.kind is None
    assert facts.warnings == ("The boot partition is flagged both as raw image and as flasher.",)


def test_a_label_against_the_flag_file_is_a_warning(image: MakeImage) -> None:
    path = image(Layout.MSDOS_FAT16).path
    relabel(path, "flash-boot")
    facts = facts_of(path)
    assert facts.kind is ImageKind.RAW
    assert len(facts.warnings) == 1


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"{", "/config.json: is not valid JSON at line 1, column 2"),
        (b"", "/config.json: is not valid JSON at line 1, column 1"),
        (b"[1, 2]", "/config.json: is an array, but must be an object"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": NaN}', "/config.json: NaN is not valid JSON"),
        (b'{"a": "\\ud800"}', "/config.json is not valid"),
        (b'{"a": "\xff"}', "/config.json: is not UTF-8 at line 1, byte 8"),
        (b'\xef\xbb\xbf{"a": 1}', "/config.json: begins with a byte order mark"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "more than 64 levels"),
        (b'{"a":' * 100_000, "more than 64 levels"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "a number too long to read"),
        (b'{"a": "' + b"x" * MIB + b'"}', "/config.json is not read: it has 1.0 MiB."),
    ],
    ids=[
        *("open", "empty", "array", "infinite", "nan", "surrogate", "latin1"),
        *("bom", "deep", "bottomless", "digits", "large"),
    ],
)
def test_a_config_that_cannot_be_used_is_a_warning(
    content: bytes, fact: str, image: MakeImage, tmp_path: Path
) -> None:
    path = image(Layout.MSDOS_FAT16).path
    put(path, {"/config.json": content}, tmp_path / "new")
    facts = facts_of(path)
    assert facts.config is None
    assert facts.slug == "intel-nuc"
    assert len(facts.warnings) == 1
    assert fact in facts.warnings[0]


def test_a_missing_config_is_a_warning(image: MakeImage) -> None:
    path = image(Layout.MSDOS_FAT16).path
    remove(path, "config.json")
    facts = facts_of(path)
    assert facts.config is None
    assert facts.warnings == ("/config.json is missing from the boot partition.",)


def test_a_folder_in_place_of_a_file_is_a_warning(image: MakeImage) -> None:
    path = image(Layout.MSDOS_FAT16).path
    remove(path, "config.json")
    run("mmd", "-i", f"{path}@@{BOOT_OFFSET}", "::config.json")
    facts = facts_of(path)
    assert facts.config is None
    assert len(facts.warnings) == 1


@pytest.mark.parametrize(
    "device_type",
    [b"{}", b'{"slug": 5, "yocto": []}', b'{"slug": null, "yocto": {"machine": {}}}', b"nonsense"],
)
def test_what_device_type_leaves_open_os_release_may_tell(
    device_type: bytes, image: MakeImage, tmp_path: Path
) -> None:
    path = image(Layout.MSDOS_FAT16).path
    put(path, {"/device-type.json": device_type}, tmp_path / "new")
    facts = facts_of(path)
    assert (facts.slug, facts.machine) == ("intel-nuc", "genericx86-64")
    assert (facts.name, facts.arch) == (None, None)


def test_without_any_file_everything_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "bare.img"
    path.touch()
    os.truncate(path, 64 * MIB)
    run(
        *("parted", "-s", path, "unit", "MiB", "mklabel", "msdos"),
        *("mkpart", "primary", "fat16", "4", "24"),
    )
    fat = tmp_path / "fat.img"
    run("mkfs.vfat", "-n", "resin-boot", "-C", fat, "20480")
    write_tree(tmp_path / "files", {"/os-release": b"VERSION='6.0'\nNAME=\"half\nnothing\n=x\n"})
    copy_in(fat, [tmp_path / "files" / "os-release"])
    place(fat, path, 4 * MIB)
    facts = facts_of(path)
    assert facts.os_version == "6.0"
    told = (facts.kind, facts.slug, facts.name, facts.arch, facts.machine, facts.image_name)
    assert told == (None,) * 6
    assert not facts.fingerprint_present


def test_a_disk_that_has_booted_is_told_by_its_volume_id(image: MakeImage) -> None:
    path = image(Layout.MSDOS_FAT16).path
    run("mlabel", "-i", f"{path}@@{BOOT_OFFSET}", "-N", "bdef1234", "::resin-boot")
    assert facts_of(path).is_clone


def test_a_disk_that_has_booted_is_told_by_an_ext4_uuid() -> None:
    assert is_cloned(Filesystem("ext4", "resin-data", "ba1eadef-20c9-4a9f-8b1c-1234567890ab"))
    assert not is_cloned(Filesystem("ext4", "resin-data", "1b4e28ba-2fa1-11d2-883f-0016d3cca427"))
    assert not is_cloned(Filesystem("squashfs", None, None))
