"""``devices probe``: how much a disk really holds."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer, say
from balenaflash.cli.disk_options import SizeType
from balenaflash.cli.session import (
    ALLOW_INTERNAL_HELP,
    YES_HELP,
    Session,
    progress_option,
    with_session,
)
from balenaflash.cli.target_argument import TARGET
from balenaflash.errors import VerificationError, refusal
from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.flashing.probe import ProbeReport
    from balenaflash.targets.names import TargetName
    from balenaflash.targets.safety import Assessment


@click.command()
@click.argument("target", type=TARGET)
@click.option("--destructive", is_flag=True, help="Agree that what is on TARGET is lost.")
@click.option("-y", "--yes", is_flag=True, help=YES_HELP)
@click.option("--allow-internal", is_flag=True, help=ALLOW_INTERNAL_HELP)
@click.option("--max-size", type=SizeType(), metavar="SIZE", help="Allow a disk of up to SIZE.")
@progress_option
@with_session
def probe(
    session: Session,
    *,
    target: "TargetName",
    destructive: bool,
    yes: bool,
    allow_internal: bool,
    max_size: int | None,
) -> Answer:
    """Find out whether TARGET holds as much as it says: counterfeit cards do not.

    Marks are written all over TARGET and read back, which takes seconds, and less than writing all
    of it. What was on it is lost. The exit status is 0 where it holds what it says, and 6 where it
    does not. TARGET is named as for `write`.

    \b
    Examples:
      balenaflash devices probe --destructive /dev/sdX
      balenaflash devices probe --destructive --json --yes slot:left | jq .result.real_size
    """
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.flashing.probe import probe as probe_medium
    from balenaflash.targets.disk import open_disk

    assessment = _find(target, allow_internal=allow_internal, max_size=max_size)
    _confirm(session, assessment, destructive=destructive, yes=yes)
    started = time.monotonic()
    with stop_at_next_block(session) as stop, open_disk(assessment.disk) as medium:
        report = probe_medium(medium, progress_for(session), stop)
    seconds = time.monotonic() - started
    sentence = f"{assessment.disk.node}: {_describe(report)}"
    failures = [] if report.is_genuine else [_failure(report, sentence)]
    lines = [f"{sentence} (found out in {seconds:.1f} s)"] if report.is_genuine else []
    return Answer(
        {
            "target": str(assessment.disk.node),
            "claimed_size": report.claimed,
            "real_size": report.real,
            "pattern": report.pattern and report.pattern.value,
            "seconds": seconds,
        },
        lines,
        failures=failures,
    )


def _find(target: "TargetName", *, allow_internal: bool, max_size: int | None) -> "Assessment":
    """The disk, which may be written.

    Raises:
        TargetRefusedError: it may not; with every reason.
    """
    from balenaflash.targets.names import find_named
    from balenaflash.targets.safety import NO_PERMISSIONS, Permissions, assess, require_writable

    disk = find_named(target)
    limit = NO_PERMISSIONS.max_size if max_size is None else max_size
    is_node = isinstance(target, Path)
    permissions = Permissions(internal=allow_internal, virtual=is_node, max_size=limit)
    assessment = assess(disk, image_sector_size=disk.logical_sector_size, permissions=permissions)
    require_writable(assessment)
    return assessment


def _confirm(session: Session, assessment: "Assessment", *, destructive: bool, yes: bool) -> None:
    from balenaflash.cli.confirmation import confirm_erasing
    from balenaflash.cli.disk_text import describe_content, describe_disk, indented

    node = assessment.disk.node
    if not destructive:
        raise refusal(
            "not-destructive",
            f"{node}: what is on it would be lost",
            "Add --destructive to agree to that.",
            lifted_by="--destructive",
        )
    if not session.quiet:
        content = indented("Lost:", describe_content(assessment))
        for line in (*describe_disk(assessment.disk), *content):
            say(line)
    confirm_erasing([assessment.disk], yes=yes)


def _failure(report: "ProbeReport", sentence: str) -> VerificationError:
    is_fake = report.real is not None
    return VerificationError(
        sentence,
        code="target-fake" if is_fake else "target-failing",
        hint="Give it back; a board that runs from it loses what it stores."
        if is_fake
        else "Try another port or reader, then another card.",
    )


def _describe(report: "ProbeReport") -> str:
    claimed = f"{report.claimed} bytes ({format_size(report.claimed)})"
    if report.is_genuine:
        return f"holds what it says, {claimed}"
    if report.real is None:
        return f"is failing: {report.failing} places do not hold what is written there"
    real = f"{report.real} bytes ({format_size(report.real)})"
    return f"is a fake: it holds {real} and says {claimed}; {_MEANING[report.pattern or 'other']}"


_MEANING = {
    "wraps": "what is written beyond overwrites what lies at its start",
    "zeros": "what is written beyond is lost, and reads as zeros",
    "fails": "beyond it fails",
    "other": "what is written beyond is lost",
}
