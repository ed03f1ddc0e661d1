"""What a flasher carries is found where the flasher itself finds it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from builders import BuiltImage, Layout, run
from flasher_steps import carried_image
from flashers import SETTINGS, change_root, put
from imagecopies import MakeImage

from balenaflash.balena.flasher_contents import Flasher, HookPlace, find_board, read_flasher
from balenaflash.balena.image import BalenaImage
from balenaflash.commands.flasher_steps import plan_unwrap
from balenaflash.errors import ImageError
from balenaflash.source.base import open_source


def read(flasher: BuiltImage, look: Callable[[Flasher], None]) -> None:
    with open_source(flasher.path) as source:
        found = read_flasher(BalenaImage(source))
        assert found is not None
        look(found)


@pytest.mark.parametrize("layout", [Layout.MSDOS_FAT16, Layout.GPT_BOARD])
def test_the_inner_image_is_the_file_that_debugfs_finds(
    image: MakeImage, tmp_path: Path, layout: Layout
) -> None:
    flasher = image(layout, flasher=True)
    expected = carried_image(flasher, tmp_path / "inner").read_bytes()

    def look(found: Flasher) -> None:
        assert found.image_path == f"/opt/{found.image_name}"
        assert found.settings.internal_devices == ("nvme0n1", "sda", "sdb", "mmcblk0", "mmcblk1")
        assert (found.signature, found.has_board_hook, found.warnings) == (None, False, ())
        assert found.image.source.size == len(expected)
        content = bytearray(len(expected))
        found.image.source.readinto(0, memoryview(content))
        assert content == expected

    read(flasher, look)
    with open_source(flasher.path) as source:
        assert plan_unwrap(BalenaImage(source)).os_version == "6.5.31+rev1"


def test_a_raw_image_carries_nothing(image: MakeImage) -> None:
    with open_source(image(Layout.MSDOS_FAT16).path) as source:
        assert read_flasher(BalenaImage(source)) is None
        with pytest.raises(ImageError, match="is not a flasher") as caught:
            plan_unwrap(BalenaImage(source))
    assert caught.value.code == "not-a-flasher"


def test_a_board_hook_that_does_something_and_a_signature_are_seen(image: MakeImage) -> None:
    flasher = image(Layout.GPT_FAT16, flasher=True)
    assert flasher.inner is not None
    put(flasher, f"/opt/{flasher.inner.path.name}.sig", b"signed")
    change_root(flasher, "mkdir /usr/bin")
    put(flasher, "/usr/bin/resin-init-flasher-board", b"#!/bin/sh\nset -e\ndd of=/dev/x\nexit 0\n")

    def look(found: Flasher) -> None:
        assert (found.signature, found.has_board_hook) == (b"signed", True)

    read(flasher, look)
    put(flasher, "/usr/bin/resin-init-flasher-board", b"#!/bin/sh\n# none\nset -e\n\nexit 0\n")
    read(flasher, lambda found: None if not found.has_board_hook else pytest.fail("a hook"))


def test_an_image_elsewhere_is_found_as_the_flasher_finds_it(image: MakeImage) -> None:
    flasher = image(Layout.GPT_FAT16, flasher=True)
    assert flasher.inner is not None
    old = f"/opt/{flasher.inner.path.name}"
    change_root(flasher, "mkdir /data", f"ln {old} /data/moved.img", f"unlink {old}")
    put(flasher, SETTINGS, b"BALENA_IMAGE=mov*.img\n")

    def look(found: Flasher) -> None:
        assert found.image_path == "/data/moved.img"

    read(flasher, look)


def no_settings(flasher: BuiltImage, _inner: str) -> None:
    change_root(flasher, f"rm {SETTINGS}")


def settings_that_run(flasher: BuiltImage, _inner: str) -> None:
    put(flasher, SETTINGS, b"BALENA_IMAGE=$(reboot)\n")


def settings_too_large(flasher: BuiltImage, _inner: str) -> None:
    put(flasher, SETTINGS, b"#" * 100_000)


def settings_link_loop(flasher: BuiltImage, _inner: str) -> None:
    change_root(flasher, f"rm {SETTINGS}", f"symlink {SETTINGS} {SETTINGS}")


def no_image(flasher: BuiltImage, inner: str) -> None:
    change_root(flasher, f"rm {inner}")


def image_link_loop(flasher: BuiltImage, inner: str) -> None:
    change_root(flasher, f"rm {inner}", f"symlink {inner} {inner}")


def two_images(flasher: BuiltImage, _inner: str) -> None:
    put(flasher, "/opt/balena-image-other.balenaos-img", b"another")
    put(flasher, SETTINGS, b"BALENA_IMAGE=balena-image-*.balenaos-img\n")


def empty_image(flasher: BuiltImage, inner: str) -> None:
    put(flasher, inner, b"")


def no_such_image(flasher: BuiltImage, inner: str) -> None:
    put(flasher, inner, b"This is no image.\n" * 10_000)


def two_flashers(flasher: BuiltImage, _inner: str) -> None:
    numbers = {each.label: each.number for each in flasher.partitions}
    run("sgdisk", f"--change-name={numbers['flash-rootB']}:flash-rootA", flasher.path)


def no_filesystem(flasher: BuiltImage, _inner: str) -> None:
    [root] = [each for each in flasher.partitions if each.label == "flash-rootA"]
    with flasher.path.open("r+b") as file:
        file.seek(root.extent.start)
        file.write(bytes(8192))


@pytest.mark.needs("gdisk")
@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (no_settings, "flasher-settings-missing"),
        (settings_that_run, "settings-invalid"),
        (settings_too_large, "file-too-large"),
        (settings_link_loop, "flasher-settings-missing"),
        (no_image, "flasher-image-missing"),
        (image_link_loop, "flasher-image-missing"),
        (two_images, "flasher-image-ambiguous"),
        (empty_image, "image-empty"),
        (no_such_image, "table-missing"),
        (two_flashers, "flasher-ambiguous"),
        (no_filesystem, "ext4-invalid"),
    ],
)
def test_a_flasher_that_cannot_be_what_it_says_is_refused_in_a_sentence(
    image: MakeImage, spoil: Callable[[BuiltImage, str], None], code: str
) -> None:
    flasher = image(Layout.GPT_FAT16, flasher=True)
    assert flasher.inner is not None
    spoil(flasher, f"/opt/{flasher.inner.path.name}")
    with open_source(flasher.path) as source, pytest.raises(ImageError) as caught:
        plan_unwrap(BalenaImage(source))
    assert (caught.value.code, caught.value.exit_status) == (code, 3)
    assert "\n" not in str(caught.value)


def test_boards_are_known_with_what_their_own_program_does() -> None:
    tx2 = find_board("jetson-tx2")
    assert tx2 is not None
    assert tx2.hook_place is HookPlace.EMMC_BOOT
    assert "mmcblk0boot0" in (tx2.hook or "")
    generic = find_board("generic-amd64")
    assert generic is not None
    assert (generic.hook, generic.hook_place) == (None, None)
    assert generic.source.startswith("balena-os/balena-generic@")
    assert find_board("no-such-board") is None
