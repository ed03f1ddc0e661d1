"""``edit``, and the answer of every command that edits the boot partition."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import click

from balenaflash.cli.arguments import IMAGE, words_of_command_line
from balenaflash.cli.asking import confirm_changing, describe_content, describe_disk, indented
from balenaflash.cli.options import chosen_recipe, edit_options, recipe_options
from balenaflash.cli.output import Answer, say
from balenaflash.cli.progress import progress_for, stop_at_next_block
from balenaflash.cli.session import Session, with_session
from balenaflash.commands.cards import Card, edit_card, find_card
from balenaflash.commands.edit import EditedImage, EditReport, lay_over, preview
from balenaflash.commands.edit import edit as edit_image
from balenaflash.commands.image_file import output_mode, require_unused
from balenaflash.commands.write import find_destinations, is_device, open_destination, plan_image
from balenaflash.durable import FileType, find_type
from balenaflash.edits.files import Edit, FileChange
from balenaflash.edits.recipe.reading import Recipe
from balenaflash.errors import BalenaflashError, EditError, refusal
from balenaflash.flashing.flash import FlashOptions, FlashReport, flash
from balenaflash.formats.fat.check import Fault
from balenaflash.source.location import ImageLocation
from balenaflash.source.opening import open_for_reading
from balenaflash.targets.safety import NO_PERMISSIONS, Permissions
from balenaflash.targets.unmount import unmount_all
from balenaflash.units import format_size


def _is_card(image: ImageLocation) -> TypeGuard[Path]:
    return isinstance(image, Path) and find_type(image) is FileType.BLOCK_DEVICE


def answer_edits(session: Session, image: ImageLocation, edits: Sequence[Edit]) -> Answer:
    """Make ``edits`` in ``image``, or with ``--dry-run`` find out what they would change.

    A card is looked at, shown and asked about before.
    """
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
        report = edit_image(path, edits, keep_fingerprint=keep, repair=repair)
    else:
        report = edit_card(card, edits, keep_fingerprint=keep, repair=repair)
    return Answer(_result(image, report), [*report.diff, *_lines(image, report)], report.warnings)


def _confirmed_card(session: Session, node: Path, edits: Sequence[Edit]) -> Card:

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


def _result(image: ImageLocation, report: EditReport) -> dict[str, object]:
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


def change_result(change: FileChange) -> dict[str, object]:
    """What scripts get of one change."""
    result: dict[str, object] = {
        "path": change.path,
        "action": change.kind.value,
        "type": "directory" if change.is_directory else "file",
        "size": change.size,
    }
    return result if change.origin is None else {**result, "from": change.origin}


def _lines(image: ImageLocation, report: EditReport) -> list[str]:
    lines = repair_lines(report.repairs, dry_run=report.dry_run)
    lines += [change_line(change) for change in report.changes]
    sectors, size = report.commit.sectors, report.commit.size
    if sectors == 0:
        return [*lines, f"{image}: nothing to change"]
    count = "1 sector" if sectors == 1 else f"{sectors} sectors"
    amount = f"{count} ({format_size(size)}) of partition {report.partition_number}"
    done = "would change; nothing was written (--dry-run)" if report.dry_run else "changed"
    return [*lines, f"{image}: {amount} {done}"]


def repairs_result(repairs: Sequence[Fault]) -> list[dict[str, str]]:
    """What scripts get of what was repaired before the first change."""
    return [
        {"code": fault.code, "fault": fault.message, "repair": fault.repair} for fault in repairs
    ]


def repair_lines(repairs: Sequence[Fault], *, dry_run: bool = False) -> list[str]:
    """What people get of it: one line, or none."""
    if not repairs:
        return []
    done = "would be repaired" if dry_run else "repaired"
    return [f"boot partition {done}: {'; '.join(fault.repair for fault in repairs)}"]


def change_line(change: FileChange) -> str:
    """What people get of it."""
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
    session: Session, image: ImageLocation, edited: EditedImage, output: Path
) -> FlashReport:

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
        open_destination(destination, plan.least_size, progress_for(session)) as target,
    ):
        (outcome,) = flash(edited.source, plan, [target], options=FlashOptions(), stop=stop)
        if isinstance(outcome, BalenaflashError):
            raise outcome
        return outcome


def require_file(image: ImageLocation) -> Path:
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


@click.command()
@click.argument("image", type=IMAGE)
@recipe_options
@edit_options
@with_session
def edit(
    session: Session,
    image: ImageLocation,
    *,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
) -> Answer:
    """Make all edits of a recipe in the boot partition of IMAGE, or none of them.

    Single ones may be given as --step. A recipe is a TOML file. Each [[step]] has the key that
    says what it does, named as the command is, and keys named as the options of that command:

    \b
      name = "bench"                     # optional: for = ["generic-amd64"]
      [[step]]
      put = ["logo.txt", "certs"]        # relative to the recipe
      to = "/"                           # in the boot partition
      [[step]]
      config-set = ["hostname=bench-${bench}", "os.sshKeys+=@lab.pub"]
      [[step]]
      wifi = "Lab"
      psk = "${env:LAB_PSK}"             # or: psk-file = "lab.psk"
      country = "DE"

    \b
    Steps                        and their other keys
      put = FILES                to
      apply = LIST               deploy-dir
      rm = PATHS                 recursive
      mkdir = PATHS              parents
      mv = PATHS                 to
      use-internal = true        from, to, keep-old
      splash = FILE
      config-set = ASSIGNMENTS   (KEY=VALUE, KEY+=VALUE, KEY=@FILE)
      config-unset = KEYS
      config-merge = FILE
      wifi = SSID                psk, psk-file, open, wpa3, hidden, country; those of ethernet
      ethernet = true            name, interface, autoconnect, priority, address, gateway, dns,
                                 overwrite
      keyfile = FILE             name, overwrite
      network-rm = NAMES

    ${NAME} is what --var NAME=VALUE says, and $$ a dollar sign. Secrets come from files or, as
    ${env:NAME}, from the environment, and are shown nowhere.

    \b
    Examples:
      balenaflash edit balena.img --recipe bench.toml --var bench=7 --dry-run
      LAB_PSK=$(pass show wifi/lab) balenaflash edit balena.img --recipe bench.toml --var bench=7
      balenaflash edit balena.img --step 'splash = "logo.png"' --step 'rm = "/overlays/*-old*"'
      balenaflash write balena.img /dev/sdX --recipe bench.toml --var bench=7
    """
    read = chosen_recipe(recipe, steps, variables)
    if read is None:
        raise click.UsageError("One of --recipe and --step is needed.")
    answer = answer_edits(session, image, read.edits)
    return replace(answer, result={"recipe": read.name, **answer.result})


def recipe_result(
    recipe: Recipe | None, changes: tuple[FileChange, ...]
) -> dict[str, object] | None:
    """What scripts get of the edits that ``recipe`` made in what was written or compared."""
    if recipe is None:
        return None

    return {
        "file": str(recipe.path),
        "name": recipe.name,
        "changes": [change_result(change) for change in changes],
    }


def recipe_lines(recipe: Recipe | None, changes: tuple[FileChange, ...]) -> list[str]:
    """What people get of them."""
    if recipe is None:
        return []

    return [f"Recipe:  {recipe.name}", *(f"         {change_line(change)}" for change in changes)]
