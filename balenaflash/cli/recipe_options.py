"""``--recipe``, ``--step``, ``--var``: edits for the command that they are given to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from balenaflash.cli.usage import WrongUsageError

if TYPE_CHECKING:
    from balenaflash.edits.files import FileChange
    from balenaflash.edits.recipe.reading import Recipe
    from balenaflash.edits.recipe.step import Variables

F = TypeVar("F", bound=Callable[..., object])

_OF_WORDS = ("recipe-", "config-assignment", "config-key-invalid", "config-secret", "path-invalid")
"""How the codes begin of what is wrong with a step itself, whatever the files that it names."""


def _split_variables(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    """Each ``NAME=VALUE``, taken apart at its first equals sign; of the same name the last."""
    from balenaflash.edits.recipe.step import NAME

    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not NAME.fullmatch(name):
            # Not the whole: what follows may not be for showing.
            raise click.BadParameter(f"{name!r} does not begin with NAME=.")
        variables[name] = value
    return variables


_OPTIONS = (
    click.option(
        "--recipe",
        metavar="FILE",
        type=click.Path(readable=False, path_type=Path),
        help="The edits to make; balenaflash edit --help tells what it may hold.",
    ),
    click.option(
        "--step",
        "steps",
        metavar="STEP",
        multiple=True,
        help='One more edit, as in a recipe: \'put = "logo.txt", to = "/splash/"\'.',
    ),
    click.option(
        "--var",
        "variables",
        metavar="NAME=VALUE",
        callback=_split_variables,
        multiple=True,
        help="What ${NAME} stands for in the recipe.",
    ),
)


def recipe_options(command: F) -> F:
    """Give ``command`` the parameters ``recipe``, ``steps``, ``variables``, for `chosen_recipe`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_recipe(
    path: Path | None, steps: Sequence[str], variables: Mapping[str, str]
) -> "Recipe | None":
    """The edits that the command line asks for, those of its recipe first; ``None`` for none."""
    if path is None and not steps:
        if variables:
            raise click.UsageError("--var is for a recipe, and there is no --recipe.")
        return None
    from balenaflash.edits.recipe.reading import read_recipe
    from balenaflash.edits.recipe.step import Variables

    given = Variables(variables)
    read = None if path is None else read_recipe(path, given)
    single = _parse_words(steps, given) if steps else None
    if read is None or single is None:
        return read or single
    return replace(read, edits=(*read.edits, *single.edits))


def _parse_words(steps: Sequence[str], variables: "Variables") -> "Recipe":
    from balenaflash.edits.recipe.reading import parse_steps
    from balenaflash.errors import ConfigError

    try:
        return parse_steps(steps, variables)
    except ConfigError as error:
        # Of the rest a file that a step names may be at fault.
        if any(problem.code.startswith(_OF_WORDS) for problem in error.problems):
            raise WrongUsageError(error) from error
        raise


def recipe_result(
    recipe: "Recipe | None", changes: "tuple[FileChange, ...]"
) -> dict[str, object] | None:
    """What scripts get of the edits that ``recipe`` made in what was written or compared."""
    if recipe is None:
        return None
    from balenaflash.cli.edit_answer import change_result

    return {
        "file": str(recipe.path),
        "name": recipe.name,
        "changes": [change_result(change) for change in changes],
    }


def recipe_lines(recipe: "Recipe | None", changes: "tuple[FileChange, ...]") -> list[str]:
    """What people get of them."""
    if recipe is None:
        return []
    from balenaflash.cli.edit_answer import change_line

    return [f"Recipe:  {recipe.name}", *(f"         {change_line(change)}" for change in changes)]
