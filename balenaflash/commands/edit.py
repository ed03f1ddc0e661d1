"""Change the boot partition of an image file or a card, wholly or not at all."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from balenaflash.balena.image import (
    CONFIG_PATH,
    BootPartition,
    find_boot_partition,
    find_config_elsewhere,
)
from balenaflash.commands.card_records import warn_of_cut_off
from balenaflash.commands.image_file import require_unused
from balenaflash.edits.config.check import Finding
from balenaflash.edits.config.edit import find_errors, invalid_config
from balenaflash.edits.consequences import adds_secrets, diff_files, warnings_for
from balenaflash.edits.files import ChangeKind, Edit, FileChange
from balenaflash.edits.fingerprint import listed_paths
from balenaflash.edits.fingerprint import update as update_fingerprint
from balenaflash.errors import ConfigError, EditError
from balenaflash.formats.fat.check import Fault
from balenaflash.formats.fat.names import fold
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.partitions.table import PartitionTable, read_table
from balenaflash.source.base import Source
from balenaflash.source.commit import Commit, CommitReport, ReadableImage
from balenaflash.source.layers import Overlay, Patch
from balenaflash.source.location import ImageLocation
from balenaflash.source.map_beside import plan_updates
from balenaflash.source.opening import open_for_editing, open_for_reading
from balenaflash.source.undo import require_whole, warn_of_half_edited


@dataclass(frozen=True, slots=True)
class BootVolume:
    """The boot partition of an open image."""

    partition: BootPartition
    files: FatVolume
    source: Source = field(repr=False)
    table: PartitionTable = field(repr=False)
    """Of the image."""

    opening_warnings: tuple[str, ...]
    """Warnings about opening the image and about its partition table."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about the image, a sentence each."""
        return (*self.opening_warnings, *self.partition.warnings, *self.files.problems())


@dataclass(frozen=True, slots=True)
class EditReport:
    """What an edit changed, or with a dry run would have."""

    partition_number: int
    """Of the boot partition."""

    changes: tuple[FileChange, ...]
    """In the order they were made."""

    repairs: tuple[Fault, ...]
    """What was wrong with the volume, and was repaired before the edit."""

    diff: tuple[str, ...]
    """Lines of what changes within files, secrets masked unless asked for; of a dry run only."""

    commit: CommitReport
    """What was written to the image."""

    dry_run: bool
    warnings: tuple[str, ...]


def preview(
    location: ImageLocation,
    edits: Sequence[Edit],
    *,
    member: str | None = None,
    keep_fingerprint: bool = False,
    repair: bool = True,
    show_secrets: bool = False,
) -> EditReport:
    """What `edit` would do; the image may be compressed, or one that may only be read.

    Secrets in the lines that change are masked unless ``show_secrets``.

    Raises:
        ImageError, EditError: as `edit`.
    """
    with open_for_reading(location, member=member) as image:
        path = location if isinstance(location, Path) else None
        report = _preview(
            image,
            path,
            edits,
            keep_fingerprint=keep_fingerprint,
            repair=repair,
            show_secrets=show_secrets,
        )
        image.require_unchanged()
        return report


def edit(
    path: Path, edits: Sequence[Edit], *, keep_fingerprint: bool = False, repair: bool = True
) -> EditReport:
    """Make ``edits``, in their order, in the boot partition of the image file at ``path``.

    They are made in memory; then what changed is committed to the file. The fingerprint, unless
    it is to be kept, and a block map beside the image are brought up to date with it. What is
    wrong with the volume and can be repaired without a loss is repaired in the same commit;
    without ``repair`` it is a reason to refuse the edits.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
        EditError: an edit cannot be made; none was.
        WriteError: writing failed; the message says what state the image is in.
    """
    with open_for_editing(path) as image:
        require_unused(path)
        return edit_opened(image, path, edits, keep_fingerprint=keep_fingerprint, repair=repair)


