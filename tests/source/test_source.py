import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopdev import AttachLoop

from balenaflash.errors import ImageError
from balenaflash.source.base import open_source
from balenaflash.source.container.decoder import Container


@settings(max_examples=50, deadline=None)
@given(content=st.binary(min_size=1, max_size=5000), data=st.data())
def test_any_range_reads_as_it_stands_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("source") / "image"
    path.write_bytes(b"\0" + content)
    offset = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, len(content) - offset))
    with open_source(path) as source:
        assert source.size == len(content) + 1
        assert source.read(offset, length) == (b"\0" + content)[offset : offset + length]
        with pytest.raises(ImageError, match="ends at byte"):
            source.read(offset, len(content) + 2 - offset)


@pytest.mark.needs("loop devices")
def test_a_block_device_is_as_large_as_the_device(tmp_path: Path, attach_loop: AttachLoop) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(4096) * 256)
    with open_source(attach_loop(path)) as source:
        assert source.container is Container.BLOCK_DEVICE
        assert source.size == 1024 * 1024
        assert source.read(4096, 4096) == path.read_bytes()[4096:8192]


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "image"
    os.mkfifo(path)
    with pytest.raises(ImageError, match="neither a file nor a block device"), open_source(path):
        pass


def test_a_file_cut_short_while_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    with open_source(path) as source:
        os.truncate(path, 4096)
        with pytest.raises(ImageError, match="ends at byte"):
            source.read(0, 8192)
