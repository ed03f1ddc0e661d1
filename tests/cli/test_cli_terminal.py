"""What only happens at a terminal: the question, the bar; and what a log gets instead."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from faultdev import MakeFaultDevice
from imagecopies import MakeImage
from loopdev import AttachLoop
from write_judges import compress

from balenaflash.cli.asking import confirm_erasing
from balenaflash.targets.disks import Disk, find_disk
from balenaflash.units import MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def size_of(built: BuiltImage) -> int:
    return -(-built.path.stat().st_size // MIB) * MIB


def at_terminal(
    arguments: Sequence[str | Path],
    *,
    answer: str,
    meanwhile: Callable[[], None] = lambda: None,
    timeout: float = 60,
) -> tuple[int, str]:
    """Exit status and all that ``balenaflash`` showed, which is given ``answer`` when it asks.

    ``meanwhile`` is called between the question and the answer.
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "balenaflash", *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=clean_environment({"TERM": "xterm"}),
        start_new_session=True,
    )
    os.close(slave)
    shown = b""
    answered = False
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([master], [], [], 0.1)
            if ready:
                try:
                    piece = os.read(master, 65536)
                except OSError:  # EIO: the other end was closed
                    break
                if not piece:
                    break
                shown += piece
            if not answered and shown.rstrip().endswith((b"[y/N]:", b"of it:")):
                meanwhile()
                os.write(master, answer.encode())
                answered = True
        return process.wait(timeout=10), shown.decode()
    finally:
        os.close(master)
        process.kill()


@pytest.mark.parametrize("answer", ["\n", "n\n", "no\n"])
def test_the_answer_no_is_the_default_and_writes_nothing(
    answer: str, gpt: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    device = fault_device(size=size_of(gpt))
    status, shown = at_terminal(["write", gpt.path, device.node], answer=answer)
    assert status == 4, shown
    assert f"Erase all of {device.node}?" in shown
    assert "was not confirmed" in shown
    assert device.stats().bytes_written == 0


@pytest.mark.parametrize("form", ["raw", "gz"])
def test_an_image_that_is_changed_before_the_answer_is_refused_and_writes_nothing(
    form: str, gpt: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    path = compress(gpt.path) if form == "gz" else gpt.path
    device = fault_device(size=size_of(gpt))

    def change() -> None:
        with path.open("r+b") as file:
            file.seek(100)
            file.write(b"\1\2\3\4")

    status, shown = at_terminal(["write", path, device.node], answer="y\n", meanwhile=change)
    assert status == 3, shown
    assert "was changed while it was read" in shown
    assert device.stats().bytes_written == 0


def test_after_yes_a_bar_shows_rate_and_time_left(
    gpt: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    device = fault_device(size=size_of(gpt))
    device.set(write_bps=100 * MIB)
    status, shown = at_terminal(["write", gpt.path, device.node], answer="y\n")
    assert status == 0, shown
    assert "write:" in shown
    assert "verify:" in shown
    assert "B/s]" in shown
    assert "read back equal" in shown


def test_a_log_gets_lines_and_no_carriage_returns(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    run = balenaflash("write", gpt.path, tmp_path / "copy.img")
    assert "\r" not in run.stderr
    size = f"{gpt.path.stat().st_size / MIB:.1f} MiB"
    assert f"write: {size}\n" in run.stderr
    assert f"verify: {size} of {size} done" in run.stderr


def test_events_are_json_a_line_and_count_to_the_total(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=size_of(gpt))
    device.set(write_bps=80 * MIB)
    started = time.monotonic()
    run = balenaflash("write", "-q", "--yes", "--all", "--progress", "json", gpt.path, device.node)
    elapsed = time.monotonic() - started
    events = [json.loads(line) for line in run.stderr.splitlines()]
    assert {tuple(event) for event in events} == {("event", "phase", "done", "total", "rate")}
    size = gpt.path.stat().st_size
    for phase in ("write", "verify"):
        own = [event for event in events if event["phase"] == phase]
        assert (own[0]["event"], own[0]["done"]) == ("begin", 0)
        assert (own[-1]["event"], own[-1]["done"]) == ("end", size)
        assert [event["done"] for event in own] == sorted(event["done"] for event in own)
    # Beside the first and last of each phase at most four a second.
    assert 4 <= len(events) <= 4 + 4 * elapsed


@pytest.mark.parametrize("style", [["--quiet"], ["--progress", "none"]])
def test_progress_can_be_left_out(
    style: list[str], gpt: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    run = balenaflash("verify", *style, gpt.path, gpt.path)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("style", ["bar", "auto"])
def test_a_bar_may_be_asked_for_without_a_terminal(
    style: str, gpt: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    run = balenaflash("verify", "--progress", style, gpt.path, gpt.path)
    assert ("100%|" in run.stderr) == (style == "bar")


def test_a_disk_that_is_built_in_is_confirmed_by_its_name(
    attach_loop: AttachLoop, tmp_path: Path
) -> None:
    # No such disk can be had in a test, so the question is asked of one that claims to be.
    (tmp_path / "disk").write_bytes(bytes(MIB))
    node = attach_loop(tmp_path / "disk")
    script = (
        "import dataclasses, sys\n"
        "from balenaflash.cli.asking import confirm_erasing\n"
        "from balenaflash.errors import TargetRefusedError\n"
        "from balenaflash.targets.disks import Bus, find_disk\n"
        "disk = dataclasses.replace(find_disk(sys.argv[1]), bus=Bus.NVME)\n"
        "try:\n"
        "    confirm_erasing([disk], yes=False)\n"
        "except TargetRefusedError:\n"
        "    print('refused')\n"
        "else:\n"
        "    print('agreed')\n"
    )
    for typed, outcome in ((node.name, "agreed"), ("y", "refused"), ("", "refused")):
        command = ["script", "-qec", f'{sys.executable} -c "$CODE" {node}', "/dev/null"]
        run = subprocess.run(
            command,
            input=f"{typed}\n",
            env=clean_environment({"CODE": script}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Type its name" in run.stdout
        assert run.stdout.strip().endswith(outcome), run.stdout
    disk: Disk = find_disk(node)
    confirm_erasing([disk], yes=True)
