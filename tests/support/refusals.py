"""What tests of refusals share: devices to refuse, what makes them so, and what was told."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from builders import BuiltImage
from commandline import RunBalenaflash
from loopdev import AttachLoop

from balenaflash.units import MIB


def make_device(attach_loop: AttachLoop, path: Path, size: int, *, sector_size: int = 512) -> Path:
    """A loop device full of 0xFF."""
    path.write_bytes(b"\xff" * size)
    return attach_loop(path, sector_size=sector_size)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rounded(size: int) -> int:
    return -(-size // MIB) * MIB


def refusals(
    balenaflash: RunBalenaflash, *arguments: str | Path, status: int = 4
) -> dict[str, str | None]:
    """The code of each refusal, and the option that lifts it."""
    run = balenaflash(*arguments, "--json")
    assert run.returncode == status, run.stderr
    return {error["code"]: error["lifted_by"] for error in json.loads(run.stdout)["errors"]}


def assert_refused(
    balenaflash: RunBalenaflash, built: BuiltImage, node: Path, disk: Path, codes: set[str]
) -> str:
    """Refused with just ``codes``, in text and as JSON; ``disk`` stays as it was."""
    before = sha256(disk)
    text = balenaflash("write", "--yes", built.path, node)
    assert (text.returncode, text.stdout) == (4, ""), text.stderr
    run = balenaflash("write", "--yes", "--json", built.path, node)
    assert run.returncode == 4
    assert {error["code"] for error in json.loads(run.stdout)["errors"]} == codes
    assert sha256(disk) == before
    return text.stderr


@contextmanager
def mounted(node: Path, point: Path) -> Iterator[Path]:
    """Read-only and without a journal replay, so that only the tool could change it."""
    point.mkdir()
    subprocess.run(["mount", "-o", "ro,noload", node, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


@contextmanager
def started(command: Sequence[str | Path], ready: str = "ready\n") -> Iterator[int]:
    """The number of a process that has said that it is ``ready``, until the block ends."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == ready
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def holding(statement: str) -> list[str]:
    code = f"import os, sys, time; {statement}; print('ready', flush=True); time.sleep(600)"
    return [sys.executable, "-c", code]
