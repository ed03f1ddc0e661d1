"""What ``inspect`` tells of the boot files, the networks, the block map and clones."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from bmaptool import bmaptool, needs_bmaptool
from boot_volume import edited
from builders import BuiltImage, Layout, run
from commandline import RunBalenaflash
from imagecopies import MakeImage

from balenaflash.commands.inspect import inspect
from balenaflash.units import GIB, MIB

PSK = "correct-horse-battery"
HOME = f"""\
[connection]
id=home
type=wifi

[wifi]
ssid=Caf\u00e9 \x1b[2J

[wifi-security]
key-mgmt=wpa-psk
psk={PSK}
""".encode()


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def result_of(
    balenaflash: RunBalenaflash, *words: str | Path, fails: str | None = None
) -> dict[str, Any]:
    """The result of ``inspect``; ``fails`` is the code of a check that does not pass."""
    done = balenaflash("inspect", "--json", *words)
    told = json.loads(done.stdout)
    codes = [] if fails is None else [fails]
    assert done.returncode == (0 if fails is None else 3), done.stderr
    assert [error["code"] for error in told["errors"]] == codes
    result: dict[str, Any] = told["result"]
    return result


def test_the_files_are_counted_and_the_largest_is_named(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    sizes = {path: len(content) for path, content in built.boot_files.items()}
    largest = max(sizes, key=lambda path: sizes[path])
    assert result_of(balenaflash, built.path)["files"] == {
        "count": len(sizes),
        "largest": {"path": largest, "size": sizes[largest]},
    }
    text = balenaflash("inspect", built.path).stdout
    assert f"Files:      {len(sizes)}, the largest {largest} (" in text


def test_files_are_compared_with_the_fingerprint_when_asked_to(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    with edited(built) as volume:
        volume.write_file("/EFI/BOOT/grub.cfg", b"changed")
        volume.write_file("/extra_uEnv.txt", b"changed too, and kept by updates")
        volume.write_file("/config.json", b"{}")  # is never listed
        volume.remove_file("/os-release")
        volume.write_file("/new.txt", b"new")
    expected = {
        "path": "/balenaos.fingerprint",
        "matches": False,
        "differing": None,
        "missing": ["/os-release"],
        "new": ["/new.txt"],
        "malformed_lines": [],
    }
    quick = result_of(balenaflash, built.path)
    assert quick["fingerprint"] == expected
    assert quick["overwritten_by_update"] is None
    read = result_of(balenaflash, "--check-files", built.path, fails="fingerprint-differs")
    differing = ["/EFI/BOOT/grub.cfg", "/extra_uEnv.txt"]
    assert read["fingerprint"] == expected | {"differing": differing}
    assert read["overwritten_by_update"] == ["/EFI/BOOT/grub.cfg"]
    text = balenaflash("inspect", "--check-files", built.path).stderr
    for line in (
        "changed: /EFI/BOOT/grub.cfg, /extra_uEnv.txt",
        "missing: /os-release",
        "added: /new.txt",
        "the next host OS update replaces /EFI/BOOT/grub.cfg",
    ):
        assert f"            {line}\n" in text


def test_an_image_as_it_was_built_matches_its_fingerprint(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    # That md5sum finds all that the fingerprint lists is shown in test_fingerprint.py.
    assert result_of(balenaflash, built.path)["fingerprint"]["matches"] is None
    read = result_of(balenaflash, "--check-files", built.path)
    assert read["fingerprint"]["matches"] is True
    assert read["overwritten_by_update"] == []
    with edited(built) as volume:
        volume.remove_file("/balenaos.fingerprint")
    told = result_of(balenaflash, "--check-files", built.path, fails="fingerprint-missing")
    assert told["fingerprint"] is None
    assert "no fingerprint" in balenaflash("inspect", built.path).stdout


def test_networks_are_told_without_their_secrets(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    with edited(built) as volume:
        volume.write_file("/system-connections/home", HOME)
        volume.write_file("/system-connections/wired", b"[connection]\ntype=ethernet\n")
        volume.write_file("/system-connections/broken", b"no keyfile")
    text = balenaflash("inspect", built.path)
    told = balenaflash("inspect", "--json", "--show-secrets", built.path)
    assert PSK not in text.stdout + text.stderr + told.stdout + told.stderr
    assert "\x1b" not in text.stdout
    line = next(line for line in text.stdout.splitlines() if line.startswith("Networks:"))
    assert "home (wifi, SSID Caf\u00e9 \\x1b[2J); wired (ethernet)" in line
    assert "sample: 2" in line
    assert "invalid: 1" in line
    networks = {each["name"]: each for each in json.loads(told.stdout)["result"]["networks"]}
    assert networks["home"]["ssid"] == "Caf\u00e9 \x1b[2J"
    assert networks["home"]["security"] == "wpa-psk"
    assert networks["wired"]["type"] == "ethernet"
    assert networks["broken"]["state"] == "invalid"


@needs_bmaptool
class TestBlockMap:
    @pytest.fixture
    def mapped(self, built: BuiltImage) -> BuiltImage:
        bmaptool("create", "-o", f"{built.path}.bmap", built.path)
        return built

    def test_the_map_of_the_image_is_true(
        self, mapped: BuiltImage, balenaflash: RunBalenaflash
    ) -> None:
        told = result_of(balenaflash, mapped.path)["bmap"]
        # The numbers are bmaptool's own.
        text = Path(f"{mapped.path}.bmap").read_text(encoding="utf-8")
        blocks, used = (
            int(text.split(f"<{name}>")[-1].split("<")[0])
            for name in ("BlocksCount", "MappedBlocksCount")
        )
        assert told == {
            "path": f"{mapped.path}.bmap",
            "fault": None,
            "block_size": 4096,
            "blocks": blocks,
            "mapped_blocks": used,
            "differing": None,
        }
        assert result_of(balenaflash, "--check-bmap", mapped.path)["bmap"]["differing"] == []
        assert "matches the image" in balenaflash("inspect", "--check-bmap", mapped.path).stdout

    def test_one_spoiled_byte_is_found_when_all_is_read(
        self, mapped: BuiltImage, balenaflash: RunBalenaflash
    ) -> None:
        # A byte of the text in grub.cfg: its block is surely mapped.
        content = mapped.path.read_bytes()
        place = content.index(b"menuentry 'boot'")
        with mapped.path.open("r+b") as file:
            file.seek(place)
            file.write(b"M")
        told = result_of(balenaflash, mapped.path)["bmap"]
        assert (told["fault"], told["differing"]) == (None, None)
        told = result_of(balenaflash, "--check-bmap", mapped.path, fails="bmap-differs")["bmap"]
        (found,) = told["differing"]
        assert found["start"] <= place < found["start"] + found["size"]

    def test_a_map_that_is_damaged_or_of_another_image_is_told_so(
        self, mapped: BuiltImage, balenaflash: RunBalenaflash
    ) -> None:
        path = Path(f"{mapped.path}.bmap")
        good = path.read_bytes()
        path.write_bytes(good.replace(b"<Range", b"<range", 1))
        told = result_of(balenaflash, mapped.path)["bmap"]
        assert str(path) in told["fault"]
        path.write_bytes(good)
        os.truncate(mapped.path, mapped.path.stat().st_size + MIB)
        subprocess.run(["sgdisk", "--move-second-header", mapped.path], check=True)
        told = result_of(balenaflash, "--check-bmap", mapped.path, fails="bmap-invalid")["bmap"]
        assert "its block map is of an image of" in told["fault"]
        assert told["differing"] is None


def test_an_image_without_a_block_map_does_not_pass_its_check(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    assert result_of(balenaflash, "--check-bmap", built.path, fails="bmap-missing")["bmap"] is None


def test_the_disk_of_a_board_that_has_booted_is_warned_of(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    place = f"{built.path}@@{built.boot_extent.start}"
    run("mlabel", "-i", place, "-N", "BDEF1234", "::resin-boot")
    done = balenaflash("inspect", built.path)
    assert "The disk of this image has booted" in done.stderr
    assert result_of(balenaflash, built.path)["balena"]["is_clone"] is True


def test_too_little_room_for_an_update_is_warned_of(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    with edited(built) as volume:
        volume.write_file("/large.bin", os.urandom(15 * MIB))
    assert "a host OS update needs 30.0 MiB" in balenaflash("inspect", built.path).stderr


def test_a_damaged_boot_partition_is_told_of_all_the_same(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    """A directory entry that leads into another file's cluster, and from there nowhere."""
    content = built.path.read_bytes()
    # The name of the directory /EFI in its 8.3 slot; the first cluster is at byte 26 (fatgen103).
    slot = content.index(b"EFI        \x10", built.boot_extent.start)
    with built.path.open("r+b") as file:
        file.seek(slot + 26)
        file.write(b"\xf0\xff")
    done = balenaflash("inspect", "--json", built.path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["files"] is None
    assert result["networks"] is None
    assert result["fingerprint"] is None
    assert result["balena"]["slug"] == "generic-amd64"
    assert "directory /EFI" in done.stderr
    assert "Files:      unknown" in balenaflash("inspect", built.path).stdout


def test_it_stays_fast_however_large_the_image(built: BuiltImage) -> None:
    os.truncate(built.path, 4 * GIB)
    subprocess.run(["sgdisk", "--move-second-header", built.path], check=True)
    inspect(built.path)  # libraries that are loaded on first use
    # Time of the processor alone: the machine may be busy with something else.
    started = time.process_time()
    inspect(built.path)
    assert time.process_time() - started < 0.3
