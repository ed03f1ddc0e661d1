"""Bytes that a web server has to send: hardly one of them twice, and few for a look."""

from pathlib import Path

import pytest
from builders import Layout
from commandline import RunBalenaflash
from containers import noise, run
from imagecopies import MakeImage
from imageserver import Behaviour, direct_and_tidy, serve

from balenaflash.units import KIB, MIB

__all__ = ["direct_and_tidy"]

pytestmark = [pytest.mark.needs("zip tools"), pytest.mark.usefixtures("direct_and_tidy")]

PACKERS: dict[str, tuple[str, ...]] = {
    "raw": (),
    "zip": ("zip", "-q", "-1", "-", "b.img"),
    "zip, stored": ("zip", "-q", "-0", "-Z", "store", "a.zip", "b.img"),
    "zip, deflated": ("zip", "-q", "-1", "a.zip", "b.img"),
    "zstd": ("zstd", "-q", "-1", "-c", "b.img"),
    "gzip": ("gzip", "-1c", "b.img"),
    "xz": ("xz", "-0c", "-T1", "b.img"),
    "xz, blocks": ("xz", "-0c", "-T1", "--block-size=8MiB", "b.img"),
    "bzip2": ("bzip2", "-1c", "b.img"),
}


@pytest.mark.parametrize("packer", PACKERS)
def test_a_server_sends_an_image_once_and_for_a_look_its_beginning(
    packer: str, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.GPT_FAT16)
    plain = tmp_path / "b.img"
    with built.path.open("r+b") as file:
        # Where nothing is used, so that what is packed is not small.
        file.seek(built.partitions[-1].extent.end - 24 * MIB)
        file.write(noise(1, 23 * MIB))
    built.path.rename(plain)
    command = PACKERS[packer]
    stored = run(*command, cwd=tmp_path) if command else b""
    content = stored or (tmp_path / "a.zip" if command else plain).read_bytes()
    assert len(content) > 23 * MIB
    with serve(Behaviour(content)) as server:
        shown = balenaflash("inspect", server.url)
        assert shown.returncode == 0, shown.stderr
        # The boot partition begins 4 MiB from the start. A block of bzip2 is decoded whole.
        assert server.sent <= 8 * MIB
        server.sent = 0
        written = balenaflash("write", server.url, tmp_path / "copy.img")
        assert written.returncode == 0, written.stderr
        assert server.sent <= len(content) + 128 * KIB
    assert run("cmp", plain, tmp_path / "copy.img") == b""
