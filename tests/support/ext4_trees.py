"""Ext4 filesystems with random features, made by mkfs and filled by the kernel."""

import hashlib
import os
import random
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import loopdev

from balenaflash.units import KIB, MIB, Extent


@dataclass(frozen=True, slots=True)
class Record:
    """What the kernel shows of one name."""

    kind: str
    inode: int
    content: str
    """Size and digest of a file, target of a link."""


def random_mkfs(chance: random.Random) -> list[str]:
    """Arguments of mkfs.ext4 that it accepts together."""
    block_size = chance.choice([1024, 2048, 4096])
    inode_size = chance.choice([128, 256, 256, 512])
    arguments = ["-b", str(block_size), "-I", str(inode_size)]
    groups = chance.choice([None, 256, 512, 1024, 2048])
    if groups:
        arguments += ["-g", str(groups)]
    if chance.random() < 0.3:
        arguments += ["-t", chance.choice(["ext2", "ext3"])]
        return arguments
    features = [
        *_maybe(chance, "flex_bg", "has_journal", "dir_index", "huge_file", "large_dir"),
        *_maybe(chance, "dir_nlink", "sparse_super2", "filetype"),
        *chance.choice([["metadata_csum"], ["^metadata_csum", "uninit_bg"], ["^metadata_csum"]]),
        *chance.choice([["^resize_inode", "meta_bg"], ["^resize_inode"], ["resize_inode"], []]),
    ]
    if "metadata_csum" in features:
        features += _maybe(chance, "metadata_csum_seed")
    if chance.random() < 0.25:
        features += ["^extents", "^64bit"]
    else:
        features += _maybe(chance, "64bit")
    if inode_size > 128:
        features += ["extra_isize", *_maybe(chance, "inline_data", "ea_inode")]
    arguments += ["-O", ",".join(features)]
    if "flex_bg" in features:
        arguments += ["-G", str(chance.choice([2, 4, 16]))]
    if "has_journal" in features:
        arguments += ["-J", "size=4"] if block_size == 4096 else ["-J", "size=2"]
    return arguments


def make(path: Path, arguments: list[str], *, size: int, offset: int = 0) -> None:
    """A filesystem of ``size`` bytes at ``offset`` of the new file ``path``."""
    with path.open("wb") as file:
        file.truncate(offset + size)
    command: list[str | Path] = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-E",
        f"offset={offset}",
        *arguments,
        path,
        f"{size // KIB}k",
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def mounted(path: Path, point: Path, *, offset: int = 0, options: str = "rw") -> Iterator[None]:
    """The filesystem in ``path`` mounted at ``point``, which is made."""
    point.mkdir(exist_ok=True)
    with loopdev.attached(path, offset=offset) as node:
        subprocess.run(
            ["mount", "-t", "ext4", "-o", options, node, point], check=True, capture_output=True
        )
        try:
            yield
        finally:
            subprocess.run(["umount", point], check=True)


def fill(root: Path, chance: random.Random, *, block_size: int) -> None:
    """Make and remove files of every sort below ``root``, until it holds enough or is full."""
    with suppress(OSError):  # full, or a sort of allocation that this filesystem lacks
        _fill_in_order(root, chance, block_size)


