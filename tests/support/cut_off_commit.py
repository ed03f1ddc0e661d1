"""Run a commit in a process that dies at a chosen step of it.

``python cut_off_commit.py IMAGE SEED SIZE`` says "ready" and commits, to be killed from outside.
With a fourth argument N it kills itself at the Nth call that changes a file or makes a change
last; with a fifth, "power", writes that were not yet flushed are lost as in a loss of power:
each of them wholly, in part, or not at all; with "interrupt" it is interrupted there as by the
user. It exits 0 when the commit got to its end.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import commandline

from balenaflash.source.layers import Patch
from balenaflash.source.opening import open_for_editing

SECTOR = 512
ENVIRONMENT = commandline.clean_environment()


def patches_of(image_size: int, seed: int, size: int) -> list[Patch]:
    """``size`` bytes of new content in sector-aligned pieces all over an image."""
    chooser = random.Random(seed)  # noqa: S311 -- test data
    pieces = 4
    room = image_size // pieces
    length = size // pieces
    return [
        Patch(
            number * room + chooser.randrange((room - length) // SECTOR) * SECTOR,
            chooser.randbytes(length),
        )
        for number in range(pieces)
    ]


class DyingFiles:
    """Stands before the calls of ``os`` that a commit is made of, and ends at one of them."""

    def __init__(self, last_step: int, how: str) -> None:
        self.steps_left = last_step
        self._how = how
        self._chooser = random.Random(last_step)  # noqa: S311 -- test data
        self._unflushed: list[tuple[int, int, bytes]] = []
        self._pwrite, self._fsync, self._unlink = os.pwrite, os.fsync, os.unlink

    def install(self) -> None:
        """From now on."""
        for call in (self.pwrite, self.fsync, self.unlink):
            setattr(os, call.__name__, call)

    def pwrite(self, descriptor: int, data: memoryview, offset: int, /) -> int:
        """Write no more than a part, as the kernel may."""
        self._unflushed.append((descriptor, offset, os.pread(descriptor, len(data), offset)))
        part = max(SECTOR, len(data) // 2 // SECTOR * SECTOR)
        done = self._pwrite(descriptor, data[:part], offset)
        self._step()
        return done

    def fsync(self, descriptor: int, /) -> None:
        """Die before it or go on after it."""
        self._step()
        self._fsync(descriptor)
        self._unflushed = [each for each in self._unflushed if each[0] != descriptor]

    def unlink(self, path: str, /, *, dir_fd: int | None = None) -> None:
        """Die before it or go on after it."""
        self._step()
        self._unlink(path, dir_fd=dir_fd)

    def _step(self) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            self._die()

    def _die(self) -> NoReturn:
        if self._how == "interrupt":
            raise KeyboardInterrupt
        if self._how == "power":
            for descriptor, offset, old in self._unflushed:
                sectors = self._chooser.randint(0, len(old) // SECTOR)
                self._pwrite(descriptor, old[: sectors * SECTOR], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def undo_record(image: Path) -> Path:
    """Where the undo record of ``image`` lies, if it has one."""
    return image.with_name(f".{image.name}.balenaflash-undo")


def child_command(path: Path, seed: int, size: int) -> list[str]:
    """The command that commits to ``path`` in a process of its own."""
    return [sys.executable, __file__, str(path), str(seed), str(size)]


def commit_in_a_process(
    path: Path, *, seed: int, size: int, step: int = 0, how: str = "kill"
) -> subprocess.CompletedProcess[str]:
    """Commit to ``path`` in a process that dies at ``step``, or at none if that is 0."""
    command = [*child_command(path, seed, size), str(step), how]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def main(path: Path, seed: int, size: int, *, last_step: int, how: str) -> None:
    """Commit ``size`` bytes to ``path`` and die at ``last_step``; 0 for never."""
    new = patches_of(path.stat().st_size, seed, size)
    DyingFiles(last_step, how).install()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with open_for_editing(path) as image:
        image.commit(new)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        last_step=int(sys.argv[4]) if len(sys.argv) > 4 else 0,
        how=sys.argv[5] if len(sys.argv) > 5 else "kill",
    )
