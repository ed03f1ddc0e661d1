"""What a command returns: one result, as text for people or as JSON for scripts."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import click

from balenaflash.cli.color import ColoredLine
from balenaflash.cli.invocation import as_called
from balenaflash.errors import BalenaflashError, CodedText, Problem

FORMAT = 1
"""Version of the JSON envelope; raised when a change is more than an addition."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a command that did not fail."""

    result: Mapping[str, object]
    """What scripts get under ``result``; sizes in bytes. The keys are an interface."""

    lines: Sequence[str] = ()
    """What people get on stdout; may change at any time."""

    warnings: Sequence[str] = ()
    """Shown on stderr, a line each."""

    content: bytes | None = field(default=None, repr=False)
    """Bytes for stdout as they are, instead of ``lines``."""

    failures: Sequence[BalenaflashError] = ()
    """What went wrong with some of several targets; the worst decides the exit status."""

    @property
    def exit_status(self) -> int:
        """0, or that of the worst failure."""
        return max((failure.exit_status for failure in self.failures), default=0)


def show_answer(
    answer: Answer, *, command: str, exit_status: int, as_json: bool, quiet: bool
) -> None:
    """Put the result on stdout and the warnings on stderr."""
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
            # Of a command that failed in part nothing goes to stdout, as of any that failed.
            say(line, err=bool(answer.failures))


def show_problems(
    problems: Sequence[Problem], *, command: str, exit_status: int, as_json: bool
) -> None:
    """Put each problem on stderr, its hint below it, and the envelope on stdout if asked for."""
    _echo_problems(problems)
    if as_json:
        _echo_envelope(command, exit_status, None, problems)


def _echo_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        say(f"balenaflash: {problem.message}")
        if problem.hint:
            say(f"  {as_called(problem.hint)}")


def say(line: str, *, err: bool = True) -> None:
    """Show people a line, on stderr if not told otherwise: whatever is in it, it stays one line.

    All text for people leaves the program here, so that nothing in it can act on a terminal.
    """
    is_colored = isinstance(line, ColoredLine)
    click.echo(line if is_colored else printable(line), err=err, color=is_colored or None)


def say_json(value: object, *, err: bool = False, indent: int | None = None) -> None:
    """Show scripts a value, on stdout if not told otherwise."""
    click.echo(json_line(value, indent=indent), err=err)


def json_line(value: object, *, indent: int | None = None) -> str:
    """A value as scripts get it, with what `printable` escapes escaped.

    Names that are not UTF-8 carry lone surrogates (PEP 383); escaped, the output stays UTF-8.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(map(_json_char, text))


def printable(text: str) -> str:
    """``text`` without control, bidirectional and other invisible characters, and surrogates.

    Names inside an image, or from a USB device, are hostile input: an escape sequence in them
    must not reach the terminal, nor may they pretend to be other text.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def _json_char(char: str) -> str:
    # A line end is one between values; inside a string json has escaped it.
    if char.isprintable() or char == "\n":
        return char
    return f"\\u{ord(char):04x}" if char.isascii() else json.dumps(char)[1:-1]


def problem_result(problem: Problem) -> dict[str, object]:
    """What scripts get of one problem. The keys are an interface."""
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
