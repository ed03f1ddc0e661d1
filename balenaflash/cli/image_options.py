"""Options about the content of an image: its sum and signature, and the edits of a recipe."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import click

from balenaflash.balena.signature import (
    MAX_CERTIFICATE_SIZE,
    CertificateFile,
    SignatureCheck,
    require_signature,
)
from balenaflash.cli.arguments import read_given
from balenaflash.cli.changes import change_line, change_result, repair_lines, repairs_result
from balenaflash.cli.options import member_option, no_repair_option
from balenaflash.cli.session import Session, WrongUsageError, with_options
from balenaflash.commands.flasher_steps import FlasherStep, Unwrapping
from balenaflash.commands.wanted import ImageRequest, WantedImage
from balenaflash.edits.given_text import given_bytes, without_mark
from balenaflash.edits.recipe.reading import Recipe, parse_steps, read_recipe
from balenaflash.edits.recipe.step import NAME, Variables
from balenaflash.errors import ConfigError
from balenaflash.source.location import ImageLocation
from balenaflash.units import format_size


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


recipe_options = with_options(
    (
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
)
"""The parameters ``recipe``, ``steps`` and ``variables``, for `chosen_recipe`."""

image_options = with_options(
    (member_option, sha256_option, certificate_option, recipe_options, no_repair_option)
)
"""Options of a command that reads an image as `wanted_image` describes it."""

ignore_secure_boot_option = click.option(
    "--ignore-secure-boot",
    is_flag=True,
    help="Continue although config.json requests secure boot and disk encryption; "
    "there will be neither.",
)


class ImageOptions(TypedDict):
    """The values of `image_options` and `ignore_secure_boot_option`."""

    ignore_secure_boot: bool
    sha256: str | None
    certificate: str | None
    recipe: Path | None
    steps: tuple[str, ...]
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """The image that the options of a command choose, and its answer about that."""

    request: ImageRequest
    recipe: Recipe | None
    warnings: tuple[str, ...]
    """Warnings about the certificate."""

    def lines(self, wanted: WantedImage) -> list[str]:
        """The steps of the flasher, the repairs and the edits, for people."""
        edited, recipe = wanted.edited, self.recipe
        lines = [*flasher_lines(wanted.unwrapping), *repair_lines(edited.repairs)]
        if recipe is None:
            return lines
        changes = (f"         {change_line(change)}" for change in edited.changes)
        return [*lines, f"Recipe:  {recipe.name}", *changes]

    def result(self, wanted: WantedImage) -> dict[str, object]:
        """The repairs and the edits in what was written or compared, for scripts."""
        edited, recipe = wanted.edited, self.recipe
        return {
            "repairs": repairs_result(edited.repairs),
            "recipe": recipe
            and {
                "file": str(recipe.path),
                "name": recipe.name,
                "changes": [change_result(change) for change in edited.changes],
            },
        }


def choose_image(
    session: Session, image: ImageLocation, options: ImageOptions, *, unwrap: bool
) -> ChosenImage:
    """Read the recipe, and check the signature, that ``options`` ask for.

    Raises:
        ImageError, EditError, ConfigError, ToolMissingError: one cannot be read or checked.
    """
    recipe = chosen_recipe(options["recipe"], options["steps"], options["variables"])
    checks: tuple[SignatureCheck, ...] = ()
    if options["certificate"] is not None:
        checks = (require_signature(image, read_certificate(options["certificate"])),)
    request = ImageRequest(
        image,
        session.member,
        options["sha256"],
        checks,
        recipe.edits if recipe else (),
        unwrap,
        options["ignore_secure_boot"],
        repair=not session.no_repair,
    )
    warnings = tuple(warning for check in checks for warning in check.warnings)
    return ChosenImage(request, recipe, warnings)


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
            raise WrongUsageError(error.problems) from error
        raise


def flasher_lines(plan: Unwrapping | None) -> list[str]:
    """The image that a flasher carries, and each of its steps, for people."""
    if plan is None:
        return []
    size = plan.inner.source.size
    version = plan.os_version or "unknown"
    shown = "size unknown" if size is None else format_size(size)
    devices = " or ".join(plan.devices) or "unknown"
    return [
        f"Carries:  {plan.flasher.image_name}, {shown}, OS version {version}",
        f"For:      {plan.slug or 'an unknown board'}, disk {devices}",
        *(line for step in plan.steps for line in _step_lines(step)),
    ]


def flasher_result(plan: Unwrapping | None) -> dict[str, object] | None:
    """The image that a flasher carries, and its steps, for scripts."""
    if plan is None:
        return None
    return {
        "inner_image": plan.flasher.image_path,
        "size": plan.inner.source.size,
        "slug": plan.slug,
        "os_version": plan.os_version,
        "expected_devices": list(plan.devices),
        "steps": steps_result(plan.steps),
    }


def steps_result(steps: Sequence[FlasherStep]) -> list[dict[str, object]]:
    """The steps of a flasher, for scripts."""
    return [
        {
            "code": step.code,
            "action": step.action,
            "state": step.state.value,
            "meaning": step.meaning,
        }
        for step in steps
    ]


_MARK_WIDTH = len("done by unwrap")


def _step_lines(step: FlasherStep) -> list[str]:
    mark = step.state.value.replace("-", " ").ljust(_MARK_WIDTH)
    lines = [f"  {mark}  {step.action}"]
    if step.meaning is not None:
        lines.append(f"  {' ' * _MARK_WIDTH}  {step.meaning}")
    return lines
