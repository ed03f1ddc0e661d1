"""Programs of the system: found, run with a minimal environment, explained when they fail."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import ToolFailedError, ToolMissingError

_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Only root writes to them. The PATH of Debian's ordinary users leaves some of them out."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program and the package that contains it."""

    name: str
    package: str
    """Name of the package in Debian and Ubuntu."""


SFDISK = Program("sfdisk", "fdisk")
MKFS_VFAT = Program("mkfs.vfat", "dosfstools")
MKFS_EXT4 = Program("mkfs.ext4", "e2fsprogs")
DEBUGFS = Program("debugfs", "e2fsprogs")

UDISKSCTL = "udisksctl"
"""The command line of udisks2, which lets the user at the machine manage disks without root."""

_TIME_LIMIT = 60
"""Seconds that a command may take; unmounting and switching off first flush a slow medium."""


def find_system_program(name: str) -> str | None:
    """The path of a program; ``None`` if it is not installed."""
    return _which(name, _search_path())


def find_typed_program(name: str, *, by_sudo: bool) -> str | None:
    """The path that the user's shell, or sudo, finds for ``name``: to be shown, never to be run."""
    # The folders are those of sudo's secure_path, as Debian and Ubuntu configure it.
    return _which(name, os.pathsep.join(_FOLDERS) if by_sudo else None)


def _which(name: str, path: str | None) -> str | None:
    import shutil  # noqa: PLC0415 - it loads every compressor, and every command this module

    return shutil.which(name, path=path)


def _search_path() -> str:
    if os.geteuid() == 0:
        # The PATH that `su` or `sudo -E` leaves to root may begin with a folder of a user.
        return os.pathsep.join(_FOLDERS)
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])


def minimal_environment(**more: str) -> dict[str, str]:
    """The environment for a program: of the user's variables it contains only PATH.

    Others may change what a program does, or are secret.
    """
    return {"LC_ALL": "C.UTF-8", "PATH": _search_path(), **more}


def require_programs(programs: Sequence[Program]) -> None:
    """Return if all programs are installed.

    Raises:
        ToolMissingError: some are not; it names every one.
    """
    missing = [program for program in programs if find_system_program(program.name) is None]
    if missing:
        names = " and ".join(program.name for program in missing)
        packages = " ".join(sorted({program.package for program in missing}))
        raise ToolMissingError(
            f"{names}: not installed",
            hint=f"On Debian and Ubuntu: sudo apt install {packages}",
        )


def run_program(
    program: Program, *arguments: str, folder: Path, stdin: str = "", epoch: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``program`` in ``folder`` and wait until it has succeeded.

    ``epoch`` is the time stamp for new filesystems, in seconds since 1970; by default the time of
    day.

    Raises:
        ToolMissingError: it is not installed.
        ToolFailedError: it ended with another status than 0.
    """
    require_programs([program])
    # e2fsprogs reads the second variable, and since 1.47.1 also the first.
    names = () if epoch is None else ("SOURCE_DATE_EPOCH", "E2FSPROGS_FAKE_TIME")
    times = dict.fromkeys(names, str(epoch))
    done = _run([program.name, *arguments], folder=folder, stdin=stdin, variables=times)
    if done.returncode != 0:
        raise failure(program, f"status {done.returncode}", done.stderr)
    return done


def failure(program: Program, fact: str, stderr: str) -> ToolFailedError:
    """The error for a program that failed, with the last line of its ``stderr``."""
    return ToolFailedError(f"{program.name} failed with {fact}: {_last_line(stderr) or 'no word'}")


def run_and_explain(command: Sequence[str]) -> str | None:
    """Run ``command``; ``None`` if it succeeds, otherwise the reason for the failure in a line."""
    try:
        done = _run(command, time_limit=_TIME_LIMIT)
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"{command[0]} does not end"
    if done.returncode == 0:
        return None
    return _last_line(done.stderr) or f"{command[0]} failed"


def _run(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    stdin: str = "",
    variables: Mapping[str, str] | None = None,
    time_limit: int | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        input=stdin,
        env=minimal_environment(**variables or {}),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=time_limit,
        check=False,
    )


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].strip()
