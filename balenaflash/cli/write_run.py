"""Carry out ``write``: free the targets, open them all, write, and leave each as it may be taken.

Apart from the command itself, since everything here happens after the question.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balenaflash.cli.answer import say
from balenaflash.cli.session import Session
from balenaflash.errors import BalenaflashError, InterruptedWriteError

if TYPE_CHECKING:
    from balenaflash.commands.write import Destination
    from balenaflash.flashing.flash import FlashOptions, Outcome
    from balenaflash.flashing.plan import WritePlan
    from balenaflash.source.base import Source
    from balenaflash.targets.leaving import Ending


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one target."""

    outcome: "Outcome"
    ending: "Ending | None"
    """How a disk was left; ``None`` for a file and for a target that failed."""


def unmount(session: Session, destinations: Sequence["Destination"]) -> None:
    """Unmount what was allowed to be, before any target is opened.

    Raises:
        TargetRefusedError: something stays mounted.
    """
    from balenaflash.commands.write import DiskDestination
    from balenaflash.targets.unmount import unmount_all

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
    *,
    ejects: bool,
) -> list[Done]:
    """Open every target, write, and leave each as its own outcome asks as soon as it is done."""
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import TargetsDisplay
    from balenaflash.commands.write import open_destination
    from balenaflash.flashing.flash import Target, flash

    done: dict[int, Done] = {}
    display = TargetsDisplay(session, [each.name for each in destinations])

    def finish(number: int, outcome: "Outcome") -> None:
        outcome = _close(opened[number], outcome)
        ending = leave(destinations[number], outcome, plan, ejects=ejects)
        done[number] = Done(outcome, ending)
        display.finish(number, *_word_of(outcome, ending))

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
        targets = [
            Target(medium, shown, destination.gpt_move, may_be_fake=destination.may_be_fake)
            for medium, shown, destination in zip(media, display.each, destinations, strict=True)
        ]
        outcomes = flash(source, plan, targets, options=options, stop=stop, finished=finish)
        for number, outcome in enumerate(outcomes):
            if number not in done:  # a user who has left does not wait for more
                done[number] = Done(_close(opened[number], outcome), None)
    return [done[number] for number in range(len(destinations))]


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


def leave(
    destination: "Destination", outcome: "Outcome", plan: "WritePlan", *, ejects: bool
) -> "Ending | None":
    """Settle and, if asked to, switch off a disk that all went well with."""
    from balenaflash.commands.write import DiskDestination
    from balenaflash.targets.leaving import end

    if isinstance(outcome, BalenaflashError) or not isinstance(destination, DiskDestination):
        return None
    return end(destination.assessment.disk, plan.partition_starts, ejects=ejects)


def _word_of(outcome: "Outcome", ending: "Ending | None") -> tuple[int, str]:
    """The exit status of one target, and what is said of it when it is done."""
    from balenaflash.cli.write_answer import left_text

    if isinstance(outcome, BalenaflashError):
        return outcome.exit_status, "failed; the reason is told at the end"
    return 0, "done" if ending is None else f"done, {left_text(ending)}"
