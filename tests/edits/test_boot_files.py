import os
import resource
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from builders import run, write_tree
from fat_volumes import MadeVolume, make_volume, open_volume, read_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.edits import copies as boot_copy_out
from balenaflash.edits.copies import CopyIn, copy_out
from balenaflash.edits.files import (
    ChangeKind,
    Edit,
    MakeDirectory,
    PutFile,
    Remove,
    join,
    list_directory,
    name_of,
    parent_of,
    put_file,
    read_file,
    volume_path,
)
from balenaflash.errors import EditError, ImageError, WriteError
from balenaflash.formats.fat.volume import FatEntry
from balenaflash.units import GIB

pytestmark = pytest.mark.needs("dosfstools", "mtools")

FILES = {
    "/config.json": b"{}",
    "/EFI/BOOT/grub.cfg": b"set timeout=3\n",
    "/EFI/BOOT/grubenv": b"#" * 1024,
    "/splash/balena-logo.png": b"PNG" * 1000,
}


@pytest.fixture
def made(tmp_path: Path) -> MadeVolume:
    return make_volume(tmp_path, FILES)


class TestPaths:
    @pytest.mark.parametrize(
        ("text", "path"),
        [
            ("config.json", "/config.json"),
            ("/EFI//BOOT/./grub.cfg", "/EFI/BOOT/grub.cfg"),
            ("EFI/", "/EFI"),
            ("/", "/"),
            (".", "/"),
        ],
    )
    def test_a_path_is_meant_from_the_root(self, text: str, path: str) -> None:
        assert volume_path(text) == path

    @pytest.mark.parametrize("text", ["..", "/EFI/../config.json", "a/..", ""])
    def test_a_path_that_could_lead_elsewhere_is_refused(self, text: str) -> None:
        with pytest.raises(EditError) as caught:
            volume_path(text)
        assert caught.value.code == "path-invalid"

    @pytest.mark.parametrize("path", ["/a", "/a/b", "/a/b/c.d"])
    def test_parent_and_name_join_to_the_path(self, path: str) -> None:
        assert join(parent_of(path), name_of(path)) == path


class TestPut:
    def test_a_new_file_and_a_replaced_one_read_back_and_the_others_stay(
        self, made: MadeVolume
    ) -> None:
        changes = [
            *PutFile("/new file.txt", b"new").apply(made.volume),
            *PutFile("efi/boot/GRUB.CFG", b"longer than it was before\n" * 100).apply(made.volume),
        ]
        assert [(change.path, change.kind, change.size) for change in changes] == [
            ("/new file.txt", ChangeKind.CREATED, 3),
            ("/EFI/BOOT/grub.cfg", ChangeKind.REPLACED, 2600),
        ]
        assert made.files() == FILES | {
            "/new file.txt": b"new",
            "/EFI/BOOT/grub.cfg": b"longer than it was before\n" * 100,
        }

    def test_the_content_that_is_there_already_changes_nothing(self, made: MadeVolume) -> None:
        (change,) = PutFile("/config.json", b"{}").apply(made.volume)
        assert change.kind is ChangeKind.UNCHANGED
        assert made.edited() == made.content

    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("/missing/a.txt", "no-such-directory"),
            ("/config.json/a.txt", "not-a-directory"),
            ("/EFI", "is-a-directory"),
            ("/a:b", "name-invalid"),
            ("/../a", "path-invalid"),
        ],
    )
    def test_a_place_that_cannot_be_is_refused(
        self, made: MadeVolume, path: str, code: str
    ) -> None:
        with pytest.raises(EditError) as caught:
            PutFile(path, b"x").apply(made.volume)
        assert caught.value.code == code
        assert made.edited() == made.content

    def test_a_file_too_large_is_refused_with_the_bytes_needed_and_free(
        self, made: MadeVolume
    ) -> None:
        free = made.volume.free_bytes
        with pytest.raises(EditError, match=f"{free + 1} bytes .* {free} .* free") as caught:
            put_file(made.volume, "/big", bytes(free + 1))
        assert caught.value.code == "no-space"
        assert made.edited() == made.content

    def test_the_last_free_byte_can_be_used_also_by_replacing(self, made: MadeVolume) -> None:
        size = made.volume.free_bytes
        put_file(made.volume, "/big", bytes(size))
        put_file(made.volume, "/big", b"x" * size)
        assert made.files() == FILES | {"/big": b"x" * size}


