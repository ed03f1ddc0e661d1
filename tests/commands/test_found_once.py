"""Each fact of an image is found once in a run, and kept: nothing is read or checked twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import clean_environment
from imagecopies import MakeImage

pytestmark = pytest.mark.needs("dosfstools", "e2fsprogs", "parted")

COUNT = """
import json, runpy, sys, threading
from collections import Counter

from balenaflash.balena.flasher_contents import read_flasher
from balenaflash.balena.image import BalenaImage
from balenaflash.formats.ext4.volume import Ext4Volume
from balenaflash.formats.fat.fsck import Check
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.filesystems import recognise_filesystem
from balenaflash.formats.partitions.table import read_table

names = {
    read_table.__code__: "table",
    BalenaImage.boot.func.__code__: "boot partition",
    recognise_filesystem.__code__: "filesystem",
    FatVolume.open.__func__.__code__: "FAT volume",
    Ext4Volume.open.__func__.__code__: "ext4 volume",
    read_flasher.__code__: "flasher",
    Check.__init__.__code__: "structure check",
}
counted = Counter()

def count(frame, event, _argument):
    if event == "call" and frame.f_code in names:
        counted[names[frame.f_code]] += 1

out, *sys.argv[1:] = sys.argv[1:]
threading.setprofile(count)
sys.setprofile(count)
try:
    runpy.run_module("balenaflash", run_name="__main__", alter_sys=True)
finally:
    sys.setprofile(None)
    with open(out, "w") as file:
        json.dump(counted, file)
"""


def count(folder: Path, *words: str | Path) -> dict[str, int]:
    """How often each fact was found in a run of ``balenaflash WORDS``, which succeeds."""
    out = folder / "counts.json"
    command = [sys.executable, "-c", COUNT, str(out), *map(str, words)]
    subprocess.run(command, env=clean_environment(), check=True, capture_output=True)
    counts: dict[str, int] = json.loads(out.read_text())
    return counts


def packed(path: Path) -> Path:
    subprocess.run(["gzip", "-1", "-k", path], check=True)
    return path.with_name(f"{path.name}.gz")


@pytest.fixture
def raw(image: MakeImage) -> BuiltImage:
    """With five partitions: FAT and four ext4."""
    return image(Layout.GPT_FAT16)


@pytest.fixture
def flasher(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16, flasher=True)


EDIT = ("--step", 'config-set = "hostname=lab"')


def test_inspect_of_a_raw_image(raw: BuiltImage, tmp_path: Path) -> None:
    assert count(tmp_path, "inspect", raw.path) == {
        "table": 1,
        "boot partition": 1,
        "filesystem": 5,
        "FAT volume": 1,
        "ext4 volume": 4,
        "structure check": 1,
    }


def test_inspect_of_a_flasher(flasher: BuiltImage, tmp_path: Path) -> None:
    # The flasher has two ext4 filesystems, the image that it carries four.
    assert count(tmp_path, "inspect", flasher.path) == {
        "table": 2,
        "boot partition": 2,
        "filesystem": 10,
        "FAT volume": 2,
        "ext4 volume": 6,
        "flasher": 1,
        "structure check": 2,
    }


def test_write_of_a_compressed_image_with_a_recipe(raw: BuiltImage, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    # The boot files are opened to be edited and, as they were, to see whether a secret was added.
    # They are checked before the edits and after them.
    assert count(tmp_path, "write", packed(raw.path), out, *EDIT) == {
        "table": 1,
        "boot partition": 1,
        "filesystem": 1,
        "FAT volume": 2,
        "structure check": 2,
    }


def test_write_of_an_unwrapped_flasher_with_a_recipe(flasher: BuiltImage, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    # The boot files of the flasher are opened once. Those of the inner image are opened to be
    # read, to be changed by the flasher's steps, and twice after that as above. The steps and the
    # recipe are two edits, each checked before and after: only then is it known which of the two
    # has broken something, and which secrets are new.
    assert count(tmp_path, "write", "--unwrap", flasher.path, out, *EDIT) == {
        "table": 2,
        "boot partition": 2,
        "filesystem": 10,
        "FAT volume": 5,
        "ext4 volume": 1,
        "flasher": 1,
        "structure check": 4,
    }
