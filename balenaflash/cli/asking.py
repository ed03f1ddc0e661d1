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
    """Note that the command reads its standard input, so that questions go to /dev/tty."""
    if (context := click.get_current_context(silent=True)) is not None:
        context.meta[_TAKEN] = True


def confirm_erasing(disks: Sequence[Disk], *, yes: bool) -> None:
    """Return once the user, or ``--yes``, has agreed to lose everything on ``disks``.

    There is one question for all disks that can be unplugged. For a built-in disk the user types
    its name. The default answer is No.

    Raises:
        TargetRefusedError: the answer was no, or there is no terminal to ask at.
    """
    plain = [disk for disk in disks if _is_plain(disk)]
    if plain:
        *others, last = (str(disk.node) for disk in plain)
        names = f"{', '.join(others)} and {last}" if others else last
        what = "it" if len(plain) == 1 else "them"
        confirm(f"Erase all of {names}?", f"{names}: erasing {what}", yes=yes)
    for disk in disks:
        if disk not in plain and not yes:
            _confirm_by_name(disk, "erase all of it", f"{disk.node}: erasing it")


def confirm_changing(disk: Disk, *, yes: bool) -> None:
    """Return once the user, or ``--yes``, has agreed to change files on ``disk``."""
    subject = f"{disk.node}: changing it"
    if yes or _is_plain(disk):
        confirm(f"Change the boot partition of {disk.node}?", subject, yes=yes)
    else:
        _confirm_by_name(disk, "change its boot partition", subject)


def confirm(question: str, subject: str, *, yes: bool) -> None:
    """Return once the user, or ``--yes``, has agreed; ``subject`` begins the refusal.

    Raises:
        TargetRefusedError: the answer was no, or there is no terminal to ask at.
    """
    if not yes and _ask(f"{question} [y/N]: ", subject).casefold() not in {"y", "yes"}:
        raise _not_confirmed(subject)


def _confirm_by_name(disk: Disk, deed: str, subject: str) -> None:
    question = f"{disk.node} is built in. Type its name ({disk.node.name}) to {deed}: "
    if _ask(question, subject) not in {disk.node.name, str(disk.node)}:
        raise _not_confirmed(subject)


def _is_plain(disk: Disk) -> bool:
    """True if "yes" is enough as an answer."""
    return disk.is_external or disk.is_virtual


def _ask(question: str, subject: str) -> str:
    """The line that the user types, stripped; empty at the end of the input."""
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
    """Streams to read the answer from and to write the question to.

    Raises:
        TargetRefusedError: no terminal can be opened.
    """
    if sys.stdin.isatty():
        yield sys.stdin, sys.stderr
        return
    context = click.get_current_context(silent=True)
    if context is None or _TAKEN not in context.meta:
        raise _nobody_there(subject)
    with ExitStack() as opened:
        try:
            # Two streams: Python opens a file for both directions only if it can seek.
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
        f"{subject} was not confirmed, and there is no terminal to ask at",
        "Add --yes to skip the confirmation prompt.",
        lifted_by="--yes",
    )


def _not_confirmed(subject: str) -> TargetRefusedError:
    return refusal("not-confirmed", f"{subject} was not confirmed")


def describe_disk(disk: Disk) -> list[str]:
    """Identity of a disk: node, bus, size, model, serial number, port."""
    name = " ".join(part for part in (disk.vendor, disk.model) if part) or "unknown model"
    lines = [
        f"Target:  {disk.node}, {disk.bus}, {format_size(disk.size)} ({disk.size} bytes)",
        f"         {name}, serial {disk.serial or 'unknown'}",
    ]
    if disk.usb_port:
        lines.append(f"         USB port {disk.usb_port}")
    if disk.backing_file:
        lines.append(f"         backed by {disk.backing_file}")
    return lines


def short_description(disk: Disk) -> list[str]:
    """Identity of a disk, as facts for one line."""
    name = " ".join(part for part in (disk.vendor, disk.model) if part)
    facts = [str(disk.node), disk.bus.value, format_size(disk.size), name]
    facts.append(f"serial {disk.serial}" if disk.serial else "")
    facts.append(f"USB port {disk.usb_port}" if disk.usb_port else "")
    facts.append(f"backed by {disk.backing_file}" if disk.backing_file else "")
    return list(filter(None, facts))


def describe_content(assessment: Assessment) -> list[str]:
    """Content of a disk: partitions or its one filesystem, and their mount points."""
    # The readers of disks are loaded only where a disk is shown.
    from balenaflash.commands.disk_report import find_content

    texts = []
    for each in find_content(assessment.disk):
        label = f" {each.label}" if each.label else ""
        filesystem = each.filesystem or "unknown content"
        texts.append(f"{each.name}: {filesystem}{label}, {format_size(each.size)}")
    texts += [f"{each.device} is mounted at {each.detail}" for each in assessment.mounts]
    return texts or ["no known partition or filesystem"]


def indented(head: str, texts: Iterable[str]) -> list[str]:
    """``texts`` a line each, the first after ``head``."""
    heads = iter([head])
    return [f"{next(heads, ''):<9}{text}" for text in texts]
