"""``boot check``: the structure of the boot partition's filesystem, and its repair."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.edit_answer import answer_edits
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.image_options import member_option
from balenaflash.cli.session import Session, edit_options, with_session
from balenaflash.errors import ImageError, Problem

if TYPE_CHECKING:
    from balenaflash.formats.fat.check import Fault
    from balenaflash.source.location import ImageLocation


class DamagedError(ImageError):
    """The boot partition is damaged; every fault at once. Nothing was written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self._problems = tuple(problems)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every fault, the gravest first."""
        return self._problems


@click.command()
@click.argument("image", type=IMAGE)
@click.option("--repair", is_flag=True, help="Repair what can be repaired without a loss.")
@member_option
@edit_options
@with_session
def check(session: Session, image: "ImageLocation", *, repair: bool) -> Answer:
    """Check the filesystem of the boot partition of IMAGE.

    Exit status 3 means that something is wrong. What a power cut, a card pulled too early or
    `balena os configure` leave behind can be repaired without a loss: every file keeps its
    content. A repair is also part of every edit. What cannot be repaired, such as two files that
    share a cluster, is only reported.

    \b
    Examples:
      balenaflash boot check balena.img
      balenaflash boot check --json /dev/sdX | jq '.result.faults[]'
      balenaflash boot check --repair --dry-run balena.img
      balenaflash boot check --repair balena.img
      balenaflash boot check --repair balena.img.gz --output repaired.img
    """
    options = session.edit
    if repair and options.no_repair:
        raise click.UsageError("--repair and --no-repair contradict each other.")
    if repair:
        return _repair(session, image)
    if options.output is not None:
        raise click.UsageError("--output needs --repair.")
    from balenaflash.commands.edit import open_boot_volume

    with open_boot_volume(image, member=session.member) as boot:
        faults = boot.files.faults()
        number = boot.partition.partition.number
        # The faults are the result.
        warnings = [*boot.opening_warnings, *boot.partition.warnings]
    problems = _problems(image, number, faults)
    lines = [
        f"{image}: partition {number}: {fault.message}; an edit does not mind"
        for fault in faults
        if fault.code == "fat-oddity"
    ]
    if not problems:
        lines.append(f"{image}: the filesystem of partition {number} is sound")
    result = {
        "image": str(image),
        "partition": number,
        "sound": not problems,
        "faults": [_fault_result(fault) for fault in faults],
    }
    failures = [DamagedError(problems)] if problems else []
    return Answer(result, lines, warnings, failures=failures)


def _problems(image: "ImageLocation", number: int, faults: "Sequence[Fault]") -> list[Problem]:
    """Those that forbid an edit; the last one says what to do."""
    import shlex

    from balenaflash.formats.fat.check import Gravity

    found = [fault for fault in faults if fault.gravity is not Gravity.HARMLESS]
    if any(fault.gravity is Gravity.UNSOUND for fault in found):
        hint = "It cannot be repaired without a loss. Take a fresh image."
    else:
        hint = f"To repair it: balenaflash boot check --repair {shlex.quote(str(image))}"
    return [
        Problem(
            fault.code,
            f"{image}: partition {number}: {fault.message}",
            hint if fault is found[-1] else None,
        )
        for fault in found
    ]


def _repair(session: Session, image: "ImageLocation") -> Answer:
    from balenaflash.edits.files import RepairVolume

    answer = answer_edits(session, image, [RepairVolume()])
    repairs = answer.result["repairs"]
    lines = answer.lines if repairs else [f"{image}: nothing to repair"]
    return replace(answer, result={**answer.result, "sound": True}, lines=lines)


def _fault_result(fault: "Fault") -> dict[str, object]:
    return {
        "code": fault.code,
        "message": fault.message,
        "gravity": fault.gravity.value,
        "repairable": bool(fault.repair),
    }
