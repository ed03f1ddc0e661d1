"""Change the boot partition of an image file or a card, wholly or not at all."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from balenaflash.balena.image import CONFIG_PATH, BalenaImage
from balenaflash.commands.card_records import warn_of_cut_off
from balenaflash.edits.config.check import Finding
from balenaflash.edits.config.edit import find_errors, invalid_config
from balenaflash.edits.consequences import adds_secrets, diff_files, warnings_for
from balenaflash.edits.files import ChangeKind, Edit, FileChange
from balenaflash.edits.fingerprint import listed_paths
from balenaflash.edits.fingerprint import update as update_fingerprint
from balenaflash.errors import ConfigError, EditError
from balenaflash.formats.fat.fsck import Fault
from balenaflash.formats.fat.names import fold
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.source.base import Source
from balenaflash.source.commit import CommitReport, EditableImage
from balenaflash.source.location import ImageLocation
from balenaflash.source.map_beside import plan_updates
from balenaflash.source.opening import open_for_editing, open_for_reading
from balenaflash.source.undo_record import require_whole
from balenaflash.targets.unmount import require_no_writer


@dataclass(frozen=True, slots=True)
class Edited:
    """An image with edits made in what is read of it; nothing is written to the image itself."""

    image: BalenaImage = field(repr=False)
    """The image as it is after the edits; readable while the original's source is open."""

    changes: tuple[FileChange, ...] = ()
    """Changes in the boot partition, in the order they were made."""

    repairs: tuple[Fault, ...] = ()
    """Faults of the boot partition that were repaired before the edits."""

    warnings: tuple[str, ...] = ()

    adds_secrets: bool = False
    """True if the edits add a secret, such as a passphrase, that was not there before."""

    @property
    def source(self) -> Source:
        """The bytes of ``image``."""
        return self.image.source


@dataclass(frozen=True, slots=True)
class EditReport:
    """Changes that an edit made, or with a dry run would have made."""

    partition_number: int
    """Number of the boot partition."""

    changes: tuple[FileChange, ...]
    """Changed files, in the order of the edits."""

    repairs: tuple[Fault, ...]
    """Faults of the volume that were repaired before the edits."""

    diff: tuple[str, ...]
    """Lines that change within files, secrets masked unless requested; of a dry run only."""

    commit: CommitReport
    """Sectors written to the image."""

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
    """The report that `edit` would return; the image may be compressed, or only readable.

    Secrets in the lines that change are masked unless ``show_secrets``.

    Raises:
        ImageError, EditError: as `edit`.
    """
    with open_for_reading(location, member=member) as opened:
        image = BalenaImage(opened.source, opened.warnings)
        volume = image.open_files()
        volume.may_repair = repair
        path = location if isinstance(location, Path) else None
        changes, warnings = _apply(
            edits, image, volume, path=path, keep_fingerprint=keep_fingerprint
        )
        rewritten = _rewritten(changes)
        report = EditReport(
            partition_number=image.boot.partition.number,
            changes=changes,
            repairs=volume.repairs,
            diff=diff_files(image.files, volume, rewritten, show_secrets=show_secrets),
            commit=opened.preview(volume.changes()),
            dry_run=True,
            warnings=(*image.layout_warnings, *volume.problems(), *warnings),
        )
        opened.require_unchanged()
        return report


def edit(
    path: Path, edits: Sequence[Edit], *, keep_fingerprint: bool = False, repair: bool = True
) -> EditReport:
    """Make ``edits``, in their order, in the boot partition of the image file at ``path``.

    They are made in memory; then the changed sectors are committed to the file. The fingerprint,
    unless it is to be kept, and a block map beside the image are updated with it. Faults of the
    volume that can be repaired without a loss are repaired in the same commit; without ``repair``
    they are a reason to refuse the edits.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
        EditError: an edit cannot be made; none was.
        WriteError: writing failed; the message states what the image holds.
    """
    with open_for_editing(path) as image:
        require_no_writer(path)
        return edit_opened(image, path, edits, keep_fingerprint=keep_fingerprint, repair=repair)


def edit_opened(
    opened: EditableImage,
    path: Path,
    edits: Sequence[Edit],
    *,
    keep_fingerprint: bool,
    repair: bool,
) -> EditReport:
    """Make ``edits`` in the image ``opened``, which was opened by ``path``; else as `edit`."""
    image = BalenaImage(opened.source, opened.warnings)
    volume = image.open_files()
    volume.may_repair = repair
    changes, warnings = _apply(edits, image, volume, path=path, keep_fingerprint=keep_fingerprint)
    patches = volume.changes()
    problems = volume.problems()
    updates = plan_updates(path, opened.source, patches)
    about_maps: list[str] = []

    def finish() -> None:
        about_maps.extend(warning for update in updates for warning in update.finish())

    commit = opened.commit(patches, volume.edit_mark, finish)
    return EditReport(
        partition_number=image.boot.partition.number,
        changes=changes,
        repairs=volume.repairs,
        diff=(),
        commit=commit,
        dry_run=False,
        warnings=(
            *image.layout_warnings,
            *problems,
            *warnings,
            *about_maps,
            *opened.reading_warnings,
        ),
    )


