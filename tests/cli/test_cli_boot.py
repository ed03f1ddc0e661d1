"""``boot`` as users meet it: images of every layout, judged by mtools, fsck.vfat and checksums."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from builders import ENVIRONMENT, BuiltImage, Layout, run, write_tree
from commandline import RunBalenaflash
from fat_volumes import read_folder, read_tree
from imagecopies import MakeImage
from imagedigest import digest
from loopdev import AttachLoop

from balenaflash.units import MIB

layouts = pytest.mark.parametrize("layout", list(Layout))


def digest_outside(built: BuiltImage) -> str:
    """Of every byte that is not in the boot partition."""
    return digest(built.path, without=built.boot_extent)


def volume(built: BuiltImage) -> str:
    """The boot partition as mtools names it."""
    return f"{built.path}@@{built.boot_extent.start}"


def read_with_mtools(built: BuiltImage, path: str) -> bytes:
    command = ["mtype", "-i", volume(built), f"::{path}"]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True).stdout


def require_sound(built: BuiltImage, folder: Path) -> None:
    """Return if ``fsck.vfat`` finds nothing to say of the boot partition."""
    part = folder / "boot.part"
    with built.path.open("rb") as file:
        file.seek(built.boot_extent.start)
        part.write_bytes(file.read(built.boot_extent.size))
    run("fsck.vfat", "-n", part)


def require_error(
    done: subprocess.CompletedProcess[str], *, status: int = 3, says: str, hint: str = ""
) -> None:
    """Return if it failed as failures should: a line, perhaps a hint, and an empty stdout."""
    assert (done.returncode, done.stdout) == (status, "")
    first, *rest = done.stderr.splitlines()
    assert first.startswith("balenaflash: ")
    assert says in first
    assert len(rest) <= 1
    assert hint in "".join(rest)


FINGERPRINT = "/balenaos.fingerprint"


def fingerprint(files: dict[str, bytes]) -> dict[str, bytes]:
    return {FINGERPRINT: files[FINGERPRINT]}


def require_fingerprint(files: dict[str, bytes]) -> None:
    """Each line is what md5sum says of the file, and no file is without a line."""
    lines = files[FINGERPRINT].decode().splitlines()
    listed = {
        f"/{path}": digest
        for digest, path in (re.split(" [ *]", line, maxsplit=1) for line in lines)
    }
    expected = {
        path: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for path, content in files.items()
        if path not in {FINGERPRINT, "/config.json"}
    }
    assert listed == expected


class TestPut:
    @layouts
    def test_files_read_back_with_mtools_and_nothing_outside_changes(
        self, layout: Layout, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        built = image(layout)
        outside = digest_outside(built)
        given = {
            "/a file with a long name.bin": os.urandom(300_001),
            "/EFI/BOOT/grub.cfg": b"set timeout=9\n",
            "/empty": b"",
            "/deep/er/x": os.urandom(5000),
        }
        write_tree(tmp_path / "given", given)

        done = balenaflash("boot", "put", built.path, *(tmp_path / "given").iterdir(), "/")

        assert done.returncode == 0, done.stderr
        found = read_tree(volume(built), tmp_path / "found")
        require_fingerprint(found)
        assert found == built.boot_files | given | fingerprint(found)
        require_sound(built, tmp_path)
        assert digest_outside(built) == outside

    def test_one_file_alone_goes_to_the_root_and_standard_input_to_a_path(
        self, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        built = image(Layout.GPT_FAT16)
        (tmp_path / "config.json").write_bytes(b'{"hostname": "a"}')
        assert balenaflash("boot", "put", built.path, tmp_path / "config.json").returncode == 0
        done = balenaflash("boot", "put", built.path, "-", "splash/x", input="from a pipe")
        assert done.returncode == 0
        assert read_with_mtools(built, "/config.json") == b'{"hostname": "a"}'
        assert read_with_mtools(built, "/splash/x") == b"from a pipe"

    def test_the_result_tells_each_file_and_what_was_written(
        self, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        built = image(Layout.GPT_BOARD)
        (tmp_path / "new").write_bytes(b"x" * 1000)
        command = ("boot", "put", "--json", built.path, tmp_path / "new")
        dry = json.loads(balenaflash(*command, "--dry-run").stdout)["result"]
        before = built.path.read_bytes()
        result = json.loads(balenaflash(*command).stdout)["result"]
        after = built.path.read_bytes()
        # cmp -l would take long: what differs is counted by sector.
        sectors = range(built.boot_extent.start, built.boot_extent.end, 512)
        changed = sum(before[at : at + 512] != after[at : at + 512] for at in sectors)
        assert result == {
            "image": str(built.path),
            "dry_run": False,
            "partition": built.boot_number,
            "changes": [{"path": "/new", "action": "created", "type": "file", "size": 1000}],
            "diff": [],
            "sectors": changed,
            "bytes": changed * 512,
            "repairs": [],
            "warnings": [],
            "warning_codes": [],
        }
        assert dry["diff"] == ["--- /dev/null", "+++ /new", "@@ -0,0 +1 @@", "+" + "x" * 1000]
        assert dry | {"diff": []} == result | {"dry_run": True}

    def test_a_dry_run_writes_nothing_and_needs_no_permission_to_write(
        self, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        built = image(Layout.MSDOS_FAT16)
        built.path.chmod(0o444)
        before, time = digest(built.path), built.path.stat().st_mtime_ns
        (tmp_path / "new").write_bytes(b"x")
        done = balenaflash("boot", "put", "-n", built.path, tmp_path / "new")
        assert done.returncode == 0
        assert "created /new (1 bytes)" in done.stdout
        assert "nothing was written (--dry-run)" in done.stdout
        assert (digest(built.path), built.path.stat().st_mtime_ns) == (before, time)

    @pytest.mark.parametrize(
        ("words", "says", "hint"),
        [
            (["missing"], "missing: cannot be read: No such file or directory", ""),
            (["small", "/nowhere/"], "/nowhere: no such directory", "mkdir -p"),
            (["small", 'a"b'], "a FAT volume cannot store", ""),
            (["large"], "large: 62914560 bytes (60.0 MiB) are needed", "boot rm"),
            (["small", "large", "/"], "large: 62914560 bytes (60.0 MiB) are needed", "boot rm"),
        ],
    )
    def test_what_cannot_be_put_is_told_in_a_line_and_nothing_is(
        self,
        words: list[str],
        says: str,
        hint: str,
        image: MakeImage,
        balenaflash: RunBalenaflash,
        tmp_path: Path,
    ) -> None:
        built = image(Layout.GPT_FAT16)
        before = digest(built.path)
        (tmp_path / "small").write_bytes(b"x")
        (tmp_path / "large").write_bytes(bytes(60 * MIB))
        done = balenaflash("boot", "put", built.path, *words, cwd=tmp_path)
        require_error(done, says=says, hint=hint)
        assert digest(built.path) == before

    @pytest.mark.parametrize("words", [["-"], ["-", "/splash/"], ["-", "x", "/"]])
    def test_standard_input_without_a_name_is_wrong_usage(
        self, words: list[str], image: MakeImage, balenaflash: RunBalenaflash
    ) -> None:
        done = balenaflash("boot", "put", image(Layout.GPT_FAT16).path, *words, input="x")
        assert (done.returncode, done.stdout) == (2, "")


class TestUseInternal:
    def test_what_inspect_calls_a_flasher_is_one(
        self, image: MakeImage, balenaflash: RunBalenaflash
    ) -> None:
        """One without a flag file, whose label is another one: the GPT's name is left to tell."""
        built = image(Layout.GPT_FAT16, flasher=True)
        volume = f"{built.path}@@{built.boot_extent.start}"
        run("mdel", "-i", volume, "::balena-image-flasher")
        run("mlabel", "-i", volume, "::BOOT")
        run("mcopy", "-o", "-i", volume, "::device-type.json", "::grub.cfg_internal")
        inspected = balenaflash("inspect", "--json", built.path)
        assert json.loads(inspected.stdout)["result"]["balena"]["kind"] == "flasher"
        done = balenaflash("boot", "use-internal", "--json", built.path)
        assert done.returncode == 3
        assert json.loads(done.stdout)["errors"][0]["code"] == "flasher-image"

    @layouts
    def test_the_internal_settings_are_in_place_afterwards(
        self, layout: Layout, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        built = image(layout)
        internal = read_with_mtools(built, "/grub.cfg_internal")
        outside = digest_outside(built)
        done = balenaflash("boot", "use-internal", built.path)
        assert done.returncode == 0, done.stderr
        assert "replaced /EFI/BOOT/grub.cfg" in done.stdout
        assert read_with_mtools(built, "/EFI/BOOT/grub.cfg") == internal
        require_sound(built, tmp_path)
        assert digest_outside(built) == outside

        edited = digest(built.path)
        again = balenaflash("boot", "use-internal", built.path)
        assert again.returncode == 0
        assert "unchanged /EFI/BOOT/grub.cfg" in again.stdout
        assert "nothing to change" in again.stdout
        assert digest(built.path) == edited

    @pytest.mark.parametrize("option", [[], ["--dry-run"]])
    def test_a_flasher_is_left_alone_and_the_way_out_named(
        self, option: list[str], image: MakeImage, balenaflash: RunBalenaflash
    ) -> None:
        built = image(Layout.MSDOS_FAT16, flasher=True)
        before = digest(built.path)
        done = balenaflash("boot", "use-internal", *option, built.path)
        require_error(done, says="a flasher image", hint="balenaflash unwrap")
        assert digest(built.path) == before


class TestRead:
    @layouts
    def test_everything_is_listed_and_comes_out_as_it_was_put_in(
        self, layout: Layout, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        built = image(layout)
        before = digest(built.path)

        listed = json.loads(balenaflash("boot", "ls", "-R", "--json", built.path).stdout)
        sizes = {
            entry["path"]: entry["size"]
            for entry in listed["result"]["entries"]
            if entry["type"] == "file"
        }
        assert sizes == {path: len(content) for path, content in built.boot_files.items()}

        done = balenaflash("boot", "get", built.path, "/", tmp_path / "out")
        assert done.returncode == 0
        assert read_folder(tmp_path / "out") == built.boot_files
        assert digest(built.path) == before

    def test_a_listing_shows_sizes_times_and_which_are_directories(
        self, image: MakeImage, balenaflash: RunBalenaflash
    ) -> None:
        built = image(Layout.GPT_FAT16)
        short = balenaflash("boot", "ls", built.path).stdout.splitlines()
        assert short[:2] == ["EFI/", "balena-image"]
        # date -u -d @1700000000, the time of every file of a test image
        (long,) = balenaflash("boot", "ls", "-l", built.path, "balena-image").stdout.splitlines()
        assert long.split() == ["24", "2023-11-14", "22:13:20", "balena-image"]
        below = balenaflash("boot", "ls", "-R", built.path, "/efi").stdout.splitlines()
        assert below[:2] == ["/EFI/BOOT/", "/EFI/BOOT/bootx64.efi"]

    def test_a_file_is_printed_byte_for_byte(
        self, image: MakeImage, balenaflash: RunBalenaflash
    ) -> None:
        built = image(Layout.GPT_FAT16)
        done = balenaflash("boot", "cat", built.path, "config.json")
        assert done.stdout.encode() == built.boot_files["/config.json"]
        told = json.loads(balenaflash("boot", "cat", "--json", built.path, "/config.json").stdout)
        assert told["result"]["encoding"] == "utf-8"
        assert told["result"]["content"].encode() == built.boot_files["/config.json"]
        logo = "/splash/balena-logo.png"
        told = json.loads(balenaflash("boot", "cat", "--json", built.path, logo).stdout)
        assert told["result"]["encoding"] == "base64"
        # The other way round than the command does it: by coreutils.
        decoded = subprocess.run(
            ["base64", "-d"],
            input=told["result"]["content"].encode(),
            capture_output=True,
            check=True,
        )
        assert decoded.stdout == built.boot_files[logo]

    def test_a_local_file_is_overwritten_only_if_asked_for(
        self, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        built = image(Layout.GPT_FAT16)
        (tmp_path / "config.json").write_bytes(b"mine")
        command = ("boot", "get", built.path, "/config.json")
        refused = balenaflash(*command, cwd=tmp_path)
        require_error(refused, status=4, says="exists already", hint="--overwrite")
        assert (tmp_path / "config.json").read_bytes() == b"mine"
        assert balenaflash(*command, "-f", cwd=tmp_path).returncode == 0
        assert (tmp_path / "config.json").read_bytes() == built.boot_files["/config.json"]

    @pytest.mark.parametrize(
        ("command", "path", "says"),
        [
            ("cat", "/missing", "/missing: no such file"),
            ("cat", "EFI", "/EFI: is a directory"),
            ("ls", "/missing", "/missing: no such file"),
            ("get", "/missing", "/missing: no such file"),
        ],
    )
    def test_what_is_not_there_is_told_in_a_line(
        self, command: str, path: str, says: str, image: MakeImage, balenaflash: RunBalenaflash
    ) -> None:
        done = balenaflash("boot", command, image(Layout.GPT_FAT16).path, path)
        require_error(done, says=says)

    def test_a_card_is_read_and_an_edit_of_it_is_to_be_confirmed(
        self, image: MakeImage, balenaflash: RunBalenaflash, attach_loop: AttachLoop
    ) -> None:
        built = image(Layout.MSDOS_FAT32)
        node = attach_loop(built.path)
        done = balenaflash("boot", "cat", node, "/config.json")
        assert done.stdout.encode() == built.boot_files["/config.json"]
        before = digest(built.path)
        done = balenaflash("boot", "rm", node, "/config.json")
        assert (done.returncode, done.stdout) == (4, "")
        assert f"{node}: changing it was not confirmed" in done.stderr
        assert digest(built.path) == before


class TestRemoveAndMakeDirectory:
    @layouts
    def test_a_tree_is_removed_and_another_one_made(
        self, layout: Layout, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        built = image(layout)
        outside = digest_outside(built)
        commands = (
            ("rm", built.path, "/config.json", "-r", "/overlays"),
            ("mkdir", "-p", built.path, "/one/two", "three"),
        )
        for command in commands:
            done = balenaflash("boot", *command)
            assert done.returncode == 0, done.stderr
        left = {
            path: content
            for path, content in built.boot_files.items()
            if path != "/config.json" and not path.startswith("/overlays/")
        }
        found = read_tree(volume(built), tmp_path / "found")
        require_fingerprint(found)
        assert found == left | fingerprint(found)
        assert (tmp_path / "found" / "one" / "two").is_dir()
        assert (tmp_path / "found" / "three").is_dir()
        assert not (tmp_path / "found" / "overlays").exists()
        require_sound(built, tmp_path)
        assert digest_outside(built) == outside

    @pytest.mark.parametrize(
        ("words", "says", "hint"),
        [
            (["rm", "/EFI"], "/EFI: is a directory", "-r"),
            (["rm", "/config.json", "/missing"], "/missing: no such file", "boot ls"),
            (["rm", "-r", "/"], "the root directory cannot be removed", ""),
            (["mkdir", "/a/b"], "/a: no such directory", "mkdir -p"),
        ],
    )
    def test_what_cannot_be_done_is_told_in_a_line_and_nothing_is(
        self,
        words: list[str],
        says: str,
        hint: str,
        image: MakeImage,
        balenaflash: RunBalenaflash,
    ) -> None:
        built = image(Layout.GPT_FAT16)
        before = digest(built.path)
        command, *rest = words
        done = balenaflash("boot", command, built.path, *rest)
        require_error(done, says=says, hint=hint)
        assert digest(built.path) == before


def test_an_image_without_boot_partition_is_told_in_a_line(
    balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("not an image\n" * 1000)
    for words in (["ls"], ["rm", "/x"], ["use-internal"]):
        command, *rest = words
        done = balenaflash("boot", command, tmp_path / "text", *rest)
        require_error(done, says=str(tmp_path / "text"))
