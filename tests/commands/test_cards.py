"""Editing a flashed card: wholly or not at all, and nothing but the card that was confirmed."""

import fcntl
import hashlib
import os
import pty
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from boot_volume import extract, file_tree
from builders import BuiltImage, Layout, run
from commandline import RunBalenaflash, clean_environment
from cut_off_card_edit import EDITS, EPOCH, edit_in_a_process
from fakes import MemoryMedium
from fat_volumes import read_tree
from faultdev import (
    Beyond,
    Fault,
    FaultDevice,
    MakeFaultDevice,
    bit_flip,
    dropped_write,
    flush_error,
    read_error,
    write_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecopies import MakeImage
from loopdev import AttachLoop, attached

from balenaflash.commands.cards import CardSource, CardStore, edit_card, find_card
from balenaflash.commands.edit import edit, open_image
from balenaflash.edits.config.edit import EditConfig, SetKey
from balenaflash.edits.files import PutFile
from balenaflash.errors import (
    EditError,
    ImageError,
    TargetRefusedError,
    VerificationError,
    WriteError,
)
from balenaflash.source.commit import SectorRun, write_runs
from balenaflash.source.undo_record import ReadBackDiffersError
from balenaflash.units import KIB, MIB

HALF = 4
"""Steps after which an edit has written to the card, and not everything."""

UNDONE = "An earlier edit was cut off; it was undone."


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where undo records go below, for this process."""
    path = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(path))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    return path


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def records(state: Path) -> list[Path]:
    return sorted((state / "balenaflash").glob("*"))


def edited_copy(built: BuiltImage, folder: Path) -> str:
    """The digest of the image file after the same edits."""
    copy = folder / "copy.img"
    shutil.copyfile(built.path, copy)
    edit(copy, EDITS)
    digest = sha256(copy)
    copy.unlink()
    return digest


def settle(node: Path) -> tuple[str, ...]:
    """Open the card for an edit that changes nothing; the warnings."""
    return edit_card(find_card(node), []).warnings


class TestStore:
    """A medium of sectors, written at any byte."""

    @given(
        alignment=st.sampled_from([512, 4096]),
        writes=st.lists(
            st.tuples(st.integers(0, 64 * KIB - 1), st.binary(min_size=1, max_size=9000)),
            max_size=6,
        ),
    )
    @settings(deadline=None, max_examples=50)
    def test_exactly_the_bytes_given_change(
        self, alignment: int, writes: list[tuple[int, bytes]]
    ) -> None:
        medium = MemoryMedium(64 * KIB, alignment=alignment)
        medium.flush()
        medium.begin_read_back()
        expected = bytearray(medium.content)
        store = CardStore(medium)
        for offset, content in writes:
            fitting = content[: len(expected) - offset]
            write_runs(store, [SectorRun(offset, memoryview(fitting))])
            expected[offset : offset + len(fitting)] = fitting
            assert store.read(offset, len(fitting)) == fitting
        assert medium.content == expected
        assert CardSource(store).read(1, len(expected) - 2) == expected[1:-1]

    def test_more_than_the_buffer_holds_goes_through_it_in_pieces(self) -> None:
        medium = MemoryMedium(4 * MIB, alignment=4096)
        medium.flush()
        medium.begin_read_back()
        content = hashlib.shake_128(b"x").digest(3 * MIB)
        write_runs(CardStore(medium), [SectorRun(513, memoryview(content))])
        assert CardStore(medium).read_back(513, len(content)) == content
        assert medium.content[:513] == b"\xff" * 513
        assert medium.content[513 + len(content) :] == b"\xff" * (MIB - 513)

    @given(places=st.sets(st.integers(0, 64 * KIB // 512 - 1), min_size=1))
    @settings(deadline=None, max_examples=50)
    def test_parts_of_one_sector_are_written_in_one_piece_and_compared_whole(
        self, places: set[int]
    ) -> None:
        medium = MemoryMedium(64 * KIB, alignment=4096)
        medium.flush()
        medium.begin_read_back()
        expected = bytearray(medium.content)
        for place in places:
            expected[place * 512 : (place + 1) * 512] = bytes(512)
        runs = [SectorRun(place * 512, memoryview(bytes(512))) for place in sorted(places)]
        write_runs(CardStore(medium), runs)
        assert medium.content == expected
        assert {start for start, _end in medium.writes} == {n * 512 // 4096 * 4096 for n in places}
        rest = set(range(0, 64 * KIB, 512)) - {place * 512 for place in places}
        beside = [at for at in rest if any(start <= at < end for start, end in medium.writes)]
        if beside:

            def spoil(offset: int, data: bytes, content: bytearray) -> None:
                content[offset : offset + len(data)] = data
                content[beside[0]] = 0x17

            medium.write_through = spoil
            with pytest.raises(ReadBackDiffersError):
                write_runs(CardStore(medium), runs)

    def test_bytes_past_the_end_are_an_image_cut_short(self) -> None:
        with pytest.raises(ImageError, match="ends at byte 4096") as caught:
            CardSource(CardStore(MemoryMedium(4096))).read(4000, 97)
        assert caught.value.code == "image-truncated"


@pytest.mark.parametrize("layout", list(Layout))
def test_a_card_gets_the_very_bytes_that_a_file_gets(
    layout: Layout, image: MakeImage, attach_loop: AttachLoop, state: Path, tmp_path: Path
) -> None:
    built = image(layout)
    expected = edited_copy(built, tmp_path)
    report = edit_card(find_card(attach_loop(built.path)), EDITS)
    assert sha256(built.path) == expected
    assert report.commit.size < 400 * KIB
    assert records(state) == []


@pytest.mark.needs("fdisk")
def test_a_card_with_sectors_of_4096_bytes_is_edited(
    attach_loop: AttachLoop, state: Path, tmp_path: Path
) -> None:
    path, part = tmp_path / "large-sectors.img", tmp_path / "boot.part"
    path.touch()
    os.truncate(path, 64 * MIB)
    node = attach_loop(path, sector_size=4096)
    script = "label: gpt\nstart=1024, size=8192, name=resin-boot\n"
    subprocess.run(["sfdisk", "-q", node], input=script, text=True, check=True, timeout=60)
    run("mkfs.vfat", "-n", "resin-boot", "-S", "4096", "-C", part, str(32 * KIB))
    run("dd", f"if={part}", f"of={path}", "bs=4096", "seek=1024", "conv=notrunc")
    run("blockdev", "--flushbufs", node)

    content = hashlib.shake_128(b"y").digest(100_000)
    edit_card(find_card(node), [PutFile("/a long name.bin", content)])

    assert read_tree(f"{path}@@{4 * MIB}", tmp_path / "found") == {"/a long name.bin": content}
    run("dd", f"if={path}", f"of={part}", "bs=1M", "skip=4", "count=32")
    run("fsck.vfat", "-n", part)
    assert records(state) == []


def test_an_image_whose_sectors_are_not_the_cards_is_refused(
    built: BuiltImage, attach_loop: AttachLoop
) -> None:
    os.truncate(built.path, -(-built.path.stat().st_size // 4096) * 4096)
    node = attach_loop(built.path, sector_size=4096)
    with pytest.raises(TargetRefusedError) as caught:
        find_card(node)
    assert [problem.code for problem in caught.value.problems] == ["target-sector-size"]


# What is refused


def test_without_an_answer_nothing_is_changed(
    built: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, state: Path
) -> None:
    node = attach_loop(built.path)
    before = sha256(built.path)
    done = balenaflash("boot", "rm", node, "/config.json")
    assert (done.returncode, done.stdout) == (4, "")
    assert f"{node}: changing it was not confirmed" in done.stderr
    assert "Change:  remove /config.json" in done.stderr
    assert "--yes" in done.stderr.splitlines()[-1]
    assert sha256(built.path) == before
    assert records(state) == []


@pytest.mark.parametrize(("answer", "status"), [("n", 4), ("", 4), ("y", 0)])
def test_the_question_is_asked_once_and_no_is_the_default(
    answer: str, status: int, built: BuiltImage, attach_loop: AttachLoop, tmp_path: Path
) -> None:
    node = attach_loop(built.path)
    before = sha256(built.path)
    terminal, its_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "balenaflash", "boot", "rm", node, "/config.json"],
        stdin=its_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment({"XDG_STATE_HOME": str(tmp_path)}),
        text=True,
    ) as process:
        os.close(its_end)
        os.write(terminal, f"{answer}\n".encode())
        _, said = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == status
    assert said.count(f"Change the boot partition of {node}? [y/N]") == 1
    assert (sha256(built.path) == before) == (status != 0)


def test_an_edit_confirmed_beforehand_is_made_and_read_back_by_mtools(
    built: BuiltImage,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
    state: Path,
    tmp_path: Path,
) -> None:
    node = attach_loop(built.path)
    done = balenaflash(
        *("boot", "rm", "--yes", "--json", node, "/config.json"),
        environment={"XDG_STATE_HOME": str(state)},
    )
    assert done.returncode == 0, done.stderr
    found = file_tree(extract(built, tmp_path / "found"))
    assert found == {
        path: content for path, content in built.boot_files.items() if path != "/config.json"
    }


def test_a_dry_run_asks_nothing_changes_nothing_and_tells_refusals(
    built: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    node = attach_loop(built.path)
    before = sha256(built.path)
    done = balenaflash("boot", "rm", "--dry-run", node, "/config.json")
    assert done.returncode == 0, done.stderr
    assert "nothing was written (--dry-run)" in done.stdout
    assert sha256(built.path) == before
    with attached(built.path, read_only=True) as unwritable:
        done = balenaflash("boot", "rm", "--dry-run", unwritable, "/config.json")
        assert done.returncode == 4
        assert "is read-only" in done.stderr


@pytest.mark.needs("root", "util-linux")
def test_a_card_that_is_mounted_is_refused(
    built: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    node = attach_loop(built.path)
    before = sha256(built.path)
    (tmp_path / "point").mkdir()
    # A second loop device over the first, as for a partition.
    root = next(part.extent for part in built.partitions if part.label == "resin-rootA")
    options = f"ro,noload,loop,offset={root.start},sizelimit={root.size}"
    subprocess.run(["mount", "-o", options, node, tmp_path / "point"], check=True)
    try:
        done = balenaflash("boot", "rm", "--yes", node, "/config.json")
    finally:
        subprocess.run(["umount", tmp_path / "point"], check=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"{node}: is used by other devices" in done.stderr
    assert sha256(built.path) == before


def test_a_card_that_another_program_uses_is_refused(
    built: BuiltImage, attach_loop: AttachLoop, state: Path
) -> None:
    node = attach_loop(built.path)
    card = find_card(node)
    before = sha256(built.path)
    taken = os.open(node, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(TargetRefusedError, match="uses it exclusively"):
            edit_card(card, EDITS)
    finally:
        os.close(taken)
    assert sha256(built.path) == before
    assert records(state) == []


def test_another_card_in_the_place_of_the_confirmed_one_is_refused(
    built: BuiltImage, image: MakeImage, state: Path
) -> None:
    with attached(built.path) as node:
        card = find_card(node)
    other = image(Layout.GPT_FAT16)
    with attached(other.path) as again:
        if again != node:
            pytest.skip("another process took the loop device")
        before = sha256(other.path)
        with pytest.raises(TargetRefusedError, match="is not the disk that was listed"):
            edit_card(card, EDITS)
        assert sha256(other.path) == before
    assert records(state) == []


def test_what_holds_no_image_is_told_so(attach_loop: AttachLoop, tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(MIB))
    with pytest.raises(ImageError):
        find_card(attach_loop(tmp_path / "zeros"))
    with (
        attached(tmp_path / "zeros", read_only=True) as node,
        pytest.raises(TargetRefusedError, match="is read-only"),
    ):
        find_card(node)


def test_without_a_place_for_the_undo_record_nothing_is_changed(
    built: BuiltImage, attach_loop: AttachLoop, state: Path
) -> None:
    state.write_text("a file is in the way")
    before = sha256(built.path)
    with pytest.raises(EditError, match="cannot be made: Not a directory") as caught:
        edit_card(find_card(attach_loop(built.path)), EDITS)
    assert caught.value.code == "undo-record-failed"
    assert sha256(built.path) == before


# A medium that fails


def flash(device: FaultDevice, built: BuiltImage) -> bytes:
    content = built.path.read_bytes()
    device.fill(content)
    return content


@pytest.fixture
def device(built: BuiltImage, fault_device: MakeFaultDevice) -> FaultDevice:
    return fault_device(size=built.path.stat().st_size)


def test_only_sectors_that_change_are_written(
    built: BuiltImage, device: FaultDevice, state: Path
) -> None:
    flash(device, built)
    card = find_card(device.node)
    device.set()
    report = edit_card(card, [PutFile("/note.txt", b"x" * KIB)])
    stats = device.stats()
    mark = 2 * 512  # the boot sector, to mark the edit and to remove that
    assert stats.bytes_written == report.commit.size + mark < 20 * KIB
    assert stats.unflushed == 0
    assert records(state) == []


def test_a_write_error_in_the_middle_is_undone(
    built: BuiltImage, device: FaultDevice, state: Path
) -> None:
    before = flash(device, built)
    card = find_card(device.node)
    start = built.boot_extent.start
    # The tables and the root directory are at the front, and are written before: this is content.
    device.set(faults=[write_error(start + MIB, built.boot_extent.end, count=1)])
    with pytest.raises(WriteError, match="it is as it was before") as caught:
        edit_card(card, EDITS)
    assert caught.value.exit_status == 5
    assert str(caught.value).startswith(f"{device.node}: writing at byte ")
    assert device.stats().injected == 1
    assert device.raw(0, len(before)) == before
    assert records(state) == []


def test_what_cannot_be_undone_now_is_undone_by_the_next_edit(
    built: BuiltImage, device: FaultDevice, state: Path
) -> None:
    before = flash(device, built)
    card = find_card(device.node)
    start = built.boot_extent.start
    # What was there cannot be put back either, once something has been written.
    device.set(faults=[write_error(start + MIB, built.boot_extent.end), flush_error()])
    with pytest.raises(WriteError, match="it is half-edited, and the next edit of it") as caught:
        edit_card(card, EDITS)
    (record,) = records(state)
    assert str(record) in str(caught.value)
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700

    device.set()
    with open_image(device.node) as boot:
        warnings = "\n".join(boot.warnings)
        assert "was cut off; the next edit of it recovers it first" in warnings
    assert settle(device.node)[0] == UNDONE
    assert device.raw(0, len(before)) == before
    assert records(state) == []
    with open_image(device.node) as boot:
        assert boot.warnings == ()


def flipped_once(offset: int) -> Fault:
    return replace(bit_flip(offset, on_read=True), count=1)


def place_of_new_content(built: BuiltImage) -> int:
    """Where the first of the edits puts what is in its file."""
    copy = built.path.with_name("place.img")
    shutil.copyfile(built.path, copy)
    edit(copy, EDITS)
    assert isinstance(EDITS[0], PutFile)
    return copy.read_bytes().index(EDITS[0].content)


def bytes_that_decide(built: BuiltImage) -> dict[str, int]:
    """Offsets of bytes that an edit writes back, or by which it finds where to write."""
    start, data = built.boot_extent.start, built.path.read_bytes()
    # Bytes 14 and 22 of a FAT16 boot sector: reserved sectors and sectors of a table.
    reserved, size = (int.from_bytes(data[start + at :][:2], "little") for at in (14, 22))
    return {
        "an entry of the partition table": 1024 + 32,
        "the boot sector": start + 14,
        "the first allocation table": start + reserved * 512 + 41,
        "the second allocation table": start + (reserved + size) * 512 + 41,
        "the root directory": start + (reserved + 2 * size) * 512 + 27,
        "content that is kept": data.index(built.boot_files["/config.json"], start) + 5,
    }


def test_a_bit_wrong_in_one_read_is_never_written_back(
    built: BuiltImage, fault_device: MakeFaultDevice, state: Path, tmp_path: Path
) -> None:
    edits = [EditConfig((SetKey(("hostname",), "bench-7"),))]
    expected = tmp_path / "expected.img"
    shutil.copyfile(built.path, expected)
    edit(expected, edits)
    device = fault_device(size=built.path.stat().st_size)
    told = 0
    for name, offset in bytes_that_decide(built).items():
        device.fill(built.path.read_bytes())
        card = find_card(device.node)
        device.set(faults=[flipped_once(offset)])
        report = edit_card(card, edits)
        told += any("reader or the cable is not reliable" in each for each in report.warnings)
        device.set()
        assert device.raw(0, device.size) == expected.read_bytes(), name
    assert told == len(bytes_that_decide(built))
    assert records(state) == []


def test_a_read_back_that_is_wrong_once_undoes_nothing(
    built: BuiltImage, fault_device: MakeFaultDevice, state: Path, tmp_path: Path
) -> None:
    expected = edited_copy(built, tmp_path)
    device = fault_device(size=built.path.stat().st_size)
    device.fill(built.path.read_bytes())
    card = find_card(device.node)
    # The content of the new file is read when it has been written, and not before.
    device.set(faults=[flipped_once(place_of_new_content(built) + 70_000)])
    edit_card(card, EDITS)
    assert hashlib.sha256(device.raw(0, device.size)).hexdigest() == expected
    assert records(state) == []


def test_what_reads_otherwise_each_time_is_not_edited(
    built: BuiltImage, fault_device: MakeFaultDevice, state: Path
) -> None:
    before = built.path.read_bytes()
    device = fault_device(size=len(before))
    device.fill(before)
    card = find_card(device.node)
    place = bytes_that_decide(built)["the root directory"]
    # Wrong in one bit in the first read, in two in the second, and right in the third.
    faults = [flipped_once(place), replace(bit_flip(place, mask=2, on_read=True), count=2)]
    device.set(faults=faults)
    with pytest.raises(ImageError, match="returns other content"):
        edit_card(card, EDITS)
    assert device.raw(0, device.size) == before
    assert records(state) == []


def test_an_edit_that_lands_in_the_partition_table_too_is_found(
    built: BuiltImage, fault_device: MakeFaultDevice, state: Path
) -> None:
    before = built.path.read_bytes()
    place = place_of_new_content(built)
    device = fault_device(size=len(before))
    device.fill(before)
    card = find_card(device.node)
    # A counterfeit: where the new file is put is really where the table has its entries.
    device.set(real_size=place - 1024, beyond=Beyond.WRAP)
    with pytest.raises(VerificationError, match="it is as it was before"):
        edit_card(card, EDITS)
    assert device.raw(0, place - 1024) == before[: place - 1024]
    assert records(state) == []


def test_a_bit_wrong_beside_the_mark_of_an_edit_is_put_right(
    built: BuiltImage, fault_device: MakeFaultDevice, state: Path
) -> None:
    before = built.path.read_bytes()
    device = fault_device(size=len(before))
    device.fill(before)
    card = find_card(device.node)
    # In the boot sector, which no edit changes but for the mark.
    device.set(faults=[replace(bit_flip(built.boot_extent.start + 54), count=1)])
    with pytest.raises(VerificationError, match="it is as it was before"):
        edit_card(card, EDITS)
    assert device.raw(0, device.size) == before
    assert records(state) == []


def test_a_write_that_is_lost_is_found_by_reading_back(
    built: BuiltImage, device: FaultDevice, state: Path
) -> None:
    before = flash(device, built)
    card = find_card(device.node)
    device.set(faults=[dropped_write(built.boot_extent.start + MIB, count=1)])
    with pytest.raises(VerificationError, match="reads back differently") as caught:
        edit_card(card, EDITS)
    assert caught.value.exit_status == 6
    assert "it is as it was before" in str(caught.value)
    assert device.raw(0, len(before)) == before
    assert records(state) == []


def test_a_card_that_cannot_be_read_is_told_so(
    built: BuiltImage, device: FaultDevice, state: Path
) -> None:
    before = flash(device, built)
    card = find_card(device.node)
    device.set(faults=[read_error(built.boot_extent.start, built.boot_extent.end)])
    with pytest.raises(ImageError, match=f"{device.node}: reading at byte") as caught:
        edit_card(card, EDITS)
    assert caught.value.code == "image-unreadable"
    device.set()
    assert device.raw(0, len(before)) == before
    assert records(state) == []


# Cut off


def test_killed_at_any_step_the_card_is_wholly_old_or_wholly_new_at_the_next_edit(
    built: BuiltImage, attach_loop: AttachLoop, state: Path, tmp_path: Path
) -> None:
    old, new = sha256(built.path), edited_copy(built, tmp_path)
    original = tmp_path / "original.img"
    shutil.copyfile(built.path, original)
    node = attach_loop(built.path)
    outcomes = set()
    for step in range(1, 100):
        done = edit_in_a_process(node, state, step)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        run("blockdev", "--flushbufs", node)
        left = sha256(built.path)
        settle(node)
        found = sha256(built.path)
        assert found in {old, new}
        assert records(state) == []
        outcomes.add((left == old, left == new, found == old))
        run("dd", f"if={original}", f"of={node}", "bs=1M", "conv=fsync", "oflag=direct")
    assert outcomes >= {(True, False, True), (False, False, True), (False, True, False)}
    assert sha256(built.path) == new


@pytest.fixture
def half_edited(built: BuiltImage, state: Path, tmp_path: Path) -> Path:
    """An image on a card whose edit was cut off, and which was then taken out."""
    path = tmp_path / "half-edited.img"
    shutil.copyfile(built.path, path)
    with attached(path) as node:
        assert edit_in_a_process(node, state, step=HALF).returncode == -signal.SIGKILL
    assert sha256(path) not in {sha256(built.path), edited_copy(built, tmp_path)}
    return path


def test_put_in_again_it_is_undone(built: BuiltImage, half_edited: Path, state: Path) -> None:
    with attached(half_edited) as node:
        assert settle(node)[0] == UNDONE
    assert sha256(half_edited) == sha256(built.path)
    assert records(state) == []


def test_another_card_that_looks_alike_is_left_alone_and_the_record_kept(
    built: BuiltImage, half_edited: Path, state: Path, tmp_path: Path
) -> None:
    """Cards in one reader have its serial number, and may have been written from one image."""
    other = tmp_path / "other.img"
    shutil.copyfile(built.path, other)
    (record,) = records(state)
    with attached(other) as node:
        expected = edited_copy(built, tmp_path)
        report = edit_card(find_card(node), EDITS)
        assert str(record) in report.warnings[0]
        assert "this disk is not half-edited" in report.warnings[0]
    assert sha256(other) == expected
    assert records(state) == [record]
    with attached(half_edited) as node:
        assert settle(node)[0] == UNDONE
    assert sha256(half_edited) == sha256(built.path)
    assert records(state) == []


def test_a_card_that_was_written_anew_meanwhile_is_not_touched(
    built: BuiltImage, attach_loop: AttachLoop, state: Path, tmp_path: Path
) -> None:
    node = attach_loop(built.path)
    assert edit_in_a_process(node, state, step=HALF).returncode == -signal.SIGKILL
    volume = tmp_path / "volume"
    run("mkfs.vfat", "-n", "resin-boot", "-C", volume, f"{built.boot_extent.size // KIB}")
    seek = built.boot_extent.start // MIB
    run("dd", f"if={volume}", f"of={node}", "bs=1M", f"seek={seek}", "oflag=direct")
    before = sha256(built.path)
    (warning,) = settle(node)
    assert "has been replaced or changed since" in warning
    assert sha256(built.path) == before
    assert records(state) == []


def test_a_half_edited_card_that_was_changed_meanwhile_is_not_touched(
    built: BuiltImage, attach_loop: AttachLoop, state: Path
) -> None:
    node = attach_loop(built.path)
    assert edit_in_a_process(node, state, step=HALF).returncode == -signal.SIGKILL
    second_table = built.boot_extent.start + 3 * KIB
    run("dd", "if=/dev/urandom", f"of={node}", "bs=512", f"seek={second_table // 512}", "count=8")
    run("sync", node)
    before = sha256(built.path)
    card = find_card(node)
    with pytest.raises(EditError, match="another program has changed it since") as caught:
        edit_card(card, [])
    (record,) = records(state)
    assert f"remove {record}" in (caught.value.hint or "")
    assert sha256(built.path) == before


def test_a_lock_of_somebody_else_is_waited_for_and_then_respected(
    built: BuiltImage, attach_loop: AttachLoop, state: Path
) -> None:
    node = attach_loop(built.path)
    card = find_card(node)
    other = os.open(node, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TargetRefusedError, match="another program has locked it"):
            edit_card(card, EDITS)
    finally:
        os.close(other)
    assert records(state) == []
