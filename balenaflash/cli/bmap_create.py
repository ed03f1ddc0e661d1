"""``bmap create``: a block map that may be used on a medium that holds something."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.cli.target_argument import OUT
from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.source.location import ImageLocation


@click.command()
@click.argument("image", type=IMAGE)
@click.option(
    "-o",
    "--output",
    "out",
    metavar="FILE",
    type=OUT,
    help="The block map to make; IMAGE.bmap if not given, where bmaptool looks for it.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@progress_option
@with_session
def create(
    session: Session, image: "ImageLocation", *, out: Path | None, overwrite: bool
) -> Answer:
    """Make the block map of IMAGE, in version 2.0 of the format.

    It leaves out only what is free in the FAT and ext4 filesystems of IMAGE. Zeros in use are
    listed like data, so `bmaptool copy` may write to a disk that was used before. A map made by
    `bmaptool create` leaves out every hole of the file instead, also inside files of the image.

    IMAGE may be compressed: the map is that of what comes out of it. Less may then be known to
    be free, for it is read once from its start to its end.

    \b
    Examples:
      balenaflash bmap create balena.img
      balenaflash bmap create balena.img.xz -o balena.img.bmap --overwrite
      balenaflash bmap create --json balena.img | jq .result.free_bytes
    """
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.commands.bmap import create as create_map
    from balenaflash.formats.contents import Kind

    created = create_map(image, out, overwrite=overwrite, progress=progress_for(session))
    bmap, sizes = created.bmap, created.bytes_of
    result = {
        "image": str(image),
        "bmap": str(created.path),
        "image_size": bmap.image_size,
        "block_size": bmap.block_size,
        "mapped_blocks": bmap.mapped_blocks,
        "ranges": len(bmap.ranges),
        "data_bytes": sizes[Kind.DATA],
        "zero_bytes": sizes[Kind.ZERO],
        "free_bytes": sizes[Kind.FREE],
    }
    data, zero, free = (format_size(sizes[kind]) for kind in (Kind.DATA, Kind.ZERO, Kind.FREE))
    line = f"{created.path}: made; {data} of data and {zero} of zeros listed, {free} free left out"
    return Answer(result, [line], created.warnings)
