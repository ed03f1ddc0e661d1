"""``boot mv``, patterns, and options of edits, as users meet them."""

import json
import re
from pathlib import Path

import pytest
from boot_volume import edited, extract, file_tree
from builders import BuiltImage, Layout, run
from commandline import RunBalenaflash
from fat_volumes import read_folder
from imagecopies import MakeImage
from imagedigest import digest

PSK = "correct-horse-battery"


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def files_of(built: BuiltImage, folder: Path) -> dict[str, bytes]:
    return file_tree(extract(built, folder))


def require_fingerprint(found: dict[str, bytes], folder: Path) -> None:
    """Return if ``md5sum --check`` finds all that the fingerprint lists, and it lists all."""
    run("sh", "-c", f"cd {folder} && md5sum --check --strict --quiet balenaos.fingerprint")
    lines = found["/balenaos.fingerprint"].decode().splitlines()
    listed = {"/" + re.split(" [ *]", line, maxsplit=1)[1] for line in lines}
    assert listed == set(found) - {"/config.json", "/balenaos.fingerprint"}


class TestMove:
    def test_files_are_where_they_were_moved_to(
        self, built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        outside = digest(built.path, without=built.boot_extent)
        done = balenaflash("boot", "mv", built.path, "/OVERLAYS/*.dtbo", "/EFI/BOOT/")
        assert done.returncode == 0, done.stderr
        assert "moved /overlays/i2c-rtc.dtbo to /EFI/BOOT/i2c-rtc.dtbo (1500 bytes)" in done.stdout
        found = files_of(built, tmp_path / "found")
        require_fingerprint(found, tmp_path / "found")
        del found["/balenaos.fingerprint"]
        assert found == {
            path.replace("/overlays/", "/EFI/BOOT/"): content
            for path, content in built.boot_files.items()
            if path != "/balenaos.fingerprint"
        }
        assert digest(built.path, without=built.boot_extent) == outside

    def test_scripts_are_told_where_each_file_came_from(
        self, built: BuiltImage, balenaflash: RunBalenaflash
    ) -> None:
        done = balenaflash("boot", "mv", "--json", built.path, "config.json", "old.json")
        assert json.loads(done.stdout)["result"]["changes"] == [
            {
                "path": "/old.json",
                "action": "moved",
                "type": "file",
                "size": len(built.boot_files["/config.json"]),
                "from": "/config.json",
            }
        ]

    def test_a_dry_run_never_shows_a_secret_under_another_name(
        self, built: BuiltImage, balenaflash: RunBalenaflash
    ) -> None:
        keyfile = f"[wifi-security]\nkey-mgmt=wpa-psk\npsk={PSK}\n".encode()
        with edited(built) as volume:
            volume.write_file("/system-connections/home", keyfile)
            volume.write_file("/readme.txt", b"old\n")
        before = digest(built.path)
        for target in ("/plain.txt", "/readme.txt", "/EFI"):
            command = ("boot", "mv", "-n", built.path, "/system-connections/home", target)
            for option in ([], ["--json"]):
                done = balenaflash(*command, *option)
                assert done.returncode == 0, done.stderr
                assert "/system-connections/home" in done.stdout
                assert PSK not in done.stdout + done.stderr
        assert digest(built.path) == before

    def test_an_error_names_the_thing_and_changes_nothing(
        self, built: BuiltImage, balenaflash: RunBalenaflash
    ) -> None:
        before = digest(built.path)
        done = balenaflash("boot", "mv", built.path, "/config.json", "/missing", "/EFI")
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("balenaflash: /missing: no such file")
        assert balenaflash("boot", "mv", built.path, "/config.json").returncode == 2
        assert digest(built.path) == before


class TestPatterns:
    def test_what_matches_is_listed(self, built: BuiltImage, balenaflash: RunBalenaflash) -> None:
        done = balenaflash("boot", "ls", built.path, "/efi/*/X86*/*fat*")
        assert done.stdout.splitlines() == ["/EFI/BOOT/x86_64-efi/fat.mod"]
        told = json.loads(balenaflash("boot", "ls", "--json", built.path, "/**/*.mod").stdout)
        expected = sorted(path for path in built.boot_files if path.endswith(".mod"))
        assert [entry["path"] for entry in told["result"]["entries"]] == expected

    def test_what_matches_is_printed_one_after_the_other(
        self, built: BuiltImage, balenaflash: RunBalenaflash
    ) -> None:
        done = balenaflash("boot", "cat", built.path, "/system-connections/*")
        names = sorted(path for path in built.boot_files if path.startswith("/system-con"))
        assert done.stdout.encode() == b"".join(built.boot_files[name] for name in names)
        told = json.loads(balenaflash("boot", "cat", "--json", built.path, "/os-*").stdout)
        assert told["result"]["matches"] == ["/os-release"]

    def test_what_matches_is_copied_into_a_directory(
        self, built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        command = ("boot", "get", built.path, "/overlays/*.dtbo", out)
        done = balenaflash(*command)
        assert (done.returncode, done.stdout) == (3, "")
        assert f"{out}: no such directory" in done.stderr
        out.mkdir()
        assert balenaflash(*command).returncode == 0
        assert read_folder(out) == {
            path.removeprefix("/overlays"): content
            for path, content in built.boot_files.items()
            if path.startswith("/overlays/")
        }

    def test_two_files_of_one_name_are_not_copied_over_each_other(
        self, built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        with edited(built) as volume:
            volume.write_file("/grub.cfg", b"another")
        done = balenaflash("boot", "get", built.path, "/**/grub.cfg", ".", cwd=tmp_path)
        assert done.returncode == 3
        assert "both /EFI/BOOT/grub.cfg and /grub.cfg would be copied there" in done.stderr
        assert not (tmp_path / "grub.cfg").exists()

    def test_what_matches_is_removed_and_nothing_else(
        self, built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        done = balenaflash("boot", "rm", "-r", built.path, "/**/*EFI*/**", "/**/*.DTBO")
        assert done.returncode == 0, done.stderr
        found = files_of(built, tmp_path / "found")
        require_fingerprint(found, tmp_path / "found")
        assert set(found) == {
            path
            for path in built.boot_files
            if not path.endswith(".dtbo") and not path.startswith("/EFI/")
        }
        assert (tmp_path / "found" / "EFI").is_dir()

    @pytest.mark.parametrize("command", ["ls", "cat", "get", "rm"])
    def test_a_pattern_that_matches_nothing_is_an_error(
        self, command: str, built: BuiltImage, balenaflash: RunBalenaflash
    ) -> None:
        before = digest(built.path)
        done = balenaflash("boot", command, built.path, "/*.missing")
        assert (done.returncode, done.stdout) == (3, "")
        message, hint = done.stderr.splitlines()
        assert message == "balenaflash: /*.missing: matches nothing in the boot partition"
        assert "boot ls" in hint
        assert digest(built.path) == before


def test_internal_settings_of_ones_own_are_used_and_the_old_ones_kept(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    with edited(built) as volume:
        volume.write_file("/lab.cfg", b"lab")
    command = ["boot", "use-internal", "--from", "/lab.cfg", "--to", "/EFI/BOOT/grub.cfg"]
    done = balenaflash(*command, "--keep-old", built.path)
    assert done.returncode == 0, done.stderr
    assert "created /EFI/BOOT/grub.cfg.old" in done.stdout
    found = files_of(built, tmp_path / "found")
    assert found["/EFI/BOOT/grub.cfg"] == b"lab"
    assert found["/EFI/BOOT/grub.cfg.old"] == built.boot_files["/EFI/BOOT/grub.cfg"]


class TestKeepFingerprint:
    COMMANDS = (
        ("boot", "put", "{image}", "{given}/new.bin"),
        ("boot", "rm", "{image}", "/os-release"),
        ("boot", "mv", "{image}", "/os-release", "/other"),
        ("boot", "mkdir", "{image}", "/new"),
        ("boot", "use-internal", "{image}"),
        ("boot", "apply", "{image}", "--files", "new.bin:", "--deploy-dir", "{given}"),
        ("boot", "splash", "{image}", "{given}/logo.png"),
        ("config", "set", "{image}", "hostname=other"),
        ("config", "unset", "{image}", "hostname"),
        ("config", "merge", "{image}", "{given}/config.json"),
        ("network", "add", "ethernet", "{image}"),
        ("network", "add", "wifi", "{image}", "--ssid", "Lab", "--open"),
        ("network", "rm", "{image}", "home"),
    )

    @pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:3]))
    def test_each_edit_leaves_it_alone_if_asked_to(
        self,
        command: tuple[str, ...],
        built: BuiltImage,
        balenaflash: RunBalenaflash,
        tmp_path: Path,
    ) -> None:
        given = tmp_path / "given"
        given.mkdir()
        (given / "new.bin").write_bytes(b"new")
        (given / "config.json").write_bytes(b'{"hostname": "merged"}')
        (given / "logo.png").write_bytes(ONE_PIXEL)
        with edited(built) as volume:
            volume.write_file("/system-connections/home", b"[connection]\ntype=ethernet\n")
        before = files_of(built, tmp_path / "before")
        words = [word.format(image=built.path, given=given) for word in command]
        done = balenaflash(*words, "--keep-fingerprint")
        assert done.returncode == 0, done.stderr
        after = files_of(built, tmp_path / "after")
        assert after["/balenaos.fingerprint"] == before["/balenaos.fingerprint"]
        assert after != before or "mkdir" in command


# A whole PNG of one pixel; `file` says: PNG image data, 1 x 1, 1-bit grayscale, non-interlaced.
ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010100000000376ef9"
    "240000000a49444154789c636800000082008177cd72b60000000049454e44ae"
    "426082"
)
