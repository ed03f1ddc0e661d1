"""What ``write`` tells: the plan before, and what became of each target."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from balenaflash.extent import format_size

if TYPE_CHECKING:
    from balenaflash.destination import Destination
    from balenaflash.flashing import FlashReport, Outcome
    from balenaflash.planning import WritePlan
    from balenaflash.tally import Tally


def destination_lines(destination: "Destination") -> list[str]:
    """What the target is."""
    from balenaflash.cli.devices import describe_disk
    from balenaflash.destination import DiskDestination

    if isinstance(destination, DiskDestination):
        return describe_disk(destination.assessment.disk)
    return [f"Target:  {destination.name}, a file"]


def plan_lines(
    plan: "WritePlan", destinations: Sequence["Destination"], tallies: Sequence["Tally"]
) -> list[str]:
    """What would be written where."""
    lines = [line for each in destinations for line in destination_lines(each)]
    lines.append(f"Plan:    zero the first {format_size(plan.head.size)}, and write them last")
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


def done_lines(destinations: Sequence["Destination"], outcomes: Sequence["Outcome"]) -> list[str]:
    """A line for each target that was written; the failures are told as errors."""
    from balenaflash.flashing import FlashReport

    return [
        line
        for destination, outcome in zip(destinations, outcomes, strict=True)
        if isinstance(outcome, FlashReport)
        for line in _report_lines(destination.name, outcome)
    ]


def _report_lines(name: str, report: "FlashReport") -> list[str]:
    texts = [_speed("written", report.bytes_written, report.write_seconds)]
    if report.bytes_equal:
        texts.append(f"{format_size(report.bytes_equal)} held already")
    if report.bytes_read_back is None or report.verify_seconds is None:
        texts.append("not read back")
    else:
        texts.append(_speed("read back equal", report.bytes_read_back, report.verify_seconds))
    lines = [f"{name}: {', '.join(texts)}"]
    lines += [
        f"{name}: read back wrong from byte {each.extent.start} to {each.extent.end}; "
        "written again, and right since"
        for each in report.repaired
    ]
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
    tallies: Sequence["Tally"],
) -> dict[str, object]:
    """What scripts get; with one target its keys stand at the top as well."""
    targets = [
        _target_result(destination, outcome)
        for destination, outcome in zip(destinations, outcomes, strict=True)
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
    }


def _sum(tallies: Sequence["Tally"], kind: str) -> int:
    return sum(size for tally in tallies for each, size in tally.bytes.items() if each == kind)
