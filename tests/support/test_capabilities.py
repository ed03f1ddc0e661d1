"""A test that cannot run says so, a device that stays open is noticed."""

import os
import subprocess
import sys
from pathlib import Path

import loopdev
import pytest
from mountlock import no_mounts_of_others

TESTS = Path(__file__).resolve().parents[1]
TWO_TESTS = """
def test_one(attach_loop): pass
def test_other(attach_loop): pass
"""


def run_without_loop_devices(folder: Path, *, ci: str) -> subprocess.CompletedProcess[str]:
    """Run two tests that need loop devices where ``/dev/loop-control`` is something else."""
    (folder / "test_two.py").write_text(TWO_TESTS, encoding="utf-8")
    pytest_call = [sys.executable, "-m", "pytest", "-c", os.devnull, "-p", "conftest", str(folder)]
    hidden = 'mount --bind /dev/null /dev/loop-control && exec "$@"'
    with no_mounts_of_others():
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", hidden, "sh", *pytest_call],
            cwd=TESTS.parent,
            env={**os.environ, "CI": ci, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'support'}"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.mark.needs("root")
def test_what_could_not_be_tested_is_named_and_counted(tmp_path: Path) -> None:
    result = run_without_loop_devices(tmp_path, ci="")
    assert result.returncode == 0, result.stdout
    assert "not tested: this machine lacks" in result.stdout
    assert "loop devices: 2 tests skipped (no free loop device" in result.stdout


@pytest.mark.needs("root")
def test_ci_must_have_loop_devices(tmp_path: Path) -> None:
    result = run_without_loop_devices(tmp_path, ci="true")
    assert result.returncode == 1, result.stdout
    assert result.stdout.count("CI must have this: loop devices") == 4
    assert "2 errors" in result.stdout


@pytest.mark.parametrize("chosen", [[], ["-m", "vm"]], ids=["default", "asked for"])
def test_the_virtual_machine_runs_when_asked_for_and_is_named_else(chosen: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *chosen, "tests/vm"]
    result = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    told = "not tested: the virtual machine" in result.stdout
    collected = "test_unplugged_while_it_is_written" in result.stdout
    assert (told, collected) == ((False, True) if chosen else (True, False)), result.stdout


@pytest.mark.needs("loop devices")
def test_a_loop_device_that_stays_open_is_noticed(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(1 << 20))
    node = loopdev.attach(backing)
    descriptor = os.open(node, os.O_RDONLY)
    try:
        with pytest.raises(AssertionError, match="still has it open"):
            loopdev.detach(node, backing, timeout=0.1)
    finally:
        os.close(descriptor)
    loopdev.detach(node, backing)
