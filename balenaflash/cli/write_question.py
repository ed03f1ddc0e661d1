"""What ``write`` shows, on one screen, before it asks whether a disk may be erased."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from balenaflash.cli.answer import say
from balenaflash.cli.confirmation import confirm_erasing
from balenaflash.cli.disk_text import (
    describe_content,
    describe_disk,
    indented,
    short_description,
)
from balenaflash.cli.session import Session
from balenaflash.durable import find_type
from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.commands.write import Destination, DiskDestination, FileDestination
    from balenaflash.edits.recipe.reading import Recipe
    from balenaflash.flashing.plan import WritePlan
    from balenaflash.source.location import ImageLocation

_MINUTE = 60


def show_and_confirm(
    session: Session,
    image: "ImageLocation",
    member: str | None,
    plan: "WritePlan",
    destinations: Sequence["Destination"],
    recipe: "Recipe | None",
    *,
    reads_back: bool,
    yes: bool,
) -> None:
    """Show image, targets, what is lost and what will be done, and ask once for all disks.

    Raises:
        TargetRefusedError: the answer was no, or nobody is there to give one.
    """
    from balenaflash.commands.write import DiskDestination

    if not session.quiet:
        # Without a question they are shown once, at the end.
        warnings = () if yes else plan.warnings
        for line in _image_lines(image, member, plan, recipe, warnings):
            say(line)
        for line in destinations_lines(destinations, plan, reads_back=reads_back):
            say(line)
    disks = [each.assessment.disk for each in destinations if isinstance(each, DiskDestination)]
    confirm_erasing(disks, yes=yes)


def _image_lines(
    image: "ImageLocation",
    member: str | None,
    plan: "WritePlan",
    recipe: "Recipe | None",
    warnings: Sequence[str],
) -> Iterator[str]:
    name = str(image) if member is None else f"{member} in {image}"
    size = "at least " if plan.image_size is None else ""
    yield f"Image:   {name}, {size}{format_size(plan.least_size)}"
    if recipe is not None:
        yield f"Recipe:  {recipe.path}, {recipe.name}"
    for warning in warnings:
        yield f"Warning: {warning}"


def destinations_lines(
    destinations: Sequence["Destination"], plan: "WritePlan", *, reads_back: bool
) -> list[str]:
    """What the targets are, what is lost with them, and, once for all, what will be done."""
    from balenaflash.commands.write import DiskDestination

    if len(destinations) == 1:
        return destination_lines(destinations[0], plan, reads_back=reads_back)
    disks = [each for each in destinations if isinstance(each, DiskDestination)]
    lines = [line for each in destinations for line in _short_lines(each)]
    if not disks:
        return lines
    nodes: dict[str, list[str]] = {}
    for each in disks:
        for text in _plan_texts(each, plan, reads_back=reads_back):
            nodes.setdefault(text, []).append(each.name)
    texts = [
        text if len(where) == len(disks) else f"{text} ({', '.join(where)})"
        for text, where in nodes.items()
    ]
    slowest = max(disks, key=lambda each: _seconds(each, plan, reads_back=reads_back) or math.inf)
    time = _time_text(slowest, plan, reads_back=reads_back)
    return [*lines, *indented("Plan:", texts), *indented("Time:", [time])]


def _short_lines(destination: "Destination") -> list[str]:
    """What one of several targets is, and what is lost with it."""
    from balenaflash.commands.write import DiskDestination

    if not isinstance(destination, DiskDestination):
        return [_file_line(destination)]
    lost = "; ".join(describe_content(destination.assessment))
    facts = ", ".join(short_description(destination.assessment.disk))
    return indented("Target:", [facts, f"lost: {lost}"])


def _file_line(destination: "FileDestination") -> str:
    is_new = find_type(destination.path) is None
    kind = "a new file" if is_new else "a file, whose content is lost"
    return f"Target:  {destination.name}, {kind}"


def destination_lines(
    destination: "Destination", plan: "WritePlan", *, reads_back: bool
) -> list[str]:
    """What the target is, what is lost with it, and what will be done to it."""
    from balenaflash.commands.write import DiskDestination

    if not isinstance(destination, DiskDestination):
        return [_file_line(destination)]
    assessment = destination.assessment
    return [
        *describe_disk(assessment.disk),
        *indented("Lost:", describe_content(assessment)),
        *indented("Plan:", _plan_texts(destination, plan, reads_back=reads_back)),
        *indented("Time:", [_time_text(destination, plan, reads_back=reads_back)]),
    ]


def _plan_texts(
    destination: "DiskDestination", plan: "WritePlan", *, reads_back: bool
) -> Iterator[str]:
    disk = destination.assessment.disk
    if destination.assessment.mounts:
        yield "unmount what is mounted"
    left = plan.least_size - plan.size_to_write
    more = " or more" if plan.image_size is None else ""
    leaving = f", leave {format_size(left)} that is free in the image" if left else ""
    if plan.free is None:
        leaving = ", less what turns out to be free in the image"
    yield f"write {format_size(plan.size_to_write)}{more}{leaving}; the first MiB last"
    if disk.size > plan.least_size:
        yield "wipe the backup of an earlier GPT at the end of the disk, if there is one"
    if destination.gpt_move:
        yield "move the backup GPT to the end of the disk"
    yield "read back all that was written" if reads_back else "do not read back (--no-verify)"


def _seconds(
    destination: "DiskDestination", plan: "WritePlan", *, reads_back: bool
) -> float | None:
    """What its port takes at least; ``None`` where that is not known."""
    from balenaflash.targets.disks import least_seconds

    if plan.free is None:
        return None
    amount = plan.size_to_write * (2 if reads_back else 1)
    return least_seconds(destination.assessment.disk, amount)


def _time_text(destination: "DiskDestination", plan: "WritePlan", *, reads_back: bool) -> str:
    seconds = _seconds(destination, plan, reads_back=reads_back)
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(int(seconds), _MINUTE)
    amount = f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    return f"at least {amount}, by the speed of USB port {destination.assessment.disk.usb_port}"
