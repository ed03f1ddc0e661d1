"""What ``write`` tells: the plan before, and what became of each target."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.commands.write import Destination
    from balenaflash.flashing.flash import FlashReport, Outcome
    from balenaflash.flashing.plan import Tally, WritePlan
    from balenaflash.targets.leaving import Ending


def plan_lines(
    plan: "WritePlan",
    destinations: Sequence["Destination"],
    tallies: Sequence["Tally"],
    *,
    reads_back: bool,
) -> list[str]:
    """What would be written where."""
    from balenaflash.cli.write_question import destinations_lines

    lines = destinations_lines(destinations, plan, reads_back=reads_back)
    lines.append(f"Bytes:   {format_size(plan.head.size)} at the start zeroed first, written last")
    for tally in tallies:
        where = "outside" if tally.partition is None else f"partition {tally.partition}"
        counts = ", ".join(f"{format_size(size)} {kind}" for kind, size in tally.bytes.items())
        lines.append(f"         {where}: {counts or 'nothing'}")
    lines.append(f"         write {format_size(_sum(tallies, 'data'))} of data and")
    lines.append(
        f"         {format_size(_sum(tallies, 'zero'))} of zeros, "
        f"leave {format_size(_sum(tallies, 'free'))} that is free"
    )
    return [*lines, "Nothing was written (--dry-run)."]


def done_lines(
    destinations: Sequence["Destination"],
    outcomes: Sequence["Outcome"],
    endings: Sequence["Ending | None"],
) -> list[str]:
    """Lines for each target that was written; the failures are told as errors."""
    from balenaflash.flashing.flash import FlashReport

    lines = []
    for destination, outcome, ending in zip(destinations, outcomes, endings, strict=True):
        if isinstance(outcome, FlashReport):
            lines += _report_lines(destination.name, outcome)
            lines += [] if ending is None else _ending_lines(destination.name, ending)
    return lines


def _ending_lines(name: str, ending: "Ending") -> list[str]:
    settled = ending.settled
    if settled.is_current:
        nodes = ", ".join(each.node.name for each in settled.partitions)
        seen = f"the kernel shows its partitions: {nodes}"
    elif settled.is_scanned:
        seen = "the kernel does not show its partitions; plug it in again to use them here"
    else:
        seen = "the kernel looks for no partitions on it"
    return [f"{name}: {seen}", f"{name}: {left_text(ending)}"]


def left_text(ending: "Ending") -> str:
    """Whether the disk may be taken out."""
    if ending.ejected:
        return "is switched off and may be unplugged"
    if ending.stays_on is None:
        return "safe to remove"
    return f"safe to remove; not switched off: {ending.stays_on}"


def _report_lines(name: str, report: "FlashReport") -> list[str]:
    texts = [_speed("written", report.bytes_written, report.write_seconds)]
    is_read_back = report.bytes_read_back is not None
    if report.bytes_equal:
        when = "" if is_read_back or not report.bytes_written else ", before the rest was written"
        texts.append(f"{format_size(report.bytes_equal)} held already{when}")
    if report.bytes_read_back is None or report.verify_seconds is None:
        texts.append("nothing was read back (--no-verify)")
    else:
        texts.append(_speed("read back equal", report.bytes_read_back, report.verify_seconds))
    lines = [f"{name}: {', '.join(texts)}"]
    lines += [
        f"{name}: read back wrong from byte {each.extent.start} to {each.extent.end}; "
        "written again, and right since"
        for each in report.repaired
    ]
    if report.wiped:
        lines.append(f"{name}: the backup of an earlier GPT at the end of the disk was wiped")
    if report.gpt_moved:
        lines.append(f"{name}: the backup GPT was moved to the end of the disk")
    if report.failed_reads:
        lines.append(
            f"{name}: {report.failed_reads} times a read failed first and succeeded then: "
            "the reader or the cable is not reliable"
        )
    if report.unsteady_reads:
        lines.append(
            f"{name}: {report.unsteady_reads} times read wrong first and right the second time: "
            "the reader or the cable is not reliable"
        )
    return lines


def _speed(word: str, size: int, seconds: float) -> str:
    rate = format_size(int(size / max(seconds, 1e-6)))
    return f"{format_size(size)} {word} in {seconds:.1f} s ({rate}/s)"


def write_result(
    plan: "WritePlan",
    destinations: Sequence["Destination"],
    outcomes: Sequence["Outcome | None"],
    endings: Sequence["Ending | None"],
    tallies: Sequence["Tally"],
) -> dict[str, object]:
    """What scripts get; with one target its keys stand at the top as well."""
    targets = [
        {**_target_result(destination, outcome), **_ending_result(outcome, ending)}
        for destination, outcome, ending in zip(destinations, outcomes, endings, strict=True)
    ]
    first = targets[0] if len(targets) == 1 else {}
    return {
        **first,
        "dry_run": all(outcome is None for outcome in outcomes),
        "image_size": plan.image_size,
        "plan": [_tally_result(tally) for tally in tallies],
        "targets": targets,
    }


def _tally_result(tally: "Tally") -> dict[str, object]:
    sizes = {kind.value: size for kind, size in tally.bytes.items()}
    return {"partition": tally.partition, **sizes}


def _target_result(destination: "Destination", outcome: "Outcome | None") -> dict[str, object]:
    from balenaflash.errors import BalenaflashError

    if isinstance(outcome, BalenaflashError):
        return {
            "target": destination.name,
            "error": outcome.code,
            "exit_status": outcome.exit_status,
        }
    return {
        "target": destination.name,
        "exit_status": 0,
        "bytes_written": 0 if outcome is None else outcome.bytes_written,
        "bytes_equal": 0 if outcome is None else outcome.bytes_equal,
        "bytes_read_back": None if outcome is None else outcome.bytes_read_back,
        "write_seconds": None if outcome is None else outcome.write_seconds,
        "verify_seconds": None if outcome is None else outcome.verify_seconds,
        "repaired": [
            {"start": each.extent.start, "size": each.extent.size}
            for each in ([] if outcome is None else outcome.repaired)
        ],
        "unsteady_reads": 0 if outcome is None else outcome.unsteady_reads,
        "failed_reads": 0 if outcome is None else outcome.failed_reads,
    }


def _ending_result(outcome: "Outcome | None", ending: "Ending | None") -> dict[str, object]:
    """How a disk was left; nothing of a target that failed."""
    from balenaflash.errors import BalenaflashError

    if isinstance(outcome, BalenaflashError):
        return {}
    wiped = () if outcome is None else outcome.wiped
    return {
        "wiped": [{"start": each.start, "size": each.size} for each in wiped],
        "gpt_moved": outcome is not None and outcome.gpt_moved,
        "partitions": None if ending is None else _partitions_result(ending),
        "safe_to_remove": None if ending is None else True,
        "ejected": None if ending is None else ending.ejected,
    }


def _partitions_result(ending: "Ending") -> list[dict[str, object]] | None:
    """As the kernel has them; ``None`` where it does not show the new ones."""
    if not ending.settled.is_current:
        return None
    return [
        {
            "node": str(each.node),
            "number": each.number,
            "start": each.start,
            "size": each.size,
        }
        for each in ending.settled.partitions
    ]


def _sum(tallies: Sequence["Tally"], kind: str) -> int:
    return sum(size for tally in tallies for each, size in tally.bytes.items() if each == kind)
