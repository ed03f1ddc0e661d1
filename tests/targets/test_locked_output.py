"""A file that another process reads, edits or writes is not replaced, whatever command makes it."""

import fcntl
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage
from refusals import refusals

pytestmark = pytest.mark.needs("dosfstools")

COMMANDS = {
    "write": "write --yes {image} {out}",
    "mkdir": "boot mkdir {image} /new --output {out}",
    "get": "boot get {image} /config.json {out}",
    "get-pattern": "boot get {image} /config.js* {folder}",
    "bmap": "bmap create {image} -o {out}",
    "sample": "sample {out}",
}


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.MSDOS_FAT32)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("lock", [fcntl.LOCK_SH, fcntl.LOCK_EX], ids=["shared", "exclusive"])
def test_a_file_that_is_in_use_stays_as_it_is(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path, command: str, lock: int
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "config.json"
    out.write_bytes(b"precious")
    arguments = command.format(image=built.path, out=out, folder=folder).split()
    with out.open("rb") as holder:
        fcntl.flock(holder, lock)
        assert refusals(balenaflash, *arguments, "--overwrite") == {"target-locked": None}
    assert out.read_bytes() == b"precious"
    assert list(folder.iterdir()) == [out]


def test_a_file_may_be_replaced_when_the_other_process_has_finished(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    out = tmp_path / "config.json"
    out.write_bytes(b"old")
    with out.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
    done = balenaflash("boot", "get", "--overwrite", built.path, "/config.json", out)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() != b"old"


def test_nothing_is_copied_out_when_one_of_the_files_is_in_use(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    every = tmp_path / "every"
    assert balenaflash("boot", "get", built.path, "/", every).returncode == 0
    held = every / "config.json"
    others = [path for path in every.rglob("*") if path.is_file() and path != held]
    for path in (held, *others):
        path.write_bytes(b"precious")
    with held.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_SH)
        arguments = ("boot", "get", "--overwrite", built.path, "/.", every)
        assert refusals(balenaflash, *arguments) == {"target-locked": None}
    assert {path.read_bytes() for path in (held, *others)} == {b"precious"}


def test_the_image_is_not_replaced_by_a_file_of_its_own(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    size = built.path.stat().st_size
    arguments = ("boot", "get", "--overwrite", built.path, "/config.json", built.path)
    assert refusals(balenaflash, *arguments) == {"target-locked": None}
    assert built.path.stat().st_size == size
