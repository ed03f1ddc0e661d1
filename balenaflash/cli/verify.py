"""``verify``: the read-back alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
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
from balenaflash.cli.session import Session, no_repair_option, progress_option, with_session
from balenaflash.cli.target_argument import TARGET
from balenaflash.cli.unwrap_answer import ignore_secure_boot_option
from balenaflash.cli.wanted_image import wanted_image
from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.source.location import ImageLocation
    from balenaflash.targets.names import TargetName


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("target", type=TARGET)
@click.option(
    "--all",
    "compares_all",
    is_flag=True,
    help="Compare every byte, also what is free in the filesystems of IMAGE.",
)
@click.option(
    "--unwrap", "unwraps", is_flag=True, help="Compare with what `write --unwrap` makes of IMAGE."
)
@click.option(
    "--fix-gpt", is_flag=True, help="Compare with what `write --fix-gpt` makes of a larger disk."
)
@ignore_secure_boot_option
@member_option
@sha256_option
@certificate_option
@recipe_options
@no_repair_option
@progress_option
@with_session
def verify(
    session: Session,
    image: "ImageLocation",
    target: "TargetName",
    *,
    compares_all: bool,
    unwraps: bool,
    fix_gpt: bool,
    ignore_secure_boot: bool,
    sha256: str | None,
    certificate: str | None,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
) -> Answer:
    """Compare TARGET, byte for byte, with IMAGE.

    TARGET is a block device or a file, named as for `write`, and read past the cache. What TARGET
    holds beyond the end of IMAGE is not looked at, nor, without --all, what is free in the
    filesystems of IMAGE. With a recipe TARGET is compared with what `write` makes of IMAGE by it.
    The exit status is 0 where they are equal and 6 where they are not.

    \b
    Examples:
      balenaflash verify balena.img /dev/sdX
      balenaflash verify balena.img copy.img && echo equal
      balenaflash verify balena.img /dev/sdX --recipe bench.toml --var bench=7
    """
    from balenaflash.cli.edit_answer import repair_lines, repairs_result
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.commands.image_file import require_unused
    from balenaflash.commands.write import open_for_comparison, plan_image
    from balenaflash.flashing.disk_end import lay_move_over, plan_gpt_move, require_moved
    from balenaflash.flashing.read_back import verify as compare
    from balenaflash.source.opening import open_for_reading

    edits = chosen_recipe(recipe, steps, variables)
    checks = signature_checks(image, certificate)
    about_certificate = [warning for check in checks for warning in check.warnings]
    with open_for_reading(image, member=session.member, sha256=sha256, checks=checks) as opened:
        require_unused(image)
        edited = wanted_image(
            opened,
            edits,
            unwraps=unwraps,
            ignore_secure_boot=ignore_secure_boot,
            repair=not session.edit.no_repair,
        )
        plan = plan_image(edited.source, write_all=compares_all)
        source = edited.source
        with stop_at_next_block(session) as stop, open_for_comparison(target) as medium:
            move = plan_gpt_move(source, plan.table, medium.size) if fix_gpt else ()
            source = lay_move_over(source, move)
            comparison = compare(source, medium, plan, progress_for(session), stop)
            comparison.require_equal(source, plan, str(target))
            require_moved(medium, move)
            warnings = (
                *about_certificate,
                *edited.warnings,
                *plan.warnings,
                *opened.reading_warnings,
                *medium.rereads.warnings(str(target)),
            )
    size = comparison.bytes_read
    by_recipe = f" with the edits of {edits.path}" if edits else ""
    return Answer(
        {
            "target": str(target),
            "bytes_read_back": size,
            "equal": True,
            "unsteady_reads": medium.rereads.differing,
            "failed_reads": medium.rereads.failed,
            "repairs": repairs_result(edited.repairs),
            "recipe": recipe_result(edits, edited.changes),
        },
        [
            *repair_lines(edited.repairs),
            *recipe_lines(edits, edited.changes),
            f"{target}: equal to {image}{by_recipe}, {format_size(size)} compared",
        ],
        tuple(dict.fromkeys(warnings)),
    )
