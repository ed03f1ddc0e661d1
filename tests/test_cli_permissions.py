"""What somebody without permission is told; root, without the capabilities that open everything."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from builders import Layout
from commandline import clean_environment
from imagecopies import MakeImage
from loopdev import AttachLoop

# setpriv is part of util-linux. A process of root with this bounding set is held to file modes.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]

pytestmark = pytest.mark.needs("root", "util-linux")


def run_unprivileged(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [*UNPRIVILEGED, sys.executable, "-m", "balenaflash", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=clean_environment()
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
        options = ["--yes"] if command == "write" else []
        run = run_unprivileged(command, *options, built.path, node)
    finally:
        node.chmod(mode)
    assert (run.returncode, run.stdout) == (4, ""), run.stderr
    assert "root" in run.stderr
    assert not any(disk.read_bytes()[:4096])
