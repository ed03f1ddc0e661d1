"""Unwrap a flasher into a file: a sparse raw image with its block map, or a compressed one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from balenaflash import block_maps
from balenaflash.boot.files import FileChange
from balenaflash.durable import find_type
from balenaflash.editing import Edit
from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.image.checks import Check
from balenaflash.image.container.compress import find_container
from balenaflash.image.container.location import ImageLocation
from balenaflash.image.fat.check import Fault
from balenaflash.image.opening import open_for_reading
from balenaflash.image_use import require_unused
from balenaflash.output_mode import output_mode
from balenaflash.progress import Progress
from balenaflash.saving import SavedImage, save_image
from balenaflash.stopping import Stop
from balenaflash.target.new_file import require_place
from balenaflash.unwrapping import UnwrapPlan, lay_over_unwrapped


@dataclass(frozen=True, slots=True)
class UnwrapReport:
    """A flasher that was unwrapped, or with a dry run would have been."""

    plan: UnwrapPlan
    """What it carries, and every step of it."""

    changes: tuple[FileChange, ...]
    """What its steps changed in the inner boot partition."""

    edits: tuple[FileChange, ...]
    """What the user's edits changed there after that."""

    repairs: tuple[Fault, ...]
    """What was wrong with the inner boot partition, and was repaired before."""

    saved: SavedImage | None
    """``None`` of a dry run."""

    bmap: Path | None
    """The block map beside the image; ``None`` where none was made."""

    warnings: tuple[str, ...]


def unwrap_to_file(
    flasher: ImageLocation,
    out: Path,
    edits: Sequence[Edit],
    *,
    member: str | None = None,
    sha256: str | None = None,
    checks: Sequence[Check] = (),
    overwrite: bool,
    ignore_secure_boot: bool,
    repair: bool = True,
    dry_run: bool,
    progress: Progress,
    stop: Stop,
) -> UnwrapReport:
    """Make ``out``, the image that ``flasher`` installs, with ``edits`` made in it.

    ``member``, ``sha256`` and ``checks`` are for `open_for_reading`.

    Raises:
        ImageError, ConfigError, EditError: as `plan_unwrap`, `unwrap`, `lay_over`.
        TargetRefusedError: ``out``, or the block map beside it, must not or cannot be made.
        WriteError: writing or the read-back failed; ``out`` is as it was.
    """
    bmap = _find_place(flasher, out, overwrite=overwrite)
    with open_for_reading(flasher, member=member, sha256=sha256, checks=checks) as opened:
        require_unused(flasher)
        unwrapped = lay_over_unwrapped(
            opened, edits, ignore_secure_boot=ignore_secure_boot, repair=repair
        )
        plan, changes, edited = unwrapped.plan, unwrapped.changes, unwrapped.edited
        warnings = edited.warnings
        if dry_run:
            if sha256 is not None or checks:
                edited.source.finish()
            return UnwrapReport(plan, changes, edited.changes, edited.repairs, None, None, warnings)
        saved = save_image(
            edited.source,
            out,
            overwrite=overwrite,
            mode=output_mode(flasher, adds_secrets=edited.adds_secrets),
            progress=progress,
            stop=stop,
        )
        warnings += opened.reading_warnings
    if bmap is not None:
        # An older one is of another image; until the new one is there, better none.
        bmap.unlink(missing_ok=True)
        warnings += block_maps.create(out, bmap, progress=progress).warnings
    return UnwrapReport(plan, changes, edited.changes, edited.repairs, saved, bmap, warnings)


def _find_place(flasher: ImageLocation, out: Path, *, overwrite: bool) -> Path | None:
    """Make sure that ``out`` may be made; the place of its block map, if it is to have one."""
    if isinstance(flasher, Path) and _is_same(flasher, out):
        problem = Problem("target-is-image", f"{out}: is the flasher itself", "Name another file.")
        raise TargetRefusedError([problem])
    require_place(out, overwrite=overwrite)
    if find_container(out) is not None:
        return None
    bmap = out.with_name(f"{out.name}.bmap")
    require_place(bmap, overwrite=overwrite)
    return bmap


def _is_same(flasher: Path, out: Path) -> bool:
    are_there = find_type(flasher) is not None and find_type(out) is not None
    return are_there and out.samefile(flasher)
