"""Images that are no files, as users name them."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from imagecopies import MakeImage
from imageserver import Behaviour, direct_and_tidy, serve

__all__ = ["direct_and_tidy"]

pytestmark = pytest.mark.usefixtures("direct_and_tidy")


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
def test_an_image_on_a_web_server_is_looked_into_and_written(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path, *, packed: bool
) -> None:
    content = built.path.read_bytes()
    stored = gzip.compress(content, 1) if packed else content
    with serve(Behaviour(content=stored)) as server:
        shown = balenaflash("inspect", "--json", server.url)
        assert shown.returncode == 0, shown.stderr
        result = json.loads(shown.stdout)["result"]
        assert result["container"] == ("gzip" if packed else "raw")
        assert (result["size"], result["size_by_table"]) == (len(content), packed)
        written = balenaflash("write", server.url, tmp_path / "copy.img")
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "copy.img").read_bytes() == content


def test_an_edit_of_what_is_no_file_needs_an_output(built: BuiltImage, tmp_path: Path) -> None:
    packed = gzip.compress(built.path.read_bytes(), 1)
    command = [sys.executable, "-m", "balenaflash", "config", "set", "-", "hostname=lab-9"]

    def edit(*options: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, *options],
            input=packed,
            capture_output=True,
            check=False,
            env=clean_environment(),
        )

    refused = edit()
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"--output" in refused.stderr
    done = edit("--output", tmp_path / "out.img")
    assert done.returncode == 0, done.stderr
    again = edit("--json", "--output", tmp_path / "out.img")
    [error] = json.loads(again.stdout)["errors"]
    assert (again.returncode, error["lifted_by"]) == (4, "--overwrite")
    assert edit("--overwrite-output", "--output", tmp_path / "out.img").returncode == 0
    offset = built.boot_extent.start
    listed = subprocess.run(
        ["mtype", "-i", f"{tmp_path / 'out.img'}@@{offset}", "::config.json"],
        capture_output=True,
        check=True,
    )
    assert b'"hostname": "lab-9"' in listed.stdout
