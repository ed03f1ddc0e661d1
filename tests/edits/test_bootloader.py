from pathlib import Path

import boot_tree
import pytest
from fat_volumes import make_volume

from balenaflash.edits.bootloader import UseInternal
from balenaflash.edits.files import ChangeKind
from balenaflash.errors import EditError

pytestmark = pytest.mark.needs("dosfstools", "mtools")

RAW = {
    "/EFI/BOOT/grub.cfg": boot_tree.GRUB_RAW,
    "/grub.cfg_internal": boot_tree.GRUB_INTERNAL,
}


def test_the_internal_settings_take_the_place_of_the_active_ones(tmp_path: Path) -> None:
    made = make_volume(tmp_path, RAW)
    changes = UseInternal().apply(made.volume)
    assert [(change.path, change.kind) for change in changes] == [
        ("/EFI/BOOT/grub.cfg", ChangeKind.REPLACED)
    ]
    assert made.files() == RAW | {"/EFI/BOOT/grub.cfg": boot_tree.GRUB_INTERNAL}


def test_done_once_more_it_changes_nothing(tmp_path: Path) -> None:
    made = make_volume(tmp_path, RAW | {"/EFI/BOOT/grub.cfg": boot_tree.GRUB_INTERNAL})
    changes = UseInternal().apply(made.volume)
    assert [change.kind for change in changes] == [ChangeKind.UNCHANGED]
    assert made.edited() == made.content


def test_directories_that_are_missing_are_made(tmp_path: Path) -> None:
    made = make_volume(tmp_path, {"/grub.cfg_internal": boot_tree.GRUB_INTERNAL})
    UseInternal().apply(made.volume)
    assert made.files() == {
        "/grub.cfg_internal": boot_tree.GRUB_INTERNAL,
        "/EFI/BOOT/grub.cfg": boot_tree.GRUB_INTERNAL,
    }


def test_the_signature_of_a_signed_file_goes_with_it(tmp_path: Path) -> None:
    signed = RAW | {"/grub.cfg_internal.sig": b"internal", "/EFI/BOOT/grub.cfg.sig": b"external"}
    made = make_volume(tmp_path, signed)
    UseInternal().apply(made.volume)
    assert made.files() == signed | {
        "/EFI/BOOT/grub.cfg": boot_tree.GRUB_INTERNAL,
        "/EFI/BOOT/grub.cfg.sig": b"internal",
    }


def test_another_boards_files_can_be_named(tmp_path: Path) -> None:
    files = {"/uEnv.txt_internal": b"internal", "/uEnv.txt": b"external"}
    made = make_volume(tmp_path, files)
    UseInternal("uEnv.txt_internal", "uEnv.txt").apply(made.volume)
    assert made.files() == {"/uEnv.txt_internal": b"internal", "/uEnv.txt": b"internal"}


@pytest.mark.parametrize(
    ("label", "flag"),
    [("flash-boot", {}), ("FLASH-BOOT", {}), ("other", {"/balena-image-flasher": b""})],
)
def test_in_the_boot_partition_of_a_flasher_it_is_refused(
    tmp_path: Path, label: str, flag: dict[str, bytes]
) -> None:
    made = make_volume(tmp_path, RAW | flag, label=label)
    with pytest.raises(EditError, match=r"flash-rootA.*resin-rootA") as caught:
        UseInternal().apply(made.volume)
    assert caught.value.code == "flasher-image"
    assert "balenaflash unwrap" in (caught.value.hint or "")
    assert made.edited() == made.content


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ({"/EFI/BOOT/grub.cfg": boot_tree.GRUB_INTERNAL}, "may not need any"),
        ({"/config.txt": b""}, "Boards without GRUB"),
    ],
)
def test_an_image_without_internal_settings_is_told_so(
    tmp_path: Path, files: dict[str, bytes], hint: str
) -> None:
    made = make_volume(tmp_path, files)
    with pytest.raises(EditError) as caught:
        UseInternal().apply(made.volume)
    assert caught.value.code == "internal-config-missing"
    assert hint in (caught.value.hint or "")
    assert made.edited() == made.content
