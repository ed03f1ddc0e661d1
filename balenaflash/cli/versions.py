"""Versions of the libraries that do the work, for reports."""

from importlib.metadata import version

import balenaflash.formats.partitions.table as tables


def library_versions() -> list[tuple[str, str]]:
    """Names and versions, libparted's own included."""
    names = ("click", "pyfatfs", "pyparted", "pyudev", "tqdm", "xxhash")
    return [
        *((name, version(name)) for name in names),
        ("libparted", tables.libparted_version()),
    ]
