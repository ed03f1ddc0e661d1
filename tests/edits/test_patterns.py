"""Patterns for paths in the boot partition, compared with what bash makes of them."""

import subprocess
from pathlib import Path

import pytest
from builders import write_tree
from fat_volumes import make_volume

from balenaflash.edits.files import find_matches, is_pattern, list_files, uppermost
from balenaflash.errors import EditError

pytestmark = pytest.mark.needs("dosfstools", "mtools")

TREE = {
    "/config.json": b"{}",
    "/EFI/BOOT/grub.cfg": b"",
    "/EFI/BOOT/grub.cfg.sig": b"",
    "/EFI/BOOT/x86_64-efi/fat.mod": b"",
    "/EFI/BOOT/x86_64-efi/ext2.mod": b"",
    "/grub.cfg_internal": b"",
    "/overlays/A-first.dtbo": b"",
    "/overlays/b-second.dtbo": b"",
    "/overlays/.hidden": b"",
    "/overlays/file[1].txt": b"",
    "/system-connections/home": b"",
    "/system-connections/BOOT/deeper/grub.cfg": b"",
}


def expand_in_bash(pattern: str, folder: Path) -> list[str]:
    options = "globstar nocaseglob dotglob nullglob"
    script = f"shopt -s {options}; printf '%s\\0' {pattern.lstrip('/')}"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, check=True)
    found = [name.decode().rstrip("/") for name in done.stdout.split(b"\0") if name]
    return sorted(f"/{name}" for name in found)


@pytest.mark.parametrize(
    "pattern",
    [
        "/*",
        "/EFI/*",
        "[e]fi/boo[t]/*",
        "/*.json",
        "/overlays/*.DTBO",
        "/overlays/?-*.dtbo",
        "/overlays/[a-b]*",
        "/overlays/[!a]*",
        "/*/BOOT",
        "/**/grub.cfg",
        "/**/*.mod",
        "/EFI/**/*.cfg",
        "/**/BOOT/**/*",
        "/system-connections/**/deeper/*",
        "/*/*/*",
    ],
)
def test_a_pattern_matches_what_it_does_in_bash(pattern: str, tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    expected = expand_in_bash(pattern, tmp_path / "tree")
    assert expected, "the pattern is to match something"
    assert list(find_matches(made.volume, pattern)) == expected


def test_at_the_end_two_stars_are_all_that_lies_below_and_not_the_directory(
    tmp_path: Path,
) -> None:
    made = make_volume(tmp_path, TREE)
    # In bash it would be the directory too, and `rm -r` would be given both.
    expected = [path for path in expand_in_bash("/EFI/**", tmp_path / "tree") if path != "/EFI"]
    assert list(find_matches(made.volume, "/EFI/**")) == expected
    assert set(find_matches(made.volume, "/**")) > set(TREE)


def test_the_name_of_a_file_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    made = make_volume(tmp_path, {**TREE, "/overlays/file1.txt": b""})
    assert not is_pattern(made.volume, "/overlays/FILE[1].txt")
    assert find_matches(made.volume, "overlays/file[1].txt") == ("/overlays/file[1].txt",)
    assert find_matches(made.volume, "/overlays/fil?[1].txt") == ("/overlays/file1.txt",)
    assert find_matches(made.volume, "/overlays/file[[]1].txt") == ("/overlays/file[1].txt",)


@pytest.mark.parametrize("pattern", ["/*.nothing", "/missing/*", "/[z]", "/config.json/*"])
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str, tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    with pytest.raises(EditError, match="matches nothing") as caught:
        find_matches(made.volume, pattern)
    assert caught.value.code == "no-such-file"


def test_a_pattern_leads_nowhere_outside(tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    with pytest.raises(EditError, match=r"contains '\.\.'"):
        find_matches(made.volume, "/EFI/../*")


def test_what_lies_below_another_path_is_left_out() -> None:
    paths = ("/EFI/BOOT", "/efi", "/EFI.bak", "/EFI/BOOT/x", "/a", "/A")
    assert uppermost(paths) == ("/efi", "/EFI.bak", "/A")


def test_a_listing_of_a_pattern_tells_nothing_twice(tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    flat = [entry.path for entry in list_files(made.volume, "/*")]
    assert flat == expand_in_bash("/*", tmp_path / "tree")
    deep = [entry.path for entry in list_files(made.volume, "/**/BOOT/**", recursive=True)]
    assert len(deep) == len(set(deep))
    write_tree(tmp_path / "other", TREE)
    assert set(deep) == set(expand_in_bash("/**/BOOT/**/*", tmp_path / "other"))
