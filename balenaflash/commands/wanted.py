"""The image that targets are to hold: as it is, unwrapped, or with edits made in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from balenaflash.balena.image import BalenaImage
from balenaflash.commands.edit import Edited, lay_over
from balenaflash.commands.flasher_steps import Unwrapping, plan_unwrap, unwrap
from balenaflash.edits.files import Edit, FileChange
from balenaflash.source.commit import ReadableImage
from balenaflash.source.location import ImageLocation, find_image_path
from balenaflash.source.opening import open_for_reading
from balenaflash.source.sums import Check
from balenaflash.targets.unmount import require_no_writer


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """The image that a command is to read, and what is to be done in it."""

    location: ImageLocation
    member: str | None = None
    """Name of the image in a zip file that holds several."""

    sha256: str | None = None
    """Expected sum of the image or of the file it is stored in, 64 hexadecimal digits."""

    checks: Sequence[Check] = ()
    """Checks of signatures."""

    edits: Sequence[Edit] = ()
    unwrap: bool = False
    """Take the image that the flasher at ``location`` carries."""

    ignore_secure_boot: bool = False
    keep_fingerprint: bool = False
    """Leave balenaos.fingerprint as it is."""

    repair: bool = True
    """Repair a damaged boot partition before an edit where that loses nothing."""


@dataclass(frozen=True, slots=True)
class WantedImage:
    """An open image, and what its flasher's steps and the user's edits make of it."""

    opened: ReadableImage
    edited: Edited
    """The image as targets are to hold it, and the user's edits in it."""

    unwrapping: Unwrapping | None = None
    """The flasher that carries the image, if it was unwrapped."""

    step_changes: tuple[FileChange, ...] = ()
    """Changes that the steps of the flasher made in the boot partition before the edits."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings about the image; complete once the image has been read."""
        return (*self.edited.warnings, *self.opened.reading_warnings)


@contextmanager
def open_wanted(request: ImageRequest) -> Iterator[WantedImage]:
    """Open the requested image until the block ends; the image file stays as it is.

    Raises:
        ImageError: the image cannot be opened, is in use, does not have the requested sum or
            signature, is not an image of balenaOS layout, or not a flasher that can be unwrapped.
        EditError, ConfigError: an edit cannot be made.
    """
    with open_for_reading(
        request.location, member=request.member, sha256=request.sha256, checks=request.checks
    ) as opened:
        require_no_writer(find_image_path(request.location))
        yield _want(opened, request)


def _want(opened: ReadableImage, request: ImageRequest) -> WantedImage:
    image = BalenaImage(opened.source, opened.warnings)
    unwrapping, unwrapped = None, Edited(image)
    if request.unwrap:
        unwrapping = plan_unwrap(image)
        unwrapped = unwrap(
            unwrapping, ignore_secure_boot=request.ignore_secure_boot, repair=request.repair
        )
    edited = lay_over(
        unwrapped.image,
        request.edits,
        keep_fingerprint=request.keep_fingerprint,
        repair=request.repair,
    )
    if unwrapping is None:
        return WantedImage(opened, edited)
    # Both contain the warnings about the inner boot partition.
    warnings = dict.fromkeys((*opened.warnings, *edited.warnings, *unwrapped.warnings))
    repairs = (*unwrapped.repairs, *edited.repairs)
    edited = replace(edited, repairs=repairs, warnings=tuple(warnings))
    return WantedImage(opened, edited, unwrapping, unwrapped.changes)
