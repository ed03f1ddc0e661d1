"""The command line as its users meet it: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import click

import balenaflash

_REMOVED = frozenset(
    {"CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "LANGUAGE", "NO_COLOR", "SOURCE_DATE_EPOCH"}
)
"""Variables of the person who runs the tests that would change the output."""


class RunBalenaflash(Protocol):
    """The fixture ``balenaflash``."""

    def __call__(
        self,
        *args: str | Path,
        input: str | None = None,  # noqa: A002 - the name that subprocess.run gives it
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``balenaflash ARGS`` to its end; see `run`."""


def clean_environment(additions: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a plain terminal of 80 columns, and ``additions``.

    What coverage needs to measure a child process stays in.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _REMOVED and not name.startswith(("BALENAFLASH_", "LC_"))
    }
    # The package that the tests import is the one that is run, installed or not.
    package = str(Path(balenaflash.__file__).resolve().parents[1])
    fixed = {"COLUMNS": "80", "LC_ALL": "C.UTF-8", "PYTHONPATH": package, "TERM": "dumb"}
    return kept | fixed | dict(additions or {})


def run(
    *args: str | Path,
    input: str | None = None,  # noqa: A002 - the name that subprocess.run gives it
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run ``balenaflash ARGS`` to its end, whatever its exit status.

    ``input`` goes to standard input, which is empty without it; ``environment`` is added to a
    clean one; ``timeout`` is in seconds.
    """
    command = [sys.executable, "-m", "balenaflash", *map(str, args)]
    return subprocess.run(
        command,
        input=input or "",
        env=clean_environment(environment),
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def commands_of(group: click.Group) -> dict[str, click.Command]:
    """All commands of a group by name, loaded where they were not."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}
