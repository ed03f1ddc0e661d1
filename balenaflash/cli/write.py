"""``write``: an image to one or more block devices or new files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.disk_options import current_disk_options, disk_options
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.image_options import (
    certificate_option,
    member_option,
    sha256_option,
    signature_checks,
)
from balenaflash.cli.recipe_options import (
    chosen_recipe,
    recipe_lines,
    recipe_options,
    recipe_result,
)
from balenaflash.cli.session import (
    Session,
    dry_run_option,
    no_repair_option,
    progress_option,
    with_session,
)
from balenaflash.cli.target_argument import TARGET
from balenaflash.cli.unwrap_answer import ignore_secure_boot_option
from balenaflash.cli.wanted_image import wanted_image
from balenaflash.errors import BalenaflashError

if TYPE_CHECKING:
    from balenaflash.flashing.flash import Outcome
    from balenaflash.source.location import ImageLocation
    from balenaflash.targets.leaving import Ending
    from balenaflash.targets.names import TargetName


@click.command()
@click.argument("image", type=IMAGE)
@click.argument(
    "targets",
    metavar="TARGET...",
    type=TARGET,
    nargs=-1,
    required=True,
)
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
    help=(
        "Read TARGET first and write only what differs, then read all of it once more: for a card "
        "that had this image before."
    ),
)
@click.option(
    "--unwrap",
    "unwraps",
    is_flag=True,
    help="Write the image that the flasher IMAGE carries, as it would leave it on the board.",
)
@ignore_secure_boot_option
@disk_options
@click.option("--overwrite", is_flag=True, help="Allow a TARGET that is an existing file.")
@member_option
@sha256_option
@certificate_option
@recipe_options
@no_repair_option
@dry_run_option
@progress_option
@with_session
def write(
    session: Session,
    image: "ImageLocation",
    targets: "tuple[TargetName, ...]",
    *,
    no_verify: bool,
    writes_all: bool,
    skip_equal: bool,
    unwraps: bool,
    ignore_secure_boot: bool,
    overwrite: bool,
    sha256: str | None,
    certificate: str | None,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
    dry_run: bool,
) -> Answer:
    """Write IMAGE to each TARGET, read it back, and compare.

    IMAGE is a file, raw or compressed (gzip, xz, bzip2, zstd, zip), a block device, - for standard
    input, or an http(s) address. TARGET is a whole block device or the name of a file, which is
    created. A device is named by its node, by a link such as /dev/disk/by-id/..., or by serial:S,
    port:P or slot:NAME (see devices name --help). Everything on TARGET is lost.
    With a recipe its edits are made in what is written, and IMAGE stays as it is; see balenaflash
    edit --help.

    \b
    Examples:
      balenaflash devices
      balenaflash write balena.img /dev/disk/by-id/usb-SanDisk_Ultra_4C5300-0:0
      balenaflash write balena.img.gz /dev/sdX serial:4C5300 port:1-2.3 slot:left
      balenaflash write --yes --progress json balena.img /dev/sdX
      balenaflash write --unmount --fix-gpt --eject balena.img /dev/sdX
      balenaflash write balena.img.zip copy.img
      balenaflash write balena.img /dev/sdX --recipe bench.toml --var bench=7
      balenaflash write balena.img /dev/sdX --step 'config-set = "hostname=bench-7"'
    """
    from balenaflash.cli.edit_answer import repair_lines, repairs_result
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.cli.write_answer import done_lines, plan_lines, write_result
    from balenaflash.cli.write_question import show_and_confirm
    from balenaflash.cli.write_run import flash_all, unmount
    from balenaflash.commands.image_file import output_mode, require_unused
    from balenaflash.commands.write import find_destinations, is_device, plan_gpt_moves, plan_image
    from balenaflash.flashing.flash import FlashOptions
    from balenaflash.flashing.plan import Tally, tally
    from balenaflash.source.opening import open_for_reading

    tallies: Sequence[Tally]
    disks = current_disk_options()
    edits = chosen_recipe(recipe, steps, variables)
    checks = signature_checks(image, certificate)
    about_certificate = [warning for check in checks for warning in check.warnings]
    options = FlashOptions(read_back=not no_verify, skip_equal=skip_equal)
    with open_for_reading(image, member=session.member, sha256=sha256, checks=checks) as opened:
        require_unused(image)
        edited = wanted_image(
            opened,
            edits,
            unwraps=unwraps,
            ignore_secure_boot=ignore_secure_boot,
            repair=not session.edit.no_repair,
        )
        # A file is a copy, equal in every byte; of a disk nobody reads what is free.
        is_copy = not any(map(is_device, targets))
        plan = plan_image(edited.source, write_all=writes_all or is_copy)
        destinations = find_destinations(
            targets,
            image=image,
            plan=plan,
            permissions=disks.permissions,
            overwrite=overwrite,
            mode=output_mode(image, adds_secrets=edited.adds_secrets),
        )
        if disks.fix_gpt:
            destinations = plan_gpt_moves(destinations, edited.source, plan)
        laid_in = [
            *edited.lines,
            *repair_lines(edited.repairs),
            *recipe_lines(edits, edited.changes),
        ]
        if dry_run:
            outcomes: Sequence[Outcome | None] = [None] * len(destinations)
            tallies = tally(edited.source, plan, progress_for(session))
            endings: Sequence[Ending | None] = [None] * len(destinations)
            lines = [*laid_in, *plan_lines(plan, destinations, tallies, reads_back=not no_verify)]
        else:
            show_and_confirm(
                session,
                image,
                opened.member,
                plan,
                destinations,
                edits,
                reads_back=not no_verify,
                yes=disks.yes,
            )
            # A question may wait for long.
            opened.require_unchanged()
            unmount(session, destinations)
            tallies = ()
            done = flash_all(
                session, edited.source, plan, destinations, options, ejects=disks.eject
            )
            outcomes = written = [each.outcome for each in done]
            endings = [each.ending for each in done]
            lines = [*laid_in, *done_lines(destinations, written, endings)]
    result = write_result(plan, destinations, outcomes, endings, tallies)
    result["flasher"] = edited.flasher
    result["repairs"] = repairs_result(edited.repairs)
    result["recipe"] = recipe_result(edits, edited.changes)
    warnings = tuple(
        dict.fromkeys(
            (*about_certificate, *edited.warnings, *plan.warnings, *opened.reading_warnings)
        )
    )
    return Answer(result, lines, warnings, failures=_failures(outcomes))


def _failures(outcomes: Sequence["Outcome | None"]) -> list[BalenaflashError]:
    """Those of several targets; that of a single one is raised.

    Raises:
        BalenaflashError: there is one target only, and it failed.
    """
    failures = [each for each in outcomes if isinstance(each, BalenaflashError)]
    if failures and len(outcomes) == 1:
        raise failures[0]
    return failures
