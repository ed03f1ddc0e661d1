"""``unwrap``: its options, and its answer."""

from pathlib import Path
from typing import Unpack

import click

from balenaflash.cli.arguments import IMAGE, OUT
from balenaflash.cli.changes import change_result
from balenaflash.cli.image_options import (
    ChosenImage,
    ImageOptions,
    choose_image,
    flasher_result,
    ignore_secure_boot_option,
    image_options,
)
from balenaflash.cli.options import dry_run_option
from balenaflash.cli.output import Answer
from balenaflash.cli.progress import progress_for
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.cli.signals import stop_at_next_block
from balenaflash.commands.unwrap import UnwrapReport, unwrap_to_file
from balenaflash.source.location import ImageLocation
from balenaflash.units import format_size


@click.command()
@click.argument("flasher", type=IMAGE)
@click.argument("out", type=OUT)
@click.option("--overwrite", is_flag=True, help="Replace OUT, and OUT.bmap, where it exists.")
@ignore_secure_boot_option
@image_options
@dry_run_option
@progress_option
@with_session
def unwrap(
    session: Session,
    flasher: ImageLocation,
    out: Path,
    *,
    overwrite: bool,
    **options: Unpack[ImageOptions],
) -> Answer:
    """Make OUT, the image that FLASHER installs, as it would leave it on the board's disk.

    FLASHER may be anything that `write` accepts as IMAGE.

    The flasher's own files and settings are copied: config.json, networks, proxy, splash,
    bootloader configuration. Steps that only the board can do are reported, with their effect on
    booting. The edits of a recipe are made after that. FLASHER is not changed.

    OUT is compressed if its name ends in .gz, .xz or .zst. Otherwise it is a sparse file with a
    block map OUT.bmap beside it. It is read back and compared before it gets its name.

    \b
    Examples:
      balenaflash unwrap flasher.img raw.img
      balenaflash unwrap flasher.img raw.img.xz --recipe bench.toml --var bench=7
      balenaflash unwrap --dry-run flasher.img raw.img
    """
    chosen = choose_image(session, flasher, options, unwrap=True)
    with stop_at_next_block(session) as stop:
        report = unwrap_to_file(
            chosen.request,
            out,
            overwrite=overwrite,
            dry_run=session.dry_run,
            progress=progress_for(session),
            stop=stop,
        )
    return Answer(
        _result(flasher, out, chosen, report),
        [*chosen.lines(report.image), _done_line(out, report)],
        (*chosen.warnings, *report.warnings),
    )


def _done_line(out: Path, report: UnwrapReport) -> str:
    saved = report.saved
    if saved is None:
        return f"{out}: nothing was written (--dry-run)"
    size = format_size(saved.size)
    if saved.container is not None:
        size = f"{size} in {format_size(saved.file_size)} of {saved.container.value}"
    beside = "" if report.bmap is None else f", with {report.bmap.name} beside it"
    return f"{out}: {size}, written and read back equal in {saved.seconds:.1f} s{beside}"


def _result(
    flasher: ImageLocation, out: Path, chosen: ChosenImage, report: UnwrapReport
) -> dict[str, object]:
    saved = report.saved
    container = None if saved is None or saved.container is None else saved.container.value
    return {
        "flasher": str(flasher),
        "out": str(out),
        "dry_run": saved is None,
        **(flasher_result(report.image.unwrapping) or {}),
        "changes": [change_result(change) for change in report.image.step_changes],
        **chosen.result(report.image),
        "container": container,
        "file_size": None if saved is None else saved.file_size,
        "bmap": None if report.bmap is None else str(report.bmap),
    }
