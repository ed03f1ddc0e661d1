"""Messages about missing permission; the program runs without the capabilities of root."""

import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import commandline
import pytest
from builders import Layout
from commandline import clean_environment
from imagecopies import MakeImage
from loopdev import AttachLoop

import balenaflash

# setpriv is part of util-linux. A process with this bounding set is held to file modes, whoever it
# runs as; the owner of the package may load it also where it lies in a closed home.
OWNER = Path(balenaflash.__file__).stat().st_uid
UNPRIVILEGED = [
    "setpriv",
    f"--reuid={OWNER}",
    "--clear-groups",
    "--bounding-set=-dac_override,-dac_read_search",
]

pytestmark = pytest.mark.needs("root", "util-linux")


def run_unprivileged(
    *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [*UNPRIVILEGED, sys.executable, "-m", "balenaflash", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=clean_environment(), cwd=cwd
    )


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "{image}"],
        ["config", "show", "{image}"],
        ["boot", "mkdir", "{image}", "/new"],
        ["write", "{image}", "copy.img"],
        ["bmap", "create", "{image}"],
    ],
    ids=lambda command: command[0],
)
def test_an_image_that_may_not_be_read_is_no_wrong_usage(
    command: list[str], image: MakeImage
) -> None:
    built = image(Layout.GPT_FAT16)
    built.path.chmod(0)
    run = run_unprivileged(*(part.format(image=built.path) for part in command))
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    assert f"{built.path}: cannot be opened" in run.stderr
    assert "ls -l" in run.stderr


@pytest.mark.parametrize("command", ["write", "verify"])
def test_a_disk_that_may_not_be_opened_is_refused_with_what_would_help(
    command: str, image: MakeImage, attach_loop: AttachLoop, tmp_path: Path
) -> None:
    built = image(Layout.GPT_FAT16)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(built.path.stat().st_size))
    node = attach_loop(disk)
    mode = stat.S_IMODE(node.stat().st_mode)
    node.chmod(0)
    try:
        # pytest's own folders are closed to the owner of the package, unless that is root.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            copy = shutil.copy(built.path, folder)
            options = ["--yes"] if command == "write" else []
            run = run_unprivileged(command, *options, copy, node)
    finally:
        node.chmod(mode)
    assert (run.returncode, run.stdout) == (4, ""), run.stderr
    assert "root" in run.stderr
    assert not any(disk.read_bytes()[:4096])


@pytest.fixture
def closed(image: MakeImage) -> Iterator[Path]:
    """An image in a folder that only root may search, itself in one that everybody may."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        shutil.copy(image(Layout.GPT_FAT16).path, top / "open.img")
        (top / "open.img").chmod(0o666)
        folder = top / "closed"
        folder.mkdir()
        shutil.copy(top / "open.img", folder / "image.img")
        folder.chmod(0)
        yield top


NO_IMAGE, REFUSED = 3, 4


@pytest.mark.parametrize(
    ("status", "command"),
    [
        (NO_IMAGE, "inspect closed/image.img"),
        (NO_IMAGE, "config show closed/image.img"),
        (NO_IMAGE, "config set closed/image.img hostname=lab-1"),
        (NO_IMAGE, "boot mkdir closed/image.img /new"),
        (NO_IMAGE, "boot mkdir closed/image.img /new --output new.img"),
        (REFUSED, "boot mkdir open.img /new --output closed/new.img"),
        (NO_IMAGE, "boot check closed/image.img"),
        (NO_IMAGE, "boot get closed/image.img /config.json got"),
        (NO_IMAGE, "boot get open.img /config.json closed/got"),
        (NO_IMAGE, "boot put open.img closed/image.img /x"),
        (NO_IMAGE, "bmap create closed/image.img"),
        (REFUSED, "bmap create open.img --output closed/new.bmap"),
        (NO_IMAGE, "bmap check closed/image.img"),
        (NO_IMAGE, "bmap check open.img --bmap closed/image.bmap"),
        (NO_IMAGE, "write closed/image.img new.img"),
        (REFUSED, "write open.img closed/new.img"),
        (NO_IMAGE, "verify closed/image.img open.img"),
        (REFUSED, "verify open.img closed/image.img"),
        (NO_IMAGE, "unwrap closed/image.img new.img"),
        (REFUSED, "unwrap open.img closed/new.img"),
        (NO_IMAGE, "edit closed/image.img --recipe closed/recipe.toml"),
        (REFUSED, "sample closed/new.img"),
    ],
)
def test_a_folder_that_may_not_be_searched_is_an_error_that_names_the_file(
    status: int, command: str, closed: Path
) -> None:
    words = [str(closed / each) if "closed/" in each else each for each in command.split()]
    run = run_unprivileged(*words, cwd=closed)
    assert "this is a bug" not in run.stderr, run.stderr
    assert (run.returncode, run.stdout) == (status, ""), run.stderr
    assert f"{closed}/closed/" in run.stderr


@pytest.mark.parametrize(
    ("status", "command"),
    [
        (NO_IMAGE, "inspect {name}"),
        (0, "boot mkdir {longest} /new"),
        (0, "inspect {longest}"),
        (0, "bmap check {longest} --bmap image.bmap"),
        (0, "write {longest} new.img"),
        (REFUSED, "write image.img {name}"),
        (REFUSED, "verify image.img {name}"),
        (REFUSED, "bmap create image.img --output {name}"),
        (NO_IMAGE, "boot get image.img /config.json {name}"),
        (NO_IMAGE, "boot put image.img {name} /x"),
        (REFUSED, "sample {name}"),
    ],
)
def test_a_name_that_is_too_long_is_an_error_and_the_longest_is_none(
    status: int, command: str, image: MakeImage, tmp_path: Path
) -> None:
    shutil.copy(image(Layout.GPT_FAT16).path, tmp_path / "image.img")
    longest = "l" * 255
    shutil.copy(tmp_path / "image.img", tmp_path / longest)
    subprocess.run(
        ["bmaptool", "-q", "create", "-o", tmp_path / "image.bmap", tmp_path / "image.img"],
        check=True,
    )
    run = commandline.run(*command.format(name="n" * 256, longest=longest).split(), cwd=tmp_path)
    assert "this is a bug" not in run.stderr, run.stderr
    assert run.returncode == status, run.stderr
