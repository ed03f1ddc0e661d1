"""``--recipe`` and ``--var``: the edits of a recipe for the command they are given to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from balenaflash.boot.files import FileChange
    from balenaflash.recipe.reading import Recipe

F = TypeVar("F", bound=Callable[..., object])


def _split_variables(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    """Each ``NAME=VALUE``, taken apart at its first equals sign; of the same name the last."""
    from balenaflash.recipe.variables import NAME

    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not NAME.fullmatch(name):
            # Not the whole: what follows may not be for showing.
            raise click.BadParameter(f"{name!r} does not begin with NAME=.")
        variables[name] = value
    return variables


recipe_option = click.option(
    "--recipe",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Make the edits of this recipe in what is written or compared; IMAGE stays as it is.",
)

variable_option = click.option(
    "--var",
    "variables",
    metavar="NAME=VALUE",
    callback=_split_variables,
    multiple=True,
    help="What ${NAME} stands for in the recipe.",
)


def recipe_options(command: F) -> F:
    """Give ``command`` the parameters ``recipe`` and ``variables``, for `chosen_recipe`."""
    return recipe_option(variable_option(command))


def read_given_recipe(path: Path, variables: Mapping[str, str]) -> "Recipe":
    """The recipe that the command line asks for."""
    from balenaflash.recipe.reading import read_recipe
    from balenaflash.recipe.variables import Variables

    return read_recipe(path, Variables(variables))


def chosen_recipe(path: Path | None, variables: Mapping[str, str]) -> "Recipe | None":
    """The recipe that the command line asks for, if it does."""
    if path is None:
        if variables:
            raise click.UsageError("--var is for a recipe, and there is no --recipe.")
        return None
    return read_given_recipe(path, variables)


def recipe_result(
    recipe: "Recipe | None", changes: "tuple[FileChange, ...]"
) -> dict[str, object] | None:
    """What scripts get of the edits that ``recipe`` made in what was written or compared."""
    from balenaflash.cli.edit_answer import change_result

    if recipe is None:
        return None
    return {
        "file": str(recipe.path),
        "name": recipe.name,
        "changes": [change_result(change) for change in changes],
    }


def recipe_lines(recipe: "Recipe | None", changes: "tuple[FileChange, ...]") -> list[str]:
    """What people get of them."""
    from balenaflash.cli.edit_answer import change_line

    if recipe is None:
        return []
    return [f"Recipe:  {recipe.name}", *(f"         {change_line(change)}" for change in changes)]
