"""Standard input, output and error that are full, closed, or lead to nobody."""

import fcntl
import filecmp
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from builders import Layout
from commandline import clean_environment
from imagecopies import MakeImage


@pytest.fixture
def source(image: MakeImage) -> Path:
    return image(Layout.GPT_FAT16).path


def run(
    *arguments: str | Path,
    redirection: str = "",
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run ``balenaflash ARGUMENTS`` under a shell's ``redirection``."""
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash"]
    return subprocess.run(
        [*command, sys.executable, "-m", "balenaflash", *map(str, arguments)],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@contextmanager
def no_reader() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@contextmanager
def terminal_that_went_away() -> Iterator[int]:
    master, slave = pty.openpty()
    os.close(master)
    yield slave
    os.close(slave)


@contextmanager
def full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("style", ["bar", "json", "auto"])
@pytest.mark.parametrize("stream", [no_reader, terminal_that_went_away, full_disk])
def test_messages_that_nobody_can_read_stop_no_write(
    stream: Callable[[], AbstractContextManager[int]], style: str, source: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with stream() as unreadable:
        done = run("write", "--progress", style, source, copy, stderr=unreadable)
    assert done.returncode == 0
    assert "read back equal" in done.stdout
    assert filecmp.cmp(source, copy, shallow=False)


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(
    closed: str, source: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    done = run("write", "--progress", "json", source, copy, redirection=closed)
    assert done.returncode == (1 if ">&- " in closed else 0)
    assert filecmp.cmp(source, copy, shallow=False)


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize(
    "arguments", [["inspect"], ["inspect", "--json"], ["boot", "cat"], ["inspect", "--help"]]
)
def test_a_result_that_cannot_be_printed_is_status_1_and_no_bug(
    arguments: list[str], redirection: str, source: Path
) -> None:
    paths = [source, "/config.json"] if "cat" in arguments else [source]
    done = run(*arguments, *paths, redirection=redirection)
    assert done.returncode == 1
    [line, hint] = done.stderr.splitlines()
    assert line.startswith("balenaflash: standard output: cannot be written: ")
    assert "only its result" in hint


def test_a_result_that_cannot_be_printed_changes_no_failure(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(source.stat().st_size))
    done = run("verify", "--json", source, other, redirection=">/dev/full")
    assert done.returncode == 6
    assert "Traceback" not in done.stderr
    done = run("inspect", "--json", tmp_path / "none", redirection=">/dev/full")
    assert done.returncode == 3
    assert "cannot be opened" in done.stderr


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["inspect", "--help"]])
def test_a_result_without_reader_ends_in_silence(arguments: list[str], source: Path) -> None:
    with no_reader() as nobody:
        done = run(*arguments, source, stdout=nobody)
    # click itself ends a help that nobody reads.
    assert done.returncode in {-signal.SIGPIPE, 1 if "--help" in arguments else None}
    assert done.stderr == ""


def test_a_result_waits_for_the_reader_of_a_pipe_that_does_not_block() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "balenaflash", "manual"]
    with subprocess.Popen(command, stdout=writing, env=clean_environment()) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            shown = pipe.read()
    assert process.returncode == 0
    assert len(shown) > 4096
    assert run("manual").stdout == shown.decode()


def test_a_closed_standard_input_is_said(source: Path) -> None:
    for command in (
        ["inspect", "-"],
        ["verify", "-", source],
        ["config", "set", source, "hostname=@-"],
    ):
        done = run(*command, redirection="<&-")
        assert done.returncode == 3
        assert "standard input cannot be read because it is closed" in done.stderr
