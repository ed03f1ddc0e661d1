"""The guest's kernel, its modules and an initramfs, from Debian's packages."""

import gzip
import lzma
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GUEST_FILES = Path(__file__).resolve().parent / "guest"
CACHE_VARIABLE = "VM_CACHE"
"""Environment variable that names the directory to build in."""

_KERNEL_PACKAGE = "linux-image-amd64"  # depends on the package of the current version
_XZ_MAGIC = b"\xfd7zXZ\0"  # The .xz File Format, 2.1.1.1
_NEEDED_TO_FIND_THE_ROOT = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
_LEFT_OUT = (
    "*/drivers/gpu",
    "*/drivers/media",
    "*/drivers/net/ethernet",
    "*/drivers/net/wireless",
    "*/kernel/sound",
    "./usr/share/*",
)
"""Modules for hardware that the guest does not have, and documentation."""


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """What QEMU boots."""

    kernel: Path
    initramfs: Path
    modules: Path
    """The directory to be seen as ``/lib/modules``."""


def cache_directory() -> Path:
    """Where the built guest is kept: ``$VM_CACHE``, else below ``$XDG_CACHE_HOME``."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "balenaflash-vm"


def build(directory: Path) -> GuestKernel:
    """The guest in ``directory``, built there unless it was before; needs apt's package lists.

    Raises:
        subprocess.CalledProcessError: a package could not be had; its ``stderr`` says why.
    """
    unpacked = directory / "unpacked"
    built = GuestKernel(directory / "vmlinux", directory / "initramfs.gz", unpacked / "lib/modules")
    complete = directory / "complete"
    if not complete.exists():
        shutil.rmtree(directory, ignore_errors=True)
        _fetch(directory / "packages")
        _unpack(directory / "packages", unpacked)
        _build_kernel(unpacked, built.kernel)
        complete.touch()
    # The init script belongs to the checkout; packing it takes a moment.
    _build_initramfs(unpacked, directory / "initramfs", built.initramfs)
    return built


def _fetch(packages: Path) -> None:
    packages.mkdir(parents=True)
    listed = _run("apt-cache", "depends", _KERNEL_PACKAGE)
    names = [line.split()[-1] for line in listed.splitlines() if "Depends: linux-image-" in line]
    _run("apt-get", "download", "--quiet", *names[:1], "kmod", "busybox-static", cwd=packages)


def _unpack(packages: Path, target: Path) -> None:
    target.mkdir()
    excluded = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
    for package in packages.glob("*.deb"):
        content = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", target, *excluded], input=content, check=True)
    shutil.rmtree(packages)
    _kmod(target, "depmod", _version(target))


def _build_kernel(unpacked: Path, target: Path) -> None:
    """Unpack the kernel here: the guest's emulated processor would take seconds for it."""
    content = (unpacked / f"boot/vmlinuz-{_version(unpacked)}").read_bytes()
    start = content.find(_XZ_MAGIC)
    if start >= 0:
        content = lzma.LZMADecompressor().decompress(content[start:])
    target.write_bytes(content)


def _build_initramfs(unpacked: Path, folder: Path, target: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "modules").mkdir(parents=True)
    busybox = next(path for path in unpacked.glob("**/bin/busybox"))
    shutil.copy(busybox, folder / "busybox")
    shutil.copy(GUEST_FILES / "init", folder / "init")
    for number, module in enumerate(_modules_in_order(unpacked)):
        content = module.read_bytes()
        content = lzma.decompress(content) if module.suffix == ".xz" else content
        (folder / f"modules/{number:02}-{module.name.removesuffix('.xz')}").write_bytes(content)
    names = "\n".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    archive = subprocess.run(
        ["cpio", "--create", "--format=newc", "--quiet"],
        input=names.encode(),
        cwd=folder,
        capture_output=True,
        check=True,
    ).stdout
    target.write_bytes(gzip.compress(archive, 1))


def _modules_in_order(unpacked: Path) -> list[Path]:
    """The modules to load before there is a root, each after those that it needs."""
    found: dict[Path, None] = {}
    for name in _NEEDED_TO_FIND_THE_ROOT:
        said = _kmod(unpacked, "modprobe", "-S", _version(unpacked), "--show-depends", name)
        found |= {
            Path(line.split()[1]): None for line in said.splitlines() if line.startswith("insmod ")
        }
    return list(found)


def _version(unpacked: Path) -> str:
    return next(path.name for path in (unpacked / "lib/modules").iterdir())


def _kmod(unpacked: Path, program: str, *arguments: str) -> str:
    """Run kmod under the name that makes it ``program``, on the unpacked modules."""
    kmod = next(path for path in unpacked.glob("**/bin/kmod"))
    flag = "-b" if program == "depmod" else "-d"
    command = [program, flag, str(unpacked), *arguments]
    return subprocess.run(
        command, executable=kmod, capture_output=True, text=True, check=True
    ).stdout


def _run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout
