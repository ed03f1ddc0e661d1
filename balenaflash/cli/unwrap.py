"""``unwrap``: a flasher into the image that it installs."""

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
from balenaflash.cli.session import (
    Session,
    dry_run_option,
    no_repair_option,
    progress_option,
    with_session,
)
from balenaflash.cli.target_argument import OUT
from balenaflash.cli.unwrap_answer import (
    flasher_lines,
    flasher_result,
    ignore_secure_boot_option,
)
from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.commands.unwrap import UnwrapReport
    from balenaflash.edits.recipe.reading import Recipe
    from balenaflash.source.location import ImageLocation


@click.command()
@click.argument("flasher", type=IMAGE)
@click.argument("out", type=OUT)
@click.option("--overwrite", is_flag=True, help="Replace OUT, and OUT.bmap, where it exists.")
@ignore_secure_boot_option
@member_option
@sha256_option
@certificate_option
@recipe_options
@no_repair_option
@dry_run_option
@progress_option
@with_session
def unwrap(
    session: Session,
    flasher: "ImageLocation",
    out: Path,
    *,
    overwrite: bool,
    ignore_secure_boot: bool,
    sha256: str | None,
    certificate: str | None,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
    dry_run: bool,
) -> Answer:
    """Make OUT, the image that FLASHER installs, as it would leave it on the board's disk.

    FLASHER may be what write takes as IMAGE: a file, raw or compressed, or an http(s) address.

    The flasher's own files and settings are taken over: config.json, networks, proxy, splash,
    bootloader configuration. What only the board can do is told, with what it means for booting.
    The edits of a recipe are made after that. FLASHER stays as it is.

    OUT is compressed if its name ends in .gz, .xz or .zst. Otherwise it is a sparse file, with a
    block map OUT.bmap beside it. It is read back and compared before it gets its name.

    \b
    Examples:
      balenaflash unwrap flasher.img raw.img
      balenaflash unwrap flasher.img raw.img.xz --recipe bench.toml --var bench=7
      balenaflash unwrap --dry-run flasher.img raw.img
    """
    from balenaflash.cli.edit_answer import repair_lines
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.commands.unwrap import unwrap_to_file

    edits = chosen_recipe(recipe, steps, variables)
    checks = signature_checks(flasher, certificate)
    about_certificate = [warning for check in checks for warning in check.warnings]
    with stop_at_next_block(session) as stop:
        report = unwrap_to_file(
            flasher,
            out,
            edits.edits if edits else (),
            member=session.member,
            sha256=sha256,
            checks=checks,
            overwrite=overwrite,
            ignore_secure_boot=ignore_secure_boot,
            repair=not session.edit.no_repair,
            dry_run=dry_run,
            progress=progress_for(session),
            stop=stop,
        )
    return Answer(
        _result(flasher, out, edits, report),
        [
            *flasher_lines(report.plan),
            *repair_lines(report.repairs),
            *recipe_lines(edits, report.edits),
            _done_line(out, report),
        ],
        (*about_certificate, *report.warnings),
    )


def _done_line(out: Path, report: "UnwrapReport") -> str:
    saved = report.saved
    if saved is None:
        return f"{out}: nothing was written (--dry-run)"
    size = format_size(saved.size)
    if saved.container is not None:
        size = f"{size} in {format_size(saved.file_size)} of {saved.container.value}"
    beside = "" if report.bmap is None else f", with {report.bmap.name} beside it"
    return f"{out}: {size}, written and read back equal in {saved.seconds:.1f} s{beside}"


def _result(
    flasher: "ImageLocation", out: Path, edits: "Recipe | None", report: "UnwrapReport"
) -> dict[str, object]:
    from balenaflash.cli.edit_answer import change_result, repairs_result

    saved = report.saved
    container = None if saved is None or saved.container is None else saved.container.value
    return {
        "flasher": str(flasher),
        "out": str(out),
        "dry_run": saved is None,
        **flasher_result(report.plan),
        "changes": [change_result(change) for change in report.changes],
        "repairs": repairs_result(report.repairs),
        "recipe": recipe_result(edits, report.edits),
        "container": container,
        "file_size": None if saved is None else saved.file_size,
        "bmap": None if report.bmap is None else str(report.bmap),
    }
