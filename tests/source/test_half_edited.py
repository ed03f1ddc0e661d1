"""An image whose edit was cut off tells so itself, also where its undo record was lost."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from bmaptool import bmaptool
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from cut_off_card_edit import edit_file_in_a_process, edit_in_a_process
from cut_off_commit import undo_record
from imagecopies import MakeImage
from loopdev import AttachLoop

from balenaflash.balena.image import BalenaImage
from balenaflash.commands.write import plan_image
from balenaflash.errors import ImageError
from balenaflash.source.opening import open_for_reading, recover

pytestmark = pytest.mark.needs("dosfstools")

HALF = 20
"""Step at which a part of an edit of a file is written."""

STRIDE = int(os.environ.get("BALENAFLASH_TEST_STRIDE", "4"))
"""1 to cut the edit off at every one of its steps."""


def copy(path: Path, target: Path) -> Path:
    """The image, copied or moved without what lies beside it."""
    target.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "--sparse=always", path, target], check=True)
    return target


def boot_content(built: BuiltImage, path: Path) -> bytes:
    """All that an edit may change."""
    with path.open("rb") as file:
        file.seek(built.boot_extent.start)
        return file.read(built.boot_extent.size)


def boot_partition(built: BuiltImage, path: Path, folder: Path) -> Path:
    target = folder / "boot.fat"
    target.write_bytes(boot_content(built, path))
    return target


def fsck_says_dirty(volume: Path) -> bool:
    run = subprocess.run(["fsck.vfat", "-n", volume], capture_output=True, text=True, check=False)
    return "Dirty bit is set" in run.stdout


def may_be_written(path: Path) -> bool:
    codes = []
    with open_for_reading(path) as image:
        try:
            plan_image(BalenaImage(image.source))
        except ImageError as error:
            codes.append(error.code)
    assert codes in ([], ["image-half-edited"])
    return not codes


@pytest.fixture
def half_edited(image: MakeImage) -> BuiltImage:
    built = image(Layout.GPT_FAT16)
    assert edit_file_in_a_process(built.path, HALF) is None
    return built


@pytest.mark.parametrize(
    ("layout", "how"), [(Layout.GPT_FAT16, "kill"), (Layout.MSDOS_FAT32, "power")]
)
def test_wherever_an_edit_is_cut_off_a_half_edited_image_tells_so(
    image: MakeImage, tmp_path: Path, layout: Layout, how: str
) -> None:
    built = image(layout)
    original = copy(built.path, tmp_path / "original.img")
    old = boot_content(built, built.path)
    steps = edit_file_in_a_process(built.path, 0)
    assert steps is not None
    new = boot_content(built, built.path)
    half_edited = 0
    for step in range(10, steps, STRIDE):
        copy(original, built.path)
        assert edit_file_in_a_process(built.path, step, how) is None
        moved = copy(built.path, tmp_path / "elsewhere/moved.img")
        if boot_content(built, moved) not in (old, new):
            half_edited += 1
            assert fsck_says_dirty(boot_partition(built, moved, tmp_path)), step
            assert not may_be_written(moved), step
        recover(built.path)
        assert boot_content(built, built.path) in (old, new), step
        assert may_be_written(built.path)
        assert not undo_record(built.path).exists()
    assert half_edited > 2
    assert not fsck_says_dirty(boot_partition(built, built.path, tmp_path))


def test_an_image_that_was_moved_without_its_record_is_not_used(
    half_edited: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    moved = copy(half_edited.path, tmp_path / "elsewhere/moved.img")
    before = moved.read_bytes()
    target = tmp_path / "target.img"
    refused: tuple[list[str | Path], ...] = (
        ["write", moved, target],
        ["write", moved, target, "--step", 'config-set = "hostname=x"'],
        ["config", "set", moved, "hostname=x"],
        ["config", "set", moved, "hostname=x", "--dry-run"],
        ["config", "set", moved, "hostname=x", "--output", target],
    )
    for command in refused:
        run = balenaflash(*command)
        assert (run.returncode, run.stdout) == (3, ""), run.stderr
        assert "half-edited" in run.stderr
        assert ".balenaflash-undo" in run.stderr
    for words in (["inspect"], ["boot", "ls"], ["bmap", "create"]):
        run = balenaflash(*words, moved)
        assert "half-edited" in run.stderr, run.args
        assert run.returncode == 0
    assert (moved.read_bytes(), target.exists()) == (before, False)


def test_the_record_brought_after_it_undoes_the_edit(
    half_edited: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    moved = copy(half_edited.path, tmp_path / "elsewhere/moved.img")
    shutil.copy(undo_record(half_edited.path), undo_record(moved))
    run = balenaflash("write", moved, tmp_path / "target.img")
    assert run.returncode == 0, run.stderr
    assert "it was undone" in run.stderr


@pytest.mark.parametrize("length", [60, 5000])
def test_a_record_that_was_cut_short_is_kept_where_the_image_is_half_edited(
    half_edited: BuiltImage, balenaflash: RunBalenaflash, length: int
) -> None:
    record = undo_record(half_edited.path)
    record.write_bytes(record.read_bytes()[:length])
    before = half_edited.path.read_bytes()
    run = balenaflash("boot", "ls", half_edited.path)
    assert (run.returncode, run.stdout) == (3, "")
    assert "was cut short" in run.stderr
    assert record.stat().st_size == length
    assert half_edited.path.read_bytes() == before


def test_a_record_of_an_image_that_was_replaced_holds_up_nothing(
    half_edited: BuiltImage, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    good = image(Layout.GPT_FAT16).path
    (tmp_path / "other.txt").write_text("other")
    assert balenaflash("boot", "put", good, tmp_path / "other.txt", "/").returncode == 0
    record = undo_record(half_edited.path)
    kept = record.read_bytes()
    assert balenaflash("write", good, half_edited.path, "--overwrite").returncode == 0
    assert not record.exists()
    record.write_bytes(kept)  # as after `cp good.img x.img`
    run = balenaflash("boot", "ls", half_edited.path)
    assert run.returncode == 0, run.stderr
    assert "was removed: the image has been replaced or changed since" in run.stderr
    assert not record.exists()
    assert half_edited.path.read_bytes() == good.read_bytes()


def test_a_volume_that_fsck_has_repaired_is_accepted_again(
    half_edited: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    moved = copy(half_edited.path, tmp_path / "elsewhere/moved.img")
    volume = boot_partition(half_edited, moved, tmp_path)
    subprocess.run(["fsck.vfat", "-a", volume], check=False, capture_output=True)
    assert not fsck_says_dirty(volume)
    with moved.open("r+b") as file:
        file.seek(half_edited.boot_extent.start)
        file.write(volume.read_bytes())
    (tmp_path / "new.txt").write_text("new")
    run = balenaflash("boot", "put", moved, tmp_path / "new.txt", "/")
    assert run.returncode == 0, run.stderr
    assert balenaflash("write", moved, tmp_path / "target.img").returncode == 0
    assert not fsck_says_dirty(boot_partition(half_edited, moved, tmp_path))


def test_a_half_edited_card_warns_a_user_who_has_no_record_of_it(
    image: MakeImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.GPT_FAT16)
    node = attach_loop(built.path)
    run = edit_in_a_process(node, tmp_path / "one", 8)
    assert run.returncode == -signal.SIGKILL, run.stderr
    other = {"XDG_STATE_HOME": str(tmp_path / "another")}
    ls = balenaflash("boot", "ls", node, environment=other)
    assert (ls.returncode, "half-edited" in ls.stderr) == (0, True), ls.stderr
    edit = balenaflash("config", "set", node, "hostname=x", "--yes", environment=other)
    assert (edit.returncode, "half-edited" in edit.stderr) == (3, True), edit.stderr
    own = {"XDG_STATE_HOME": str(tmp_path / "one")}
    edit = balenaflash("config", "set", node, "hostname=x", "--yes", environment=own)
    assert (edit.returncode, "it was undone" in edit.stderr) == (0, True), edit.stderr
    assert "half-edited" not in balenaflash("boot", "ls", node, environment=other).stderr


@pytest.mark.needs("bmaptool")
def test_a_block_map_is_true_at_the_next_look_wherever_the_edit_was_cut_off(
    image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.GPT_FAT16)
    original = copy(built.path, tmp_path / "original.img")
    bmap = Path(f"{built.path}.bmap")
    bmaptool("create", "-o", bmap, built.path)
    old = bmap.read_bytes()
    steps = edit_file_in_a_process(built.path, 0)
    assert steps is not None
    new, names = bmap.read_bytes(), sorted(each.name for each in tmp_path.iterdir())
    assert new != old
    found = set()
    for step in range(steps, steps - 8, -2):
        copy(original, built.path)
        bmap.write_bytes(old)
        assert edit_file_in_a_process(built.path, step) is None
        found.add(bmap.read_bytes() == new)
        assert balenaflash("boot", "ls", built.path).returncode == 0
        assert sorted(each.name for each in tmp_path.iterdir()) == names
        bmaptool("copy", built.path, tmp_path / "copy")  # it finds the map by itself
        subprocess.run(["cmp", built.path, tmp_path / "copy"], check=True)
        (tmp_path / "copy").unlink()
    assert found == {True, False}  # killed before and after the map was renewed
