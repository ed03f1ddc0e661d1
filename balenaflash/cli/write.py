"""``write``: an image to one or more block devices or new files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer, printable
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.image_options import member_option, sha256_option
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
from balenaflash.cli.unwrap_answer import ignore_secure_boot_option
from balenaflash.cli.wanted_image import wanted_image
from balenaflash.errors import BalenaflashError, InterruptedWriteError
from balenaflash.extent import format_size

if TYPE_CHECKING:
    from balenaflash.destination import Destination
    from balenaflash.flashing import FlashOptions, Outcome
    from balenaflash.image.container.location import ImageLocation
    from balenaflash.image.source import Source
    from balenaflash.planning import WritePlan
    from balenaflash.recipe.reading import Recipe


@click.command()
@click.argument("image", type=IMAGE)
@click.argument(
    "targets",
    metavar="TARGET...",
    type=click.Path(readable=False, path_type=Path),
    nargs=-1,
    required=True,
)
@click.option("-y", "--yes", is_flag=True, help=YES_HELP)
@click.option("--no-verify", is_flag=True, help="Do not read back what was written.")
@click.option(
    "--all",
    "writes_all",
    is_flag=True,
    help="Write every byte, also what is free in the filesystems of IMAGE.",
)
@click.option(
    "--skip-equal",
    is_flag=True,
    help="Read TARGET first and write only what differs: for a card that had this image before.",
)
@click.option(
    "--unwrap",
    "unwraps",
    is_flag=True,
    help="Write the image that the flasher IMAGE carries, as it would leave it on the board.",
)
@ignore_secure_boot_option
@click.option("--allow-internal", is_flag=True, help=ALLOW_INTERNAL_HELP)
@click.option("--overwrite", is_flag=True, help="Allow a TARGET that is an existing file.")
@member_option
@sha256_option
@recipe_options
@dry_run_option
@progress_option
@with_session
def write(
    session: Session,
    image: "ImageLocation",
    targets: tuple[Path, ...],
    *,
    yes: bool,
    no_verify: bool,
    writes_all: bool,
    skip_equal: bool,
    unwraps: bool,
    ignore_secure_boot: bool,
    allow_internal: bool,
    overwrite: bool,
    sha256: str | None,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
    dry_run: bool,
) -> Answer:
    """Write IMAGE to each TARGET, read it back, and compare.

    IMAGE is a file, raw or compressed (gzip, xz, bzip2, zstd, zip), a block device, - for standard
    input, or an http(s) address. TARGET is a whole block device, by its node or by a link such as
    /dev/disk/by-id/..., or the name of a file, which is created. Everything on TARGET is lost.
    With a recipe its edits are made in what is written, and IMAGE stays as it is; see balenaflash
    edit --help.

    \b
    Examples:
      balenaflash devices
      balenaflash write balena.img /dev/disk/by-id/usb-SanDisk_Ultra_4C5300-0:0
      balenaflash write balena.img.gz /dev/sdX /dev/sdY /dev/sdZ
      balenaflash write --yes --progress json balena.img /dev/sdX
      balenaflash write balena.img.zip copy.img
      balenaflash write balena.img /dev/sdX --recipe bench.toml --var bench=7
      balenaflash write balena.img /dev/sdX --step 'config-set = "hostname=bench-7"'
    """
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.cli.write_answer import done_lines, plan_lines, write_result
    from balenaflash.destination import find_destinations, is_device
    from balenaflash.flashing import FlashOptions
    from balenaflash.image.opening import open_for_reading
    from balenaflash.planning import plan_write
    from balenaflash.tally import Tally, tally

    tallies: Sequence[Tally]
    edits = chosen_recipe(recipe, steps, variables)
    options = FlashOptions(read_back=not no_verify, skip_equal=skip_equal)
    with open_for_reading(image, member=session.member, sha256=sha256) as opened:
        edited = wanted_image(opened, edits, unwraps=unwraps, ignore_secure_boot=ignore_secure_boot)
        # A file is a copy, equal in every byte; of a disk nobody reads what is free.
        is_copy = not any(map(is_device, targets))
        plan = plan_write(edited.source, writes_all=writes_all or is_copy)
        destinations = find_destinations(
            targets, image=image, plan=plan, allow_internal=allow_internal, overwrite=overwrite
        )
        laid_in = [*edited.lines, *recipe_lines(edits, edited.changes)]
        if dry_run:
            outcomes: Sequence[Outcome | None] = [None] * len(destinations)
            tallies = tally(edited.source, plan, progress_for(session))
            lines = [*laid_in, *plan_lines(plan, destinations, tallies)]
        else:
            _show_and_confirm(session, image, plan, destinations, edits, yes=yes)
            tallies = ()
            done = _flash(session, edited.source, plan, destinations, options)
            outcomes = done
            lines = [*laid_in, *done_lines(destinations, done)]
    result = write_result(plan, destinations, outcomes, tallies)
    result["flasher"] = edited.flasher
    result["recipe"] = recipe_result(edits, edited.changes)
    return Answer(result, lines, edited.warnings, failures=_failures(outcomes))


def _failures(outcomes: Sequence["Outcome | None"]) -> list[BalenaflashError]:
    """Those of several targets; that of a single one is raised.

    Raises:
        BalenaflashError: there is one target only, and it failed.
    """
    failures = [each for each in outcomes if isinstance(each, BalenaflashError)]
    if failures and len(outcomes) == 1:
        raise failures[0]
    return failures


def _flash(
    session: Session,
    source: "Source",
    plan: "WritePlan",
    destinations: Sequence["Destination"],
    options: "FlashOptions",
) -> Sequence["Outcome"]:
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_of_targets
    from balenaflash.destination import open_destination
    from balenaflash.flashing import Target, flash

    with (
        _interruption_told(destinations),
        stop_at_next_block(session) as stop,
        ExitStack() as all_opened,
    ):
        opened = [all_opened.enter_context(ExitStack()) for _ in destinations]
        media = [
            each.enter_context(open_destination(destination, plan.least_size))
            for each, destination in zip(opened, destinations, strict=True)
        ]
        displays = progress_of_targets(session, [each.name for each in destinations])
        targets = [Target(medium, shown) for medium, shown in zip(media, displays, strict=True)]
        outcomes = flash(source, plan, targets, options=options, stop=stop)
        return [_close(*each) for each in zip(opened, outcomes, strict=True)]


@contextmanager
def _interruption_told(destinations: Sequence["Destination"]) -> Iterator[None]:
    """Say what the targets are when the user leaves without waiting for the block to end."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        names = ", ".join(each.name for each in destinations)
        raise InterruptedWriteError(
            f"{names}: left in the middle of writing; what was being written is not known",
            hint="Write it again from the start.",
        ) from interrupt


def _close(opened: ExitStack, outcome: "Outcome") -> "Outcome":
    """Close one target as its own outcome asks: only an unfinished file is removed."""
    try:
        with opened:
            if isinstance(outcome, BalenaflashError):
                raise outcome
    except BalenaflashError as error:
        return error
    return outcome


def _show_and_confirm(
    session: Session,
    image: "ImageLocation",
    plan: "WritePlan",
    destinations: Sequence["Destination"],
    recipe: "Recipe | None",
    *,
    yes: bool,
) -> None:
    from balenaflash.cli.confirmation import confirm_erasing
    from balenaflash.cli.write_answer import destination_lines
    from balenaflash.destination import DiskDestination

    if not session.quiet:
        size = "at least " if plan.image_size is None else ""
        click.echo(f"Image:   {image}, {size}{format_size(plan.least_size)}", err=True)
        if recipe is not None:
            click.echo(f"Recipe:  {recipe.path}, {printable(recipe.name)}", err=True)
        for line in (line for each in destinations for line in destination_lines(each)):
            click.echo(line, err=True)
    for destination in destinations:
        if isinstance(destination, DiskDestination):
            confirm_erasing(destination.assessment.disk, yes=yes)
