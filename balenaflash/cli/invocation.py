"""How this program was called, so that the commands in hints work as they are printed."""

import os
import re
import shlex
import sys
from pathlib import Path

from balenaflash.programs import find_typed_program

COMMANDS = {
    "bmap": "Make a block map of an image, or compare the image with one.",
    "boot": "Look at and change the boot partition of an image.",
    "completion": "Print the completion script for SHELL.",
    "config": "Look at and change config.json in the boot partition of an image.",
    "devices": "List the disks that `write` accepts, and with --all those it refuses, and why.",
    "edit": "Make all edits of a recipe in the boot partition of IMAGE, or none of them.",
    "inspect": "Show what IMAGE is: partitions, boot partition, board, version, configuration.",
    "manual": "Print the manual page, balenaflash(1).",
    "network": "Look at and change the networks that boards join: /system-connections of an image.",
    "sample": "Make OUT, a complete image of balenaOS layout with small contents.",
    "udev": "Let people write removable disks without root, by rules for udev.",
    "unwrap": (
        "Make OUT, the image that FLASHER installs, as it would leave it on the board's disk."
    ),
    "verify": "Compare TARGET, byte for byte, with IMAGE.",
    "write": "Write IMAGE to each TARGET, read it back, and compare.",
}
"""The commands, and the first sentence of the help of each."""

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
