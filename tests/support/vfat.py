"""FAT volumes for tests, made and filled as balenaOS does it: mkfs.vfat, then mcopy.

And what fsck.vfat and mtools say of a volume.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import boot_tree
from builders import ENVIRONMENT
from fakes import MemorySource

from balenaflash.formats.fat.volume import FatVolume
from balenaflash.source.layers import Patch
from balenaflash.units import Extent

FSCK_SECONDS = 60
"""A sound volume takes a tenth of one; on some damage fsck.vfat 4.2 never ends."""

UNICODE = {**ENVIRONMENT, "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Kind:
    """What mkfs.vfat is asked for."""

    size: int
    """In KiB."""

    options: tuple[str, ...] = ()


KINDS = {
    "fat12-2m": Kind(2048),
    "fat12-16m": Kind(16384, ("-F", "12")),
    "fat16-16m": Kind(16384, ("-F", "16")),
    "fat16-small-root": Kind(16384, ("-F", "16", "-r", "64")),
    "fat16-40m": Kind(40960),  # boot partitions until balenaOS v7
    "fat32-40m": Kind(40960, ("-F", "32")),  # of a Raspberry Pi
    "fat32-100m": Kind(102400, ("-F", "32")),  # from v8.0.0 on
}
"""Volumes that differ in width of the table, size of clusters, and room."""

ODD_FILES = {
    "/UPPER.TXT": b"upper",
    "/MixedCase.Txt": b"mixed",
    "/a-very-long-file-name-that-goes-on-for-some-time-to-use-five-slots.config": b"long",
    "/unicodé-ñame-файл.txt": b"unicode",
    "/日本語.json": b"{}",
    "/a b c.txt": b"spaces",
    "/two..dots.txt": b"dots",
    "/.hidden": b"hidden",
    "/empty": b"",
    "/exact.bin": bytes(8192),
}
"""Beside the files of a boot partition: names and sizes that are hard to get right."""


@cache
def filled(name: str) -> tuple[bytes, Mapping[str, bytes]]:
    """A volume with a boot partition's files in it, and these files by path."""
    files = {**boot_tree.boot_files(boot_tree.RASPBERRY_PI, flasher=False), **ODD_FILES}
    with tempfile.TemporaryDirectory() as directory:
        image = make(Path(directory) / "volume", KINDS[name])
        copy_in(image, files)
        return image.read_bytes(), files


@cache
def empty(name: str) -> bytes:
    """A volume as mkfs.vfat leaves it."""
    with tempfile.TemporaryDirectory() as directory:
        return make(Path(directory) / "volume", KINDS[name]).read_bytes()


def make(path: Path, kind: Kind) -> Path:
    """A new volume in a file of its own."""
    command = ["mkfs.vfat", "-n", "resin-boot", "-S", "512", *kind.options]
    command += ["-C", str(path), str(kind.size)]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    return path


def copy_in(image: Path, files: Mapping[str, bytes]) -> None:
    """Copy ``files`` with ``mcopy -svm``, as balenaOS does."""
    with tempfile.TemporaryDirectory() as directory:
        for path, content in files.items():
            target = Path(directory) / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            os.utime(target, (1_700_000_000, 1_700_000_000))
        sources = sorted(str(child) for child in Path(directory).iterdir())
        mtools("mcopy", image, "-svm", *sources, "::")


def mtools(program: str, image: Path, *arguments: str) -> bytes:
    """What an mtools program prints about ``image``."""
    command = [program, "-i", str(image), *arguments]
    run = subprocess.run(
        command, check=True, env=UNICODE, capture_output=True, stdin=subprocess.DEVNULL
    )
    return run.stdout


def fsck_says(image: Path) -> str:
    """What fsck.vfat has to say beyond its version and the summary; empty for a sound volume."""
    command = ["fsck.vfat", "-n", str(image)]
    try:
        run = subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, check=False, timeout=FSCK_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "it does not come to an end"
    said = [
        line
        for line in (run.stdout + run.stderr).decode(errors="replace").splitlines()
        if not line.startswith("fsck.fat ") and not line.startswith(f"{image}: ")
    ]
    return "\n".join(said) or ("" if run.returncode == 0 else f"status {run.returncode}")


def mtools_reads(image: Path) -> dict[str, bytes | None]:
    """All files and directories by path, as mcopy copies them out; ``None`` for directories."""
    with tempfile.TemporaryDirectory() as directory:
        if not mtools("mdir", image, "-b", "::").strip():
            return {}  # mcopy would complain that nothing matches
        mtools("mcopy", image, "-sQmn", "::*", directory)
        return {
            f"/{child.relative_to(directory)}": None if child.is_dir() else child.read_bytes()
            for child in Path(directory).rglob("*")
        }


def open_bytes(data: bytes) -> FatVolume:
    """The package's view of a volume that fills all of ``data``."""
    return FatVolume.open(MemorySource(data), Extent(0, len(data)))


def save(image: Path, data: bytes | bytearray) -> None:
    """Write ``data`` to a new file with holes where it is zero, which is nearly everywhere."""
    view, zeros = memoryview(data), bytes(1 << 16)
    with image.open("wb") as file:
        file.truncate(len(data))
        for start in range(0, len(data), len(zeros)):
            piece = view[start : start + len(zeros)]
            if piece != zeros:
                file.seek(start)
                file.write(piece)


def patched(data: bytes, patches: tuple[Patch, ...]) -> bytes:
    """``data`` with the patches applied."""
    result = bytearray(data)
    for patch in patches:
        result[patch.offset : patch.extent.end] = patch.data
    assert len(result) == len(data)
    return bytes(result)
