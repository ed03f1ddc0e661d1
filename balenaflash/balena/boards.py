"""Facts about device types of balenaOS that their images do not contain.

The list ships with the package. Each row names its source: a file of balena's board repository,
at a commit.
"""

import csv
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources


class HookPlace(StrEnum):
    """Place that a board's own flasher program writes, and that an image alone therefore lacks."""

    EMMC_BOOT = "emmc-boot"
    """A hardware boot partition of the eMMC, ``mmcblkNboot0``, which only the board reaches."""

    FLASH_CHIP = "flash-chip"
    """A NOR or NAND flash or an EEPROM on the board."""

    DISK = "disk"
    """The internal disk, outside of all partitions; the board selects the content."""

    FIRMWARE = "firmware"
    """The boot menu of an EFI firmware, and leftovers on the disk of the other boot method."""


@dataclass(frozen=True, slots=True)
class Board:
    """A device type."""

    slug: str

    hook: str | None
    """Action of its ``resin-init-flasher-board``, in a few words; ``None`` for nothing."""

    hook_place: HookPlace | None
    """``None`` if and only if there is no hook."""

    source: str
    """Source of these facts."""


def find_board(slug: str) -> Board | None:
    """The device type ``slug``; ``None`` if it is not in the list."""
    return _read_boards().get(slug)


@cache
def _read_boards() -> dict[str, Board]:
    path = resources.files("balenaflash").joinpath("share/boards.csv")
    boards = (
        Board(
            slug=row["slug"],
            hook=row["hook"] or None,
            hook_place=HookPlace(row["hook_place"]) if row["hook_place"] else None,
            source=row["source"],
        )
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    )
    return {board.slug: board for board in boards}
