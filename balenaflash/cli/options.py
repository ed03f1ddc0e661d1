"""Options that several commands share: about the image, the disk, and the edits of a recipe."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from balenaflash.balena.signature import (
    MAX_CERTIFICATE_SIZE,
    CertificateFile,
    SignatureCheck,
    require_signature,
)
from balenaflash.cli.arguments import OUT, WrongUsageError, read_given
from balenaflash.cli.output import Answer
from balenaflash.cli.session import Session
from balenaflash.edits.given_text import given_bytes, without_mark
from balenaflash.edits.recipe.reading import Recipe, parse_steps, read_recipe
from balenaflash.edits.recipe.step import NAME, Variables
from balenaflash.errors import ConfigError
from balenaflash.source.location import ImageLocation
from balenaflash.targets.safety import NO_PERMISSIONS, Permissions
from balenaflash.units import parse_size

if TYPE_CHECKING:
    _SizeType = click.ParamType[int]
else:
    _SizeType = click.ParamType  # generic since click 8.4

P = ParamSpec("P")


def _store_edit_option(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it so
    options, name = context.ensure_object(Session).edit, parameter.name or ""
    setattr(options, name, getattr(options, name) or value)


def _store_old_overwrite(
    context: click.Context,
    _parameter: click.Parameter,
    value: bool,  # noqa: FBT001 - click calls it so
) -> None:
    context.ensure_object(Session).edit.overwrite |= value


YES_HELP = "Answer the question beforehand; it lifts no refusal."
ALLOW_INTERNAL_HELP = "Allow a disk that is built in, virtual, or possibly the system's."
UNMOUNT_HELP = "Unmount what is mounted of a disk before it is changed."
NO_REPAIR_HELP = "Refuse a damaged boot partition that could be repaired without a loss."
_DRY_RUN_HELP = "Do everything but the writing, and show what it would be."


no_repair_option = click.option(
    "--no-repair",
    is_flag=True,
    expose_value=False,
    callback=_store_edit_option,
    help=NO_REPAIR_HELP,
)
"""Goes into the session, as in `edit_options`."""

dry_run_option = click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help=_DRY_RUN_HELP,
)


def _store_output(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    context.ensure_object(Session).edit.output = value


_output_option = click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=OUT,
    expose_value=False,
    callback=_store_output,
    help="Write the edited image, raw, to the new file OUT, and leave IMAGE as it is.",
)

_EDIT_OPTIONS = (
    ("-n", "--dry-run", _DRY_RUN_HELP),
    ("--show-secrets", "With --dry-run: do not mask keys and passwords."),
    ("--keep-fingerprint", "Leave balenaos.fingerprint as it is, untrue of what is changed."),
    ("--no-repair", NO_REPAIR_HELP),
    ("-y", "--yes", YES_HELP),
    ("--allow-internal", ALLOW_INTERNAL_HELP),
    ("--unmount", UNMOUNT_HELP),
    ("--overwrite", "Replace OUT where it exists."),
)


def edit_options(command: Callable[P, Answer]) -> Callable[P, Answer]:
    """Options of every command that edits the boot partition; they go into the session."""
    for *names, text in reversed(_EDIT_OPTIONS):
        option = click.option(
            *names, is_flag=True, expose_value=False, callback=_store_edit_option, help=text
        )
        command = option(command)
    # Its name of earlier versions.
    command = click.option(
        "--overwrite-output",
        is_flag=True,
        hidden=True,
        expose_value=False,
        callback=_store_old_overwrite,
    )(command)
    return _output_option(command)


def _lower_case_sum(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    if value is None:
        return None
    value = without_mark(value)
    if re.fullmatch(r"[0-9a-fA-F]{64}", value) is None:
        raise click.BadParameter("a SHA-256 has 64 hexadecimal digits")
    return value.lower()


def _store_member(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.ensure_object(Session).member = value


member_option = click.option(
    "--member",
    metavar="NAME",
    expose_value=False,
    callback=_store_member,
    help="The image to take from a zip file that holds several.",
)
"""Goes into the session."""

sha256_option = click.option(
    "--sha256",
    metavar="HEX",
    callback=_lower_case_sum,
    help="Refuse IMAGE unless this is its SHA-256, or that of the file as it was downloaded.",
)

certificate_option = click.option(
    "--certificate",
    type=click.Path(dir_okay=False, readable=False),
    metavar="FILE",
    help="Refuse IMAGE unless the signature beside it verifies against this one, in PEM or DER.",
)


def read_certificate(name: str) -> CertificateFile:
    """The certificate that the user named.

    Raises:
        EditError: it cannot be read.
    """
    content = given_bytes(read_given(name, limit=MAX_CERTIFICATE_SIZE), name)
    return CertificateFile(name, content, of_image=False)


def signature_checks(image: ImageLocation, certificate: str | None) -> tuple[SignatureCheck, ...]:
    """What ``--certificate`` asks to be checked of ``image``; nothing without it.

    Raises:
        ImageError, EditError, ToolMissingError: it cannot be checked.
    """
    if certificate is None:
        return ()

    return (require_signature(image, read_certificate(certificate)),)


@dataclass(slots=True)
class DiskOptions:
    """What the user said about disks; filled in while click parses."""

    yes: bool = False
    allow_internal: bool = False
    unmount: bool = False
    max_size: int | None = None
    """Bytes; ``None`` where the option was not given."""

    fix_gpt: bool = False
    eject: bool = False

    @property
    def permissions(self) -> Permissions:
        """Which refusals are lifted."""
        limit = NO_PERMISSIONS.max_size if self.max_size is None else self.max_size
        return Permissions(internal=self.allow_internal, unmount=self.unmount, max_size=limit)


class SizeType(_SizeType):
    """A size in bytes, as people write it."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The bytes; wrong usage if ``value`` is no size."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _store(context: click.Context, parameter: click.Parameter, value: bool | int | None) -> None:  # noqa: FBT001 - click calls it so
    options = context.meta.setdefault(__name__, DiskOptions())
    setattr(options, parameter.name or "", value)


