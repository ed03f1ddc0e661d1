"""Change the boot partition of a flashed card, or of any disk that holds an image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from balenaflash.card_records import record_of, settle_records
from balenaflash.card_store import CardSource, CardStore
from balenaflash.editing import Edit, EditReport, edit_opened
from balenaflash.errors import ImageError
from balenaflash.image.commit.commit import PLAIN, Commit, CommitReport, commit
from balenaflash.image.opening import open_for_reading
from balenaflash.image.patch import Patch
from balenaflash.image.table.partitions import read_table
from balenaflash.safety import (
    NO_PERMISSIONS,
    Assessment,
    Permissions,
    assess,
    require_writable,
)
from balenaflash.target.discovery import Disk, find_disk
from balenaflash.target.disk import open_disk


@dataclass(frozen=True, slots=True)
class Card:
    """A disk that holds an image and may be changed, as far as can be told without opening it."""

    assessment: Assessment

    @property
    def disk(self) -> Disk:
        """The disk itself."""
        return self.assessment.disk


@dataclass(frozen=True, slots=True)
class EditableCard:
    """A card open for a change, which nobody else uses or opens meanwhile."""

    source: CardSource
    """What it holds, read past the cache; of no use after a commit."""

    opening_warnings: tuple[str, ...]
    """Warnings about an earlier edit, a sentence each."""

    disk: Disk
    store: CardStore

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about opening and reading it, a sentence each."""
        return (*self.opening_warnings, *self.store.rereads.warnings(self.source.name))

    def commit(self, patches: Sequence[Patch], how: Commit = PLAIN) -> CommitReport:
        """Write what ``patches`` change, as `balenaflash.image.commit.commit.commit`."""
        how = replace(how, prove=self.source.require_only(patches))
        return commit(self.source, self.store, record_of(self.disk), patches, how)


def find_card(node: Path, permissions: Permissions = NO_PERMISSIONS) -> Card:
    """The card that ``node`` names, checked as a target of writing is.

    It may be of any size: that it holds an image tells enough about it.

    Raises:
        TargetRefusedError: with every reason at once.
        ImageError: there is no image on it.
    """
    disk = find_disk(node)
    permissions = replace(permissions, max_size=None, virtual=True)
    try:
        with open_for_reading(node) as image:
            sector_size = read_table(image.source).sector_size
    except ImageError:
        # That it must not be written at all is what matters more.
        sector_size = disk.logical_sector_size
        require_writable(assess(disk, image_sector_size=sector_size, permissions=permissions))
        raise
    assessment = assess(disk, image_sector_size=sector_size, permissions=permissions)
    require_writable(assessment)
    return Card(assessment)


@contextmanager
def open_card(card: Card) -> Iterator[EditableCard]:
    """What was confirmed as ``card``, open for a commit until the block ends.

    An earlier edit of it that was cut off is dealt with first.

    Raises:
        TargetRefusedError: it is not what was confirmed any more, or somebody else has it.
        EditError: an earlier edit was cut off and cannot be undone.
        WriteError: undoing an earlier edit failed; its record stays.
    """
    with open_disk(card.disk) as medium:
        store = CardStore(medium)
        warnings = settle_records(card.disk, store)
        yield EditableCard(CardSource(store), warnings, card.disk, store)


def edit_card(
    card: Card, edits: Sequence[Edit], *, keep_fingerprint: bool = False, repair: bool = True
) -> EditReport:
    """Make ``edits``, in their order, in the boot partition of ``card``, wholly or not at all.

    Raises:
        ImageError: it does not hold an image of balenaOS layout, or cannot be read.
        EditError: an edit cannot be made; none was.
        TargetRefusedError, WriteError: as `open_card`.
        WriteError: writing failed; the message says what state the card is in.
    """
    with open_card(card) as image:
        return edit_opened(
            image, card.disk.node, edits, keep_fingerprint=keep_fingerprint, repair=repair
        )
