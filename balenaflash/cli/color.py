"""Colour in what goes to stdout: only where someone looks at it, and never needed."""

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import ParamSpec, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")


class ColorChoice(StrEnum):
    """When the result is coloured."""

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
    """Whether stdout is to be coloured: the option, else the environment, else the terminal."""
    if choice is not ColorChoice.AUTO:
        return choice is ColorChoice.ALWAYS
    # https://no-color.org: "when present and not an empty string (regardless of its value)".
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty()