def current_disk_options() -> DiskOptions:
    """What was said on the command line that is being run."""
    options: DiskOptions = click.get_current_context().meta.setdefault(__name__, DiskOptions())
    return options


_FLAGS = (
    ("-y", "--yes", YES_HELP),
    ("--allow-internal", ALLOW_INTERNAL_HELP),
    ("--unmount", UNMOUNT_HELP),
    (
        "--fix-gpt",
        "On a disk larger than IMAGE, move the backup GPT to its end.",
    ),
    ("--eject", "Switch the disk off when all went well, so that it can be unplugged."),
)


def disk_options(command: Callable[P, Answer]) -> Callable[P, Answer]:
    """Options of a command that writes whole disks; `current_disk_options` gives them."""
    command = click.option(
        "--max-size",
        type=SizeType(),
        metavar="SIZE",
        expose_value=False,
        callback=_store,
        help="Allow a disk of up to SIZE, such as 1T, 500GB or a number of bytes. [default: 256G]",
    )(command)
    for *names, text in reversed(_FLAGS):
        option = click.option(*names, is_flag=True, expose_value=False, callback=_store, help=text)
        command = option(command)
    return command


F = TypeVar("F", bound=Callable[..., object])

_OF_WORDS = ("recipe-", "config-assignment", "config-key-invalid", "config-secret", "path-invalid")
"""How the codes begin of what is wrong with a step itself, whatever the files that it names."""


def _split_variables(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    """Each ``NAME=VALUE``, taken apart at its first equals sign; of the same name the last."""
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
) -> Recipe | None:
    """The edits that the command line asks for, those of its recipe first; ``None`` for none."""
    if path is None and not steps:
        if variables:
            raise click.UsageError("--var is for a recipe, and there is no --recipe.")
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
        # Of the rest a file that a step names may be at fault.
        if any(problem.code.startswith(_OF_WORDS) for problem in error.problems):
            raise WrongUsageError(error) from error
        raise
