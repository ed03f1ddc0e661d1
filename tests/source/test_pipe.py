import hashlib
import os
import pty
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.source.pipe import PipeOrigin
from balenaflash.source.sums import HashedOrigin
from balenaflash.units import MIB


@contextmanager
def fed(pieces: list[bytes], *, pause: float = 0) -> Iterator[int]:
    """The reading end of a pipe into which another thread writes ``pieces``."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb", buffering=0) as file:
            for piece in pieces:
                try:
                    file.write(piece)
                except BrokenPipeError:
                    return  # the reader has had enough
                time.sleep(pause)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield reading
    finally:
        os.close(reading)
        writer.join()
        assert "sha256" not in {thread.name for thread in threading.enumerate()}


@settings(max_examples=50)
@given(
    pieces=st.lists(st.binary(max_size=5000), max_size=20).filter(any),
    steps=st.lists(st.integers(1, 9000), min_size=1, max_size=30),
)
def test_the_bytes_come_whole_however_they_were_written(
    pieces: list[bytes], steps: list[int]
) -> None:
    content = b"".join(pieces)
    with fed(pieces) as descriptor:
        origin = PipeOrigin(descriptor)
        offset = 0
        for step in steps:
            assert origin.read_at(offset, step) == content[offset : offset + step]
            offset = min(offset + step, len(content))
        assert origin.read_at(offset, 10**6) == content[offset:]
        assert origin.size == len(content)


def test_a_slow_writer_is_waited_for() -> None:
    pieces = [b"abc", b"defgh", b"i"]
    with fed(pieces, pause=0.05) as descriptor:
        origin = PipeOrigin(descriptor)
        assert not origin.seekable
        sizes = [origin.size]
        assert origin.read_at(0, 7) == b"abcdefg"
        sizes.append(origin.size)
        assert origin.read_at(7, 7) == b"hi"
        sizes.append(origin.size)
        assert sizes == [None, None, 9]
        assert origin.read_at(9, 1) == b""


def test_an_input_without_a_byte_is_told_with_what_may_be_the_cause() -> None:
    with fed([]) as descriptor, pytest.raises(ImageError) as caught:
        PipeOrigin(descriptor).read_at(0, 512)
    assert caught.value.code == "image-empty"
    assert str(caught.value) == "standard input: is empty"
    assert caught.value.hint == "Did the command before the pipe fail?"


def test_the_first_64_kib_can_be_read_again() -> None:
    content = random.Random(1).randbytes(200_000)  # noqa: S311 -- content, not a key
    with fed([content]) as descriptor:
        origin = PipeOrigin(descriptor)
        assert origin.read_at(0, 8) == content[:8]
        assert origin.read_at(0, 65536) == content[:65536]
        assert origin.read_at(65530, 6) == content[65530:65536]
        assert origin.read_at(60000, 10000) == content[60000:70000]
        assert origin.read_at(100, 50) == content[100:150]
        with pytest.raises(ValueError, match="come to 70000"):
            origin.read_at(65530, 7)
        with pytest.raises(ValueError, match="come to 70000"):
            origin.read_at(70001, 1)
        assert origin.read_at(70000, 200_000) == content[70000:]


def test_the_digest_is_that_of_everything_also_of_what_nobody_read() -> None:
    content = random.Random(2).randbytes(20 * MIB + 1)  # noqa: S311 -- content, not a key
    expected = subprocess.run(["sha256sum"], input=content, capture_output=True, check=True)
    with fed([content]) as descriptor:
        origin = HashedOrigin(PipeOrigin(descriptor))
        assert origin.read_at(0, 70000) == content[:70000]
        assert origin.read_at(0, 512) == content[:512]
        assert origin.digest().hex() == expected.stdout.split()[0].decode()
        assert origin.digest() == hashlib.sha256(content).digest()


def test_a_reader_that_stops_early_leaves_nothing_behind() -> None:
    threads = threading.active_count()
    with (
        fed([bytes(8 * MIB)]) as descriptor,
        closing(HashedOrigin(PipeOrigin(descriptor))) as origin,
    ):
        assert origin.read_at(0, MIB) == bytes(MIB)
        origin.close()
    assert threading.active_count() == threads


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    with fed([b"abc", b"def"], pause=0.1) as descriptor:
        origin = PipeOrigin(descriptor)
        os.set_blocking(descriptor, False)
        assert origin.read_at(0, 10) == b"abcdef"


def test_a_file_at_standard_input_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.lseek(descriptor, 4, os.SEEK_SET)
        origin = PipeOrigin(descriptor)
        assert origin.read_at(0, 100) == b"456789"
    finally:
        os.close(descriptor)


def test_what_is_not_an_image_at_standard_input_is_refused(tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(ImageError, match="-: standard input is a terminal") as failure:
            PipeOrigin(terminal)
        assert failure.value.hint
        with pytest.raises(ImageError, match="-: is a directory"):
            PipeOrigin(directory)
    finally:
        for descriptor in (master, terminal, directory):
            os.close(descriptor)
    with pytest.raises(ImageError, match="cannot be read at byte 0: Bad file descriptor"):
        PipeOrigin(master)


def test_a_failure_to_read_names_the_place() -> None:
    unreadable = os.open("/proc/self/mem", os.O_RDONLY)  # nothing is mapped at address 0
    try:
        with pytest.raises(ImageError, match="at byte 0: Input/output error") as failure:
            PipeOrigin(unreadable).read_at(0, 1)
        assert failure.value.code == "image-unreadable"
    finally:
        os.close(unreadable)
