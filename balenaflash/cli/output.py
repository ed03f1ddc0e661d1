"""The result of a command, as text or JSON, the streams it goes to, and commands as they are typed.

A message that nobody can read is dropped. A result that cannot be written is an `OutputError`,
which the command line turns into an exit status of its own.
"""

import errno
import io
import json
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from balenaflash.errors import BalenaflashError, CodedText, Problem
from balenaflash.programs import find_typed_program
from balenaflash.units import format_size

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


COMMANDS = {
    "bmap": "Make a block map of an image, or compare the image with one.",
    "boot": "Look at and change the boot partition of an image.",
    "completion": "Print the completion script for SHELL.",
    "config": "Show and change config.json in the boot partition of an image.",
    "devices": (
        "List the disks that `write` accepts; with --all also those it refuses, with the reasons."
    ),
    "edit": "Make all edits of a recipe in the boot partition of IMAGE, or none of them.",
    "inspect": "Show what IMAGE is: partitions, boot partition, board, version, configuration.",
    "manual": "Print the manual page, balenaflash(1).",
    "network": "Show and change the networks that boards join: /system-connections of an image.",
    "sample": "Make OUT, a complete image of balenaOS layout with small contents.",
    "udev": "Let people write removable disks without root, by rules for udev.",
    "unwrap": (
        "Make OUT, the image that FLASHER installs, as it would leave it on the board's disk."
    ),
    "verify": "Compare TARGET, byte for byte, with IMAGE.",
    "write": "Write IMAGE to each TARGET, read it back, and compare.",
}
"""The commands, and the first sentence of the help of each."""

_NAME = "balenaflash"
_COMMAND = re.compile(
    rf"(?<![\w/.-])(?P<root>sudo )?{_NAME}(?= (?:\.\.\.|(?:{'|'.join(COMMANDS)})\b))"
)


def as_called(text: str) -> str:
    """``text`` with each ``balenaflash COMMAND`` in it as this user has to type it.

    With ``sudo`` in front it is one that only root may run.
    """
    return _COMMAND.sub(lambda found: _typed(needs_root=found["root"] is not None), text)


def _typed(*, needs_root: bool) -> str:
    by_sudo = "SUDO_USER" in os.environ if os.geteuid() == 0 else needs_root
    program = shlex.join(_program(by_sudo=by_sudo))
    return f"sudo {program}" if by_sudo else program


def _program(*, by_sudo: bool) -> list[str]:
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        python = sys.orig_argv[0]
        return [sys.executable if by_sudo and "/" not in python else python, "-m", _NAME]
    if started.name != _NAME:
        return [_NAME]  # a program that has this one in it
    found = find_typed_program(_NAME, by_sudo=by_sudo)
    if found is not None and started.exists() and started.samefile(found):
        return [_NAME]
    return [str(started.absolute() if by_sudo else started)]


_INPUT, _OUTPUT, _ERROR = 0, 1, 2


class OutputError(Exception):
    """Standard output cannot be written. It swallows what is written to it from now on."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror)
        self.has_no_reader = cause.errno == errno.EPIPE


def prepare_standard_streams() -> None:
    """Open what is closed, and let no failing output raise an `OSError`.

    Without this the next file opened, a target perhaps, would get the number of a closed
    standard error, and every message would be written into it.
    """
    _open_closed()
    # A standard input that is closed is open for writing only: reading it fails.
    if sys.stdin is None:
        sys.stdin = open(_INPUT, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = _text_stream(io.BufferedWriter(_Output(_OUTPUT)), sys.stdout)
    sys.stderr = _text_stream(_Output(_ERROR, drops=True), sys.stderr)


def show(status: int, shown: Callable[[], None]) -> int:
    """Show a result, and return ``status``, or what a failing standard output makes of it.

    Work that is done stays done: only exit status 0 changes.
    """
    try:
        shown()
        sys.stdout.flush()
    except OutputError as error:
        return output_failed(error, status)
    return status


def output_failed(error: OutputError, status: int) -> int:
    """The exit status of a command whose result cannot be written; reports it where needed.

    A reader that closed the pipe needs no message.
    """
    if error.has_no_reader:
        return status or 128 + signal.SIGPIPE
    click.echo(f"balenaflash: standard output: cannot be written: {error}", err=True)
    if not status:
        click.echo("  The work itself is done; only its result could not be printed.", err=True)
    return status or 1


def write_error(message: bytes) -> None:
    """Write to standard error at once, also from a signal handler; errors are ignored."""
    _Output(_ERROR, drops=True).write(message)


def _open_closed() -> None:
    for descriptor in (_INPUT, _OUTPUT, _ERROR):
        try:
            os.fstat(descriptor)
        except OSError:  # EBADF: it is closed, and open(2) returns the lowest free number
            # Opened for the opposite direction: using it fails as if it were closed.
            opened = os.open(os.devnull, os.O_WRONLY if descriptor == _INPUT else os.O_RDONLY)
            os.set_inheritable(opened, True)


def _text_stream(binary: io.RawIOBase | io.BufferedIOBase, old: object) -> io.TextIOWrapper:
    encoding = getattr(old, "encoding", None) or "utf-8"
    errors = getattr(old, "errors", None) or "backslashreplace"
    return io.TextIOWrapper(binary, encoding, errors, write_through=True)  # type: ignore[arg-type]  # a raw stream does


class _Output(io.RawIOBase):
    """A descriptor for writing. A failure is an `OutputError`; with ``drops`` it is ignored."""

    def __init__(self, descriptor: int, *, drops: bool = False) -> None:
        self._descriptor = descriptor
        self._drops = drops
        self._is_broken = False

    def write(self, data: "ReadableBuffer", /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self._is_broken:
                rest = rest[self._write_some(rest) :]
        except OSError as error:
            if not self._drops:
                self._is_broken = True
                raise OutputError(error) from error
        return size

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            # Another process that shares the pipe has made it non-blocking.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


P = ParamSpec("P")
R = TypeVar("R")


class ColorChoice(StrEnum):
    """Use of colour in the result."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class ColoredLine(str):
    """A line with escape sequences of our own; any other text in it was made printable."""

    __slots__ = ()