class TestMakeDirectory:
    def test_parents_are_made_where_missing(self, made: MadeVolume) -> None:
        changes = MakeDirectory("/efi/Linux/x", parents=True).apply(made.volume)
        assert [change.path for change in changes] == ["/EFI/Linux", "/EFI/Linux/x"]
        assert MakeDirectory("/EFI/Linux/x", parents=True).apply(made.volume) == ()
        put_file(made.volume, "/EFI/Linux/x/y", b"y")
        assert made.files() == FILES | {"/EFI/Linux/x/y": b"y"}

    @pytest.mark.parametrize(
        ("path", "parents", "code"),
        [
            ("/EFI", False, "file-exists"),
            ("/a/b", False, "no-such-directory"),
            ("/config.json/a", True, "not-a-directory"),
            ("/config.json", True, "not-a-directory"),
        ],
    )
    def test_what_is_in_the_way_is_named(
        self, made: MadeVolume, path: str, *, parents: bool, code: str
    ) -> None:
        with pytest.raises(EditError) as caught:
            MakeDirectory(path, parents).apply(made.volume)
        assert caught.value.code == code
        assert made.edited() == made.content


class TestRemove:
    def test_a_file_is_removed(self, made: MadeVolume) -> None:
        Remove("config.json").apply(made.volume)
        assert made.files() == {path: FILES[path] for path in FILES if path != "/config.json"}

    def test_a_directory_is_removed_with_all_it_holds(self, made: MadeVolume) -> None:
        changes = Remove("/efi/", recursive=True).apply(made.volume)
        assert {change.path for change in changes} == {
            "/EFI",
            "/EFI/BOOT",
            "/EFI/BOOT/grub.cfg",
            "/EFI/BOOT/grubenv",
        }
        assert made.files() == {path: FILES[path] for path in FILES if not path.startswith("/EFI/")}

    @pytest.mark.parametrize(
        ("path", "recursive", "code"),
        [
            ("/EFI", False, "is-a-directory"),
            ("/missing", True, "no-such-file"),
            ("/", True, "path-invalid"),
        ],
    )
    def test_what_must_stay_stays(
        self, made: MadeVolume, path: str, *, recursive: bool, code: str
    ) -> None:
        with pytest.raises(EditError) as caught:
            Remove(path, recursive).apply(made.volume)
        assert caught.value.code == code
        assert made.edited() == made.content


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (PutFile("config.json", bytes(2048)), "put 2.0 KiB to /config.json"),
        (MakeDirectory("EFI/x"), "make directory /EFI/x"),
        (Remove("/EFI"), "remove /EFI"),
        (CopyIn((Path("a"), Path("b")), "/splash/"), "put a, b to /splash/"),
    ],
)
def test_an_edit_says_what_it_does(edit: Edit, words: str) -> None:
    assert edit.describe() == words


class TestLook:
    def test_a_directory_is_listed_by_name_and_a_file_as_itself(self, made: MadeVolume) -> None:
        assert [entry.name for entry in list_directory(made.volume, "/")] == [
            "EFI",
            "config.json",
            "splash",
        ]
        assert [entry.path for entry in list_directory(made.volume, "efi", recursive=True)] == [
            "/EFI/BOOT",
            "/EFI/BOOT/grub.cfg",
            "/EFI/BOOT/grubenv",
        ]
        assert [entry.size for entry in list_directory(made.volume, "/config.json")] == [2]

    @pytest.mark.parametrize(("path", "code"), [("/x", "no-such-file"), ("/", "is-a-directory")])
    def test_what_is_no_file_cannot_be_read(self, made: MadeVolume, path: str, code: str) -> None:
        with pytest.raises(EditError) as caught:
            read_file(made.volume, path)
        assert caught.value.code == code


names = st.text("abcdefgXYZ0189-_ äßЖ", min_size=1, max_size=20).filter(
    lambda name: name == name.strip()
)
trees = st.recursive(
    st.binary(max_size=3000), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))


