from pathlib import Path

import pytest
from boot_volume import edited
from builders import Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage

from balenaflash.edits.consequences import is_kept_by_updates, warnings_for
from balenaflash.edits.fingerprint import listed_paths


@pytest.mark.parametrize(
    "path",
    [
        *("/config.json", "/config.txt", "/splash/balena-logo.png", "/extra_uEnv.txt"),
        *("/EFI/BOOT/grub_extraenv", "/grub/grub_extraenv", "/configfs.json"),
        *("/hw_intfc.conf", "/bootenv", "/CONFIG.JSON", "/balenaos.fingerprint"),
    ],
)
def test_an_update_leaves_the_files_of_the_lab_alone(path: str) -> None:
    assert is_kept_by_updates(path)


@pytest.mark.parametrize(
    "path",
    ["/EFI/BOOT/grub.cfg", "/uEnv.txt", "/cmdline.txt", "/splash/resin-logo.png", "/a/config.json"],
)
def test_an_update_replaces_the_others(path: str) -> None:
    assert not is_kept_by_updates(path)


def test_an_edit_of_a_shipped_file_is_warned_of_and_a_file_of_ones_own_is_not(
    image: MakeImage,
) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        shipped = listed_paths(volume)
        changed = ["/efi/boot/grub.cfg", "/config.json", "/system-connections/lab"]
        warnings = warnings_for(changed, volume, shipped=shipped)
    assert warnings == (
        "/efi/boot/grub.cfg: a host OS update that ships this file writes its own version",
    )


def test_what_becomes_of_a_file_of_ones_own_is_no_matter_of_an_update(
    image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    path = image(Layout.MSDOS_FAT16).path
    own = tmp_path / "own.txt"
    own.write_text("own")
    commands: tuple[list[str | Path], ...] = (
        ["boot", "put", path, own],
        ["boot", "put", path, own, "/EFI/"],
        ["boot", "mv", path, "/own.txt", "/mine.txt"],
        ["boot", "rm", path, "/mine.txt", "/EFI/own.txt"],
        ["network", "add", "wifi", path, "--ssid", "lab", "--open"],
        ["network", "rm", path, "wifi-lab"],
    )
    for command in commands:
        done = balenaflash(*command)
        assert done.returncode == 0, done.stderr
        assert "a host OS update" not in done.stderr, command
    removed = balenaflash("boot", "rm", path, "/grub.cfg_internal")
    assert "a host OS update that ships this file" in removed.stderr


def test_without_a_fingerprint_any_file_may_be_shipped(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        (warning,) = warnings_for(["/x", "/config.json"], volume, shipped=None)
    assert warning.startswith("/x: a host OS update that ships")


def test_of_many_files_some_are_named_and_the_others_counted(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        (warning,) = warnings_for([f"/{n}" for n in range(9)], volume, shipped=None)
    assert warning.startswith("/0, /1, /2, /3, /4 and 4 more: ")


def test_too_little_room_for_an_update_is_warned_of(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:

        def ask() -> tuple[str, ...]:
            return warnings_for(["/config.json"], volume, shipped=frozenset())

        assert ask() == ()
        cluster = volume.cluster_size
        third = volume.free_bytes // (3 * cluster) * cluster
        volume.write_file("/large", bytes(third - cluster))
        assert ask() == ()
        volume.write_file("/large", bytes(third + cluster))
        (warning,) = ask()
    assert "are free in the boot partition" in warning
    assert "twice the size of its largest file, /large" in warning


def test_signatures_that_no_longer_verify_are_named(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        for name in ("/EFI/BOOT/grub.cfg.sig", "/grub.cfg_internal.sig", "/gone.sig"):
            volume.write_file(name, b"signature")
        renewed = ["/grub.cfg_internal", "/GRUB.cfg_internal.sig"]
        changed = ["/EFI/BOOT/grub.cfg", *renewed, "/gone", "/config.json"]
        warnings = warnings_for(changed, volume, shipped=frozenset())
    assert warnings == ("/EFI/BOOT/grub.cfg.sig: the signed file changed and no longer verifies",)


def test_the_signature_of_the_image_is_named(image: MakeImage) -> None:
    built = image(Layout.MSDOS_FAT16)
    signature = Path(f"{built.path}.sig")
    with edited(built) as volume:

        def ask(changed: list[str]) -> tuple[str, ...]:
            return warnings_for(changed, volume, shipped=frozenset(), image=built.path)

        assert ask(["/config.json"]) == ()
        signature.write_bytes(b"signature")
        assert ask(["/config.json"]) == (
            f"{signature}: the signed image changed and no longer verifies",
        )
        assert ask([]) == ()


def test_the_signature_beside_the_image_that_a_link_leads_to_is_named(
    image: MakeImage, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT16)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "latest.img"
    link.symlink_to(built.path)
    signature = Path(f"{built.path}.sig")
    signature.write_bytes(b"signature")
    with edited(built) as volume:
        (warning,) = warnings_for(["/config.json"], volume, shipped=frozenset(), image=link)
    assert warning == f"{signature}: the signed image changed and no longer verifies"
