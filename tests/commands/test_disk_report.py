"""Layouts of images that are no files, and of images that can only be read forwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from boot_volume import edited
from builders import BuiltImage, Layout
from imagecopies import MakeImage

from balenaflash.balena.image import BalenaImage
from balenaflash.commands.disk_report import report_disk
from balenaflash.source.base import FileSource
from balenaflash.source.container.decoder import Container


class ForwardOnly(FileSource):
    """A file of which it costs to read far behind."""

    seekable = False


@pytest.fixture(params=[Layout.GPT_FAT16, Layout.MSDOS_FAT16])
def built(image: MakeImage, request: pytest.FixtureRequest) -> BuiltImage:
    layout: Layout = request.param
    return image(layout)


@contextmanager
def open_stream(path: Path) -> Iterator[ForwardOnly]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield ForwardOnly(path, descriptor, Container.RAW, path.stat().st_size)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("is_told", [True, False])
def test_of_a_stream_filesystems_far_behind_are_not_looked_for(
    is_told: bool,  # noqa: FBT001 - a parameter of the test
    built: BuiltImage,
) -> None:
    if not is_told:  # then the version is in the root filesystem
        with edited(built) as volume:
            volume.remove_file("/os-release")
    with open_stream(built.path) as stream:
        layout = report_disk(BalenaImage(stream), show_secrets=False)
    assert layout.os_version is not None
    assert layout.os_version.partition == (1 if is_told else 2)
    assert [item.partition.number for item in layout.partitions if item.was_read] == [1, 2]
    for item in layout.partitions:
        assert (item.filesystem is not None) == (item.fill is not None) == item.was_read
