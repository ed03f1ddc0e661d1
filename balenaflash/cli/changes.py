"""Edit an image, a copy of it or a card, and the answer of every command that does."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeGuard

from balenaflash.cli.asking import confirm_changing
from balenaflash.cli.output import Answer, say
from balenaflash.cli.progress import progress_for
from balenaflash.cli.session import Session, words_of_command_line
from balenaflash.cli.signals import stop_at_next_block
from balenaflash.commands.edit import Edited, EditReport, preview
from balenaflash.commands.edit import edit as edit_image
from balenaflash.durable import FileType, find_type
from balenaflash.edits.files import Edit, FileChange
from balenaflash.errors import BalenaflashError, EditError, refusal
from balenaflash.formats.fat.fsck import Fault
from balenaflash.source.location import ImageLocation
from balenaflash.units import format_size


def _is_card(image: ImageLocation) -> TypeGuard[Path]:
    return isinstance(image, Path) and find_type(image) is FileType.BLOCK_DEVICE


def answer_edits(session: Session, image: ImageLocation, edits: Sequence[Edit]) -> Answer:
    """Make ``edits`` in ``image``, or with ``--dry-run`` report what they would change.

    A card is shown and asked about before.
    """
    if session.output is not None and not session.dry_run:
        return answer_copy(session, image, edits, session.output)
    change = None
    if session.output is None and _is_card(image):
        change = _confirmed_card(session, image, edits)
    keep, repair = session.keep_fingerprint, not session.no_repair
    if session.dry_run:
        report = preview(
            image,
            edits,
            member=session.member,
            keep_fingerprint=keep,
            repair=repair,
            show_secrets=session.show_secrets,
        )
    else:
        if change is None:
            with words_of_command_line():
                change = partial(edit_image, require_file(image))
        report = change(edits, keep_fingerprint=keep, repair=repair)
    return Answer(_result(image, report), [*report.diff, *_lines(image, report)], report.warnings)


def _confirmed_card(
    session: Session, node: Path, edits: Sequence[Edit]
) -> Callable[..., EditReport]:
    """A function that edits the card at ``node``, which the user has confirmed."""
    # The code that opens disks is loaded for cards only.
    from balenaflash.cli.asking import describe_content, describe_disk, indented
    from balenaflash.commands.cards import edit_card, find_card
    from balenaflash.targets.safety import Permissions
    from balenaflash.targets.unmount import unmount_all

    card = find_card(node, Permissions(internal=session.allow_internal, unmount=session.unmount))
    if session.dry_run:
        return partial(edit_card, card)
    if not session.quiet:
        changes = (f"Change:  {each.describe()}" for each in edits)
        content = indented("On it:", describe_content(card))
        for line in (*describe_disk(card.disk), *content, *changes):
            say(line)
    confirm_changing(card.disk, yes=session.yes)
    if card.mounts:
        unmount_all(card.disk)
    return partial(edit_card, card)


def _result(image: ImageLocation, report: EditReport) -> dict[str, object]:
    return {
        "image": str(image),
        "dry_run": report.dry_run,
        "partition": report.partition_number,
        **_made_result(report),
        "diff": list(report.diff),
        "sectors": report.commit.sectors,
        "bytes": report.commit.size,
    }


def change_result(change: FileChange) -> dict[str, object]:
    """One change, for scripts."""
    result: dict[str, object] = {
        "path": change.path,
        "action": change.kind.value,
        "type": "directory" if change.is_directory else "file",
        "size": change.size,
    }
    return result if change.origin is None else {**result, "from": change.origin}


def _lines(image: ImageLocation, report: EditReport) -> list[str]:
    lines = _made_lines(report, dry_run=report.dry_run)
    sectors, size = report.commit.sectors, report.commit.size
    if sectors == 0:
        return [*lines, f"{image}: nothing to change"]
    count = "1 sector" if sectors == 1 else f"{sectors} sectors"
    amount = f"{count} ({format_size(size)}) of partition {report.partition_number}"
    done = "would change; nothing was written (--dry-run)" if report.dry_run else "changed"
    return [*lines, f"{image}: {amount} {done}"]


def _made_result(edited: Edited | EditReport) -> dict[str, object]:
    return {
        "changes": [change_result(change) for change in edited.changes],
        "repairs": repairs_result(edited.repairs),
    }


def _made_lines(edited: Edited | EditReport, *, dry_run: bool = False) -> list[str]:
    repairs = repair_lines(edited.repairs, dry_run=dry_run)
    return [*repairs, *(change_line(change) for change in edited.changes)]


def repairs_result(repairs: Sequence[Fault]) -> list[dict[str, str]]:
    """The repairs that were made before the first change, for scripts."""
    return [
        {"code": fault.code, "fault": fault.message, "repair": fault.repair} for fault in repairs
    ]


def repair_lines(repairs: Sequence[Fault], *, dry_run: bool = False) -> list[str]:
    """The repairs, for people: one line, or none."""
    if not repairs:
        return []
    done = "would be repaired" if dry_run else "repaired"
    return [f"boot partition {done}: {'; '.join(fault.repair for fault in repairs)}"]


def change_line(change: FileChange) -> str:
    """One change, for people."""
    slash = "/" if change.is_directory else ""
    place = f"{change.path}{slash}"
    if change.origin is not None:
        place = f"{change.origin}{slash} to {place}"
    size = "" if change.is_directory else f" ({change.size} bytes)"
    return f"{change.kind.value} {place}{size}"


def answer_copy(
    session: Session, image: ImageLocation, edits: Sequence[Edit], output: Path
) -> Answer:
    """Write ``image``, with ``edits`` made in it, to the new file ``output``, and read it back."""
    # The code that writes and reads back is loaded for this option only.
    from balenaflash.commands.wanted import ImageRequest
    from balenaflash.commands.write import WriteRequest, is_device, prepare_write

    if is_device(output):
        hint = "To write an edited image to a device: balenaflash write IMAGE DEVICE --recipe FILE"
        raise refusal("target-not-a-file", f"{output}: is a device, not a file", hint)
    wanted = ImageRequest(
        image,
        session.member,
        edits=edits,
        keep_fingerprint=session.keep_fingerprint,
        repair=not session.no_repair,
    )
    request = WriteRequest(wanted, [output], overwrite=session.overwrite)
    with prepare_write(request) as prepared, stop_at_next_block(session) as stop:
        (done,) = prepared.run([progress_for(session)], stop)
    if isinstance(done.outcome, BalenaflashError):
        raise done.outcome
    edited = prepared.image.edited
    result = {
        "image": str(image),
        "output": str(output),
        "dry_run": False,
        **_made_result(edited),
        "bytes": done.outcome.image_size,
    }
    lines = _made_lines(edited)
    lines.append(f"{output}: {format_size(done.outcome.image_size)}, written and read back equal")
    return Answer(result, lines, prepared.image.warnings)


def require_file(image: ImageLocation) -> Path:
    """The path of ``image``, which is to be edited in place.

    Raises:
        EditError: it is an address or standard input.
    """
    if isinstance(image, Path):
        return image
    raise EditError(
        f"{image}: is not a file; only files and cards are edited in place",
        code="image-not-a-file",
        hint="Write the edited image to a file: the same command with --output OUT.img",
    )
