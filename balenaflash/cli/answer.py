"""What a command returns: one result, as text for people or as JSON for scripts."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import click

from balenaflash.errors import Problem

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


def show_answer(answer: Answer, *, command: str, as_json: bool, quiet: bool) -> None:
    """Put the result on stdout and the warnings on stderr."""
    if not quiet:
        for warning in answer.warnings:
            click.echo(f"balenaflash: warning: {printable(warning)}", err=True)
    if as_json:
        _echo_envelope(command, 0, {**answer.result, "warnings": list(answer.warnings)}, ())
    elif answer.content is not None:
        sys.stdout.buffer.write(answer.content)
        sys.stdout.buffer.flush()
    else:
        for line in answer.lines:
            click.echo(printable(line))


def show_problems(
    problems: Sequence[Problem], *, command: str, exit_status: int, as_json: bool
) -> None:
    """Put each problem on stderr, its hint below it, and the envelope on stdout if asked for."""
    for problem in problems:
        click.echo(f"balenaflash: {printable(problem.message)}", err=True)
        if problem.hint:
            click.echo(f"  {printable(problem.hint)}", err=True)
    if as_json:
        _echo_envelope(command, exit_status, None, problems)


def printable(text: str) -> str:
    """``text`` without control characters and lone surrogates.

    Names inside an image are hostile input: an escape sequence in a partition's name must
    not reach the terminal.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


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
        "errors": [
            {"code": problem.code, "message": problem.message, "hint": problem.hint}
            for problem in problems
        ],
    }
    # Names that are not UTF-8 carry lone surrogates (PEP 383); escaped, the output stays UTF-8.
    text = json.dumps(envelope, indent=2, ensure_ascii=False)
    click.echo(text.encode("utf-8", "backslashreplace").decode())
