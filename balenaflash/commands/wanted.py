"""The image that targets are to hold: as it is, unwrapped, or with edits made in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from balenaflash.commands.edit import lay_over
from balenaflash.commands.image_file import require_unused
from balenaflash.commands.unwrap import UnwrapPlan, lay_over_unwrapped
from balenaflash.edits.files import Edit, FileChange
from balenaflash.formats.fat.check import Fault
from balenaflash.source.base import Source
from balenaflash.source.commit import ReadableImage
from balenaflash.source.location import ImageLocation
from balenaflash.source.opening import open_for_reading
from balenaflash.source.sums import Check


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """The image that `write` and `verify` are asked for."""

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
    """An open image as targets are to hold it."""

    opened: ReadableImage
    source: Source
    changes: tuple[FileChange, ...] = ()
    """Changes of files of the boot partition by the edits."""

    repairs: tuple[Fault, ...] = ()
    """Faults of the boot partition that were repaired before the edits."""

    flasher: UnwrapPlan | None = None
    """The flasher that carries the image, if it was unwrapped."""

    adds_secrets: bool = False
    """True if the edits put a secret there that was not there before."""

    opening_warnings: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings about the image; complete once the image has been read."""
        return (*self.opening_warnings, *self.opened.reading_warnings)


@contextmanager
def open_wanted(request: ImageRequest) -> Iterator[WantedImage]:
    """Open the requested image until the block ends; the image file stays as it is.

    Raises:
        ImageError: the image cannot be opened, is in use, has not the requested sum or signature,
            is not an image of balenaOS layout, or not a flasher where it is to be unwrapped.
        EditError, ConfigError: an edit cannot be made.
    """
    with open_for_reading(
        request.location, member=request.member, sha256=request.sha256, checks=request.checks
    ) as opened:
        require_unused(request.location)
        yield _want(opened, request)


def _want(opened: ReadableImage, request: ImageRequest) -> WantedImage:
    if not request.unwrap and not request.edits:
        return WantedImage(opened, opened.source, opening_warnings=opened.warnings)
    flasher = None
    if request.unwrap:
        inner = lay_over_unwrapped(
            opened,
            request.edits,
            ignore_secure_boot=request.ignore_secure_boot,
            repair=request.repair,
        )
        flasher, edited = inner.plan, inner.edited
    else:
        edited = lay_over(
            opened,
            request.edits,
            keep_fingerprint=request.keep_fingerprint,
            repair=request.repair,
        )
    return WantedImage(
        opened,
        edited.source,
        edited.changes,
        edited.repairs,
        flasher,
        edited.adds_secrets,
        edited.warnings,
    )
