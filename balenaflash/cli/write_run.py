"""Carry out ``write``: free the targets, open them all, write, and leave each as it may be taken.

Apart from the command itself, since everything here happens after the question.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from balenaflash.cli.answer import say
from balenaflash.cli.session import Session
from balenaflash.errors import BalenaflashError, InterruptedWriteError, LeftError

if TYPE_CHECKING:
    from balenaflash.destination import Destination
    from balenaflash.ending import Ending
    from balenaflash.flashing import FlashOptions, Outcome
    from balenaflash.image.source import Source
    from balenaflash.planning import WritePlan


def unmount(session: Session, destinations: Sequence["Destination"]) -> None:
    """Unmount what was allowed to be, before any target is opened.

    Raises:
        TargetRefusedError: something stays mounted.
    """
    from balenaflash.destination import DiskDestination
    from balenaflash.target.unmounting import unmount_all

    for each in destinations:
        if isinstance(each, DiskDestination) and each.assessment.mounts:
            for point in unmount_all(each.assessment.disk):
                if not session.quiet:
                    say(f"Unmounted {point}")


def flash_all(
    session: Session,
    source: "Source",
    plan: "WritePlan",
    destinations: Sequence["Destination"],
    options: "FlashOptions",
) -> Sequence["Outcome"]:
    """Open every target, write, and close each as its own outcome asks."""
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_of_targets
    from balenaflash.destination import open_destination
    from balenaflash.flashing import Target, flash

    with (
        _interruption_told(destinations),
        stop_at_next_block(session) as stop,
        ExitStack() as all_opened,
    ):
        opened = [all_opened.enter_context(ExitStack()) for _ in destinations]
        media = [
            each.enter_context(open_destination(destination, plan.least_size))
            for each, destination in zip(opened, destinations, strict=True)
        ]
        displays = progress_of_targets(session, [each.name for each in destinations])
        targets = [
            Target(medium, shown, destination.gpt_move, may_be_fake=destination.may_be_fake)
            for medium, shown, destination in zip(media, displays, destinations, strict=True)
        ]
        outcomes = flash(source, plan, targets, options=options, stop=stop)
        return [_close(*each) for each in zip(opened, outcomes, strict=True)]


@contextmanager
def _interruption_told(destinations: Sequence["Destination"]) -> Iterator[None]:
    """Say what the targets are when the user leaves without waiting for the block to end."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        names = ", ".join(each.name for each in destinations)
        raise InterruptedWriteError(
            f"{names}: left before the work on it had ended; what it holds is not known",
            hint="Write it again from the start.",
        ) from interrupt


def _close(opened: ExitStack, outcome: "Outcome") -> "Outcome":
    """Close one target as its own outcome asks: only an unfinished file is removed."""
    try:
        with opened:
            if isinstance(outcome, BalenaflashError):
                raise outcome
    except BalenaflashError as error:
        return error
    return outcome


def end_all(
    plan: "WritePlan",
    destinations: Sequence["Destination"],
    outcomes: Sequence["Outcome"],
    *,
    ejects: bool,
) -> Sequence["Ending | None"]:
    """Settle and, if asked to, switch off each disk that all went well with.

    A user who has left does not wait for that.
    """
    from balenaflash.destination import DiskDestination
    from balenaflash.ending import end

    if any(isinstance(outcome, LeftError) for outcome in outcomes):
        return [None] * len(outcomes)
    return [
        end(destination.assessment.disk, plan, ejects=ejects)
        if isinstance(destination, DiskDestination) and not isinstance(outcome, BalenaflashError)
        else None
        for destination, outcome in zip(destinations, outcomes, strict=True)
    ]
