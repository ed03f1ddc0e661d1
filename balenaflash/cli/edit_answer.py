"""What a command that edits the boot partition tells."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from balenaflash.cli.answer import Answer, say
from balenaflash.cli.session import Session
from balenaflash.cli.usage import words_of_command_line
from balenaflash.durable import FileType, find_type
from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.commands.cards import Card
    from balenaflash.commands.edit import EditReport
    from balenaflash.edits.change import Edit
    from balenaflash.edits.files import FileChange
    from balenaflash.formats.fat.check import Fault
    from balenaflash.source.location import ImageLocation


def _is_card(image: "ImageLocation") -> TypeGuard[Path]:
    return isinstance(image, Path) and find_type(image) is FileType.BLOCK_DEVICE


def answer_edits(session: Session, image: "ImageLocation", edits: Sequence["Edit"]) -> Answer:
    """Make ``edits`` in ``image``, or with ``--dry-run`` find out what they would change.

    A card is looked at, shown and asked about before.
    """
    from balenaflash.cli.edited_copy import answer_copy, require_file
    from balenaflash.commands.edit import edit, preview

    options = session.edit
    if options.output is not None and not options.dry_run:
        return answer_copy(session, image, edits, options.output)
    card = None
    if options.output is None and _is_card(image):
        card = _confirmed_card(session, image, edits)
    keep, repair = options.keep_fingerprint, not options.no_repair
    if options.dry_run:
        report = preview(
            image,
            edits,
            member=session.member,
            keep_fingerprint=keep,
            repair=repair,
            show_secrets=options.show_secrets,
        )
    elif card is None:
        with words_of_command_line():
            path = require_file(image)
        report = edit(path, edits, keep_fingerprint=keep, repair=repair)
    else:
        from balenaflash.commands.cards import edit_card

        report = edit_card(card, edits, keep_fingerprint=keep, repair=repair)
    return Answer(_result(image, report), [*report.diff, *_lines(image, report)], report.warnings)


def _confirmed_card(session: Session, node: Path, edits: Sequence["Edit"]) -> "Card":
    from balenaflash.cli.confirmation import confirm_changing
    from balenaflash.cli.disk_text import describe_content, describe_disk, indented
    from balenaflash.commands.cards import find_card
    from balenaflash.targets.safety import Permissions
    from balenaflash.targets.unmount import unmount_all

    options = session.edit
    permissions = Permissions(internal=options.allow_internal, unmount=options.unmount)
    card = find_card(node, permissions)
    if options.dry_run:
        return card
    if not session.quiet:
        changes = (f"Change:  {each.describe()}" for each in edits)
        content = indented("On it:", describe_content(card.assessment))
        for line in (*describe_disk(card.disk), *content, *changes):
            say(line)
    confirm_changing(card.disk, yes=options.yes)
    if card.assessment.mounts:
        unmount_all(card.disk)
    return card


def _result(image: "ImageLocation", report: "EditReport") -> dict[str, object]:
    return {
        "image": str(image),
        "dry_run": report.dry_run,
        "partition": report.partition_number,
        "changes": [change_result(change) for change in report.changes],
        "repairs": repairs_result(report.repairs),
        "diff": list(report.diff),
        "sectors": report.commit.sectors,
        "bytes": report.commit.size,
    }


def change_result(change: "FileChange") -> dict[str, object]:
    """What scripts get of one change."""
    result: dict[str, object] = {
        "path": change.path,
        "action": change.action.value,
        "type": "directory" if change.is_directory else "file",
        "size": change.size,
    }
    return result if change.origin is None else {**result, "from": change.origin}


def _lines(image: "ImageLocation", report: "EditReport") -> list[str]:
    lines = repair_lines(report.repairs, dry_run=report.dry_run)
    lines += [change_line(change) for change in report.changes]
    sectors, size = report.commit.sectors, report.commit.size
    if sectors == 0:
        return [*lines, f"{image}: nothing to change"]
    count = "1 sector" if sectors == 1 else f"{sectors} sectors"
    amount = f"{count} ({format_size(size)}) of partition {report.partition_number}"
    done = "would change; nothing was written (--dry-run)" if report.dry_run else "changed"
    return [*lines, f"{image}: {amount} {done}"]


def repairs_result(repairs: Sequence["Fault"]) -> list[dict[str, str]]:
    """What scripts get of what was repaired before the first change."""
    return [
        {"code": fault.code, "fault": fault.message, "repair": fault.repair} for fault in repairs
    ]


def repair_lines(repairs: Sequence["Fault"], *, dry_run: bool = False) -> list[str]:
    """What people get of it: one line, or none."""
    if not repairs:
        return []
    done = "would be repaired" if dry_run else "repaired"
    return [f"boot partition {done}: {'; '.join(fault.repair for fault in repairs)}"]


def change_line(change: "FileChange") -> str:
    """What people get of it."""
    slash = "/" if change.is_directory else ""
    place = f"{change.path}{slash}"
    if change.origin is not None:
        place = f"{change.origin}{slash} to {place}"
    size = "" if change.is_directory else f" ({change.size} bytes)"
    return f"{change.action.value} {place}{size}"
