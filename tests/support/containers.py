"""Containers made by the tools that people make them with, and how to read them back."""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from balenaflash.source.container.decoder import FileOrigin, Origin
from balenaflash.source.container.recognise import recognise


class MemoryOrigin:
    """A container in memory, to be read anywhere."""

    name = "test"
    seekable = True
    is_local = True

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size: int | None = len(content)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def open_file(self) -> None:
        return None


class StreamOrigin(MemoryOrigin):
    """A container that comes as a stream: each byte once, in order, its size unknown."""

    seekable = False
    is_local = False

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.size = None
        self._position = 0

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset == self._position, "a byte is asked for again, or left out"
        data = super().read_at(offset, length)
        self._position += len(data)
        return data


ORIGINS: tuple[Callable[[bytes], Origin], ...] = (MemoryOrigin, StreamOrigin)


@contextmanager
def file_origin(path: Path) -> Iterator[FileOrigin]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield FileOrigin(str(path), descriptor, path.stat().st_size)
    finally:
        os.close(descriptor)


def decoded(
    origin: Origin,
    *,
    member: str | None = None,
    step: int = 1 << 20,
    at: int = 0,
    warn: Callable[[str], None] = lambda _: None,
) -> bytes:
    """The whole image from ``at`` on, read ``step`` bytes at a time."""
    compressed = recognise(origin, member, warn)
    assert compressed is not None, "not recognised"
    decoder = compressed.open_decoder(at) if at else compressed.open_decoder()
    try:
        content = bytearray()
        buffer = memoryview(bytearray(step))
        while count := decoder.readinto(buffer):
            content += buffer[:count]
        assert compressed.size in {None, len(content) + at}
        assert decoder.readinto(buffer) == 0, "the end is not the end"
        return bytes(content)
    finally:
        decoder.close()


def noise(seed: int, size: int) -> bytes:
    """Bytes that no compressor makes smaller, always the same."""
    return hashlib.shake_128(bytes([seed])).digest(size)


def some_places(start: int, end: int) -> list[int]:
    """Ten offsets in ``[start, end)``, always the same."""
    steps = noise(1, 20)
    numbers = (int.from_bytes(steps[at : at + 2], "big") for at in range(0, 20, 2))
    return [start + number * (end - start) // 65536 for number in numbers]


def run(*command: str | Path, content: bytes | None = None, cwd: Path | None = None) -> bytes:
    """The standard output of a tool that is given ``content``."""
    result = subprocess.run(command, input=content, capture_output=True, check=True, cwd=cwd)
    return result.stdout
