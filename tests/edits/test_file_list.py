import os
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_tree import noise
from boot_volume import edited, extract, file_tree
from builders import Layout
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecopies import MakeImage

from balenaflash.edits.file_list import ApplyFileList, FileListEntry, parse, read_list
from balenaflash.errors import EditError

FILES = {
    "/grub.cfg_internal": b"internal",
    "/grub.cfg_internal.sig": b"signature",
    "/uEnv.txt": b"console=ttyS0\n",
    "/bootfiles/start4.elf": noise("start4", 30_000),
    "/bootfiles/start4.elf.sig": b"signature of start4",
    "/bootfiles/fixup4.dat": b"fixup",
    "/bootfiles/overlays/deep.dtbo": b"deep",
    "/board-1.2-r0.dtb": noise("dtb", 20_000),
}


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """A deploy directory, with links as Yocto makes them."""
    folder = tmp_path / "deploy"
    for name, content in FILES.items():
        path = folder / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "board.dtb").symlink_to("board-1.2-r0.dtb")
    (folder / "absolute.dtb").symlink_to(folder / "board-1.2-r0.dtb")
    (folder / "dangling.dtb").symlink_to("board-1.1-r0.dtb")
    (folder / "firmware").symlink_to("bootfiles")
    (folder / "bootfiles" / "start.elf").symlink_to("start4.elf")
    return folder


@pytest.fixture
def added(image: MakeImage, deploy: Path, tmp_path: Path) -> Callable[[str], dict[str, bytes]]:
    """What applying a list adds to a boot partition or changes in it, as mcopy reads it."""

    def apply(text: str) -> dict[str, bytes]:
        built = image(Layout.MSDOS_FAT16)
        with edited(built) as volume:
            ApplyFileList(parse(text), deploy).apply(volume)
        after = file_tree(extract(built, tmp_path / "tree"))
        assert after.keys() >= built.boot_files.keys()
        return {
            path: content
            for path, content in after.items()
            if content != built.boot_files.get(path)
        }

    return apply


Added = Callable[[str], dict[str, bytes]]


def test_a_file_goes_to_its_path_and_its_signature_beside_it(added: Added) -> None:
    assert added("grub.cfg_internal:/EFI/BOOT/grub.cfg") == {
        "/EFI/BOOT/grub.cfg": b"internal",
        "/EFI/BOOT/grub.cfg.sig": b"signature",
    }


def test_an_empty_destination_is_the_source(added: Added) -> None:
    assert added("bootfiles/fixup4.dat: uEnv.txt:") == {
        "/bootfiles/fixup4.dat": b"fixup",
        "/uEnv.txt": b"console=ttyS0\n",
    }


def test_a_destination_ending_in_a_slash_is_a_directory_made_if_missing(added: Added) -> None:
    assert added("uEnv.txt:/ grub.cfg_internal:/a/b//c/") == {
        "/uEnv.txt": b"console=ttyS0\n",
        "/a/b/c/grub.cfg_internal": b"internal",
        "/a/b/c/grub.cfg_internal.sig": b"signature",
    }


def test_of_a_directory_only_the_files_directly_in_it_go(added: Added) -> None:
    assert added("bootfiles:/ bootfiles/:/fw/ bootfiles/overlays/:") == {
        **{
            f"{folder}/{name}": FILES[f"/bootfiles/{name}"]
            for folder in ("", "/fw")
            for name in ("start4.elf", "start4.elf.sig", "fixup4.dat")
        },
        "/bootfiles/overlays/deep.dtbo": b"deep",
    }


def test_links_are_followed_and_the_name_is_the_links(added: Added) -> None:
    dtb = FILES["/board-1.2-r0.dtb"]
    assert added("board.dtb:/ absolute.dtb:/x.dtb firmware:/fw/") == {
        "/board.dtb": dtb,
        "/x.dtb": dtb,
        **{
            f"/fw/{name}": FILES[f"/bootfiles/{name}"]
            for name in ("start4.elf", "start4.elf.sig", "fixup4.dat")
        },
    }


def test_a_source_may_be_absolute(added: Added, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"elsewhere")
    assert added(f"{tmp_path}/elsewhere:/lab/") == {"/lab/elsewhere": b"elsewhere"}


def test_of_two_entries_with_one_destination_the_later_wins(added: Added) -> None:
    assert added("uEnv.txt:/x bootfiles/fixup4.dat:/X") == {"/x": b"fixup"}


