"""Programs of the system that do to a disk what the kernel allows only them."""

import subprocess
from collections.abc import Sequence

from balenaflash.system_programs import minimal_environment

UDISKSCTL = "udisksctl"
"""The command line of udisks2: what the user of the seat may do to disks without being root."""

_TIME_LIMIT = 60
"""Seconds: what was not written yet goes to a slow medium first."""


def run_program(command: Sequence[str]) -> str | None:
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
