"""An image that somebody else changes, mounts or holds open while it is read."""

import json
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from fakes import MemoryMedium
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagecopies import MakeImage
from loopdev import AttachLoop
from mountlock import no_copies_of_mounts
from write_judges import compress

from balenaflash.balena.image import BalenaImage
from balenaflash.commands.edit import open_image
from balenaflash.commands.write import plan_image
from balenaflash.errors import BalenaflashError, ImageError
from balenaflash.flashing.flash import FlashOptions, Outcome, Target, flash
from balenaflash.progress import NO_PROGRESS
from balenaflash.source.base import open_source
from balenaflash.source.layers import Patch, SealedSource
from balenaflash.source.opening import open_for_editing, open_for_reading
from balenaflash.units import KIB, MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def never() -> bool:
    return False


def code_of(run: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    return run.returncode, json.loads(run.stdout)["errors"][0]["code"]


@contextmanager
def mounted(node: Path, point: Path, *options: str) -> Iterator[None]:
    point.mkdir()
    with no_copies_of_mounts():
        subprocess.run(["mount", *options, node, point], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", point], check=True)


def write_in_place(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(content)


def test_an_image_that_is_mounted_for_writing_is_refused_wherever_it_is_copied(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    path, copy = gpt.path, tmp_path / "copy.img"
    node = attach_loop(path, offset=gpt.partitions[2].extent.start)
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("write", path, copy),
        ("verify", path, path),
        ("bmap", "create", path),
        ("config", "set", path, "hostname=a", "--output", copy),
        ("config", "set", path, "hostname=a"),
    )
    with mounted(node, tmp_path / "point"):
        for command in commands:
            run = balenaflash(*command, "--json")
            assert code_of(run) == (3, "image-mounted"), run.stderr
            assert str(tmp_path / "point") in run.stderr
        own: list[str | Path] = [sys.executable, "-m", "balenaflash", "write", "-", copy, "--json"]
        with path.open("rb") as file:
            run = subprocess.run(
                own,
                stdin=file,
                env=clean_environment(),
                capture_output=True,
                text=True,
                check=False,
            )
        assert code_of(run) == (3, "image-mounted"), run.stderr
    assert not copy.exists()
    with mounted(node, tmp_path / "again", "-o", "ro,noload"):
        run = balenaflash("write", path, copy)
        assert run.returncode == 0, run.stderr


def test_a_card_that_is_mounted_for_writing_is_not_copied(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    card = attach_loop(gpt.path)
    part = attach_loop(card, offset=gpt.partitions[2].extent.start)
    with mounted(part, tmp_path / "point"):
        run = balenaflash("write", card, tmp_path / "copy.img", "--json")
    assert code_of(run) == (3, "image-mounted"), run.stderr
    run = balenaflash("write", card, tmp_path / "copy.img")
    assert run.returncode == 0, run.stderr


def test_an_image_that_a_program_has_open_for_writing_is_refused(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    for mode, expected in (("r+b", 3), ("rb", 0)):
        with gpt.path.open(mode) as file, subprocess.Popen(["sleep", "60"], stdin=file) as program:
            file.close()
            run = balenaflash("write", gpt.path, tmp_path / mode, "--json")
            program.kill()
        assert run.returncode == expected, run.stderr
        if expected:
            assert code_of(run) == (3, "image-open-for-writing")
            assert f"sleep (process {program.pid})" in run.stderr


def flashed(path: Path, change: Callable[[], None]) -> tuple[Outcome, MemoryMedium]:
    """What becomes of writing the image at ``path`` that ``change`` changes after the planning."""
    with open_for_reading(path) as opened:
        plan = plan_image(BalenaImage(opened.source), write_all=True)
        change()
        medium = MemoryMedium(plan.least_size + MIB)
        (outcome,) = flash(
            opened.source, plan, [Target(medium, NO_PROGRESS)], options=FlashOptions(), stop=never
        )
    return outcome, medium


@pytest.mark.parametrize("form", ["raw", "gz"])
@pytest.mark.parametrize("keeps_time", [True, False])
def test_an_image_that_is_changed_while_it_is_written_never_boots(
    form: str, *, keeps_time: bool, gpt: BuiltImage
) -> None:
    path = compress(gpt.path) if form == "gz" else gpt.path
    before = path.stat()

    def change() -> None:
        # The name in the header of gzip, and code in the first sector: nothing else would tell.
        write_in_place(path, 4 if form == "gz" else 100, b"\1")
        if keeps_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    outcome, medium = flashed(path, change)
    assert isinstance(outcome, BalenaflashError)
    assert (outcome.exit_status, outcome.code) == (7, "image-failed")
    assert "was changed while it was read" in str(outcome)
    assert not any(medium.content[:MIB])


def test_a_card_that_is_written_to_while_it_is_copied_is_found_out(
    gpt: BuiltImage, attach_loop: AttachLoop
) -> None:
    node = attach_loop(gpt.path)

    def change() -> None:
        with node.open("r+b", buffering=0) as file:
            file.seek(MIB)
            file.write(bytes(4 * KIB))
            os.fsync(file.fileno())

    outcome, _medium = flashed(node, change)
    assert isinstance(outcome, BalenaflashError)
    assert outcome.exit_status == 7
    outcome, _medium = flashed(node, lambda: None)
    assert not isinstance(outcome, BalenaflashError)


def test_the_start_is_written_as_it_was_looked_at(gpt: BuiltImage) -> None:
    """A page mapped from a file of a tmpfs is changed without a trace in its times."""
    with open_for_reading(gpt.path) as opened:
        table = opened.source.read(0, 512)
        with gpt.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[:512] = bytes(512)
        assert opened.source.read(0, 512) == table


def test_an_image_that_is_changed_while_it_is_edited_is_not_written(gpt: BuiltImage) -> None:
    with open_for_editing(gpt.path) as opened:
        write_in_place(gpt.path, 100, b"\1")
        before = gpt.path.read_bytes()
        with pytest.raises(ImageError) as failure:
            opened.commit([Patch(0, bytes(512))])
        assert failure.value.code == "image-changed"
    assert gpt.path.read_bytes() == before


def test_files_are_not_read_from_an_image_that_changes_meanwhile(gpt: BuiltImage) -> None:
    with pytest.raises(ImageError) as failure, open_image(gpt.path):
        write_in_place(gpt.path, 100, b"\1")
    assert failure.value.code == "image-changed"


def test_a_truncated_image_is_told_with_the_bytes_that_it_has(gpt: BuiltImage) -> None:
    with open_source(gpt.path) as source:
        os.truncate(gpt.path, 3 * MIB)
        with pytest.raises(
            ImageError, match=rf"ends at byte {3 * MIB}, but bytes up to {5 * MIB} "
        ):
            source.read(MIB, 4 * MIB)


CONTENT = random.Random(3).randbytes(300_001)  # noqa: S311 - no key


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, len(CONTENT) - 1),
    start=st.integers(0, len(CONTENT)),
    length=st.integers(0, len(CONTENT)),
)
def test_no_byte_that_was_changed_after_hashing_is_ever_read(
    place: int, start: int, length: int, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    end = min(start + length, len(CONTENT))
    with open_source(path) as file:
        sealed = SealedSource(file)
        assert sealed.read(start, end - start) == CONTENT[start:end]
        with path.open("r+b") as changing, mmap.mmap(changing.fileno(), 0) as memory:
            memory[place] ^= 1
        if start <= place < end:
            with pytest.raises(ImageError) as failure:
                sealed.read(start, end - start)
            assert failure.value.code == "image-changed"
        else:
            # Its neighbours in a block are refused with it.
            with suppress(ImageError):
                assert sealed.read(start, end - start) == CONTENT[start:end]
