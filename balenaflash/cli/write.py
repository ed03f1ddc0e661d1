"""``write``: an image to a block device or a new file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer, printable
from balenaflash.cli.recipe_options import (
    chosen_recipe,
    recipe_lines,
    recipe_options,
    recipe_result,
)
from balenaflash.cli.session import (
    ALLOW_INTERNAL_HELP,
    YES_HELP,
    Session,
    dry_run_option,
    progress_option,
    with_session,
)
from balenaflash.extent import format_size

if TYPE_CHECKING:
    from balenaflash.destination import Destination
    from balenaflash.flashing import FlashReport
    from balenaflash.image.source import Source
    from balenaflash.planning import WritePlan
    from balenaflash.recipe.reading import Recipe


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("-y", "--yes", is_flag=True, help=YES_HELP)
@click.option("--no-verify", is_flag=True, help="Do not read back what was written.")
@click.option("--allow-internal", is_flag=True, help=ALLOW_INTERNAL_HELP)
@click.option("--overwrite", is_flag=True, help="Allow a TARGET that is an existing file.")
@recipe_options
@dry_run_option
@progress_option
@with_session
def write(
    session: Session,
    image: Path,
    target: Path,
    *,
    yes: bool,
    no_verify: bool,
    allow_internal: bool,
    overwrite: bool,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
    dry_run: bool,
) -> Answer:
    """Write IMAGE to TARGET, read it back, and compare.

    TARGET is a whole block device, by its node or by a link such as /dev/disk/by-id/..., or
    the name of a file, which is created. Everything on TARGET is lost. With a recipe its edits are
    made in what is written, and IMAGE stays as it is; see balenaflash edit --help.

    \b
    Examples:
      balenaflash devices
      balenaflash write balena.img /dev/disk/by-id/usb-SanDisk_Ultra_4C5300-0:0
      balenaflash write --yes --progress json balena.img /dev/sdX
      balenaflash write balena.img copy.img
      balenaflash write balena.img /dev/sdX --recipe bench.toml --var bench=7
      balenaflash write balena.img /dev/sdX --step 'config-set = "hostname=bench-7"'
    """
    from balenaflash.destination import find_destination
    from balenaflash.editing import lay_over
    from balenaflash.image.opening import open_for_reading
    from balenaflash.planning import plan_write

    edits = chosen_recipe(recipe, steps, variables)
    with open_for_reading(image) as opened:
        edited = lay_over(opened, edits.edits if edits else ())
        plan = plan_write(edited.source)
        destination = find_destination(
            target,
            image=image,
            plan=plan,
            allow_internal=allow_internal,
            overwrite=overwrite,
        )
        laid_in = recipe_lines(edits, edited.changes)
        if dry_run:
            lines = [*laid_in, *_dry_run_lines(plan, destination)]
            result = _result(plan, destination, None)
        else:
            _show_and_confirm(session, image, plan, destination, edits, yes=yes)
            report = _flash(session, edited.source, plan, destination, read_back=not no_verify)
            lines = [*laid_in, _done_line(destination, report)]
            result = _result(plan, destination, report)
    result["recipe"] = recipe_result(edits, edited.changes)
    return Answer(result, lines, edited.warnings)


def _flash(
    session: Session,
    source: "Source",
    plan: "WritePlan",
    destination: "Destination",
    *,
    read_back: bool,
) -> "FlashReport":
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.destination import open_destination
    from balenaflash.flashing import flash

    with (
        stop_at_next_block(session) as stop,
        open_destination(destination, plan.image_size) as medium,
    ):
        progress = progress_for(session)
        return flash(source, medium, plan, read_back=read_back, progress=progress, stop=stop)


def _show_and_confirm(
    session: Session,
    image: Path,
    plan: "WritePlan",
    destination: "Destination",
    recipe: "Recipe | None",
    *,
    yes: bool,
) -> None:
    from balenaflash.cli.confirmation import confirm_erasing
    from balenaflash.destination import DiskDestination

    if not session.quiet:
        click.echo(f"Image:   {image}, {format_size(plan.image_size)}", err=True)
        if recipe is not None:
            click.echo(f"Recipe:  {recipe.path}, {printable(recipe.name)}", err=True)
        for line in _destination_lines(destination):
            click.echo(line, err=True)
    if isinstance(destination, DiskDestination):
        confirm_erasing(destination.assessment.disk, yes=yes)


def _destination_lines(destination: "Destination") -> list[str]:
    from balenaflash.cli.devices import describe_disk
    from balenaflash.destination import DiskDestination

    if isinstance(destination, DiskDestination):
        return describe_disk(destination.assessment.disk)
    return [f"Target:  {destination.name}, a file"]


def _dry_run_lines(plan: "WritePlan", destination: "Destination") -> list[str]:
    return [
        *_destination_lines(destination),
        f"Plan:    zero the first {format_size(plan.wiped.size)}",
        *(
            f"         write {format_size(extent.size)} from byte {extent.start} on"
            for extent in plan.written
        ),
        "Nothing was written (--dry-run).",
    ]


def _done_line(destination: "Destination", report: "FlashReport") -> str:
    text = f"{destination.name}: {_speed('written', report.bytes_written, report.write_seconds)}"
    if report.bytes_read_back is None or report.verify_seconds is None:
        return f"{text}, not read back"
    return f"{text}, {_speed('read back equal', report.bytes_read_back, report.verify_seconds)}"


def _speed(word: str, size: int, seconds: float) -> str:
    rate = format_size(int(size / max(seconds, 1e-6)))
    return f"{format_size(size)} {word} in {seconds:.1f} s ({rate}/s)"


def _result(
    plan: "WritePlan", destination: "Destination", report: "FlashReport | None"
) -> dict[str, object]:
    return {
        "target": destination.name,
        "dry_run": report is None,
        "image_size": plan.image_size,
        "planned": [{"start": extent.start, "size": extent.size} for extent in plan.written],
        "bytes_written": 0 if report is None else report.bytes_written,
        "bytes_read_back": None if report is None else report.bytes_read_back,
        "write_seconds": None if report is None else report.write_seconds,
        "verify_seconds": None if report is None else report.verify_seconds,
    }
