"""TAB in real shells, with the shipped scripts, at a machine with a stick and an SD card."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import machines
import pytest
from commandline import clean_environment
from devicetree import DeviceTree

import balenaflash as package

SHARE = Path(package.__file__).parent / "share"

RUN = """
import balenaflash.targets.safety
from balenaflash.__main__ import start
from balenaflash.errors import Problem
# umockdev shows no nodes to what asks whether they may be opened; here only root may.
balenaflash.targets.safety.refuse_unwritable = lambda disk: (Problem("target-no-permission", ""),)
start()
"""

READY = {
    "bash": f"PS1=; source {SHARE}/completion.bash",
    "zsh": f"PS1=; autoload compinit; compinit -D -u; source {SHARE}/completion.zsh",
}
OPTIONS = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}

Press = Callable[[str, str], str]
"""From a shell and keys to what the terminal shows of them, and the line that they made."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tree = DeviceTree(tmp_path / "machine")
    machines.MACHINES["laptop"].build(tree)
    recording = tmp_path / "machine.umockdev"
    recording.write_text(machines.recording(tree))
    code = tmp_path / "run.py"
    code.write_text(RUN)
    command = tmp_path / "bin/balenaflash"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nexec umockdev-run -d {recording} -- {sys.executable} {code} "$@"\n'
    )
    command.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / "boards.txt").touch()
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder}/bin:{os.environ['PATH']}"
    return clean_environment({"PATH": path, "HOME": str(folder / "home"), "PROMPT_COMMAND": ""})


@pytest.fixture
def press(folder: Path) -> Press:
    def run(shell: str, keys: str) -> str:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [shell, *OPTIONS[shell], "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(folder),
            cwd=folder / "home",
            start_new_session=True,
        )
        os.close(theirs)
        # Control-A goes to the start of the line.
        os.write(ours, f"{READY[shell]}\r".encode())
        os.write(ours, f"{keys}\x01echo 'line:' \r exit\r".encode())
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # EIO: the shell has ended
                break
        os.close(ours)
        process.wait()
        return shown.decode()

    return run


SHELLS = [pytest.param(shell, marks=pytest.mark.needs(shell)) for shell in ("bash", "zsh")]


@pytest.mark.needs("umockdev")
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("write x.img serial:4C\tnext", "write x.img serial:4C530001 next"),
        ("write http://a:1/x.img serial:4\tnext", "write http://a:1/x.img serial:4C530001 next"),
        ("write x.img port:\tnext", "write x.img port:1-3 next"),
        ("write x.img /dev/m\tnext", "write x.img /dev/mmcblk0 next"),
        ("write x.img po\t", "write x.img port:1-3"),
        ("boot apply x.img --files bo\t", "boot apply x.img --files boards.txt"),
        ("boot apply x.img --files=bo\t", "boot apply x.img --files=boards.txt"),
        ("write --progress=j\tx.img", "write --progress=json x.img"),
    ],
)
def test_a_shell_completes_a_word(press: Press, shell: str, typed: str, line: str) -> None:
    shown = press(shell, f"balenaflash {typed}")
    assert f"line: balenaflash {line}" in [each.strip() for each in shown.splitlines()]


@pytest.mark.needs("umockdev")
@pytest.mark.parametrize("shell", SHELLS)
def test_an_empty_target_offers_disks_and_ways_to_name_one(press: Press, shell: str) -> None:
    shown = press(shell, "balenaflash write x.img \t\t")
    for name in ("/dev/mmcblk0", "/dev/sda", "serial:", "port:", "slot:"):
        assert name in shown
    assert "nvme" not in shown


@pytest.mark.needs("umockdev")
@pytest.mark.parametrize("shell", SHELLS)
def test_a_colon_at_the_end_offers_what_may_follow(press: Press, shell: str) -> None:
    shown = press(shell, "balenaflash write x.img serial:\t\t")
    assert "4C530001" in shown
    assert "0x1b2c3d4e" in shown


@pytest.mark.needs("umockdev", "fish")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("--progress=j", ["--progress=json"]),
        ("", ["/dev/mmcblk0", "/dev/sda", "serial:", "port:", "slot:"]),
        ("serial:", ["serial:4C530001", "serial:0x1b2c3d4e"]),
        ("/dev/m", ["/dev/mmcblk0"]),
    ],
)
def test_fish_completes_a_target(folder: Path, typed: str, offered: list[str]) -> None:
    code = f"source {SHARE}/completion.fish; complete -C 'balenaflash write x.img {typed}'"
    run = subprocess.run(
        ["fish", "--no-config", "-c", code],
        env=environment(folder),
        cwd=folder / "home",
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.partition("\t")[0] for line in run.stdout.splitlines()} == set(offered), run.stderr
