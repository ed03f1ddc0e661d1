"""The guest that all tests here share, and what is in it from the start."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vm.build import build, cache_directory
from vm.machine import Machine, running

DISK_SIZE = 256 << 20  # bytes; an SD card of QEMU has a power of two


@dataclass(frozen=True, slots=True)
class Media:
    """Files on this machine behind the guest's disks."""

    image: Path
    """A complete image of balenaOS layout, seen under the same path in the guest."""

    folder: Path

    def new_disk(self, name: str) -> Path:
        """A file of `DISK_SIZE` bytes that starts with the image."""
        path = self.folder / f"{name}.disk"
        subprocess.run(["cp", "--sparse=always", self.image, path], check=True)
        with path.open("r+b") as disk:
            disk.truncate(DISK_SIZE)
        return path


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    folder = tmp_path_factory.mktemp("media")
    image = folder / "sample.img"
    command = [sys.executable, "-m", "balenaflash", "sample", "--quiet", str(image)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return Media(image, folder)


@pytest.fixture(scope="session")
def machine(media: Media, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A running guest with an NVMe, a virtio and an SD disk; USB sticks are plugged by tests."""
    devices = (
        *_drive("nvme", media, "nvme,drive=nvme,serial=NVME0001"),
        *_drive("virtio", media, "virtio-blk-pci,drive=virtio,serial=VIRT0001"),
        *("-device", "sdhci-pci"),
        *_drive("sd", media, "sd-card,drive=sd"),
    )
    with running(build(cache_directory()), tmp_path_factory.mktemp("vm"), devices=devices) as guest:
        guest.wait_for_node(Path("/dev/mmcblk0"))  # its driver takes its time
        yield guest


def _drive(name: str, media: Media, device: str) -> tuple[str, ...]:
    backing = media.new_disk(name)
    return ("-drive", f"if=none,id={name},format=raw,file={backing}", "-device", device)
