"""Loop devices over files, attached and surely detached."""

import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_ATTEMPTS = 20
_DIRECT_BLOCK = 1 << 20


class AttachError(Exception):
    """No loop device could be had; the text is what losetup said."""


class AttachLoop(Protocol):
    """The fixture ``attach_loop``."""

    def __call__(
        self, path: Path, *, read_only: bool = False, sector_size: int = 512, offset: int = 0
    ) -> Path:
        """The ``/dev/loopN`` that shows ``path`` from ``offset`` on, until the test ends."""


def attach(
    path: Path,
    *,
    read_only: bool = False,
    sector_size: int = 512,
    offset: int = 0,
    direct_io: bool = False,
) -> Path:
    """Show the file ``path`` from byte ``offset`` on as a block device, and give its node.

    With ``direct_io`` the kernel keeps no second cache, that of the file, behind the device.
    """
    command = ["losetup", "--find", "--show", f"--sector-size={sector_size}", f"--offset={offset}"]
    if read_only:
        command.append("--read-only")
    if direct_io:
        command.append("--direct-io=on")
    said = ""
    for attempt in range(_ATTEMPTS):
        result = subprocess.run([*command, path], capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return Path(result.stdout.strip())
        said = result.stderr.strip()
        # The kernel names a free device, and another process may be faster to take it.
        time.sleep(0.02 * (attempt + 1))
        if "ermission denied" in said or "not permitted" in said:
            break
    raise AttachError(said)


def detach(node: Path, path: Path, *, timeout: float = 10.0) -> None:
    """Detach ``node`` from ``path``, and wait up to ``timeout`` seconds until it has really gone.

    ``losetup --detach`` succeeds at once even while somebody has the node open; the device then
    stays until the last descriptor is closed. The assertion below therefore finds a descriptor
    that was leaked.
    """
    subprocess.run(["losetup", "--detach", node], capture_output=True, check=False)
    # udev may look at a device for a moment after its last change.
    deadline = time.monotonic() + timeout
    while shows(node, path):
        assert time.monotonic() < deadline, f"{node}: somebody still has it open"
        time.sleep(0.01)


def shows(node: Path, path: Path) -> bool:
    """Whether ``node`` is attached to ``path``, and not free or taken by somebody else since."""
    try:
        backing = Path("/sys/block", node.name, "loop", "backing_file").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return backing.strip().removesuffix(" (deleted)") == str(path.resolve())


@contextmanager
def attached(
    path: Path, *, read_only: bool = False, sector_size: int = 512, offset: int = 0
) -> Iterator[Path]:
    """``attach`` for the length of a block."""
    node = attach(path, read_only=read_only, sector_size=sector_size, offset=offset)
    try:
        yield node
    finally:
        detach(node, path)


def read_direct(node: Path, length: int | None = None) -> tuple[bytes, OSError | None]:
    """The first ``length`` bytes of a device, or all, past the page cache, up to the first error.

    The dd of uutils, which Ubuntu 26.04 has, cannot do that.
    """
    content = b""
    descriptor = os.open(node, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _DIRECT_BLOCK) as buffer:
            while length is None or len(content) < length:
                count = os.readv(descriptor, [buffer])
                if not count:
                    break
                content += buffer[:count]
    except OSError as error:
        return content, error
    finally:
        os.close(descriptor)
    return content[:length], None
