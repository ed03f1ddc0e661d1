import os
import random
import resource
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import loopdev
import pytest
import xxhash
from cut_off_commit import ENVIRONMENT, child_command, commit_in_a_process, patches_of, undo_record
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import EditError, ImageError, VerificationError, WriteError
from balenaflash.source import opening
from balenaflash.source.base import FileSource, open_source
from balenaflash.source.commit import EditableImage, Recovery
from balenaflash.source.container.decoder import Compressed, Container, Origin
from balenaflash.source.container.recognise import recognise
from balenaflash.source.layers import Overlay, Patch
from balenaflash.source.opening import open_for_editing, open_for_reading, recover
from balenaflash.source.undo_record import FileStore, record_beside
from balenaflash.units import GIB, KIB, MIB

KILLS = int(os.environ.get("BALENAFLASH_TEST_KILLS", "30"))
KILLED_SIZE = int(os.environ.get("BALENAFLASH_TEST_KILLED_MIB", "4")) * MIB
SIZE = 64 * KIB
NOBODY = 65534


@st.composite
def patch_lists(draw: st.DrawFn, size: int = SIZE) -> list[Patch]:
    """Patches that do not overlap, in any order, some of them side by side."""
    cuts = sorted(draw(st.sets(st.integers(0, size), min_size=2, max_size=14)))
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    patches = [Patch(start, noise(start, end - start)) for start, end in ranges]
    return draw(st.permutations(patches))


def patched(content: bytes, patches: list[Patch]) -> bytes:
    """What the patches make of ``content``, done the plainest way."""
    result = bytearray(content)
    for patch in patches:
        result[patch.offset : patch.offset + len(patch.data)] = patch.data
    return bytes(result)


def make_image(path: Path, size: int = SIZE, seed: int = 1) -> bytes:
    content = noise(seed, size)
    path.write_bytes(content)
    return content


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 -- content, not a key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patch")


class TestOverlay:
    @settings(deadline=None)
    @given(patches=patch_lists(), data=st.data())
    def test_every_range_reads_as_the_patched_bytes(
        self, folder: Path, patches: list[Patch], data: st.DataObject
    ) -> None:
        path = folder / "overlay.img"
        expected = patched(make_image(path), patches)
        offset = data.draw(st.integers(0, SIZE))
        length = data.draw(st.integers(0, SIZE - offset))
        buffer = bytearray(length)

        with open_source(path) as source:
            overlay = Overlay(source, patches)
            assert overlay.read(offset, length) == expected[offset : offset + length]
            overlay.readinto(offset, memoryview(buffer))

        assert buffer == expected[offset : offset + length]

    def test_a_range_past_the_end_is_an_error_as_without_patches(self, tmp_path: Path) -> None:
        make_image(tmp_path / "a.img")
        with open_source(tmp_path / "a.img") as source:
            overlay = Overlay(source, [Patch(0, b"new")])
            with pytest.raises(ImageError, match="ends at byte 65536"):
                overlay.read(SIZE - 1, 2)

    @pytest.mark.parametrize(
        "patches",
        [
            [Patch(10, b"abc"), Patch(12, b"x")],
            [Patch(SIZE - 1, b"ab")],
            [Patch(-1, b"a")],
            [Patch(5, b"")],
        ],
        ids=["overlapping", "past the end", "before the start", "empty"],
    )
    def test_patches_out_of_place_are_a_bug(self, tmp_path: Path, patches: list[Patch]) -> None:
        make_image(tmp_path / "a.img")
        with open_source(tmp_path / "a.img") as source, pytest.raises(ValueError, match="place"):
            Overlay(source, patches)


