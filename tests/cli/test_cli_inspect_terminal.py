"""What ``inspect`` shows in terminals of many widths, with colour and without."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from imagecopies import MakeImage

ESCAPE = "\x1b["


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.MSDOS_FAT16)


def at_terminal(
    *words: str | Path, width: int = 80, environment: Mapping[str, str] | None = None
) -> str:
    """What ``balenaflash`` shows in a terminal of that width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "balenaflash", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.STDOUT,
        env=clean_environment({"TERM": "xterm", "COLUMNS": "", **(environment or {})}),
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # EIO: the other end was closed
        pass
    finally:
        os.close(master)
        process.kill()
    assert process.wait(timeout=10) == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n")


def map_of(text: str) -> list[str]:
    """The lines of the map: from the scale to the legend."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if re.match(r" +0 +\d+\.\d [KMG]iB$", line))
    last = next(n for n, line in enumerate(lines) if n > first and not line)
    return lines[first:last]


@pytest.mark.parametrize("width", [40, 80, 133, 200])
def test_the_map_fills_the_terminal_and_no_more(width: int, built: BuiltImage) -> None:
    shown = click.unstyle(at_terminal("inspect", built.path, width=width))
    lines = map_of(shown)
    assert max(map(len, lines)) <= width
    assert len(lines[-2]) > width - 20
    for partition in built.partitions:
        assert any(re.match(rf" *{partition.number} ", line) for line in lines)


@pytest.mark.parametrize(
    ("options", "environment", "is_colored"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        ([], {"TERM": "dumb"}, False),
        (["--color", "never"], {}, False),
        (["--color", "always"], {"NO_COLOR": "1", "TERM": "dumb"}, True),
    ],
)
def test_a_terminal_is_coloured_unless_it_should_not_be(
    options: list[str],
    environment: dict[str, str],
    *,
    is_colored: bool,
    built: BuiltImage,
) -> None:
    shown = at_terminal("inspect", *options, built.path, environment=environment)
    assert (ESCAPE in shown) is is_colored


def test_without_a_terminal_colour_must_be_asked_for(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    plain = balenaflash("inspect", built.path).stdout
    assert ESCAPE not in plain
    colored = balenaflash("inspect", "--color", "always", built.path).stdout
    assert ESCAPE in colored
    assert click.unstyle(colored) == plain
    assert ESCAPE not in balenaflash("inspect", "--json", "--color", "always", built.path).stdout


def test_a_name_in_the_map_cannot_reach_the_terminal_as_a_command(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.GPT_FAT16)
    command = ["sgdisk", "--change-name=5:e\x1b[2Jil", str(built.path)]
    subprocess.run(command, check=True, capture_output=True)
    colored = balenaflash("inspect", "--color", "always", built.path).stdout
    assert "\x1b[2J" not in colored
    assert "e\\x1b[2Jil" in "\n".join(map_of(click.unstyle(colored)))


def test_where_blocks_cannot_be_shown_the_map_is_drawn_in_ascii(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    shown = balenaflash("inspect", built.path, environment={"PYTHONIOENCODING": "ascii"})
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.isascii()
    lines = map_of(shown.stdout)
    boot = next(line for line in lines if "resin-boot" in line)
    assert re.search(r"#+-+ ", boot)
    assert lines[-1].startswith("# used   - free")
