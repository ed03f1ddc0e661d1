"""Write the image that a flasher installs into a new file, with a block map beside it."""

from dataclasses import dataclass
from pathlib import Path

from balenaflash.commands.bmap import create as create_bmap
from balenaflash.commands.wanted import ImageRequest, WantedImage, open_wanted
from balenaflash.durable import is_same_file
from balenaflash.errors import refusal
from balenaflash.flashing.save import SavedImage, save_image
from balenaflash.progress import Progress, Stop
from balenaflash.source.container.compress import find_container
from balenaflash.source.location import ImageLocation, output_mode
from balenaflash.targets.file import require_place


@dataclass(frozen=True, slots=True)
class UnwrapReport:
    """A flasher that was unwrapped, or with a dry run would have been."""

    image: WantedImage
    """The flasher, and the changes that its steps and then the user's edits made."""

    saved: SavedImage | None
    """The new file; ``None`` after a dry run."""

    bmap: Path | None
    """The block map beside the image; ``None`` if none was made."""

    warnings: tuple[str, ...]


def unwrap_to_file(
    request: ImageRequest,
    out: Path,
    *,
    overwrite: bool,
    dry_run: bool,
    progress: Progress,
    stop: Stop,
) -> UnwrapReport:
    """Make ``out``, the image of ``request``, which is to be unwrapped.

    Raises:
        ImageError, ConfigError, EditError: as `open_wanted`.
        TargetRefusedError: ``out``, or the block map beside it, must not or cannot be made.
        WriteError: writing or the read-back failed; ``out`` is unchanged.
    """
    bmap = _find_place(request.location, out, overwrite=overwrite)
    with open_wanted(request) as image:
        source = image.edited.source
        if dry_run:
            if request.sha256 is not None or request.checks:
                source.finish()
            return UnwrapReport(image, None, None, image.edited.warnings)
        saved = save_image(
            source,
            out,
            overwrite=overwrite,
            mode=output_mode(request.location, adds_secrets=image.edited.adds_secrets),
            progress=progress,
            stop=stop,
        )
        warnings = image.warnings
    if bmap is not None:
        # An older map is that of another image; no map is better until the new one is there.
        bmap.unlink(missing_ok=True)
        *_, about_map = create_bmap(out, bmap, progress=progress)
        warnings += about_map
    return UnwrapReport(image, saved, bmap, warnings)


def _find_place(flasher: ImageLocation, out: Path, *, overwrite: bool) -> Path | None:
    """Refuse ``out`` if it may not be made; the place of its block map, if it gets one."""
    if isinstance(flasher, Path) and is_same_file(flasher, out):
        message = f"{out}: is the flasher itself"
        raise refusal("target-is-image", message, "Name another file.")
    require_place(out, overwrite=overwrite)
    if find_container(out) is not None:
        return None
    bmap = out.with_name(f"{out.name}.bmap")
    require_place(bmap, overwrite=overwrite)
    return bmap
