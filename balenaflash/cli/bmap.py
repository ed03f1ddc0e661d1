"""``bmap``: make a block map of an image, or compare the image with one."""

from pathlib import Path

import click

from balenaflash.cli.arguments import IMAGE, OUT
from balenaflash.cli.output import Answer
from balenaflash.cli.progress import progress_for
from balenaflash.cli.session import Group, Session, progress_option, with_session
from balenaflash.commands.bmap import check as check_map
from balenaflash.commands.bmap import create as create_map
from balenaflash.errors import ImageError, Problem, SeveralProblemsError
from balenaflash.formats.contents import Content
from balenaflash.source.location import ImageLocation
from balenaflash.units import format_size


@click.group(cls=Group)
def bmap() -> None:
    """Make a block map of an image, or compare the image with one.

    A block map (.bmap) lists the blocks of an image that must be written, and checksums of
    them; `bmaptool copy` writes these blocks only.

    \b
    Examples:
      balenaflash bmap create balena.img
      balenaflash bmap check balena.img
    """


@bmap.command("create")
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
def create(session: Session, image: ImageLocation, *, out: Path | None, overwrite: bool) -> Answer:
    """Make the block map of IMAGE, in version 2.0 of the format.

    The map leaves out only the free space of the FAT and ext4 filesystems of IMAGE. Zeros in use
    are listed like data, so `bmaptool copy` can write to a disk that was used before. A map made by
    `bmaptool create` leaves out every hole of the file instead, also inside files of the image.

    If IMAGE is compressed, the map describes the decompressed image. It is then read once from
    start to end, so less of it may be known to be free.

    \b
    Examples:
      balenaflash bmap create balena.img
      balenaflash bmap create balena.img.xz -o balena.img.bmap --overwrite
      balenaflash bmap create --json balena.img | jq .result.free_bytes
    """
    path, created, warnings = create_map(
        image, out, overwrite=overwrite, progress=progress_for(session)
    )
    bmap, sizes = created.bmap, created.bytes_of
    result = {
        "image": str(image),
        "bmap": str(path),
        "image_size": bmap.image_size,
        "block_size": bmap.block_size,
        "mapped_blocks": bmap.mapped_blocks,
        "ranges": len(bmap.ranges),
        "data_bytes": sizes[Content.DATA],
        "zero_bytes": sizes[Content.ZERO],
        "free_bytes": sizes[Content.FREE],
    }
    data, zero, free = (
        format_size(sizes[kind]) for kind in (Content.DATA, Content.ZERO, Content.FREE)
    )
    line = f"{path}: made; {data} of data and {zero} of zeros listed, {free} free left out"
    return Answer(result, [line], warnings)


class _DiffersError(SeveralProblemsError, ImageError):
    """The image differs from its block map, in one range or several."""


@bmap.command("check")
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
def check(session: Session, image: ImageLocation, *, bmap_path: Path | None) -> Answer:
    """Compare IMAGE with its block map, of version 1.2 to 2.0.

    The checksum of the map itself, the size of IMAGE and all ranges with a checksum are compared.
    Blocks that the map does not list are not compared. The exit status is 0 if everything matches
    and 3 otherwise; each range that differs is shown from its first byte to one past its last.
    A warning is given if the map leaves out blocks that filesystems of IMAGE use.

    \b
    Examples:
      balenaflash bmap check balena.img
      balenaflash bmap check balena.img --bmap maps/balena.bmap && echo unchanged
    """
    checked = check_map(image, bmap_path, progress=progress_for(session))
    if checked.differing:
        subject = f"{image}: differs from its block map {checked.path}"
        raise _DiffersError(
            [
                Problem("bmap-differs", f"{subject}: bytes {start} to {end} have another checksum")
                for start, end in ((extent.start, extent.end) for extent in checked.differing)
            ]
        )
    line = f"{checked.path}: true of {image}, {format_size(checked.compared_bytes)} compared"
    bmap = checked.bmap
    result = {
        "image": str(image),
        "bmap": str(checked.path),
        "image_size": bmap.image_size,
        "checksum_type": bmap.checksum_type,
        "ranges": len(bmap.ranges),
        "compared_bytes": checked.compared_bytes,
        "left_out_in_use_bytes": checked.left_out,
        "matches": True,
    }
    return Answer(result, [line], checked.warnings)
