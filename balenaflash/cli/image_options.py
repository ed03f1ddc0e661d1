"""Options about the content of an image: its sum and signature, and the edits of a recipe."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from balenaflash.balena.signature import (
    MAX_CERTIFICATE_SIZE,
    CertificateFile,
    SignatureCheck,
    require_signature,
)
from balenaflash.cli.arguments import WrongUsageError, read_given
from balenaflash.cli.changes import change_line, change_result
from balenaflash.edits.files import FileChange
from balenaflash.edits.given_text import given_bytes, without_mark
from balenaflash.edits.recipe.reading import Recipe, parse_steps, read_recipe
from balenaflash.edits.recipe.step import NAME, Variables
from balenaflash.errors import ConfigError
from balenaflash.source.location import ImageLocation

if TYPE_CHECKING:
    _SizeType = click.ParamType[int]
else:
    _SizeType = click.ParamType  # generic since click 8.4


def _lower_case_sum(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    if value is None:
        return None
    value = without_mark(value)
    if re.fullmatch(r"[0-9a-fA-F]{64}", value) is None:
        raise click.BadParameter("a SHA-256 has 64 hexadecimal digits")
    return value.lower()


sha256_option = click.option(
    "--sha256",
    metavar="HEX",
    callback=_lower_case_sum,
    help="Refuse IMAGE unless its SHA-256, or that of the downloaded file, is HEX.",
)


certificate_option = click.option(
    "--certificate",
    type=click.Path(dir_okay=False, readable=False),
    metavar="FILE",
    help="Refuse IMAGE unless its signature verifies against this certificate, in PEM or DER.",
)


def read_certificate(name: str) -> CertificateFile:
    """Read the certificate in the file ``name``.

    Raises:
        EditError: it cannot be read.
    """
    content = given_bytes(read_given(name, limit=MAX_CERTIFICATE_SIZE), name)
    return CertificateFile(name, content, of_image=False)


def signature_checks(image: ImageLocation, certificate: str | None) -> tuple[SignatureCheck, ...]:
    """The check of ``image`` that ``--certificate`` asks for; none without the option.

    Raises:
        ImageError, EditError, ToolMissingError: it cannot be checked.
    """
    if certificate is None:
        return ()

    return (require_signature(image, read_certificate(certificate)),)


F = TypeVar("F", bound=Callable[..., object])


_OF_WORDS = ("recipe-", "config-assignment", "config-key-invalid", "config-secret", "path-invalid")
"""Prefixes of codes of errors in a step itself, not in the files that it names."""


def _split_variables(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    """Split each ``NAME=VALUE`` at its first equals sign; the last one of a name wins."""
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not NAME.fullmatch(name):
            # Only the name: the value may be a secret.
            raise click.BadParameter(f"{name!r} does not begin with NAME=.")
        variables[name] = value
    return variables


_OPTIONS = (
    click.option(
        "--recipe",
        metavar="FILE",
        type=click.Path(readable=False, path_type=Path),
        help="The edits to make; see balenaflash edit --help for the format.",
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
        help="The value of ${NAME} in the recipe.",
    ),
)


def recipe_options(command: F) -> F:
    """Give ``command`` the parameters ``recipe``, ``steps``, ``variables``, for `chosen_recipe`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_recipe(
    path: Path | None, steps: Sequence[str], variables: Mapping[str, str]
) -> Recipe | None:
    """The edits of the recipe, then those of ``--step``; ``None`` without either."""
    if path is None and not steps:
        if variables:
            raise click.UsageError("--var needs --recipe or --step.")
        return None

    given = Variables(variables)
    read = None if path is None else read_recipe(path, given)
    single = _parse_words(steps, given) if steps else None
    if read is None or single is None:
        return read or single
    return replace(read, edits=(*read.edits, *single.edits))


def _parse_words(steps: Sequence[str], variables: Variables) -> Recipe:
    try:
        return parse_steps(steps, variables)
    except ConfigError as error:
        # With other codes a file that a step names may be at fault.
        if any(problem.code.startswith(_OF_WORDS) for problem in error.problems):
            raise WrongUsageError(error) from error
        raise


def recipe_result(
    recipe: Recipe | None, changes: tuple[FileChange, ...]
) -> dict[str, object] | None:
    """The edits that ``recipe`` made in what was written or compared, for scripts."""
    if recipe is None:
        return None

    return {
        "file": str(recipe.path),
        "name": recipe.name,
        "changes": [change_result(change) for change in changes],
    }


def recipe_lines(recipe: Recipe | None, changes: tuple[FileChange, ...]) -> list[str]:
    """The edits of ``recipe``, for people."""
    if recipe is None:
        return []

    return [f"Recipe:  {recipe.name}", *(f"         {change_line(change)}" for change in changes)]