class Editable(Protocol):
    """An image file or a card that is open for a change, which nobody else makes meanwhile."""

    @property
    def source(self) -> Source:
        """What it holds."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about opening it, a sentence each."""

    def commit(self, patches: Sequence[Patch], how: Commit = ...) -> CommitReport:
        """Write what ``patches`` change; errors as `balenaflash.source.commit.commit`."""


def edit_opened(
    image: Editable, path: Path, edits: Sequence[Edit], *, keep_fingerprint: bool, repair: bool
) -> EditReport:
    """Make ``edits`` in ``image``, which was opened by ``path``; else as `edit`."""
    boot = _open_boot(image)
    boot.files.may_repair = repair
    edited = _apply(edits, boot, keep_fingerprint=keep_fingerprint)
    patches = boot.files.changes()
    updates = plan_updates(path, image.source, patches)
    about_maps: list[str] = []

    def finish() -> None:
        about_maps.extend(warning for update in updates for warning in update.finish())

    commit = image.commit(patches, Commit(boot.files.edit_mark, finish))
    return EditReport(
        partition_number=boot.partition.partition.number,
        changes=edited.changes,
        repairs=boot.files.repairs,
        diff=(),
        commit=commit,
        dry_run=False,
        warnings=(
            *boot.warnings,
            *edited.warnings,
            *_invalidated(edited, boot, path),
            *about_maps,
            # Those about reading have come since.
            *(each for each in image.warnings if each not in boot.opening_warnings),
        ),
    )


def _preview(
    image: ReadableImage,
    path: Path | None,
    edits: Sequence[Edit],
    *,
    keep_fingerprint: bool,
    repair: bool,
    show_secrets: bool,
) -> EditReport:
    boot = _open_boot(image)
    boot.files.may_repair = repair
    original = _open_boot(image).files
    edited = _apply(edits, boot, keep_fingerprint=keep_fingerprint)
    return EditReport(
        partition_number=boot.partition.partition.number,
        changes=edited.changes,
        repairs=boot.files.repairs,
        diff=diff_files(original, boot.files, edited.rewritten, show_secrets=show_secrets),
        commit=image.preview(boot.files.changes()),
        dry_run=True,
        warnings=(*boot.warnings, *edited.warnings, *_invalidated(edited, boot, path)),
    )


@dataclass(frozen=True, slots=True)
class EditedImage:
    """An open image as edits would leave it; the image itself is as it was."""

    source: Source
    """What it would hold."""

    changes: tuple[FileChange, ...]
    """In the order they were made."""

    repairs: tuple[Fault, ...]
    """What was wrong with the volume, and was repaired before the edits."""

    warnings: tuple[str, ...]

    adds_secrets: bool = False
    """Whether the edits put a secret there, such as a passphrase, that was not there before."""


def lay_over(
    image: ReadableImage,
    edits: Sequence[Edit],
    *,
    keep_fingerprint: bool = False,
    repair: bool = True,
) -> EditedImage:
    """``image`` with ``edits`` made in what is read of it and not in itself.

    The same edits give the same bytes whenever they are made: what they make or change gets
    ``SOURCE_DATE_EPOCH`` as its time or, without that, the newest one in the boot partition.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
        EditError: an edit cannot be made.
    """
    if not edits:
        return EditedImage(image.source, (), (), image.warnings)
    boot = _open_boot(image)
    boot.files.may_repair = repair
    if not os.environ.get("SOURCE_DATE_EPOCH"):
        times = (entry.modified for entry in boot.files.walk() if entry.modified is not None)
        boot.files.fixed_time = max(times, default=None)
    original = boot.partition.open(image.source)
    edited = _apply(edits, boot, keep_fingerprint=keep_fingerprint)
    return EditedImage(
        source=Overlay(image.source, boot.files.changes()),
        changes=edited.changes,
        repairs=boot.files.repairs,
        warnings=(*boot.warnings, *edited.warnings, *_invalidated(edited, boot, None)),
        adds_secrets=adds_secrets(original, boot.files, edited.rewritten),
    )


