"""``unwrap``: its options, and its answer."""

from collections.abc import Mapping
from pathlib import Path

import click

from balenaflash.cli.arguments import IMAGE, OUT
from balenaflash.cli.changes import change_result, repair_lines, repairs_result
from balenaflash.cli.image_options import (
    certificate_option,
    chosen_recipe,
    recipe_lines,
    recipe_options,
    recipe_result,
    sha256_option,
    signature_checks,
)
from balenaflash.cli.options import dry_run_option, member_option, no_repair_option
from balenaflash.cli.output import Answer
from balenaflash.cli.progress import progress_for, stop_at_next_block
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.commands.flasher_steps import FlasherStep, Unwrapping
from balenaflash.commands.unwrap import UnwrapReport, unwrap_to_file
from balenaflash.commands.wanted import ImageRequest
from balenaflash.edits.recipe.reading import Recipe
from balenaflash.source.location import ImageLocation
from balenaflash.units import format_size

ignore_secure_boot_option = click.option(
    "--ignore-secure-boot",
    is_flag=True,
    help="Continue although config.json requests secure boot and disk encryption; "
    "there will be neither.",
)


def flasher_lines(plan: Unwrapping | None) -> list[str]:
    """The image that a flasher carries, and each of its steps, for people."""
    if plan is None:
        return []
    size = plan.inner.source.size
    version = plan.os_version or "unknown"
    shown = "size unknown" if size is None else format_size(size)
    devices = " or ".join(plan.devices) or "unknown"
    return [
        f"Carries:  {plan.flasher.image_name}, {shown}, OS version {version}",
        f"For:      {plan.slug or 'an unknown board'}, disk {devices}",
        *(line for step in plan.steps for line in _step_lines(step)),
    ]


def flasher_result(plan: Unwrapping | None) -> dict[str, object] | None:
    """The image that a flasher carries, and its steps, for scripts."""
    if plan is None:
        return None
    return {
        "inner_image": plan.flasher.image_path,
        "size": plan.inner.source.size,
        "slug": plan.slug,
        "os_version": plan.os_version,
        "expected_devices": list(plan.devices),
        "steps": [
            {
                "code": step.code,
                "action": step.action,
                "state": step.state.value,
                "meaning": step.meaning,
            }
            for step in plan.steps
        ],
    }


_MARK_WIDTH = len("done by unwrap")


def _step_lines(step: FlasherStep) -> list[str]:
    mark = step.state.value.replace("-", " ").ljust(_MARK_WIDTH)
    lines = [f"  {mark}  {step.action}"]
    if step.meaning is not None:
        lines.append(f"  {' ' * _MARK_WIDTH}  {step.meaning}")
    return lines


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
    flasher: ImageLocation,
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
    edits = chosen_recipe(recipe, steps, variables)
    checks = signature_checks(flasher, certificate)
    about_certificate = [warning for check in checks for warning in check.warnings]
    request = ImageRequest(
        flasher,
        session.member,
        sha256,
        checks,
        edits.edits if edits else (),
        unwrap=True,
        ignore_secure_boot=ignore_secure_boot,
        repair=not session.edit.no_repair,
    )
    with stop_at_next_block(session) as stop:
        report = unwrap_to_file(
            request,
            out,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=progress_for(session),
            stop=stop,
        )
    return Answer(
        _result(flasher, out, edits, report),
        [
            *flasher_lines(report.image.unwrapping),
            *repair_lines(report.image.edited.repairs),
            *recipe_lines(edits, report.image.edited.changes),
            _done_line(out, report),
        ],
        (*about_certificate, *report.warnings),
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
    flasher: ImageLocation, out: Path, edits: Recipe | None, report: UnwrapReport
) -> dict[str, object]:
    saved = report.saved
    container = None if saved is None or saved.container is None else saved.container.value
    return {
        "flasher": str(flasher),
        "out": str(out),
        "dry_run": saved is None,
        **(flasher_result(report.image.unwrapping) or {}),
        "changes": [change_result(change) for change in report.image.step_changes],
        "repairs": repairs_result(report.image.edited.repairs),
        "recipe": recipe_result(edits, report.image.edited.changes),
        "container": container,
        "file_size": None if saved is None else saved.file_size,
        "bmap": None if report.bmap is None else str(report.bmap),
    }
