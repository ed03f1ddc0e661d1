"""What is known of the device types of balenaOS, beyond what their images tell.

The list ships with the package; each row names the file of balena's board repository, at a
commit, that it was read from.
"""

import csv
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources


class HookPlace(StrEnum):
    """Where a board's own flasher program puts what it does; by it one knows what is missing."""

    EMMC_BOOT = "emmc-boot"
    """A boot partition of the eMMC's hardware, ``mmcblkNboot0``, which no other device reaches."""

    FLASH_CHIP = "flash-chip"
    """A NOR or NAND flash or an EEPROM on the board."""

    DISK = "disk"
    """The internal disk itself, outside of all partitions; the board chooses what."""

    FIRMWARE = "firmware"
    """The boot menu of an EFI firmware, and leftovers on the disk of the way of booting that the
    board does not use."""


@dataclass(frozen=True, slots=True)
class Board:
    """A device type."""

    slug: str

    hook: str | None
    """What its ``resin-init-flasher-board`` does, in a few words; ``None`` for nothing."""

    hook_place: HookPlace | None
    """``None`` exactly when there is no hook."""

    source: str
    """Where this was read."""


def find_board(slug: str) -> Board | None:
    """The device type ``slug``; ``None`` if it is not in the list."""
    return _read_boards().get(slug)


@cache
def _read_boards() -> dict[str, Board]:
    path = resources.files("balenaflash").joinpath("share/boards.csv")
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return {row["slug"]: _read_board(row) for row in rows}


def _read_board(row: dict[str, str]) -> Board:
    place = HookPlace(row["hook_place"]) if row["hook_place"] else None
    return Board(row["slug"], row["hook"] or None, place, row["source"])
