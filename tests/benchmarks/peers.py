"""The programs that are compared, and how each is asked to write an image."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring import OURS

_ETCHER = Path(__file__).with_name("etcher_write.js")
_DIRECT = "bs=4M iflag=fullblock oflag=direct conv=fsync status=none"
_BACK = "head -c {size} {node}"
_FLUSH = "blockdev --flushbufs {node}"

RAW = frozenset({"raw"})
ALL = frozenset({"raw", "gz", "xz", "zst", "zip", "bz2"})
PACKED = ALL - RAW

DECOMPRESSORS = {
    "raw": ("cat {image}",),
    "gz": ("igzip -dc {image}", "pigz -dc {image}", "gzip -dc {image}"),
    "xz": ("xz -T0 -dc {image}",),
    "zst": ("zstd -q -dc {image}",),
    "zip": ("bsdtar -xOf {image}", "unzip -p {image}"),
    "bz2": ("lbzip2 -dc {image}", "bzip2 -dc {image}"),
}
"""The fastest first."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One way to write an image; commands are for a shell.

    ``{image}``, ``{node}`` (the first), ``{nodes}``, ``{size}`` in bytes, ``{bmap}``, ``{stream}``
    (a command that prints the image) and ``{stand_in}`` are filled in.
    """

    name: str
    programs: tuple[str, ...]
    """What must be found on ``PATH``."""

    write: str | None
    """Writes only."""

    read_back: str | None
    """Writes, reads back and compares."""

    containers: frozenset[str] = ALL
    writes_many: bool = False
    """Whether one run takes several targets."""

    @property
    def missing(self) -> str | None:
        """What of it was not found."""
        for program in self.programs:
            if program == _MODULES:
                modules = os.environ.get(_MODULES)
                if modules is None or not Path(modules, "etcher-sdk").is_dir():
                    return f"{_MODULES} does not name a folder with etcher-sdk"
            elif shutil.which(program) is None:
                return f"no {program} on PATH"
        return None


_MODULES = "ETCHER_MODULES"
_DD_RAW = "dd if={image} of={node} " + _DIRECT
_DD_PACKED = "{stream} | dd of={node} " + _DIRECT


def _ours(name: str, options: str) -> Tool:
    write = f"{OURS} write -q --yes{options}"
    plain = f"{write} --no-verify {{image}} {{nodes}}"
    return Tool(name, (), plain, f"{write} {{image}} {{nodes}}", writes_many=True)


def _etcher(name: str, flags: str, containers: frozenset[str]) -> Tool:
    command = f"node {_ETCHER}{flags}"
    return Tool(
        name,
        ("node", _MODULES),
        f"{command} --no-verify {{image}} {{nodes}}",
        f"{command} {{image}} {{nodes}}",
        containers,
        writes_many=True,
    )


def _dd(name: str, program: str, compare: str) -> tuple[Tool, Tool]:
    """With ``compare`` as the read-back; a pipe from a decompressor for what is compressed."""
    return (
        Tool(name, ("dd", program), None, f"{_DD_RAW}; {_FLUSH}; {compare}", RAW),
        Tool(name, ("dd", program), None, f"{_DD_PACKED}; {_FLUSH}; {compare}", PACKED),
    )


def _sums(program: str) -> str:
    """The sums of the image and of what was read back, compared."""
    return f'a=$({{stream}} | {program}); b=$({_BACK} | {program}); [ "$a" = "$b" ]'


_RPI = "rpi-imager --cli --quiet --enable-writing-system-drives"

TOOLS = (
    _ours("balenaflash", ""),
    _ours("balenaflash --all", " --all"),
    Tool("dd direct", ("dd",), _DD_RAW, None, RAW),
    Tool("dd direct", ("dd",), _DD_PACKED, None, PACKED),
    *_dd("dd direct, cmp", "cmp", "{stream} | cmp -n {size} - {node}"),
    *_dd("dd direct, sha256sum", "sha256sum", _sums("sha256sum")),
    *_dd("dd direct, xxhsum", "xxhsum", _sums("xxhsum -q -H2 -")),
    Tool(
        "bmaptool --bmap",
        ("bmaptool",),
        "bmaptool -q copy --bmap {bmap} {image} {node}",
        None,
    ),
    Tool("bmaptool --nobmap", ("bmaptool",), "bmaptool -q copy --nobmap {image} {node}", None),
    # It takes a file with .zst for a raw image.
    _etcher("etcher-sdk", "", ALL - {"zst"}),
    _etcher("etcher-sdk, trim", " --trim", ALL - {"zst"}),
    Tool(
        "balena local flash",
        ("balena",),
        None,
        # The list of drives that it chooses from leaves out loop devices.
        "PATH={stand_in}:$PATH balena local flash {image} --drive {stand_in}/disk --yes",
        ALL - {"zst"},
    ),
    Tool(
        "rpi-imager --cli",
        ("rpi-imager",),
        f"{_RPI} --disable-verify {{image}} {{node}}",
        f"{_RPI} {{image}} {{node}}",
    ),
)


def decompress(container: str, image: Path) -> str:
    """The command that prints an image, by the fastest program that is installed.

    Raises:
        SystemExit: none is.
    """
    for command in DECOMPRESSORS[container]:
        if shutil.which(command.split()[0]):
            return command.format(image=image)
    raise SystemExit(f"no program for {container}: {', '.join(DECOMPRESSORS[container])}")


def stand_in_for_lsblk(folder: Path, node: Path, size: int) -> None:
    """Put a link ``disk`` to ``node`` into ``folder``, and an ``lsblk`` that lists it alone."""
    folder.mkdir(exist_ok=True)
    link, program = folder / "disk", folder / "lsblk"
    link.unlink(missing_ok=True)
    link.symlink_to(node)
    disk = {
        "name": str(link),
        "kname": str(link),
        "size": size,
        "rm": True,
        "hotplug": True,
        "ro": False,
        "tran": "usb",
        "subsystems": "block:usb",
        "mountpoint": None,
    }
    listing = json.dumps({"blockdevices": [disk]})
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n", encoding="utf-8")
    program.chmod(0o700)


def found(tools: Sequence[Tool]) -> list[Tool]:
    """Those that are installed; what is not is printed, once each."""
    absent = {tool.name: tool.missing for tool in tools if tool.missing}
    for name, reason in absent.items():
        print(f"not compared: {name}: {reason}")
    return [tool for tool in tools if tool.missing is None]
