"""Programs of the system: found, run with a minimal environment, explained when they fail."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import ToolFailedError, ToolMissingError

_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Only root writes to them. The PATH of Debian's ordinary users leaves some of them out."""


def find_system_program(name: str) -> str | None:
    """The path of a program; ``None`` if it is not installed."""
    return _which(name, _search_path())


def find_typed_program(name: str, *, by_sudo: bool) -> str | None:
    """What the user's shell, or sudo, takes for ``name``; to be told, never to be run."""
    # The folders are those of sudo's secure_path, as Debian and Ubuntu configure it.
    return _which(name, os.pathsep.join(_FOLDERS) if by_sudo else None)


def minimal_environment(**more: str) -> dict[str, str]:
    """The environment that a program is run with: it gets no variable of the user's but PATH.

    Some change what a program does, and some are secrets.
    """
    return {"LC_ALL": "C.UTF-8", "PATH": _search_path(), **more}


def _search_path() -> str:
    if os.geteuid() == 0:
        # The PATH that `su` or `sudo -E` leaves to root may begin with a folder of a user.
        return os.pathsep.join(_FOLDERS)
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])


def _which(name: str, path: str | None) -> str | None:
    import shutil  # noqa: PLC0415 - it loads every compressor, and every command this module

    return shutil.which(name, path=path)


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


UDISKSCTL = "udisksctl"
"""The command line of udisks2: what the user of the seat may do to disks without being root."""

_TIME_LIMIT = 60
"""Seconds: what was not written yet goes to a slow medium first."""


def run_and_explain(command: Sequence[str]) -> str | None:
    """Run ``command`` to its end; ``None`` if that is a good one, else why not, in a line."""
    try:
        run = subprocess.run(
            command,
            env=minimal_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIME_LIMIT,
            check=False,
        )
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"{command[0]} does not end"
    if run.returncode == 0:
        return None
    return (run.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1]