def _fill_in_order(root: Path, chance: random.Random, block_size: int) -> None:
    directories = [root]
    for number in range(chance.randint(3, 30)):
        below = chance.choice(directories[-3:] if chance.random() < 0.7 else directories)
        directories.append(below / f"{'d' * chance.choice([1, 30, 200])}{number}")
        directories[-1].mkdir()
    for number in range(chance.randint(20, 120)):
        _make_file(chance.choice(directories) / f"file{number}", chance, block_size)
    for number in range(chance.randint(5, 30)):
        length = chance.choice([1, 20, 58, 59, 60, 61, 100, 155, 156, 160, 300, 1000])
        (chance.choice(directories) / f"link{number}").symlink_to("x" * length)
    os.mkfifo(root / "pipe")
    crowd = chance.choice(directories)
    for number in range(chance.choice([0, 10, 300, 3000])):
        (crowd / f"{'n' * chance.choice([3, 60, 200])}{number}").touch()
    _fragment(root / "fragmented", chance, block_size)
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in chance.sample(files, len(files) // 3):
        path.unlink()
    for number in range(10):
        _make_file(chance.choice(directories) / f"later{number}", chance, block_size)


def _make_file(path: Path, chance: random.Random, block_size: int) -> None:
    sort = chance.choice(["tiny", "tiny", "edge", "any", "sparse", "allocated", "cut", "punched"])
    size = {
        "tiny": chance.randint(0, 200),
        "edge": chance.randint(1, 20) * block_size + chance.randint(-1, 1),
    }.get(sort, int(2 ** chance.uniform(8, 19)))
    path.write_bytes(chance.randbytes(size))
    path.chmod(chance.choice([0o600, 0o644, 0o4755]))
    if sort == "sparse":
        with path.open("r+b") as file:
            for _ in range(chance.randint(1, 5)):
                file.seek(chance.randrange(1, chance.choice([MIB, 3 * MIB])))
                file.write(chance.randbytes(chance.randint(1, 3 * block_size)))
    elif sort == "cut":
        os.truncate(path, chance.randint(0, 2 * size))
    elif sort in {"allocated", "punched"}:
        option = "--punch-hole" if sort == "punched" else chance.choice(["--keep-size", "--posix"])
        place = ["--offset", str(chance.randrange(size)), "--length", str(chance.randint(1, MIB))]
        # ext2 and ext3 files have no way to say "allocated and never written".
        subprocess.run(["fallocate", option, *place, path], check=False, capture_output=True)


def _fragment(path: Path, chance: random.Random, block_size: int) -> None:
    """Enough extents for a tree of some depth: every other block of a file."""
    with path.open("wb") as file:
        for number in range(chance.choice([3, 100, 1500])):
            os.pwrite(file.fileno(), chance.randbytes(block_size), number * 2 * block_size)


def record(root: Path) -> dict[str, Record]:
    """What the kernel shows of all below ``root``, by path from it."""
    return {f"/{path.relative_to(root)}": _record_one(path) for path in root.rglob("*")}


def _record_one(path: Path) -> Record:
    status = path.lstat()
    kind, content = "other", ""
    if stat.S_ISREG(status.st_mode):
        data = path.read_bytes()
        kind, content = "file", digest(data)
    elif stat.S_ISDIR(status.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(status.st_mode):
        kind, content = "symlink", str(path.readlink())
    return Record(kind, status.st_ino, content)


def digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.blake2b(data).hexdigest()}"


def free_by_dumpe2fs(path: Path, *, offset: int = 0, size: int | None = None) -> list[Extent]:
    """The free blocks that dumpe2fs lists, as byte ranges of ``path``, merged.

    The filesystem is ``size`` bytes from ``offset`` on (by default the rest of the file). It is cut
    out: dumpe2fs of e2fsprogs 1.47.2 (Debian 13) does not accept ``FILE?offset=N``.
    """
    with tempfile.TemporaryDirectory(dir=path.parent if path.is_file() else None) as folder:
        alone = Path(folder, "filesystem")
        part = [f"skip={offset}", *([] if size is None else [f"count={size}"])]
        command = ["dd", f"if={path}", f"of={alone}", "bs=1M", "conv=sparse", *part]
        subprocess.run([*command, "iflag=skip_bytes,count_bytes", "status=none"], check=True)
        run = subprocess.run(["dumpe2fs", alone], capture_output=True, text=True, check=True)
    block_size = 0
    merged: list[Extent] = []
    for line in run.stdout.splitlines():
        if line.startswith("Block size:"):
            block_size = int(line.split()[2])
        if not line.startswith("  Free blocks: "):
            continue
        for span in filter(None, line.removeprefix("  Free blocks: ").split(", ")):
            first, _, last = span.partition("-")
            start = offset + int(first) * block_size
            end = offset + (int(last or first) + 1) * block_size
            if merged and merged[-1].end == start:
                start = merged.pop().start
            merged.append(Extent(start, end))
    return merged


def _maybe(chance: random.Random, *features: str) -> list[str]:
    """Each feature on or off."""
    return [name if chance.random() < 0.5 else f"^{name}" for name in features]
