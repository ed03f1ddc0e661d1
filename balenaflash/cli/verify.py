"""``verify``: compare a target with an image."""

from typing import Unpack

import click

from balenaflash.cli.arguments import IMAGE, TARGET
from balenaflash.cli.image_options import (
    ImageOptions,
    choose_image,
    ignore_secure_boot_option,
    image_options,
)
from balenaflash.cli.output import Answer
from balenaflash.cli.progress import progress_for
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.cli.signals import stop_at_next_block
from balenaflash.commands.verify import verify as compare_target
from balenaflash.commands.wanted import open_wanted
from balenaflash.source.location import ImageLocation
from balenaflash.targets.disk_names import TargetName
from balenaflash.units import format_size


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("target", type=TARGET)
@click.option(
    "--all",
    "compares_all",
    is_flag=True,
    help="Compare every byte, including free space of the filesystems of IMAGE.",
)
@click.option(
    "--unwrap", "unwraps", is_flag=True, help="Compare with what `write --unwrap` makes of IMAGE."
)
@click.option(
    "--fix-gpt", is_flag=True, help="Compare with what `write --fix-gpt` makes of a larger disk."
)
@ignore_secure_boot_option
@image_options
@progress_option
@with_session
def verify(
    session: Session,
    image: ImageLocation,
    target: TargetName,
    *,
    compares_all: bool,
    unwraps: bool,
    fix_gpt: bool,
    **options: Unpack[ImageOptions],
) -> Answer:
    """Compare TARGET, byte for byte, with IMAGE.

    TARGET is a block device or a file, named as for `write`, and read past the page cache. Bytes of
    TARGET after the end of IMAGE are not compared, nor, without --all, the free space of the
    filesystems of IMAGE. With a recipe TARGET is compared with what `write` makes of IMAGE by it.
    The exit status is 0 if they are equal and 6 if they are not.

    \b
    Examples:
      balenaflash verify balena.img /dev/sdX
      balenaflash verify balena.img copy.img && echo equal
      balenaflash verify balena.img /dev/sdX --recipe bench.toml --var bench=7
    """
    chosen = choose_image(session, image, options, unwrap=unwraps)
    with open_wanted(chosen.request) as wanted, stop_at_next_block(session) as stop:
        report = compare_target(
            wanted,
            target,
            compare_all=compares_all,
            fix_gpt=fix_gpt,
            progress=progress_for(session),
            stop=stop,
        )
    size = report.bytes_read_back
    by_recipe = f" with the edits of {chosen.recipe.path}" if chosen.recipe else ""
    return Answer(
        {
            "target": str(target),
            "bytes_read_back": size,
            "equal": True,
            "unsteady_reads": report.unsteady_reads,
            "failed_reads": report.failed_reads,
            **chosen.result(wanted),
        },
        [
            *chosen.lines(wanted),
            f"{target}: equal to {image}{by_recipe}, {format_size(size)} compared",
        ],
        tuple(dict.fromkeys((*chosen.warnings, *report.warnings))),
    )