class TestCommit:
    @given(patches=patch_lists())
    @settings(max_examples=40, deadline=None)
    def test_the_file_holds_the_patched_bytes_and_nothing_else_changes(
        self, folder: Path, patches: list[Patch]
    ) -> None:
        path = folder / "commit.img"
        expected = patched(make_image(path), patches)
        path.chmod(0o640)
        before = path.stat()

        with open_for_editing(path) as image:
            image.commit(patches)

        after = path.stat()
        assert path.read_bytes() == expected
        assert (after.st_ino, after.st_mode, after.st_uid) == (
            before.st_ino,
            before.st_mode,
            before.st_uid,
        )
        assert not undo_record(path).exists()

    @given(patches=patch_lists())
    @settings(max_examples=40, deadline=None)
    def test_the_report_counts_exactly_the_sectors_that_differ(
        self, folder: Path, patches: list[Patch]
    ) -> None:
        path = folder / "report.img"
        old = make_image(path)
        # Some of the new bytes are the old ones: those sectors are not to be written.
        same = [each for each in patches if each.offset % 3 == 0]
        patches = [each for each in patches if each not in same]
        patches += [Patch(each.offset, old[each.offset : each.extent.end]) for each in same]

        with open_for_editing(path) as image:
            planned = image.preview(patches)
            assert path.read_bytes() == old
            report = image.commit(patches)

        new = path.read_bytes()
        sectors = (slice(start, start + 512) for start in range(0, SIZE, 512))
        assert report == planned
        assert report.sectors == sum(old[sector] != new[sector] for sector in sectors)

    def test_bytes_that_are_there_already_change_not_even_the_time(self, tmp_path: Path) -> None:
        path = tmp_path / "a.img"
        content = make_image(path)
        os.utime(path, (1, 1))
        with open_for_editing(path) as image:
            report = image.commit([Patch(512, content[512:2048])])
        assert (report.sectors, path.stat().st_mtime) == (0, 1)

    def test_holes_outside_the_patches_stay_holes(self, tmp_path: Path) -> None:
        path = tmp_path / "sparse.img"
        path.touch()
        os.truncate(path, 256 * MIB)
        with open_for_editing(path) as image:
            image.commit([Patch(100 * MIB, b"x" * 512)])
        assert path.stat().st_blocks * 512 <= 64 * KIB
        assert path.stat().st_size == 256 * MIB

    def test_a_link_to_the_image_is_followed_and_its_record_lies_beside_the_image(
        self, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        old = make_image(elsewhere / "a.img")
        (tmp_path / "link.img").symlink_to(elsewhere / "a.img")
        commit_in_a_process(elsewhere / "a.img", seed=1, size=8 * KIB, step=4)
        assert undo_record(elsewhere / "a.img").exists()

        assert recover(tmp_path / "link.img") is Recovery.UNDONE

        assert (elsewhere / "a.img").read_bytes() == old
        assert (tmp_path / "link.img").is_symlink()


class TestRefusal:
    def test_what_takes_the_name_of_an_image_while_it_is_opened_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, other = tmp_path / "a.img", tmp_path / "other.img"
        make_image(path)
        precious = make_image(other, seed=2)

        def exchange(origin: Origin, member: str | None = None) -> Compressed | None:
            path.unlink()
            path.symlink_to(other)
            return recognise(origin, member)

        monkeypatch.setattr(opening, "recognise", exchange)
        with open_for_editing(path) as image:
            image.commit([Patch(0, b"new")])
        assert other.read_bytes() == precious

    def test_a_second_editor_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.img"
        old = make_image(path, MIB)
        with open_for_editing(path):
            second = commit_in_a_process(path, seed=1, size=64 * KIB)
        assert second.returncode == 1
        assert "is in use by another balenaflash" in second.stderr
        assert path.read_bytes() == old
        assert commit_in_a_process(path, seed=1, size=64 * KIB).returncode == 0

    def test_a_reader_and_an_editor_keep_each_other_out_and_two_readers_do_not(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "a.img"
        make_image(path)
        with open_for_reading(path), open_for_reading(path):
            assert refusal_to_edit(path) == "image-locked"
        with (
            open_for_editing(path),
            pytest.raises(EditError, match="in use"),
            open_for_reading(path),
        ):
            pass

    def test_a_block_device_is_read_and_not_edited(
        self, tmp_path: Path, attach_loop: loopdev.AttachLoop
    ) -> None:
        path = tmp_path / "a.img"
        old = make_image(path)
        node = attach_loop(path)
        with open_for_reading(node) as image:
            assert image.source.read(0, SIZE) == old
        assert refusal_to_edit(node) == "image-is-device"

    def test_an_image_that_may_not_be_written_is_read_and_not_edited(
        self, public_folder: Path
    ) -> None:
        path = public_folder / "a.img"
        make_image(path)
        path.chmod(0o444)
        with ordinary_user(), open_for_reading(path) as image:
            assert image.source.size == SIZE
        with ordinary_user():
            assert refusal_to_edit(path) == "image-read-only"

    def test_without_permission_for_the_undo_record_the_image_is_left_alone(
        self, public_folder: Path
    ) -> None:
        path = public_folder / "a.img"
        old = make_image(path)
        path.chmod(0o666)
        public_folder.chmod(0o555)
        with (
            ordinary_user(),
            open_for_editing(path) as image,
            pytest.raises(EditError, match="undo record cannot be made: Permission denied"),
        ):
            image.commit([Patch(0, b"new")])
        assert path.read_bytes() == old

    def test_without_room_for_the_undo_record_the_image_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "a.img"
        old = make_image(path, MIB)
        with (
            open_for_editing(path) as image,
            file_size_limit(4 * KIB),
            pytest.raises(EditError, match="undo record cannot be made: File too large"),
        ):
            image.commit([Patch(0, bytes(64 * KIB))])
        assert path.read_bytes() == old
        assert names_in(tmp_path) == ["a.img"]


class TestFailureWhileWriting:
    def test_what_was_written_is_put_back(self, tmp_path: Path) -> None:
        path = tmp_path / "a.img"
        old = make_image(path, MIB)
        with (
            open_for_editing(path) as image,
            file_size_limit(512 * KIB),
            pytest.raises(WriteError, match="File too large; it is as it was before"),
        ):
            image.commit([Patch(0, bytes(4096)), Patch(600 * KIB, bytes(4096))])
        assert path.read_bytes() == old
        assert names_in(tmp_path) == ["a.img"]

    def test_a_medium_that_holds_something_else_is_found_out(self, tmp_path: Path) -> None:
        path = tmp_path / "a.img"
        make_image(path)
        # pwrite(2), BUGS: with O_APPEND it ignores the offset, and reports success.
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            source = FileSource(path, descriptor, Container.RAW, SIZE)
            image = EditableImage(
                source,
                Container.RAW,
                store=FileStore(descriptor),
                find_record=partial(record_beside, path, descriptor),
            )
            with pytest.raises(VerificationError, match="at byte 512"):
                image.commit([Patch(512, bytes(512))])
        finally:
            os.close(descriptor)


class TestCutOff:
    @pytest.mark.parametrize("how", ["kill", "power"])
    def test_at_every_step_the_image_is_wholly_old_or_wholly_new(
        self, tmp_path: Path, how: str
    ) -> None:
        path, size = tmp_path / "a.img", 8 * KIB
        old = make_image(path, MIB)
        new = patched(old, patches_of(MIB, seed=7, size=size))
        outcomes = set()
        for step in range(1, 1000):
            path.write_bytes(old)
            done = commit_in_a_process(path, seed=7, size=size, step=step, how=how)
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            left = path.read_bytes()

            recovery = recover(path)

            expected = {Recovery.UNDONE: old, Recovery.COMPLETE: new, None: left}[recovery]
            assert path.read_bytes() == expected
            assert expected in {old, new}
            assert names_in(tmp_path) == ["a.img"]
            outcomes.add((left == old, left == new, recovery))
        assert outcomes >= {
            (True, False, Recovery.UNDONE),
            (False, False, Recovery.UNDONE),
            (False, True, Recovery.COMPLETE),
            (False, True, None),
        }
        assert path.read_bytes() == new

    def test_a_recovery_that_is_itself_cut_off_is_finished_by_the_next(
        self, tmp_path: Path
    ) -> None:
        path, size = tmp_path / "a.img", 8 * KIB
        old = make_image(path, MIB)
        new = patched(old, patches_of(MIB, seed=7, size=size))
        for step in range(3, 9):
            path.write_bytes(old)
            for each in (9, step, step):
                commit_in_a_process(path, seed=7, size=size, step=each, how="power")
            recover(path)
            assert path.read_bytes() in {old, new}
            assert names_in(tmp_path) == ["a.img"]

    def test_interrupted_by_the_user_it_is_put_back_at_once(self, tmp_path: Path) -> None:
        path, size = tmp_path / "a.img", 8 * KIB
        old = make_image(path, MIB)
        for step in (1, 2, 3, 5, 8):
            done = commit_in_a_process(path, seed=7, size=size, step=step, how="interrupt")
            assert done.returncode == -signal.SIGINT
            assert path.read_bytes() == old
            assert names_in(tmp_path) == ["a.img"]

    def test_when_undoing_fails_the_record_stays_for_the_next_time(
        self, tmp_path: Path, torn: tuple[bytes, bytes]
    ) -> None:
        path = tmp_path / "a.img"
        path.write_bytes(torn[0])
        undo_record(path).write_bytes(torn[1])
        with file_size_limit(512), pytest.raises(WriteError, match="undoing it failed") as caught:
            recover(path)
        assert caught.value.code == "undo-failed"
        assert recover(path) is Recovery.UNDONE
        assert path.read_bytes() == make_image(tmp_path / "b.img", MIB, seed=3)

    @pytest.mark.parametrize("number", range(KILLS))
    def test_killed_at_any_moment_it_is_wholly_old_or_wholly_new(
        self, tmp_path: Path, commit_seconds: float, number: int
    ) -> None:
        path = tmp_path / "a.img"
        old = make_image(path, 2 * KILLED_SIZE, seed=number)
        new = patched(old, patches_of(len(old), seed=number, size=KILLED_SIZE))
        with start_commit(path, seed=number) as child:
            time.sleep((number + 1) / KILLS * 1.1 * commit_seconds)
            child.kill()
        recovery = recover(path)
        content = path.read_bytes()
        assert content in {old, new}
        assert recovery is None or content == (new if recovery is Recovery.COMPLETE else old)
        assert names_in(tmp_path) == ["a.img"]


class TestUndoRecord:
    @settings(max_examples=40, deadline=None)
    @given(number=st.integers(0, MIB), padded=st.booleans())
    def test_an_incomplete_record_is_dropped_and_the_image_left_as_it_is(
        self, folder: Path, torn_image: bytes, torn_record: bytes, *, number: int, padded: bool
    ) -> None:
        path = folder / "incomplete.img"
        path.write_bytes(torn_image)
        length = number % len(torn_record)
        # After a loss of power a file may have its size, and zeros for what was not written.
        zeros = len(torn_record) - length if padded else 0
        undo_record(path).write_bytes(torn_record[:length] + bytes(zeros))

        assert recover(path) is Recovery.UNFINISHED

        assert path.read_bytes() == torn_image
        assert not undo_record(path).exists()

    def test_an_image_replaced_meanwhile_by_another_size_is_refused(
        self, tmp_path: Path, torn_record: bytes
    ) -> None:
        path = tmp_path / "a.img"
        make_image(path, 2 * MIB, seed=5)
        undo_record(path).write_bytes(torn_record)
        assert refusal_to_edit(path) == "undo-impossible"

    def test_an_image_replaced_meanwhile_by_one_of_its_size_is_refused_untouched(
        self, tmp_path: Path, torn_record: bytes
    ) -> None:
        path = tmp_path / "a.img"
        other = make_image(path, MIB, seed=5)
        undo_record(path).write_bytes(torn_record)
        with pytest.raises(EditError, match="another program has changed it") as caught:
            recover(path)
        assert str(undo_record(path)) in (caught.value.hint or "")
        assert path.read_bytes() == other
        assert undo_record(path).read_bytes() == torn_record

    def test_an_image_replaced_meanwhile_by_a_fresh_copy_of_itself_stays_as_it_is(
        self, tmp_path: Path, torn_record: bytes
    ) -> None:
        path = tmp_path / "a.img"
        fresh = make_image(path, MIB, seed=3)
        undo_record(path).write_bytes(torn_record)
        assert recover(path) is Recovery.UNDONE
        assert path.read_bytes() == fresh

    def test_a_record_of_a_later_version_is_refused(
        self, tmp_path: Path, torn_record: bytes
    ) -> None:
        path = tmp_path / "a.img"
        make_image(path, MIB)
        undo_record(path).write_bytes(torn_record[:16] + b"\x03" + torn_record[17:])
        with pytest.raises(EditError, match="another version of balenaflash"):
            recover(path)

    def test_a_record_that_is_a_link_is_not_followed(
        self, tmp_path: Path, torn_record: bytes
    ) -> None:
        path = tmp_path / "a.img"
        old = make_image(path, MIB, seed=3)
        (tmp_path / "planted").write_bytes(torn_record)
        undo_record(path).symlink_to(tmp_path / "planted")
        assert refusal_to_edit(path) == "undo-impossible"
        assert path.read_bytes() == old

    @pytest.mark.needs("root")
    def test_a_record_that_another_user_made_is_not_believed(
        self, tmp_path: Path, torn_record: bytes
    ) -> None:
        path = tmp_path / "a.img"
        make_image(path, MIB, seed=3)
        undo_record(path).write_bytes(torn_record)
        os.chown(undo_record(path), NOBODY, NOBODY)
        before = path.read_bytes()
        assert recover(path) is Recovery.FOREIGN
        with open_for_reading(path) as image:
            assert image.warnings == (Recovery.FOREIGN,)
        with (
            open_for_editing(path) as image,
            pytest.raises(EditError, match="undo record cannot be made") as caught,
        ):
            image.commit([Patch(0, b"new")])
        assert str(undo_record(path)) in (caught.value.hint or "")
        assert (path.read_bytes(), undo_record(path).read_bytes()) == (before, torn_record)

    @pytest.mark.parametrize("how", ["short", "far", "long", "unordered", "large"])
    def test_a_record_that_cannot_be_is_refused_whatever_its_checksum(
        self, tmp_path: Path, how: str
    ) -> None:
        path = tmp_path / "a.img"
        image = make_image(path, MIB)
        one = struct.pack("<QQ", 0, 512) + bytes(512) + bytes(8)
        count, body = {
            "short": (2, one),
            "far": (1, struct.pack("<QQ", (1 << 64) - 512, 512) + bytes(512) + bytes(8)),
            "long": (1, struct.pack("<QQ", 0, 1 << 63)),
            "unordered": (2, one + one),
            "large": (1, one),
        }[how]
        header = struct.pack("<16sIIQQBB", b"balenaflash-undo", 2, count, MIB, (1 << 64) - 1, 0, 0)
        content = header + body
        undo_record(path).write_bytes(content + xxhash.xxh3_128_digest(content))
        if how == "large":
            os.truncate(undo_record(path), 10 * GIB)
        assert refusal_to_edit(path) == "undo-impossible"
        assert path.read_bytes() == image

    def test_only_the_owner_of_the_image_may_read_the_record(self, tmp_path: Path) -> None:
        path = tmp_path / "a.img"
        make_image(path, MIB)
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        commit_in_a_process(path, seed=1, size=64 * KIB, step=4)
        record, image = undo_record(path).stat(), path.stat()
        assert (record.st_uid, record.st_mode & 0o777) == (image.st_uid, 0o600)


@contextmanager
def start_commit(path: Path, seed: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is just about to commit."""
    command = child_command(path, seed=seed, size=KILLED_SIZE)
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child


@pytest.fixture(scope="module")
def commit_seconds(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long a commit takes here that nobody kills."""
    path = tmp_path_factory.mktemp("timed") / "a.img"
    make_image(path, 2 * KILLED_SIZE)
    with start_commit(path, seed=1) as child:
        start = time.monotonic()
        assert child.wait() == 0
    return time.monotonic() - start


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """An image of seed 3 in the middle of a commit, and its undo record."""
    path = tmp_path_factory.mktemp("torn") / "a.img"
    make_image(path, MIB, seed=3)
    done = commit_in_a_process(path, seed=3, size=64 * KIB, step=12)
    assert done.returncode == -signal.SIGKILL
    return path.read_bytes(), undo_record(path).read_bytes()


@pytest.fixture(scope="module")
def torn_image(torn: tuple[bytes, bytes]) -> bytes:
    return torn[0]


@pytest.fixture(scope="module")
def torn_record(torn: tuple[bytes, bytes]) -> bytes:
    return torn[1]


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield path
        path.chmod(0o777)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may do anything: be somebody else."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes past ``size`` fail with EFBIG: a full disk that needs no disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refusal_to_edit(path: Path) -> str:
    with pytest.raises(EditError) as caught, open_for_editing(path):
        pass
    return caught.value.code
