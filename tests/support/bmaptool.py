"""bmaptool, and an image for it."""

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

BLOCK = 4096  # bytes, the block size of the filesystems that tests run on

needs_bmaptool = pytest.mark.needs("bmaptool")


def bmaptool(*args: str | Path) -> None:
    command = ["bmaptool", "--quiet", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def sparse_image(path: Path, size: int, pieces: Sequence[tuple[int, bytes]]) -> Path:
    with path.open("wb") as file:
        for offset, content in pieces:
            file.seek(offset)
            file.write(content)
        file.truncate(size)
    return path


def copied_by_bmaptool(image: Path, bmap: Path) -> bytes:
    """What bmaptool makes of ``image`` by the map in ``bmap``."""
    copy = image.with_name("copy")
    copy.unlink(missing_ok=True)
    bmaptool("copy", "--bmap", bmap, image, copy)
    return copy.read_bytes()


def small_image(folder: Path) -> Path:
    """An image of 100 blocks and a bit, of which 3 to 7 and 20 hold data, and its ``.bmap``."""
    noise = random.Random(1)  # noqa: S311 -- content, not a key
    path = folder / "small.img"
    pieces = [(3 * BLOCK, noise.randbytes(5 * BLOCK)), (20 * BLOCK, noise.randbytes(BLOCK))]
    sparse_image(path, 100 * BLOCK + 123, pieces)
    bmaptool("create", "-o", folder / "small.img.bmap", path)
    return path