@pytest.mark.parametrize(
    "text",
    [
        " a:/b \t c:/d/ \n e: ",
        "a:/b \\\n    c:/d/ \\\n\te:\\\n",
        "# of the lab\na:/b\r\n  # another\nc:/d/ e:",
        'BALENA_BOOT_PARTITION_FILES=" a:/b  c:/d/    e: "\n',
        '# from bitbake -e\nBALENA_BOOT_PARTITION_FILES = " \\\n a:/b \\\n c:/d/ e: \\\n"\n',
    ],
)
def test_a_value_is_read_in_every_form_it_is_kept_in(text: str) -> None:
    assert parse(text) == (
        FileListEntry(Path("a"), "/b", into_directory=False, text="a:/b"),
        FileListEntry(Path("c"), "/d", into_directory=True, text="c:/d/"),
        FileListEntry(Path("e"), "/e", into_directory=False, text="e:"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no entries"),
        ("# comment alone", "no entries"),
        ("ok:/ grub.cfg", "'grub.cfg': the entry is not of the form SOURCE:DESTINATION"),
        ("a:/b:/c", "'a:/b:/c': the entry is not of the form SOURCE:DESTINATION"),
        (":/EFI/grub.cfg", "has no source before the colon"),
        ("a:EFI/grub.cfg", "not absolute, EFI/grub.cfg"),
        ("a:/EFI/../x", "'/EFI/../x': contains '..'"),
        ("../a:", "'/../a': contains '..'"),
        ("${KERNEL_IMAGETYPE}-${MACHINE}.bin:/", "a variable, which only bitbake can expand"),
        ("a\0b:/", "contains characters"),
        (".:", "a destination without a name"),
    ],
)
def test_an_entry_that_is_not_valid_is_named(text: str, message: str) -> None:
    with pytest.raises(EditError) as refused:
        parse(text)
    assert message in str(refused.value)
    assert refused.value.code in {"file-list-invalid", "path-invalid"}


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("ab:/.\\ \n#\"$${}~*?\t'é\0="), max_size=40))
def test_whatever_is_accepted_is_absolute_and_inside_the_partition(text: str) -> None:
    try:
        entries = parse(text)
    except EditError:
        return
    assert entries
    for entry in entries:
        assert entry.destination.startswith("/")
        assert ".." not in entry.destination.split("/")
        assert entry.text in text


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("nowhere:/x", "source-missing", "nowhere:/x: {deploy}/nowhere does not exist"),
        (
            "dangling.dtb:/",
            "source-missing",
            "is a link to board-1.1-r0.dtb, which does not exist",
        ),
        ("bootfiles:/fw", "file-list-invalid", "is a directory, and /fw would be a file"),
        ("bootfiles:", "file-list-invalid", "is a directory, and /bootfiles would be a file"),
        ("/dev/null:/x", "source-unsupported", "neither a file nor a directory"),
        ("uEnv.txt/x:/x", "source-unreadable", "cannot be read"),
        ("uEnv.txt:/EFI", "is-a-directory", "/EFI: is a directory in the boot partition"),
        ("uEnv.txt:/config.json/x", "not-a-directory", "/config.json: is a file"),
        ("uEnv.txt:/a*b", "name-invalid", "a*b"),
        ("huge:/", "no-space", "are free in the boot partition"),
    ],
)
def test_what_cannot_be_done_is_refused_and_named(
    image: MakeImage, deploy: Path, text: str, code: str, message: str
) -> None:
    huge = deploy / "huge"
    huge.touch()
    os.truncate(huge, 10**12)  # a hole: reading it all would take very long
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        with pytest.raises(EditError) as refused:
            ApplyFileList(parse(text), deploy).apply(volume)
        assert message.format(deploy=deploy) in str(refused.value)
        assert refused.value.code == code


def test_a_missing_source_is_found_before_anything_is_copied(
    image: MakeImage, deploy: Path
) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        with pytest.raises(EditError):
            ApplyFileList(parse("uEnv.txt:/ nowhere:/"), deploy).apply(volume)
        assert volume.changes() == ()


def test_a_list_is_read_from_a_file_or_is_the_text_itself(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("a:/b\n")
    assert read_list(str(path)) == read_list("a:/b") == parse("a:/b")
    assert len(read_list("a:/b " * 5000)) == 5000
    for name in ("none", "", "\0"):
        with pytest.raises(EditError) as refused:
            read_list(f"{tmp_path}/{name}")
        assert refused.value.code == "file-list-unreadable"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff:/x", "not UTF-8"), (b"a:/b " * 250_000, "larger than"), (b"\n", "no entries")],
)
def test_a_file_that_holds_no_list_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "list"
    path.write_bytes(content)
    with pytest.raises(EditError, match=message):
        read_list(str(path))
