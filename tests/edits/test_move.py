"""Moving and renaming, compared with ``mv`` on a copy of the tree, and judged by mtools."""

import subprocess
from pathlib import Path

import pytest
from fat_volumes import make_volume, read_folder

from balenaflash.edits.files import ChangeKind, Move
from balenaflash.edits.fingerprint import check, update
from balenaflash.errors import EditError

pytestmark = pytest.mark.needs("dosfstools", "mtools")

TREE = {
    "/config.json": b"{}",
    "/EFI/BOOT/grub.cfg": b"boot",
    "/EFI/BOOT/x86_64-efi/fat.mod": b"m" * 3000,
    "/grub.cfg_internal": b"internal" * 300,
    "/overlays/a.dtbo": b"a",
    "/overlays/b.dtbo": b"b",
    "/other/a.dtbo": b"another",
}


@pytest.mark.parametrize(
    ("sources", "target"),
    [
        (["grub.cfg_internal"], "grub.cfg_old"),
        (["grub.cfg_internal"], "A much longer name than before.cfg"),
        (["grub.cfg_internal"], "EFI/BOOT"),
        (["grub.cfg_internal"], "EFI/BOOT/"),
        (["grub.cfg_internal"], "EFI/BOOT/grub.cfg"),
        (["grub.cfg_internal", "config.json", "EFI"], "overlays"),
        (["EFI"], "EFI.old"),
        (["EFI/BOOT/x86_64-efi"], "."),
        (["EFI/BOOT"], "overlays/deeper"),
        (["overlays/a.dtbo"], "other"),
        (["overlays/a.dtbo", "overlays/b.dtbo"], "other/"),
        (["overlays/*.dtbo"], "other"),
    ],
)
def test_the_tree_is_that_which_mv_makes(sources: list[str], target: str, tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    expanded = [
        str(path.relative_to(tmp_path / "tree"))
        for source in sources
        for path in sorted((tmp_path / "tree").glob(source))
    ]
    subprocess.run(["mv", *expanded, target], cwd=tmp_path / "tree", check=True)

    changes = Move(tuple(f"/{source}" for source in sources), f"/{target}").apply(made.volume)

    contents = made.files()
    assert contents == read_folder(tmp_path / "tree")
    moved = {change.origin: change.path for change in changes if change.kind is ChangeKind.MOVED}
    assert {TREE[old] == contents[new] for old, new in moved.items() if old in TREE} == {True}


def test_every_file_below_a_moved_directory_is_told_of(tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    changes = Move(("/efi",), "/elsewhere").apply(made.volume)
    assert {change.origin: (change.path, change.size) for change in changes} == {
        "/EFI": ("/elsewhere", 0),
        "/EFI/BOOT": ("/elsewhere/BOOT", 0),
        "/EFI/BOOT/grub.cfg": ("/elsewhere/BOOT/grub.cfg", 4),
        "/EFI/BOOT/x86_64-efi": ("/elsewhere/BOOT/x86_64-efi", 0),
        "/EFI/BOOT/x86_64-efi/fat.mod": ("/elsewhere/BOOT/x86_64-efi/fat.mod", 3000),
    }


@pytest.mark.parametrize(("source", "target"), [("/EFI", "/efi"), ("/config.json", "/CONFIG.json")])
def test_a_name_can_be_written_in_another_case(source: str, target: str, tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    Move((source,), target).apply(made.volume)
    found = made.files()
    assert {path.replace(target, source, 1) for path in found} == set(TREE)
    assert any(path.startswith(target) for path in found)


def test_moved_onto_itself_it_stays(tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    for source, target in (("/config.json", "/config.json"), ("/EFI/BOOT", "/EFI")):
        (change,) = Move((source,), target).apply(made.volume)
        assert change.kind is ChangeKind.UNCHANGED
        assert change.touched == ()
    assert made.edited() == made.content


def test_what_is_replaced_is_told_of(tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    changes = Move(("/overlays/a.dtbo",), "/other/").apply(made.volume)
    assert [(change.kind, change.path, change.size) for change in changes] == [
        (ChangeKind.REMOVED, "/other/a.dtbo", 7),
        (ChangeKind.MOVED, "/other/a.dtbo", 1),
    ]


@pytest.mark.parametrize(
    ("sources", "target", "code"),
    [
        (("/missing",), "/x", "no-such-file"),
        (("/*.missing",), "/EFI", "no-such-file"),
        (("/config.json",), "/missing/x", "no-such-directory"),
        (("/config.json",), "/missing/", "no-such-directory"),
        (("/config.json", "/EFI"), "/missing", "no-such-directory"),
        (("/overlays/*",), "/config.json", "not-a-directory"),
        (("/config.json",), "/EFI/BOOT/grub.cfg/x", "not-a-directory"),
        (("/EFI",), "/config.json", "not-a-directory"),
        (("/EFI/BOOT",), "/EFI/BOOT/inside", "path-invalid"),
        (("/EFI",), "/EFI/BOOT", "path-invalid"),
        (("/",), "/EFI", "path-invalid"),
        (("/config.json",), "/EFI/a:b", "name-invalid"),
        (("/config.json",), "/../x", "path-invalid"),
    ],
)
def test_what_cannot_be_moved_is_an_error(
    sources: tuple[str, ...], target: str, code: str, tmp_path: Path
) -> None:
    made = make_volume(tmp_path, TREE)
    with pytest.raises(EditError) as caught:
        Move(sources, target).apply(made.volume)
    assert caught.value.code == code


def test_a_directory_replaces_an_empty_one_only(tmp_path: Path) -> None:
    made = make_volume(tmp_path, TREE)
    made.volume.make_directory("/other/overlays")
    Move(("/overlays",), "/other").apply(made.volume)
    assert made.files()["/other/overlays/a.dtbo"] == b"a"
    made.volume.make_directory("/overlays")
    with pytest.raises(EditError, match="not empty"):
        Move(("/overlays",), "/other").apply(made.volume)


def test_a_file_is_not_put_in_the_place_of_a_directory(tmp_path: Path) -> None:
    made = make_volume(tmp_path, {**TREE, "/other/grub.cfg_internal/x": b""})
    with pytest.raises(EditError, match="is a directory") as caught:
        Move(("/grub.cfg_internal",), "/other").apply(made.volume)
    assert caught.value.code == "is-a-directory"


def test_the_fingerprint_follows(tmp_path: Path) -> None:
    # md5sum of the files of TREE, as image-balena.bbclass lists them
    done = subprocess.run(
        ["md5sum", *sorted(path[1:] for path in TREE if path != "/config.json")],
        cwd=make_volume(tmp_path, TREE).folder / "tree",
        capture_output=True,
        check=True,
    )
    (tmp_path / "second").mkdir()
    made = make_volume(tmp_path / "second", {**TREE, "/balenaos.fingerprint": done.stdout})
    changes = Move(("/EFI",), "/other").apply(made.volume)
    update(made.volume, (path for change in changes for path in change.touched))
    report = check(made.volume)
    assert report is not None
    assert report.matches
