"""Edit a card, or an image file, in a process that dies at a chosen step of it.

``python cut_off_card_edit.py NODE STEP`` makes `EDITS` in the card at NODE and kills itself at the
STEPth call that changes something or makes a change last; with 0 it gets to its end and exits 0.
"""

import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import commandline
from cut_off_commit import DyingFiles

from balenaflash.commands.cards import edit_card, find_card
from balenaflash.commands.edit import edit
from balenaflash.edits.files import Edit, PutFile, Remove

EPOCH = "1700000000"
EDITS: tuple[Edit, ...] = (
    PutFile("/new.bin", random.Random(1).randbytes(300_000)),  # noqa: S311 -- content, not a key
    PutFile("/config.json", b"{}"),
    Remove("/os-release"),
)


class DyingCalls:
    """Stands before the calls of ``os`` that an edit is made of, and ends at one of them."""

    def __init__(self, last_step: int) -> None:
        self._steps_left = last_step
        self._pwrite, self._fsync, self._unlink = os.pwrite, os.fsync, os.unlink

    def install(self) -> None:
        """From now on."""
        for call in (self.pwrite, self.fsync, self.unlink):
            setattr(os, call.__name__, call)

    def pwrite(self, descriptor: int, data: memoryview, offset: int, /) -> int:
        """Write no more than a part to a disk, as the kernel may; not to other files."""
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            return self._pwrite(descriptor, data, offset)
        part = max(4096, len(data) // 2 // 4096 * 4096)
        done = self._pwrite(descriptor, data[:part], offset)
        self._step()
        return done

    def fsync(self, descriptor: int, /) -> None:
        """Die before it or go on after it."""
        self._step()
        self._fsync(descriptor)

    def unlink(self, path: str | Path, /, *, dir_fd: int | None = None) -> None:
        """Die before a record is removed or go on after it."""
        if str(path).endswith(".undo"):
            self._step()
        self._unlink(path, dir_fd=dir_fd)

    def _step(self) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def edit_in_a_process(node: Path, state: Path, step: int) -> subprocess.CompletedProcess[str]:
    """Edit the card at ``node`` in a process that dies at ``step``; records go below ``state``."""
    return subprocess.run(
        [sys.executable, __file__, str(node), str(step)],
        env=commandline.clean_environment(
            {"XDG_STATE_HOME": str(state), "SOURCE_DATE_EPOCH": EPOCH}
        ),
        capture_output=True,
        text=True,
        check=False,
    )


def edit_file_in_a_process(path: Path, step: int, how: str = "kill") -> int | None:
    """Edit the image file at ``path`` in a process that dies at ``step``, or with 0 at none.

    ``how`` is "kill", or "power" for a loss of what was not flushed (`DyingFiles`). The answer is
    the number of steps, or ``None`` if it was killed.
    """
    command = [sys.executable, __file__, str(path), str(step), how]
    environment = commandline.clean_environment({"SOURCE_DATE_EPOCH": EPOCH})
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return int(done.stdout) if done.returncode == 0 else None


if __name__ == "__main__":
    target, last_step = Path(sys.argv[1]), int(sys.argv[2])
    if target.is_block_device():
        DyingCalls(last_step).install()
        edit_card(find_card(target), EDITS)
    else:
        dying = DyingFiles(last_step, sys.argv[3])
        dying.install()
        edit(target, EDITS)
        sys.stdout.write(f"{last_step - dying.steps_left}\n")