def color_option(command: Callable[P, R]) -> Callable[P, R]:
    """The option ``--color`` of a command, handed to it as ``color``."""
    return click.option(
        "--color",
        type=click.Choice([choice.value for choice in ColorChoice]),
        default=ColorChoice.AUTO.value,
        show_default=True,
        help="When to colour the output; auto is on a terminal, unless NO_COLOR is set.",
    )(command)


def is_color_wanted(choice: ColorChoice) -> bool:
    """True if stdout is to be coloured, by option, environment and terminal in this order."""
    if choice is not ColorChoice.AUTO:
        return choice is ColorChoice.ALWAYS
    # https://no-color.org: "when present and not an empty string (regardless of its value)".
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty()


def size_text(size: int, *, exact: bool) -> str:
    """``size`` in binary units, or with ``exact`` in bytes."""
    return str(size) if exact else format_size(size)


def known(value: object | None) -> str:
    """``value`` as text; "unknown" for ``None``."""
    return "unknown" if value is None else str(value)


def table_lines(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()
) -> list[str]:
    """``rows`` below ``heads``, columns two blanks apart, those in ``right`` flush right."""
    grid = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in grid) for column in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in grid
    ]


FORMAT = 1
"""Version of the JSON envelope; raised when a change is more than an addition."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a command that did not fail."""

    result: Mapping[str, object]
    """The JSON ``result``; sizes in bytes. The keys are an interface."""

    lines: Sequence[str] = ()
    """Text for stdout; may change at any time."""

    warnings: Sequence[str] = ()
    """Shown on stderr, a line each."""

    content: bytes | None = field(default=None, repr=False)
    """Bytes for stdout as they are, instead of ``lines``."""

    failures: Sequence[BalenaflashError] = ()
    """Failures of some of several targets; the worst decides the exit status."""

    @property
    def exit_status(self) -> int:
        """0, or that of the worst failure."""
        return max((failure.exit_status for failure in self.failures), default=0)


def show_answer(
    answer: Answer, *, command: str, exit_status: int, as_json: bool, quiet: bool
) -> None:
    """Print the result on stdout and the warnings on stderr."""
    warnings = [as_called(warning) for warning in answer.warnings]
    if not quiet:
        for warning in warnings:
            say(f"balenaflash: warning: {warning}")
    problems = [problem for failure in answer.failures for problem in failure.problems]
    _echo_problems(problems)
    if as_json:
        codes = (each.code for each in answer.warnings if isinstance(each, CodedText))
        result = {
            **answer.result,
            "warnings": warnings,
            "warning_codes": list(dict.fromkeys(codes)),
        }
        _echo_envelope(command, exit_status, result, problems)
    elif answer.content is not None:
        sys.stdout.buffer.write(answer.content)
        sys.stdout.buffer.flush()
    else:
        for line in answer.lines:
            # As after any failure, nothing is printed on stdout if one of several targets failed.
            say(line, err=bool(answer.failures))


def show_problems(
    problems: Sequence[Problem], *, command: str, exit_status: int, as_json: bool
) -> None:
    """Print each problem and its hint on stderr, or the JSON envelope on stdout."""
    _echo_problems(problems)
    if as_json:
        _echo_envelope(command, exit_status, None, problems)


def _echo_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        say(f"balenaflash: {problem.message}")
        if problem.hint:
            say(f"  {as_called(problem.hint)}")


def say(line: str, *, err: bool = True) -> None:
    """Print a line of text, by default on stderr; line ends and control characters are escaped.

    All text for people leaves the program here, so that nothing in it can act on a terminal.
    """
    is_colored = isinstance(line, ColoredLine)
    click.echo(line if is_colored else printable(line), err=err, color=is_colored or None)


def say_json(value: object, *, err: bool = False, indent: int | None = None) -> None:
    """Print a value as one line of JSON, by default on stdout."""
    click.echo(json_line(value, indent=indent), err=err)


def json_line(value: object, *, indent: int | None = None) -> str:
    """``value`` as JSON, with the characters escaped that `printable` escapes.

    Names that are not UTF-8 carry lone surrogates (PEP 383); escaped, the output stays UTF-8.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(map(_json_char, text))


def printable(text: str) -> str:
    """``text`` without control, bidirectional and other invisible characters, and surrogates.

    Names in an image and from a USB device are hostile input: an escape sequence in them must not
    reach the terminal, and they must not imitate other text.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def _json_char(char: str) -> str:
    # A line end is between values; json escapes those inside strings.
    if char.isprintable() or char == "\n":
        return char
    return f"\\u{ord(char):04x}" if char.isascii() else json.dumps(char)[1:-1]


def problem_result(problem: Problem) -> dict[str, object]:
    """One problem, for scripts. The keys are an interface."""
    return {
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint and as_called(problem.hint),
        "lifted_by": problem.lifted_by,
    }


def _echo_envelope(
    command: str,
    exit_status: int,
    result: Mapping[str, object] | None,
    problems: Sequence[Problem],
) -> None:
    envelope = {
        "format": FORMAT,
        "command": command,
        "status": "error" if exit_status else "ok",
        "exit_status": exit_status,
        "result": result,
        "errors": [problem_result(problem) for problem in problems],
    }
    say_json(envelope, indent=2)
