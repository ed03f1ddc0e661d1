"""Programs of the system that make partition tables and filesystems."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import ToolFailedError, ToolMissingError
from balenaflash.system_programs import find_system_program, minimal_environment


@dataclass(frozen=True, slots=True)
class Program:
    """A program and how to come by it."""

    name: str
    package: str
    """What Debian and Ubuntu call the package it comes in."""


SFDISK = Program("sfdisk", "fdisk")
MKFS_VFAT = Program("mkfs.vfat", "dosfstools")
MKFS_EXT4 = Program("mkfs.ext4", "e2fsprogs")
DEBUGFS = Program("debugfs", "e2fsprogs")


def require_programs(programs: Sequence[Program]) -> None:
    """Make sure of all programs before the work begins.

    Raises:
        ToolMissingError: some are not installed; it names every one.
    """
    missing = [program for program in programs if find_system_program(program.name) is None]
    if not missing:
        return
    names = " and ".join(program.name for program in missing)
    packages = " ".join(sorted({program.package for program in missing}))
    raise ToolMissingError(
        f"{names}: not installed",
        hint=f"On Debian and Ubuntu: sudo apt install {packages}",
    )


def run_program(
    program: Program, *arguments: str, folder: Path, stdin: str = "", epoch: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``program`` in ``folder`` to its good end.

    ``epoch`` is the time that filesystems are to be made at, in seconds since 1970; now
    without it.

    Raises:
        ToolMissingError: it is not installed.
        ToolFailedError: it ended with another status than 0.
    """
    path = find_system_program(program.name)
    if path is None:
        require_programs([program])
    done = subprocess.run(
        [path or program.name, *arguments],
        cwd=folder,
        input=stdin,
        env=_environment(epoch),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise failure(program, f"status {done.returncode}", done.stderr)
    return done


def failure(program: Program, fact: str, told: str) -> ToolFailedError:
    """The error for a program that has not done its work, with the last of what it told."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return ToolFailedError(
        f"{program.name} failed with {fact}: {lines[-1] if lines else 'no word'}"
    )


def _environment(epoch: int | None) -> dict[str, str]:
    if epoch is None:
        return minimal_environment()
    # The second is what e2fsprogs went by before 1.47.1.
    return minimal_environment(SOURCE_DATE_EPOCH=str(epoch), E2FSPROGS_FAKE_TIME=str(epoch))
