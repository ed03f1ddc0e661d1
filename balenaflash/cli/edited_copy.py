"""``--output``: an edited image as a new file, while the image itself stays as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balenaflash.cli.answer import Answer
from balenaflash.cli.session import Session
from balenaflash.errors import BalenaflashError, EditError, refusal
from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.commands.edit import EditedImage
    from balenaflash.edits.change import Edit
    from balenaflash.flashing.flash import FlashReport
    from balenaflash.source.location import ImageLocation


def answer_copy(
    session: Session, image: "ImageLocation", edits: Sequence["Edit"], output: Path
) -> Answer:
    """Write ``image``, with ``edits`` made in it, to the new file ``output``, and read it back."""
    from balenaflash.cli.edit_answer import (
        change_line,
        change_result,
        repair_lines,
        repairs_result,
    )
    from balenaflash.commands.edit import lay_over
    from balenaflash.commands.image_file import require_unused
    from balenaflash.source.opening import open_for_reading

    options = session.edit
    with open_for_reading(image, member=session.member) as opened:
        require_unused(image)
        edited = lay_over(
            opened,
            edits,
            keep_fingerprint=options.keep_fingerprint,
            repair=not options.no_repair,
        )
        report = _write(session, image, edited, output)
    result = {
        "image": str(image),
        "output": str(output),
        "dry_run": False,
        "changes": [change_result(change) for change in edited.changes],
        "repairs": repairs_result(edited.repairs),
        "bytes": report.image_size,
    }
    lines = repair_lines(edited.repairs)
    lines += [change_line(change) for change in edited.changes]
    lines.append(f"{output}: {format_size(report.image_size)}, written and read back equal")
    return Answer(result, lines, (*edited.warnings, *opened.reading_warnings))


def _write(
    session: Session, image: "ImageLocation", edited: "EditedImage", output: Path
) -> "FlashReport":
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.commands.image_file import output_mode
    from balenaflash.commands.write import (
        find_destinations,
        is_device,
        open_destination,
        plan_image,
    )
    from balenaflash.flashing.flash import FlashOptions, Target, flash
    from balenaflash.targets.safety import NO_PERMISSIONS

    if is_device(output):
        hint = "To write an edited image to a device: balenaflash write IMAGE DEVICE --recipe FILE"
        raise refusal("target-not-a-file", f"{output}: is a device, not a file", hint)
    plan = plan_image(edited.source, write_all=True)
    (destination,) = find_destinations(
        [output],
        image=image,
        plan=plan,
        permissions=NO_PERMISSIONS,
        overwrite=session.edit.overwrite,
        mode=output_mode(image, adds_secrets=edited.adds_secrets),
    )
    with (
        stop_at_next_block(session) as stop,
        open_destination(destination, plan.least_size) as medium,
    ):
        target = Target(medium, progress_for(session))
        (outcome,) = flash(edited.source, plan, [target], options=FlashOptions(), stop=stop)
        if isinstance(outcome, BalenaflashError):
            raise outcome
        return outcome


def require_file(image: "ImageLocation") -> Path:
    """``image`` as the file that an edit changes.

    Raises:
        EditError: it comes from elsewhere.
    """
    if isinstance(image, Path):
        return image
    raise EditError(
        f"{image}: is not a file, and only a file or a card is edited in place",
        code="image-not-a-file",
        hint="Write the edited image to a file: the same command with --output OUT.img",
    )
