"""``--sha256``: of the image or of the file it comes in, whichever way it comes."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import Layout
from commandline import RunBalenaflash, clean_environment
from imagecopies import MakeImage
from imageserver import Behaviour, serve

from balenaflash.errors import ImageError
from balenaflash.source.location import ImageLocation, StandardInput, parse_url
from balenaflash.source.opening import open_for_reading
from balenaflash.units import KIB, MIB

CONTENT = random.Random(11).randbytes(MIB) + bytes(3 * MIB) + b"end" * 171  # noqa: S311 - no key
PROGRAMS = {
    "raw": ["cat"],
    "gz": ["gzip"],
    "xz": ["xz"],
    "bz2": ["bzip2"],
    "zst": ["zstd"],
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One image in everything it may come in."""
    folder = tmp_path_factory.mktemp("forms")
    made = {}
    for form, program in PROGRAMS.items():
        made[form] = folder / f"image.{form}"
        packed = subprocess.run([*program, "-"], input=CONTENT, capture_output=True, check=True)
        made[form].write_bytes(packed.stdout)
    (folder / "image.img").write_bytes(CONTENT)
    for form, options in (("zip", []), ("stored.zip", ["-0"])):
        made[form] = folder / f"image.{form}"
        command = ["zip", "-q", *options, made[form].name, "image.img"]
        subprocess.run(command, cwd=folder, check=True)
    return made


@contextmanager
def as_standard_input(path: Path) -> Iterator[ImageLocation]:
    kept = os.dup(0)
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as file:
            try:
                file.write(path.read_bytes())
                file.flush()
            except BrokenPipeError:
                return

    os.dup2(reading, 0)
    os.close(reading)
    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield StandardInput()
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        thread.join()


@contextmanager
def located(path: Path, way: str) -> Iterator[ImageLocation]:
    match way:
        case "file":
            yield path
        case "pipe":
            with as_standard_input(path) as location:
                yield location
        case _:
            behaviour = Behaviour(path.read_bytes(), ranges=way == "http-ranges")
            with serve(behaviour) as server:
                yield parse_url(server.url)


@pytest.mark.parametrize("way", ["file", "pipe", "http", "http-ranges"])
@pytest.mark.parametrize("form", [*PROGRAMS, "zip", "stored.zip"])
def test_the_sum_of_the_image_and_that_of_the_file_are_accepted_and_no_other(
    form: str, way: str, forms: dict[str, Path]
) -> None:
    path = forms[form]
    program = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    of_file = program.stdout.split()[0]
    of_image = hashlib.sha256(CONTENT).hexdigest()
    for known in (of_file, of_image):
        with located(path, way) as location, open_for_reading(location, sha256=known) as opened:
            # Looked at out of order, then read to the end, as by a write.
            assert opened.source.read(MIB // 2, 4 * KIB) == CONTENT[MIB // 2 :][: 4 * KIB]
            assert opened.source.read(0, MIB) == CONTENT[:MIB]
            size = opened.source.measure()
            assert size == len(CONTENT)
            assert opened.source.read(0, size) == CONTENT
    with (
        pytest.raises(ImageError, match="its SHA-256 is") as failure,
        located(path, way) as location,
        open_for_reading(location, sha256="a" * 64) as opened,
    ):
        opened.source.finish()
    assert failure.value.code == "sha256-differs"


@pytest.mark.parametrize("form", ["raw", "gz"])
def test_inspect_ends_in_3_where_the_sum_is_another(
    form: str, image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    path = image(Layout.GPT_FAT16).path
    if form == "gz":
        subprocess.run(["gzip", "-1", path], check=True)
        path = path.with_name(f"{path.name}.gz")
    wrong = "a" * 64
    command = [sys.executable, "-m", "balenaflash", "inspect", "-", "--json", "--sha256", wrong]
    with path.open("rb") as file:
        piped = subprocess.run(
            command, stdin=file, env=clean_environment(), capture_output=True, check=False
        )
    for run in (balenaflash("inspect", path, "--json", "--sha256", wrong), piped):
        assert run.returncode == 3
        assert json.loads(run.stdout)["errors"][0]["code"] == "sha256-differs"