@contextmanager
def open_boot_volume(location: ImageLocation, *, member: str | None = None) -> Iterator[BootVolume]:
    """The boot partition of the image at ``location``, to look at until the block ends.

    It may be a block device, such as a flashed card. ``member`` names it in a container that has
    several.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
        EditError: another process is editing it; or an edit was cut off and cannot be undone.
    """
    with open_for_reading(location, member=member) as image:
        boot = _open_boot(image)
        about_card = warn_of_cut_off(location) if isinstance(location, Path) else ()
        yield replace(boot, opening_warnings=(*boot.opening_warnings, *about_card))
        image.require_unchanged()


def _open_boot(image: ReadableImage | Editable) -> BootVolume:
    table = read_table(image.source)
    partition = find_boot_partition(image.source, table)
    volume = partition.open(image.source)
    warnings = (*image.warnings, *table.warnings, *warn_of_half_edited(volume.edit_mark.before))
    return BootVolume(partition, volume, image.source, table, warnings)


@dataclass(frozen=True, slots=True)
class _Edited:
    changes: tuple[FileChange, ...]
    shipped: frozenset[str] | None
    """Files of the operating system by the fingerprint, as it was before."""

    @property
    def touched(self) -> tuple[str, ...]:
        """Paths of which something is otherwise than before."""
        return tuple(path for change in self.changes for path in change.touched)

    @property
    def rewritten(self) -> tuple[str, ...]:
        """Paths whose old and new content can be compared.

        What was moved is not among them: its content is as it was, and whether it is a secret
        that must not be shown is told by the path it had.
        """
        moved = {change.path for change in self.changes if change.kind is ChangeKind.MOVED}
        return tuple(change.path for change in self.changes if change.path not in moved)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the edits themselves."""
        return tuple(warning for change in self.changes for warning in change.warnings)


def _apply(edits: Sequence[Edit], boot: BootVolume, *, keep_fingerprint: bool) -> _Edited:
    volume = boot.files
    require_whole(volume.edit_mark.before, boot.source.name)
    has_config = volume.find(CONFIG_PATH) is not None
    shipped = listed_paths(volume)
    known = _config_errors(volume)
    edited = _Edited(tuple(change for each in edits for change in each.apply(volume)), shipped)
    if fold(CONFIG_PATH) in map(fold, edited.touched):
        if not has_config:
            _refuse_second_config(boot)
        _refuse_bad_config(volume, known)
    if not keep_fingerprint:
        update_fingerprint(volume, edited.touched)
    return edited


def _config_errors(volume: FatVolume) -> tuple[Finding, ...]:
    """What is wrong with config.json before an edit, which is not the edit's fault."""
    try:
        return find_errors(volume)
    except ConfigError:
        return ()


def _refuse_second_config(boot: BootVolume) -> None:
    """Raise if the board reads its config.json from another partition.

    Raises:
        EditError: the one that an edit has made would never be read.
    """
    partition = find_config_elsewhere(boot.source, boot.table, boot.partition)
    if partition is None:
        return
    name = shlex.quote(boot.source.name)
    raise EditError(
        f"{boot.source.name}: its config.json is in partition {partition.number}, as resinOS 1.x "
        "has it; one in the boot partition is never read",
        code="config-elsewhere",
        hint="Where that partition is a FAT, take it out with mtools, change it, and put it back: "
        f"mcopy -i {name}@@{partition.extent.start} ::config.json config.json",
    )


def _refuse_bad_config(volume: FatVolume, known: tuple[Finding, ...]) -> None:
    """Raise if an edit, of whatever kind, has left a config.json that locks a board out.

    Raises:
        ConfigError: it is not valid, and was not so before.
    """
    entry = volume.find(CONFIG_PATH)
    if entry is None or entry.is_directory:
        return
    errors = [each for each in find_errors(volume) if each not in known]
    if errors:
        raise invalid_config(errors)


def _invalidated(edited: _Edited, boot: BootVolume, path: Path | None) -> tuple[str, ...]:
    return warnings_for(edited.touched, boot.files, shipped=edited.shipped, image=path)
