"""``devices probe``: check the size of a disk."""

import time
from dataclasses import replace
from pathlib import Path

import click

from balenaflash.cli.arguments import TARGET
from balenaflash.cli.asking import confirm_erasing, describe_content, describe_disk, indented
from balenaflash.cli.options import SizeType, allow_internal_option, permissions_of, yes_option
from balenaflash.cli.output import Answer, say
from balenaflash.cli.progress import progress_for
from balenaflash.cli.session import Session, progress_option, shared_option, with_session
from balenaflash.cli.signals import stop_at_next_block
from balenaflash.errors import VerificationError, refusal
from balenaflash.flashing.probe import ProbeReport
from balenaflash.flashing.probe import probe as probe_medium
from balenaflash.targets.disk_names import TargetName, find_named
from balenaflash.targets.open_disk import open_disk
from balenaflash.targets.safety import assess, require_writable
from balenaflash.units import format_size


@click.command()
@click.argument("target", type=TARGET)
@click.option("--destructive", is_flag=True, help="Agree to lose everything on TARGET.")
@yes_option
@allow_internal_option
@shared_option("--max-size", type=SizeType(), metavar="SIZE", help="Allow a disk of up to SIZE.")
@progress_option
@with_session
def probe(session: Session, *, target: TargetName, destructive: bool) -> Answer:
    """Check that TARGET has the capacity that it claims; counterfeit cards do not.

    Marks are written across TARGET and read back, which takes seconds. Everything on it is lost.
    The exit status is 0 if the capacity is real, and 6 if it is not. TARGET is named as for
    `write`.

    \b
    Examples:
      balenaflash devices probe --destructive /dev/sdX
      balenaflash devices probe --destructive --json --yes slot:left | jq .result.real_size
    """
    disk = find_named(target)
    permissions = replace(permissions_of(session), virtual=isinstance(target, Path))
    assessment = assess(disk, image_sector_size=disk.logical_sector_size, permissions=permissions)
    require_writable(assessment)
    if not destructive:
        raise refusal(
            "not-destructive",
            f"{disk.node}: everything on it would be lost",
            "Add --destructive to agree to that.",
            lifted_by="--destructive",
        )
    if not session.quiet:
        for line in (*describe_disk(disk), *indented("Lost:", describe_content(assessment))):
            say(line)
    confirm_erasing([disk], yes=session.yes)
    started = time.monotonic()
    with stop_at_next_block(session) as stop, open_disk(disk) as medium:
        report = probe_medium(medium, progress_for(session), stop)
    seconds = time.monotonic() - started
    sentence = f"{disk.node}: {_describe(report)}"
    result = {
        "target": str(disk.node),
        "claimed_size": report.claimed,
        "real_size": report.real,
        "pattern": report.pattern and report.pattern.value,
        "seconds": seconds,
    }
    if report.is_genuine:
        return Answer(result, [f"{sentence} (checked in {seconds:.1f} s)"])
    code, hint = "target-failing", "Try another port or reader, then another card."
    if report.real is not None:
        code = "target-fake"
        hint = "Return it to the seller; a board that runs from it loses data."
    return Answer(result, failures=[VerificationError(sentence, code=code, hint=hint)])


def _describe(report: ProbeReport) -> str:
    claimed = f"{report.claimed} bytes ({format_size(report.claimed)})"
    if report.is_genuine:
        return f"has the capacity it claims, {claimed}"
    if report.real is None:
        return f"is failing: {report.failing} places do not read back as written"
    real = f"{report.real} bytes ({format_size(report.real)})"
    return (
        f"is counterfeit: it has {real} and claims {claimed}; {_MEANING[report.pattern or 'other']}"
    )


_MEANING = {
    "wraps": "data written past that overwrites its start",
    "zeros": "data written past that is lost and reads as zeros",
    "fails": "writing past that fails",
    "other": "data written past that is lost",
}
