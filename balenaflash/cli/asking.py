"""The question before something is erased or changed, and a disk in words."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TextIO

import click

from balenaflash.cli.output import printable
from balenaflash.errors import TargetRefusedError, refusal
from balenaflash.targets.disks import Disk
from balenaflash.targets.safety import Assessment
from balenaflash.units import format_size

_TAKEN = f"{__name__}: standard input is taken"


def take_standard_input() -> None:
    """Note that the command reads its standard input: a question is then asked at /dev/tty."""
    if (context := click.get_current_context(silent=True)) is not None:
        context.meta[_TAKEN] = True


def confirm_erasing(disks: Sequence[Disk], *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees that all of ``disks`` is lost.

    Those that can be unplugged are one question. One that cannot is named by typing its name;
    the default is always No.

    Raises:
        TargetRefusedError: the answer was no, or nobody is there to give one.
    """
    plain = [disk for disk in disks if _is_plain(disk)]
    if plain:
        names = _listed([str(disk.node) for disk in plain])
        what = "it" if len(plain) == 1 else "them"
        confirm(f"Erase all of {names}?", f"{names}: erasing {what}", yes=yes)
    for disk in disks:
        if disk not in plain and not yes:
            _confirm_by_name(disk, "erase all of it", f"{disk.node}: erasing it")


def confirm_changing(disk: Disk, *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees that files on ``disk`` change; as for erasing."""
    subject = f"{disk.node}: changing it"
    if yes or _is_plain(disk):
        confirm(f"Change the boot partition of {disk.node}?", subject, yes=yes)
    else:
        _confirm_by_name(disk, "change its boot partition", subject)


def confirm(question: str, subject: str, *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees; ``subject`` is what was not confirmed if not.

    Raises:
        TargetRefusedError: the answer was no, or nobody is there to give one.
    """
    if not yes and _ask(f"{question} [y/N]: ", subject).casefold() not in {"y", "yes"}:
        raise _not_confirmed(subject)


def _confirm_by_name(disk: Disk, deed: str, subject: str) -> None:
    question = f"{disk.node} is built in. Type its name ({disk.node.name}) to {deed}: "
    if _ask(question, subject) not in {disk.node.name, str(disk.node)}:
        raise _not_confirmed(subject)


def _is_plain(disk: Disk) -> bool:
    """Whether yes is enough of an answer."""
    return disk.is_external or disk.is_virtual


def _ask(question: str, subject: str) -> str:
    """What the user types, without blanks around it; empty at the end of the input too."""
    with _terminal(subject) as (reading, writing):
        click.echo(printable(question), nl=False, file=writing)
        try:
            answer = reading.readline()
        except (OSError, UnicodeDecodeError):
            answer = ""  # EIO: the terminal has gone
        if not answer.endswith("\n"):
            click.echo(file=writing)
        return printable(answer.strip())


@contextmanager
def _terminal(subject: str) -> Iterator[tuple[TextIO, TextIO]]:
    """Where to read the answer and where to ask.

    Raises:
        TargetRefusedError: there is no terminal to ask at.
    """
    if sys.stdin.isatty():
        yield sys.stdin, sys.stderr
        return
    context = click.get_current_context(silent=True)
    if context is None or _TAKEN not in context.meta:
        raise _nobody_there(subject)
    with ExitStack() as opened:
        try:
            # Two, for Python opens a terminal for both only where it can seek.
            streams = [
                opened.enter_context(open(os.ctermid(), mode, encoding="utf-8"))  # noqa: PTH123
                for mode in ("r", "w")
            ]
        except OSError as error:  # ENXIO: the process has no terminal
            raise _nobody_there(subject) from error
        yield streams[0], streams[1]


def _nobody_there(subject: str) -> TargetRefusedError:
    return refusal(
        "not-confirmed",
        f"{subject} was not confirmed, and nobody is there to ask",
        "Add --yes to answer the question beforehand.",
        lifted_by="--yes",
    )


def _not_confirmed(subject: str) -> TargetRefusedError:
    return refusal("not-confirmed", f"{subject} was not confirmed")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def describe_disk(disk: Disk) -> list[str]:
    """Which disk it is: what stands on it, in it, and where it is plugged in."""
    name = " ".join(part for part in (disk.vendor, disk.model) if part) or "unknown model"
    lines = [
        f"Target:  {disk.node}, {disk.bus}, {format_size(disk.size)} ({disk.size} bytes)",
        f"         {name}, serial {disk.serial or 'unknown'}",
    ]
    if disk.usb_port:
        lines.append(f"         USB port {disk.usb_port}")
    if disk.backing_file:
        lines.append(f"         shows {disk.backing_file}")
    return lines


def short_description(disk: Disk) -> list[str]:
    """Which disk it is, as facts for one line."""
    name = " ".join(part for part in (disk.vendor, disk.model) if part)
    facts = [str(disk.node), disk.bus.value, format_size(disk.size), name]
    facts.append(f"serial {disk.serial}" if disk.serial else "")
    facts.append(f"USB port {disk.usb_port}" if disk.usb_port else "")
    facts.append(f"shows {disk.backing_file}" if disk.backing_file else "")
    return list(filter(None, facts))


def describe_content(assessment: Assessment) -> list[str]:
    """What is on a disk now: its partitions or its one filesystem, and where they are mounted."""
    # What reads a disk is loaded where one is shown.
    from balenaflash.commands.disk_content import find_content

    texts = []
    for each in find_content(assessment.disk):
        label = f" {each.label}" if each.label else ""
        filesystem = each.filesystem or "unknown content"
        texts.append(f"{each.name}: {filesystem}{label}, {format_size(each.size)}")
    texts += [f"{each.device} is mounted at {each.detail}" for each in assessment.mounts]
    return texts or ["no partition or filesystem known to this system"]


def indented(head: str, texts: Iterable[str]) -> list[str]:
    """``texts`` a line each, the first behind ``head``."""
    heads = iter([head])
    return [f"{next(heads, ''):<9}{text}" for text in texts]
