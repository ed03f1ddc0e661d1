"""A recipe read from its TOML file."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from balenaflash.balena.image import DEVICE_TYPE_PATH
from balenaflash.edits.change import Edit
from balenaflash.edits.config.edit import read_slug
from balenaflash.edits.files import FileChange
from balenaflash.edits.recipe.schema import RECIPE
from balenaflash.edits.recipe.step import (
    COMMAND_LINE,
    Checker,
    Source,
    Variables,
    find_lines,
    read_text,
)
from balenaflash.edits.recipe.steps import edits_of
from balenaflash.errors import ConfigError, EditError, InvalidConfigError
from balenaflash.formats.fat.pyfatfs import FatVolume


@dataclass(frozen=True, slots=True)
class Recipe:
    """Edits under a name."""

    path: Path
    name: str
    edits: tuple[Edit, ...]
    """In their order; the first of them may be that the image is for the right board."""


@dataclass(frozen=True, slots=True)
class RequireDeviceType:
    """Change nothing, and go on only with an image for one of some device types."""

    slugs: tuple[str, ...]
    source: Source

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Look at ``volume``.

        Raises:
            EditError: the image is for another device type, or does not tell.
        """
        slug = read_slug(volume)
        if slug in self.slugs:
            return ()
        fact = f"the image is for {slug!r}" if slug else f"{DEVICE_TYPE_PATH} of the image has none"
        with self.source.blamed(("for",)):
            raise EditError(
                f"the recipe is for device type {' or '.join(self.slugs)}, and {fact}",
                code="recipe-device-type",
            )

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"require device type {' or '.join(self.slugs)}"


def read_recipe(path: Path, variables: Variables) -> Recipe:
    """The recipe in the file at ``path``, with ``variables`` filled in; errors as `parse_recipe`.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        text = read_text(path)
    except EditError as error:
        raise ConfigError(str(error), code="recipe-unreadable", hint=error.hint) from error
    return parse_recipe(text, path, variables)


def parse_steps(steps: Sequence[str], variables: Variables) -> Recipe:
    """The recipe of single ``steps``, such as ``put = "logo.txt", to = "/lab/"``.

    Each is the inside of an inline table of TOML. Messages call them lines of ``--step``; local
    paths are relative to the current directory. Errors as `parse_recipe`.
    """
    # On one line each, the first on line 1, so that the number of a line is that of its step.
    tables = ",\n".join(f"{{ {step} }}" for step in steps)
    text = f'step = [{tables}]\nname = "{COMMAND_LINE}"\n'
    return parse_recipe(text, COMMAND_LINE, variables)


def parse_recipe(text: str, path: Path, variables: Variables) -> Recipe:
    """The recipe in ``text``, which was read from ``path``, with ``variables`` filled in.

    Local files are read now, except those that are copied as they are.

    Raises:
        ConfigError: it is not valid; all that is wrong is told at once, each with its line and
            key.
    """
    content, source = _parse(text, path)
    checker = Checker(source, variables)
    steps = content.pop("step", [])
    values = checker.check_table(content, RECIPE, ())
    edits = _edits(steps, checker)
    if checker.problems:
        raise InvalidConfigError(checker.problems)
    name, slugs = values["name"], values.get("for")
    required = (RequireDeviceType(slugs, source),) if isinstance(slugs, tuple) else ()
    return Recipe(path, str(name), (*required, *edits))


def _parse(text: str, path: Path) -> tuple[dict[str, object], Source]:
    try:
        content: dict[str, object] = tomllib.loads(text)
        return content, Source(path, find_lines(text))
    except RecursionError as error:
        raise _invalid(path, "it is nested too deeply") from error
    except ValueError as error:  # also for a number with more digits than Python reads
        raise _invalid(path, str(error)) from error


def _edits(steps: object, checker: Checker) -> list[Edit]:
    edits: list[Edit] = []
    with checker.noted(("step",)):
        for number, table in enumerate(_tables(steps)):
            step = checker.check_step(table, ("step", number))
            if step is not None:
                with checker.gathered():
                    edits += edits_of(step)
    return edits


def _tables(steps: object) -> list[object]:
    if isinstance(steps, list) and steps:
        return steps
    raise ConfigError(
        "there is no step", code="recipe-step", hint="Begin each with a line [[step]]."
    )


def _invalid(path: Path, fact: str) -> ConfigError:
    return ConfigError(f"{path}: is not valid TOML: {fact}", code="recipe-toml")