def lay_over(
    image: BalenaImage,
    edits: Sequence[Edit],
    *,
    keep_fingerprint: bool = False,
    repair: bool = True,
) -> Edited:
    """``image`` with ``edits`` made in what is read of it, and not in the image itself.

    The same edits give the same bytes whenever they are made: files that they create or change
    get ``SOURCE_DATE_EPOCH`` as their time or, without that, the newest one in the boot partition.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
        EditError: an edit cannot be made.
    """
    if not edits:
        return Edited(image, warnings=image.opening_warnings)
    volume = open_steady(image, repair=repair)
    changes, warnings = _apply(edits, image, volume, path=None, keep_fingerprint=keep_fingerprint)
    patches = volume.changes()
    return Edited(
        image.with_boot_changes(patches),
        changes,
        volume.repairs,
        warnings=(*image.layout_warnings, *volume.problems(), *warnings),
        adds_secrets=adds_secrets(image.files, volume, _rewritten(changes)),
    )


def open_steady(image: BalenaImage, *, repair: bool) -> FatVolume:
    """The boot files of ``image``, to be edited with one time for all files that change."""
    volume = image.open_files()
    volume.may_repair = repair
    if not os.environ.get("SOURCE_DATE_EPOCH"):
        times = (entry.modified for entry in volume.walk() if entry.modified is not None)
        volume.fixed_time = max(times, default=None)
    return volume


@contextmanager
def open_image(location: ImageLocation, *, member: str | None = None) -> Iterator[BalenaImage]:
    """The image at ``location``, to be read until the block ends.

    It may be a block device, such as a flashed card. ``member`` is its name in a container that
    has several. Nothing of it is read before it is needed.

    Raises:
        ImageError: it cannot be opened, or was changed before the block ended.
        EditError: another process is editing it; or an edit was cut off and cannot be undone.
    """
    with open_for_reading(location, member=member) as opened:
        about_card = warn_of_cut_off(location) if isinstance(location, Path) else ()
        yield BalenaImage(opened.source, (*opened.warnings, *about_card))
        opened.require_unchanged()


def _apply(
    edits: Sequence[Edit],
    image: BalenaImage,
    volume: FatVolume,
    *,
    path: Path | None,
    keep_fingerprint: bool,
) -> tuple[tuple[FileChange, ...], tuple[str, ...]]:
    """Make ``edits`` in ``volume``, the boot files of ``image``: the changes, and warnings.

    ``path`` is the image file they are committed to, if they are.
    """
    require_whole(volume.edit_mark.before, image.source.name)
    has_config = volume.find(CONFIG_PATH) is not None
    shipped = listed_paths(volume)
    known = _config_errors(volume)
    changes = tuple(change for each in edits for change in each.apply(volume))
    touched = tuple(path for change in changes for path in change.touched)
    if fold(CONFIG_PATH) in map(fold, touched):
        if not has_config:
            _refuse_second_config(image)
        _refuse_bad_config(volume, known)
    if not keep_fingerprint:
        update_fingerprint(volume, touched)
    warnings = (
        *(warning for change in changes for warning in change.warnings),
        *warnings_for(touched, volume, shipped=shipped, image=path),
    )
    return changes, warnings


def _rewritten(changes: Sequence[FileChange]) -> tuple[str, ...]:
    """Paths whose old and new content can be compared.

    Moved files are left out: their content is the same, and the old path decides whether it is a
    secret that must not be shown.
    """
    moved = {change.path for change in changes if change.kind is ChangeKind.MOVED}
    return tuple(change.path for change in changes if change.path not in moved)


def _config_errors(volume: FatVolume) -> tuple[Finding, ...]:
    """Errors in config.json before an edit, which are not the edit's fault."""
    try:
        return find_errors(volume)
    except ConfigError:
        return ()


def _refuse_second_config(image: BalenaImage) -> None:
    """Raise if the board reads its config.json from another partition.

    Raises:
        EditError: the file that an edit has created would never be read.
    """
    partition = image.find_config_elsewhere()
    if partition is None:
        return
    name = image.source.name
    raise EditError(
        f"{name}: its config.json is in partition {partition.number}, as resinOS 1.x "
        "has it; one in the boot partition is never read",
        code="config-elsewhere",
        hint="Where that partition is a FAT, take it out with mtools, change it, and put it back: "
        f"mcopy -i {shlex.quote(name)}@@{partition.extent.start} ::config.json config.json",
    )


def _refuse_bad_config(volume: FatVolume, known: tuple[Finding, ...]) -> None:
    """Raise if an edit, of whatever kind, has left a config.json that locks a board out.

    Raises:
        ConfigError: it is not valid, and was valid before.
    """
    entry = volume.find(CONFIG_PATH)
    if entry is None or entry.is_directory:
        return
    errors = [each for each in find_errors(volume) if each not in known]
    if errors:
        raise invalid_config(errors)
