import hashlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from builders import BuiltImage, Layout
from cut_off_commit import commit_in_a_process, undo_record
from imagecopies import MakeImage
from imagedigest import digest
from loopdev import AttachLoop

from balenaflash.commands.edit import edit, open_image, preview
from balenaflash.edits.files import PutFile, Remove
from balenaflash.errors import EditError, ImageError
from balenaflash.units import KIB

if TYPE_CHECKING:
    from balenaflash.edits.files import Edit


def content_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut_off(path: Path) -> None:
    """Leave the image in the middle of a commit, with a part of each of four places changed."""
    done = commit_in_a_process(path, seed=1, size=64 * KIB, step=12)
    assert done.returncode == -signal.SIGKILL
    assert undo_record(path).exists()


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def test_all_edits_are_made_or_none(built: BuiltImage) -> None:
    before = digest(built.path)
    edits: list[Edit] = [PutFile("/new", b"new"), Remove("/missing")]
    with pytest.raises(EditError, match="/missing"):
        edit(built.path, edits)
    assert digest(built.path) == before

    edit(built.path, [PutFile("/new", b"new"), PutFile("/other", b"other"), Remove("/new")])
    with open_image(built.path) as boot:
        assert boot.files.find("/new") is None
        assert boot.files.read_file("/other") == b"other"


def test_a_dry_run_tells_the_same_and_writes_nothing(built: BuiltImage) -> None:
    before, edits = digest(built.path), [PutFile("/new", bytes(100 * KIB))]
    planned = preview(built.path, edits)
    assert digest(built.path) == before
    done = edit(built.path, edits)
    assert planned.changes == done.changes
    assert (planned.dry_run, done.dry_run) == (True, False)
    assert planned.commit == done.commit


def test_a_small_file_costs_a_few_sectors_and_all_of_them_in_the_boot_partition(
    built: BuiltImage,
) -> None:
    report = edit(built.path, [PutFile("/note.txt", b"x" * KIB)])
    assert report.partition_number == built.boot_number
    assert report.commit.size < 10 * KIB
    assert all(built.boot_extent.encloses(extent) for extent in report.commit.extents)


def test_an_edit_that_was_cut_off_is_undone_by_the_next_one(built: BuiltImage) -> None:
    before = content_digest(built.path)
    cut_off(built.path)
    assert content_digest(built.path) != before

    report = edit(built.path, [])

    assert content_digest(built.path) == before
    assert report.warnings[0] == "An earlier edit was cut off; it was undone."
    assert not undo_record(built.path).exists()


def test_an_edit_that_was_cut_off_is_undone_before_anything_is_read(built: BuiltImage) -> None:
    before = content_digest(built.path)
    cut_off(built.path)
    with open_image(built.path) as boot:
        assert boot.warnings[0] == "An earlier edit was cut off; it was undone."
        assert boot.files.read_file("/config.json") == built.boot_files["/config.json"]
    assert content_digest(built.path) == before


def test_a_card_is_read_and_not_edited(built: BuiltImage, attach_loop: AttachLoop) -> None:
    node = attach_loop(built.path)
    with open_image(node) as boot:
        assert boot.files.read_file("/config.json") == built.boot_files["/config.json"]
    before = digest(built.path)
    with pytest.raises(EditError) as caught:
        edit(node, [Remove("/config.json")])
    assert caught.value.code == "image-is-device"
    assert digest(built.path) == before


def test_a_boot_partition_that_is_broken_is_read_and_not_edited(built: BuiltImage) -> None:
    start = built.boot_extent.start
    with built.path.open("r+b") as file:
        file.seek(start)
        boot_sector = file.read(512)
        # BPB_RsvdSecCnt (fatgen103): the first FAT comes next. A chain is led into another one.
        reserved = int.from_bytes(boot_sector[14:16], "little")
        file.seek(start + reserved * 512 + 2 * 8)
        file.write(b"\x03\x00")
    before = digest(built.path)
    with open_image(built.path) as boot:
        assert boot.files.problems()
    with pytest.raises((EditError, ImageError)):
        edit(built.path, [PutFile("/new", b"x")])
    assert digest(built.path) == before
