"""What ``write`` shows, on one screen, before it asks whether a disk may be erased."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from balenaflash.cli.answer import say
from balenaflash.cli.confirmation import confirm_erasing
from balenaflash.cli.disk_text import describe_content, describe_disk, indented
from balenaflash.cli.session import Session
from balenaflash.extent import format_size

if TYPE_CHECKING:
    from balenaflash.destination import Destination, DiskDestination
    from balenaflash.image.container.location import ImageLocation
    from balenaflash.planning import WritePlan
    from balenaflash.recipe.reading import Recipe

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
    """Show image, targets, what is lost and what will be done, and ask for each disk.

    Raises:
        TargetRefusedError: the answer was no, or nobody is there to give one.
    """
    from balenaflash.destination import DiskDestination

    if not session.quiet:
        # Without a question they are shown once, at the end.
        warnings = () if yes else plan.warnings
        for line in _image_lines(image, member, plan, recipe, warnings):
            say(line)
        for each in destinations:
            for line in destination_lines(each, plan, reads_back=reads_back):
                say(line)
    for each in destinations:
        if isinstance(each, DiskDestination):
            confirm_erasing(each.assessment.disk, yes=yes)


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


def destination_lines(
    destination: "Destination", plan: "WritePlan", *, reads_back: bool
) -> list[str]:
    """What the target is, what is lost with it, and what will be done to it."""
    from balenaflash.destination import DiskDestination

    if not isinstance(destination, DiskDestination):
        is_new = not destination.path.exists()
        kind = "a new file" if is_new else "a file, whose content is lost"
        return [f"Target:  {destination.name}, {kind}"]
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


def _time_text(destination: "DiskDestination", plan: "WritePlan", *, reads_back: bool) -> str:
    from balenaflash.duration import least_seconds

    disk = destination.assessment.disk
    seconds = least_seconds(disk, plan.size_to_write * (2 if reads_back else 1))
    if seconds is None or plan.free is None:
        return "unknown"
    minutes, rest = divmod(int(seconds), _MINUTE)
    amount = f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    return f"at least {amount}, by the speed of USB port {disk.usb_port}"
