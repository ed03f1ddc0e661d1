"""Several targets at a terminal: one question, a bar for each, and word of each when it is done."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import clean_environment
from faultdev import MakeFaultDevice, write_error
from imagecopies import MakeImage
from screen import Screen

from balenaflash.units import MIB

_INCOMPLETE = re.compile(r"(?:\x1b(?:\[\d*)?)?$")
"""An order at the end of a piece that the next one completes."""

BAR = re.compile(r"(?:/dev/)?(loop\d+) (?:write|verify):")


@pytest.fixture
def full(image: MakeImage) -> BuiltImage:
    """An image with 24 MiB of data, so that writing it takes a while."""
    built = image(Layout.GPT_FAT16)
    extent = next(each.extent for each in built.partitions if each.extent != built.boot_extent)
    with built.path.open("r+b") as file:
        file.seek(extent.start)
        file.write(os.urandom(extent.size))
    return built


class Session:
    """``balenaflash`` at a terminal of its own."""

    def __init__(self, columns: int, rows: int, *arguments: str | Path, **streams: int) -> None:
        self.screen = Screen(columns, rows)
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "balenaflash", *map(str, arguments)],
            **({"stdin": slave, "stdout": slave, "stderr": slave} | streams),  # type: ignore[call-overload]
            env=clean_environment({"TERM": "xterm"}),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(slave)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def pictures(self, timeout: float = 60) -> Iterator[list[str]]:
        """The screen after each change, until the program has ended."""
        deadline = time.monotonic() + timeout
        decoder = codecs.getincrementaldecoder("utf-8")()
        rest = ""
        while time.monotonic() < deadline:
            if not select.select([self._master], [], [], 0.1)[0]:
                continue
            try:
                text = rest + decoder.decode(os.read(self._master, 65536))
            except OSError:  # EIO: the other end was closed
                break
            whole = text[: len(text) - len(_end_of(text))]
            rest = text[len(whole) :]
            self.screen.feed(whole)
            yield self.screen.lines
        self.process.wait(10)
        os.close(self._master)
        yield self.screen.lines

    def wait_for(self, text: str) -> None:
        assert any(text in "".join(lines) for lines in self.pictures()), self.screen.history


def _end_of(text: str) -> str:
    found = _INCOMPLETE.search(text)
    return found[0] if found else ""


def bars(lines: list[str]) -> list[str]:
    return [found[1] for line in lines if (found := BAR.match(line))]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 20)])
def test_three_targets_have_a_bar_each_and_are_let_go_when_they_are_done(
    columns: int, rows: int, full: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    size = -(-full.path.stat().st_size // MIB) * MIB
    quick, slow, failing = (fault_device(size=size) for _ in range(3))
    slow.set(write_bps=6 * MIB)
    failing.set(faults=[write_error(start=2 * MIB)])
    nodes = [str(each.node) for each in (quick, slow, failing)]
    session = Session(columns, rows, "write", "--all", full.path, *nodes)
    session.wait_for("[y/N]:")
    assert "".join(session.screen.lines).count("[y/N]") == 1
    assert "".join(session.screen.history).count("Plan:") == 1
    session.type("y\n")
    told: list[str] = []
    most = 0
    for lines in session.pictures():
        shown = bars(lines)
        assert len(shown) == len(set(shown)), f"a ghost: {lines}"
        most = max(most, len(shown))
        text = "".join(session.screen.history)  # the last lines come all at once, and scroll
        for name, word in zip(nodes, ("done, safe", "done, safe", "failed"), strict=True):
            if name not in told and f"{name}: {word}" in text:
                told.append(name)
                assert Path(name).name not in shown
                if name == nodes[0]:
                    assert slow.stats().bytes_written < 24 * MIB
    assert most >= 2, session.screen.history
    assert set(told) == set(nodes), session.screen.history
    assert told.index(nodes[0]) < told.index(nodes[1])
    assert set(told) == set(nodes)
    assert session.process.returncode == 5
    assert bars(session.screen.history) == []
    assert "MB/s" not in "".join(session.screen.history)


def test_bars_follow_a_terminal_that_becomes_narrow(
    full: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    size = -(-full.path.stat().st_size // MIB) * MIB
    devices = [fault_device(size=size) for _ in range(2)]
    for each in devices:
        each.set(write_bps=12 * MIB)
    session = Session(80, 24, "write", "--all", "--yes", full.path, *(e.node for e in devices))
    pictures = session.pictures()
    assert any(len(bars(lines)) == 2 for lines in pictures)
    session.resize(30, 24)
    widths = [
        max((len(line) for line in lines if BAR.match(line)), default=0) for lines in pictures
    ]
    assert session.process.returncode == 0
    assert min(filter(None, widths[2:])) < 30
    assert widths[-1] == 0


def test_an_image_from_standard_input_is_confirmed_at_the_terminal(
    full: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    device = fault_device(size=-(-full.path.stat().st_size // MIB) * MIB)
    for answer, status in (("n\n", 4), ("\x04", 4), ("y\n", 0)):
        with full.path.open("rb") as file:
            session = Session(80, 24, "write", "-", device.node, stdin=file.fileno())
            session.wait_for("[y/N]:")
            session.type(answer)
            list(session.pictures())
        assert session.process.returncode == status, session.screen.history
        assert (device.stats().bytes_written > 0) == (status == 0)


def test_nobody_is_asked_where_standard_input_is_not_the_image(
    full: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    device = fault_device(size=-(-full.path.stat().st_size // MIB) * MIB)
    with Path(os.devnull).open("rb") as nothing:
        session = Session(80, 24, "write", full.path, device.node, stdin=nothing.fileno())
        list(session.pictures())
    assert session.process.returncode == 4
    assert "was not confirmed" in "".join(session.screen.history)


def test_a_display_that_stands_still_holds_up_nobody() -> None:
    reading, writing = os.pipe()
    code = (
        "import time; from balenaflash.cli.progress import DISPLAY\n"
        "from balenaflash.cli.output import prepare_standard_streams\n"
        "prepare_standard_streams()\n"
        "started = time.monotonic()\n"
        "for _ in range(3000): DISPLAY.say('x' * 100)\n"
        "DISPLAY.flush()\n"
        "print(time.monotonic() - started < 30)\n"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command,
        stderr=writing,
        stdout=subprocess.PIPE,
        env=clean_environment(),
        timeout=60,
        check=True,
    )
    os.close(writing)
    os.close(reading)
    assert run.stdout == b"True\n"
