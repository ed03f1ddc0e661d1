"""What a command that edits the boot partition tells."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balenaflash.cli.answer import Answer
from balenaflash.extent import format_size

if TYPE_CHECKING:
    from balenaflash.boot.files import FileChange
    from balenaflash.editing import Edit, EditReport


def answer_edits(
    image: Path, edits: Sequence["Edit"], *, dry_run: bool, keep_fingerprint: bool = False
) -> Answer:
    """Make ``edits`` in ``image``, or with ``dry_run`` find out what they would change."""
    from balenaflash.editing import edit

    report = edit(image, edits, dry_run=dry_run, keep_fingerprint=keep_fingerprint)
    return Answer(_result(image, report), [*report.diff, *_lines(image, report)], report.warnings)


def _result(image: Path, report: "EditReport") -> dict[str, object]:
    return {
        "image": str(image),
        "dry_run": report.dry_run,
        "partition": report.partition_number,
        "changes": [_change_result(change) for change in report.changes],
        "diff": list(report.diff),
        "sectors": report.commit.sectors,
        "bytes": report.commit.size,
    }


def _change_result(change: "FileChange") -> dict[str, object]:
    return {
        "path": change.path,
        "action": change.action.value,
        "type": "directory" if change.is_directory else "file",
        "size": change.size,
    }


def _lines(image: Path, report: "EditReport") -> list[str]:
    lines = [_change_line(change) for change in report.changes]
    sectors, size = report.commit.sectors, report.commit.size
    if sectors == 0:
        return [*lines, f"{image}: nothing to change"]
    amount = f"{sectors} sectors ({format_size(size)}) of partition {report.partition_number}"
    done = "would change; nothing was written (--dry-run)" if report.dry_run else "changed"
    return [*lines, f"{image}: {amount} {done}"]


def _change_line(change: "FileChange") -> str:
    if change.is_directory:
        return f"{change.action.value} {change.path}/"
    return f"{change.action.value} {change.path} ({change.size} bytes)"
