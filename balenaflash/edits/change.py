"""The interface of every edit of the boot partition."""

from typing import Protocol

from balenaflash.edits.files import FileChange
from balenaflash.formats.fat.pyfatfs import FatVolume


class Edit(Protocol):
    """One change of the boot partition, as data: given on the command line or in a recipe."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it in ``volume``, in memory, and tell what became of which file.

        Raises:
            EditError: it cannot be made; ``volume`` may hold part of it.
        """

    def describe(self) -> str:
        """What it does, in a few words."""
