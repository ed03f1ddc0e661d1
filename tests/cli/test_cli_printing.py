"""Nothing that a device, a file or a server says acts on a terminal or on a shell."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from commandline import RunBalenaflash, clean_environment
from hypothesis import given
from hypothesis import strategies as st

import balenaflash as package
from balenaflash.cli.output import printable, say_json

HOSTILE = "a\x1b]0;x\x07\x7f\x9b31m\u202e\u2066\u200fz\udcff"
"""An escape sequence, DEL, CSI in C1, marks of direction, and a byte that is not UTF-8."""


def acting(text: str) -> set[str]:
    """Characters that a terminal does something with, beside line ends; Unicode 15, 9.44."""
    directions = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
    directions |= {"\u061c", "\u200e", "\u200f"}
    controls = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - {"\n"}
    return set(text) & (directions | controls)


@given(st.text())
def test_text_for_people_is_one_line_that_acts_on_nothing(text: str) -> None:
    shown = printable(text)
    assert not acting(shown)
    assert "\n" not in shown
    shown.encode("utf-8")
    assert printable(shown) == shown


@given(st.text(st.characters(codec=None, exclude_categories=[])))
def test_json_comes_back_and_acts_on_nothing(text: str) -> None:
    with CliRunner().isolation() as (output, *_rest):
        say_json({"text": text, text: [1]}, indent=2)
        shown = output.getvalue().decode("utf-8")
    assert not acting(shown)
    assert json.loads(shown) == json.loads(json.dumps({"text": text, text: [1]}))


def test_no_module_prints_past_that_place() -> None:
    folder = Path(package.__file__).parent / "cli"
    printing = {
        path.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"echo", "secho"}
    }
    # The help of a group, constant words about the streams themselves, the question at the
    # terminal, and what stands above and in the bars; both are escaped, see below.
    others = {"session.py", "asking.py", "progress.py"}
    assert printing == {"output.py"} | others


@pytest.mark.parametrize(
    "command", [("write",), ("inspect",), ("config", "show"), ("write", "--progress", "json")]
)
def test_names_of_files_and_errors_are_escaped(
    balenaflash: RunBalenaflash, tmp_path: Path, command: tuple[str, ...]
) -> None:
    image = tmp_path / f"{HOSTILE}.img"
    assert balenaflash("sample", image).returncode == 0
    target = [tmp_path / f"{HOSTILE}.copy"] if command[0] == "write" else []
    for arguments in ((*command, image, *target), (*command, f"{image}.none", *target)):
        for options in ((), ("--json",)):
            run = balenaflash(*map(str, arguments), *options)
            assert not acting(run.stdout)
            assert not acting(run.stderr)
    if target:
        assert target[0].exists()


def test_wrong_usage_is_escaped(balenaflash: RunBalenaflash) -> None:
    for arguments in ((f"--{HOSTILE}",), (HOSTILE,), ("write", "x", "--max-size", HOSTILE, "y")):
        run = balenaflash(*arguments)
        assert run.returncode == 2
        assert not acting(run.stderr)


def test_a_bar_is_named_by_text_that_acts_on_nothing() -> None:
    code = (
        "import sys\n"
        "from balenaflash.cli.progress import TargetsDisplay\n"
        "from balenaflash.cli.session import ProgressStyle, Session\n"
        "from balenaflash.progress import Phase\n"
        f"name = {HOSTILE!r}\n"
        "for style in (ProgressStyle.BAR, ProgressStyle.JSON, ProgressStyle.AUTO):\n"
        "    for each in TargetsDisplay(Session(progress=style), [name, name]).each:\n"
        "        each.begin(Phase.WRITE, 10); each.advance(10); each.end()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    # tqdm moves the cursor up and to the start of a line by itself.
    assert not acting(run.stderr.replace("\r", "").replace("\x1b[A", ""))
    assert "202e" in run.stderr


SERIALS = ("A1;touch$IFS$PWNED;", "`touch $PWNED`", "A2", "\x1b[31m", "A 3", "*", "A4'")


@pytest.mark.needs("umockdev")
def test_only_names_that_a_shell_leaves_alone_are_completed(tmp_path: Path) -> None:
    lines = ["P: /devices/pci0000:00/0000:00:14.0", "E: SUBSYSTEM=pci", ""]
    for index, serial in enumerate(SERIALS):
        usb = f"/devices/pci0000:00/0000:00:14.0/usb1/1-{index + 1}"
        name = f"sd{chr(ord('p') + index)}"
        lines += [f"P: {usb}", "E: DEVTYPE=usb_device", "E: SUBSYSTEM=usb", f"A: serial={serial}"]
        lines += ["", f"P: {usb}/1-{index + 1}:1.0", "E: SUBSYSTEM=usb", ""]
        disk = f"{usb}/1-{index + 1}:1.0/host{index}/target{index}:0:0/{index}:0:0:0/block/{name}"
        lines += [f"P: {disk}", f"N: {name}", "E: DEVTYPE=disk", "E: SUBSYSTEM=block"]
        lines += [f"E: DEVNAME=/dev/{name}", "E: MAJOR=8", f"E: MINOR={240 + index}"]
        lines += [f"A: dev=8:{240 + index}", "A: size=62500000", "A: removable=1", ""]
    recording = tmp_path / "m.umockdev"
    recording.write_text("\n".join(lines))
    words = {"COMP_WORDS": "balenaflash write x.img se", "COMP_CWORD": "3"}
    completing = {**words, "_BALENAFLASH_COMPLETE": "bash_complete"}
    run = subprocess.run(
        ["umockdev-run", "-d", recording, "--", sys.executable, "-m", "balenaflash"],
        env=clean_environment(completing),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split("\n") == ["plain,serial:A2", ""], run.stderr
