"""``bmap check``: whether an image is what its block map says."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.errors import ImageError, Problem
from balenaflash.units import Extent, format_size

if TYPE_CHECKING:
    from balenaflash.commands.bmap import BmapCheck
    from balenaflash.source.location import ImageLocation


class _DiffersError(ImageError):
    """The image is not what its block map says; a problem for each range."""

    def __init__(self, image: "ImageLocation", bmap: Path, differing: Sequence[Extent]) -> None:
        super().__init__(f"{image}: differs from its block map {bmap}", code="bmap-differs")
        self._differing = tuple(differing)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """One for each range of the image, in order."""
        return tuple(
            Problem(
                self.code, f"{self}: bytes {extent.start} to {extent.end} have another checksum"
            )
            for extent in self._differing
        )


@click.command()
@click.argument("image", type=IMAGE)
@click.option(
    "--bmap",
    "bmap_path",
    metavar="FILE",
    type=click.Path(readable=False, path_type=Path),
    help="The block map; the one that bmaptool would find beside IMAGE if not given.",
)
@progress_option
@with_session
def check(session: Session, image: "ImageLocation", *, bmap_path: Path | None) -> Answer:
    """Compare IMAGE with its block map, of version 1.2 to 2.0.

    The checksum of the map itself, the size of IMAGE and all ranges with a checksum are
    compared; what the map does not list is not. The exit status is 0 where all match and 3 where
    something does not; each range that differs is named, from its first byte to the one
    after its last. A map that leaves out what filesystems of IMAGE use is warned of.

    \b
    Examples:
      balenaflash bmap check balena.img
      balenaflash bmap check balena.img --bmap maps/balena.bmap && echo unchanged
    """
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.commands.bmap import check as check_map

    checked = check_map(image, bmap_path, progress=progress_for(session))
    if checked.differing:
        raise _DiffersError(image, checked.path, checked.differing)
    line = f"{checked.path}: true of {image}, {format_size(checked.compared_bytes)} compared"
    return Answer(_result(image, checked), [line], checked.warnings)


def _result(image: "ImageLocation", checked: "BmapCheck") -> dict[str, object]:
    bmap = checked.bmap
    return {
        "image": str(image),
        "bmap": str(checked.path),
        "image_size": bmap.image_size,
        "checksum_type": bmap.checksum_type,
        "ranges": len(bmap.ranges),
        "compared_bytes": checked.compared_bytes,
        "left_out_in_use_bytes": checked.left_out,
        "matches": True,
    }
