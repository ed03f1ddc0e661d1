"""How this program was called, so that the commands in hints work as they are printed."""

import os
import re
import shlex
import sys
from pathlib import Path

from balenaflash.programs import find_typed_program

COMMANDS = (
    "bmap",
    "boot",
    "completion",
    "config",
    "devices",
    "edit",
    "inspect",
    "manual",
    "network",
    "sample",
    "udev",
    "unwrap",
    "verify",
    "write",
)
"""Each in a module of its name."""

_NAME = "balenaflash"
_COMMAND = re.compile(
    rf"(?<![\w/.-])(?P<root>sudo )?{_NAME}(?= (?:\.\.\.|(?:{'|'.join(COMMANDS)})\b))"
)


def as_called(text: str) -> str:
    """``text`` with each ``balenaflash COMMAND`` in it as this user has to type it.

    With ``sudo`` in front it is one that only root may run.
    """
    return _COMMAND.sub(lambda found: _typed(needs_root=found["root"] is not None), text)


def _typed(*, needs_root: bool) -> str:
    by_sudo = "SUDO_USER" in os.environ if os.geteuid() == 0 else needs_root
    program = shlex.join(_program(by_sudo=by_sudo))
    return f"sudo {program}" if by_sudo else program


def _program(*, by_sudo: bool) -> list[str]:
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        python = sys.orig_argv[0]
        return [sys.executable if by_sudo and "/" not in python else python, "-m", _NAME]
    if started.name != _NAME:
        return [_NAME]  # a program that has this one in it
    found = find_typed_program(_NAME, by_sudo=by_sudo)
    if found is not None and started.exists() and started.samefile(found):
        return [_NAME]
    return [str(started.absolute() if by_sudo else started)]
