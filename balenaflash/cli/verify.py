"""``verify``: compare a target with an image."""

from collections.abc import Mapping
from pathlib import Path

import click

from balenaflash.cli.arguments import IMAGE, TARGET
from balenaflash.cli.changes import repair_lines, repairs_result
from balenaflash.cli.image_options import (
    certificate_option,
    chosen_recipe,
    recipe_lines,
    recipe_options,
    recipe_result,
    sha256_option,
    signature_checks,
)
from balenaflash.cli.options import member_option, no_repair_option
from balenaflash.cli.output import Answer
from balenaflash.cli.progress import progress_for, stop_at_next_block
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.cli.unwrap import ignore_secure_boot_option
from balenaflash.commands.verify import verify as compare_target
from balenaflash.commands.wanted import ImageRequest, open_wanted
from balenaflash.source.location import ImageLocation
from balenaflash.targets.names import TargetName
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
@member_option
@sha256_option
@certificate_option
@recipe_options
@no_repair_option
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
    ignore_secure_boot: bool,
    sha256: str | None,
    certificate: str | None,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
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
    edits = chosen_recipe(recipe, steps, variables)
    checks = signature_checks(image, certificate)
    request = ImageRequest(
        image,
        session.member,
        sha256,
        checks,
        edits.edits if edits else (),
        unwraps,
        ignore_secure_boot,
        repair=not session.edit.no_repair,
    )
    with open_wanted(request) as wanted, stop_at_next_block(session) as stop:
        report = compare_target(
            wanted,
            target,
            compare_all=compares_all,
            fix_gpt=fix_gpt,
            progress=progress_for(session),
            stop=stop,
        )
    size = report.bytes_read_back
    by_recipe = f" with the edits of {edits.path}" if edits else ""
    about_certificate = [warning for check in checks for warning in check.warnings]
    return Answer(
        {
            "target": str(target),
            "bytes_read_back": size,
            "equal": True,
            "unsteady_reads": report.unsteady_reads,
            "failed_reads": report.failed_reads,
            "repairs": repairs_result(wanted.edited.repairs),
            "recipe": recipe_result(edits, wanted.edited.changes),
        },
        [
            *repair_lines(wanted.edited.repairs),
            *recipe_lines(edits, wanted.edited.changes),
            f"{target}: equal to {image}{by_recipe}, {format_size(size)} compared",
        ],
        tuple(dict.fromkeys((*about_certificate, *report.warnings))),
    )
