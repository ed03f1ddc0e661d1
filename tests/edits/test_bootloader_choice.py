"""Which bootloader settings ``use-internal`` takes, where it puts them, and what it keeps."""

from pathlib import Path

import pytest
from fat_volumes import make_volume

from balenaflash.edits.bootloader import UseInternal
from balenaflash.errors import EditError

pytestmark = pytest.mark.needs("dosfstools", "mtools")

INTERNAL, ACTIVE = b"internal", b"active"


@pytest.mark.parametrize(
    ("files", "replaced"),
    [
        # Families and paths: INTERNAL_DEVICE_BOOTLOADER_CONFIG in their board repositories.
        ({"/grub.cfg_internal": INTERNAL, "/EFI/BOOT/grub.cfg": ACTIVE}, {"/EFI/BOOT/grub.cfg"}),
        (
            {
                "/grub.cfg_internal": INTERNAL,
                "/EFI/BOOT/grub.cfg": ACTIVE,
                "/grub/grub.cfg": ACTIVE,
            },
            {"/EFI/BOOT/grub.cfg", "/grub/grub.cfg"},
        ),
        ({"/uEnv.txt_internal": INTERNAL, "/uEnv.txt": ACTIVE}, {"/uEnv.txt"}),
        (
            {"/grub.cfg_internal": INTERNAL, "/boot/grub/grub.conf": ACTIVE},
            {"/boot/grub/grub.conf"},
        ),
        ({"/grub.cfg_internal": INTERNAL}, {"/EFI/BOOT/grub.cfg"}),
        ({"/uEnv.txt_internal": INTERNAL}, {"/uEnv.txt"}),
    ],
    ids=["generic", "intel", "beaglebone", "quark", "generic, none yet", "beaglebone, none yet"],
)
def test_each_familys_files_are_found(
    files: dict[str, bytes], replaced: set[str], tmp_path: Path
) -> None:
    made = make_volume(tmp_path, files)
    changes = UseInternal().apply(made.volume)
    assert {change.path for change in changes if not change.is_directory} == replaced
    assert made.files() == files | dict.fromkeys(replaced, INTERNAL)


def test_named_paths_are_taken_and_nothing_else_is_replaced(tmp_path: Path) -> None:
    files = {
        "/lab.cfg": INTERNAL,
        "/grub.cfg_internal": b"another",
        "/EFI/BOOT/grub.cfg": ACTIVE,
        "/grub/grub.cfg": ACTIVE,
    }
    made = make_volume(tmp_path, files)
    UseInternal("lab.cfg", "EFI/BOOT/grub.cfg").apply(made.volume)
    assert made.files() == files | {"/EFI/BOOT/grub.cfg": INTERNAL}


def test_a_target_alone_gets_the_settings_that_the_image_has(tmp_path: Path) -> None:
    made = make_volume(tmp_path, {"/uEnv.txt_internal": INTERNAL})
    UseInternal(None, "/elsewhere/uEnv.txt").apply(made.volume)
    assert made.files()["/elsewhere/uEnv.txt"] == INTERNAL


def test_a_source_that_no_board_has_needs_a_target(tmp_path: Path) -> None:
    made = make_volume(tmp_path, {"/lab.cfg": INTERNAL})
    with pytest.raises(EditError, match="not known where a board reads") as caught:
        UseInternal("/lab.cfg").apply(made.volume)
    assert "--to PATH" in (caught.value.hint or "")


def test_a_source_that_the_image_has_not_is_an_error(tmp_path: Path) -> None:
    made = make_volume(tmp_path, {"/EFI/BOOT/grub.cfg": ACTIVE})
    with pytest.raises(EditError, match=r"^/lab\.cfg: ") as caught:
        UseInternal("/lab.cfg", "/EFI/BOOT/grub.cfg").apply(made.volume)
    assert caught.value.code == "internal-config-missing"


def test_what_is_replaced_is_kept_with_its_signature(tmp_path: Path) -> None:
    files = {
        "/grub.cfg_internal": INTERNAL,
        "/grub.cfg_internal.sig": b"internal's",
        "/EFI/BOOT/grub.cfg": ACTIVE,
        "/EFI/BOOT/grub.cfg.sig": b"active's",
        "/grub/grub.cfg": b"legacy",
    }
    made = make_volume(tmp_path, files)
    UseInternal(keep_old=True).apply(made.volume)
    # Once more: what is in place now is not what is to be kept.
    UseInternal(keep_old=True).apply(made.volume)
    assert made.files() == files | {
        "/EFI/BOOT/grub.cfg": INTERNAL,
        "/EFI/BOOT/grub.cfg.sig": b"internal's",
        "/EFI/BOOT/grub.cfg.old": ACTIVE,
        "/EFI/BOOT/grub.cfg.old.sig": b"active's",
        "/grub/grub.cfg": INTERNAL,
        "/grub/grub.cfg.sig": b"internal's",
        "/grub/grub.cfg.old": b"legacy",
    }


def test_where_nothing_is_replaced_nothing_is_kept(tmp_path: Path) -> None:
    made = make_volume(tmp_path, {"/grub.cfg_internal": INTERNAL})
    UseInternal(keep_old=True).apply(made.volume)
    assert set(made.files()) == {"/grub.cfg_internal", "/EFI/BOOT/grub.cfg"}