class TestCopyIn:
    def test_a_file_goes_into_a_directory_or_takes_the_new_name(
        self, made: MadeVolume, tmp_path: Path
    ) -> None:
        source = tmp_path / "some.cfg"
        source.write_bytes(b"cfg")
        for target in ("/EFI/BOOT", "/splash/", "/EFI/BOOT/grub.cfg", "/renamed.cfg"):
            CopyIn((source,), target).apply(made.volume)
        assert made.files() == FILES | {
            "/EFI/BOOT/some.cfg": b"cfg",
            "/splash/some.cfg": b"cfg",
            "/EFI/BOOT/grub.cfg": b"cfg",
            "/renamed.cfg": b"cfg",
        }

    def test_a_directory_is_copied_under_its_name_or_a_new_one_and_merged(
        self, made: MadeVolume, tmp_path: Path
    ) -> None:
        tree = {"/grub.cfg": b"new", "/x86_64-efi/fat.mod": b"mod"}
        write_tree(tmp_path / "BOOT", tree)
        (tmp_path / "BOOT" / "link").symlink_to(tmp_path / "BOOT" / "grub.cfg")
        CopyIn((tmp_path / "BOOT",), "/EFI").apply(made.volume)
        CopyIn((tmp_path / "BOOT",), "/copy").apply(made.volume)
        expected = tree | {"/link": b"new"}
        assert made.files() == FILES | {
            f"{folder}{path}": content
            for folder in ("/EFI/BOOT", "/copy")
            for path, content in expected.items()
        }

    def test_the_current_directory_has_no_name_so_what_it_holds_is_copied(
        self, made: MadeVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_tree(tmp_path / "here", {"/a/b": b"b"})
        monkeypatch.chdir(tmp_path / "here")
        CopyIn((Path(),), "/").apply(made.volume)
        monkeypatch.chdir(tmp_path / "here" / "a")
        CopyIn((Path(".."),), "/splash").apply(made.volume)
        assert made.files() == FILES | {"/a/b": b"b", "/splash/a/b": b"b"}

    @settings(max_examples=15, deadline=None)
    @given(tree=trees)
    def test_any_tree_comes_back_as_it_went_in(
        self, tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]
    ) -> None:
        folder = tmp_path_factory.mktemp("tree")
        files = flatten(fold_names(tree))
        (folder / "given").mkdir()
        write_tree(folder / "given", files)
        made = make_volume(folder, {})
        CopyIn((folder / "given",), "/").apply(made.volume)
        again = open_volume(made.edited(), folder)
        copy_out(again.volume, "/given", str(folder / "back"))
        assert read_folder(folder / "back") == files
        assert made.files() == {f"/given{path}": content for path, content in files.items()}

    def test_the_time_of_a_file_is_kept(
        self, made: MadeVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
        source = tmp_path / "dated"
        source.write_bytes(b"x")
        moment = datetime(2019, 5, 4, 3, 2, 10)  # noqa: DTZ001 -- FAT knows no time zone
        os.utime(source, (moment.timestamp(), moment.timestamp()))
        CopyIn((source,), "/").apply(made.volume)
        assert "2019-05-04   3:02" in directory(made)

    def test_where_builds_are_to_be_repeatable_the_time_is_the_one_asked_for(
        self, made: MadeVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        (tmp_path / "dated").write_bytes(b"x")
        CopyIn((tmp_path / "dated",), "/").apply(made.volume)
        # date -u -d @1000000000
        assert "2001-09-09   1:46" in directory(made)

    @pytest.mark.parametrize(
        ("names", "target", "code"),
        [
            (("one", "two"), "/config.json", "not-a-directory"),
            (("one", "two"), "/missing", "no-such-directory"),
            (("one",), "/missing/", "no-such-directory"),
            (("one",), "/missing/one", "no-such-directory"),
            (("folder",), "/config.json", "file-exists"),
            (("missing",), "/", "source-unreadable"),
            (("pipe",), "/", "source-unsupported"),
            (("folder/loop",), "/x", "source-loop"),
            (("huge",), "/", "no-space"),
        ],
    )
    def test_what_cannot_be_copied_is_named_and_nothing_is_committed(
        self, made: MadeVolume, tmp_path: Path, names: tuple[str, ...], target: str, code: str
    ) -> None:
        write_tree(tmp_path, {"/one": b"1", "/two": b"2", "/folder/a": b"a"})
        (tmp_path / "folder" / "loop").symlink_to(tmp_path / "folder")
        os.mkfifo(tmp_path / "pipe")
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(100 * GIB)
        with pytest.raises(EditError) as caught:
            CopyIn(tuple(tmp_path / name for name in names), target).apply(made.volume)
        assert caught.value.code == code


class TestCopyOut:
    def test_a_file_goes_into_a_directory_or_takes_the_new_name(
        self, made: MadeVolume, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        copy_out(made.volume, "/efi/boot/grub.cfg", str(out))
        copy_out(made.volume, "config.json", str(out / "renamed"))
        assert read_folder(out) == {"/grub.cfg": FILES["/EFI/BOOT/grub.cfg"], "/renamed": b"{}"}

    def test_the_root_goes_straight_into_the_directory(
        self, made: MadeVolume, tmp_path: Path
    ) -> None:
        copies = copy_out(made.volume, "/", str(tmp_path / "out"))
        assert read_folder(tmp_path / "out") == FILES
        assert {copy.path for copy in copies if not copy.is_directory} == set(FILES)

    def test_a_file_in_the_way_is_overwritten_only_when_asked(
        self, made: MadeVolume, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        write_tree(out, {"/EFI/BOOT/grub.cfg": b"mine, and longer than theirs"})
        with pytest.raises(EditError, match="exists already") as caught:
            copy_out(made.volume, "/EFI", str(out))
        assert caught.value.code == "output-exists"
        assert read_folder(out) == {"/EFI/BOOT/grub.cfg": b"mine, and longer than theirs"}
        copy_out(made.volume, "/EFI", str(out), overwrite=True)
        assert read_folder(out) == {
            path: content for path, content in FILES.items() if path.startswith("/EFI/")
        }

    def test_a_link_in_the_way_is_never_followed(self, made: MadeVolume, tmp_path: Path) -> None:
        (tmp_path / "precious").write_bytes(b"precious")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").symlink_to(tmp_path / "precious")
        (tmp_path / "out" / "EFI").symlink_to(tmp_path)
        for path in ("/config.json", "/EFI"):
            with pytest.raises(EditError, match="symbolic link") as caught:
                copy_out(made.volume, path, str(tmp_path / "out"), overwrite=True)
            assert caught.value.exit_status == 4
        assert (tmp_path / "precious").read_bytes() == b"precious"

    @pytest.mark.parametrize(
        ("path", "target", "code"),
        [
            ("/missing", "out", "no-such-file"),
            ("/config.json", "missing/", "output-unwritable"),
            ("/config.json", "missing/a", "output-unwritable"),
            ("/EFI", "file", "output-exists"),
            ("/splash/balena-logo.png", "folder", "output-exists"),
        ],
    )
    def test_what_is_in_the_way_is_named(
        self, made: MadeVolume, tmp_path: Path, path: str, target: str, code: str
    ) -> None:
        write_tree(tmp_path, {"/file": b"", "/folder/balena-logo.png/x": b""})
        with pytest.raises(EditError) as caught:
            copy_out(made.volume, path, f"{tmp_path}/{target}", overwrite=True)
        assert caught.value.code == code
        assert caught.value.exit_status == (4 if code == "output-exists" else 3)

    def test_a_full_disk_is_a_failure_of_writing(self, made: MadeVolume, tmp_path: Path) -> None:
        write_tree(tmp_path, {"/mine": b"as it was"})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            with pytest.raises(WriteError, match="File too large"):
                copy_out(made.volume, "/config.json", str(tmp_path / "mine"), overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "mine").read_bytes() == b"as it was"

    def test_neither_a_device_nor_a_pipe_is_written_to(
        self, made: MadeVolume, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "config.json")
        for target in ("/dev/full", str(tmp_path)):
            with pytest.raises(EditError, match="is not a file") as caught:
                copy_out(made.volume, "/config.json", target, overwrite=True)
            assert caught.value.code == "output-exists"

    def test_what_holds_secrets_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        files = {"/config.json": b"{}", "/system-connections/lab": b"psk", "/os-release": b"x"}
        made = make_volume(tmp_path, files)
        out = tmp_path / "out"
        write_tree(out, {"/config.json": b"readable by all"})
        copy_out(made.volume, "/", str(out), overwrite=True)
        (tmp_path / "any").touch()
        usual = (tmp_path / "any").stat().st_mode
        modes = [(out / path[1:]).stat().st_mode & 0o777 for path in files]
        assert modes == [0o600, 0o600, usual & 0o777]

    def test_a_directory_that_becomes_a_link_meanwhile_is_not_followed(
        self, made: MadeVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cron.d").mkdir()
        out = tmp_path / "out"
        read = made.volume.read_file

        def read_and_swap(path: str) -> bytes:
            if path == "/EFI/BOOT/grubenv":
                (out / "EFI/BOOT").rename(out / "moved")
                (out / "EFI/BOOT").symlink_to(tmp_path / "cron.d")
            return read(path)

        monkeypatch.setattr(made.volume, "read_file", read_and_swap)
        with pytest.raises(WriteError, match=r"grubenv: cannot be written"):
            copy_out(made.volume, "/", str(out))
        assert list((tmp_path / "cron.d").iterdir()) == []

    @pytest.mark.parametrize("name", ["../evil", "..", ".", "a/../../evil"])
    def test_a_name_that_leads_elsewhere_writes_nothing_there(
        self, tmp_path: Path, name: str
    ) -> None:
        content = make_volume(tmp_path, {"/honest-file-name": b"evil"}).content
        hostile = open_volume(spoil_long_name(content, "honest", name), tmp_path)
        target = tmp_path / "a" / "out"
        target.mkdir(parents=True)
        before = set(tmp_path.rglob("*"))
        with suppress(ImageError):
            copy_out(hostile.volume, "/", str(target))
        created = set(tmp_path.rglob("*")) - before
        assert all(path.parent == target for path in created)

    @pytest.mark.parametrize("path", ["/", "/..", "/EFI/.", "/a\0b"])
    def test_a_name_that_no_file_can_have_is_refused(self, path: str) -> None:
        entry = FatEntry(path, is_directory=False, size=0, modified=None)
        with pytest.raises(ImageError, match="no local file"):
            boot_copy_out._file_name(entry)


def spoil_long_name(content: bytes, stored: str, name: str) -> bytes:
    """``content`` with the name that begins with ``stored`` replaced; its 8.3 name stays.

    A slot holds thirteen characters, in three pieces (fatgen103, "Long Directory Entries"). The
    first slot of the name is the last one stored, and its checksum is that of the 8.3 name.
    """
    slot = content.index(stored[:5].encode("utf-16-le")) - 1
    units = (name + "\0").encode("utf-16-le").ljust(26, b"\xff")
    spoiled = bytearray(content)
    spoiled[slot - 32] = 0xE5  # the slot with the rest of the name, now a free one
    spoiled[slot] |= 0x40  # the only slot of the name is also its last
    for start, end, piece in ((1, 11, units[:10]), (14, 26, units[10:22]), (28, 32, units[22:])):
        spoiled[slot + start : slot + end] = piece
    return bytes(spoiled)


def directory(made: MadeVolume) -> str:
    """What ``mdir`` prints of the edited root."""
    path = made.folder / "listed.img"
    path.write_bytes(made.edited())
    return run("mdir", "-i", path, "::")


def fold_names(tree: dict[str, object]) -> dict[str, object]:
    """``tree`` without names that are one name to FAT, which does not tell case apart."""
    folded = {name.upper(): name for name in tree}
    return {
        name: fold_names(value) if isinstance(value := tree[name], dict) else value
        for name in folded.values()
    }


def flatten(tree: dict[str, object], above: str = "") -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            files |= flatten(value, f"{above}/{name}")
        elif isinstance(value, bytes):
            files[f"{above}/{name}"] = value
    return files
