"""A recipe read from TOML, and the edits of its steps."""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from balenaflash.balena.image import DEVICE_TYPE_PATH
from balenaflash.balena.json_text import MAX_SIZE as MAX_JSON
from balenaflash.balena.json_text import parse_document
from balenaflash.edits.bootloader import UseInternal
from balenaflash.edits.config.check import is_secret
from balenaflash.edits.config.edit import (
    ConfigChange,
    EditConfig,
    MergeObject,
    SetKey,
    UnsetKey,
    parse_assignment,
    read_slug,
)
from balenaflash.edits.config.keys import KeyPath, format_key, parse_key
from balenaflash.edits.copies import CopyIn
from balenaflash.edits.file_list import ApplyFileList, parse
from balenaflash.edits.files import Edit, FileChange, MakeDirectory, Move, Remove
from balenaflash.edits.given_text import given_bytes, read_content, read_text
from balenaflash.edits.keyfile_syntax import MAX_SIZE
from balenaflash.edits.network import (
    AddNetwork,
    Common,
    EthernetConnection,
    RemoveNetwork,
    Security,
    WifiConnection,
    check_keyfile,
    default_name,
    parse_ip,
)
from balenaflash.edits.recipe.step import (
    COMMAND_LINE,
    RECIPE,
    Checker,
    RecipeStep,
    Variables,
    errors_at,
    refuse_shown_secret,
)
from balenaflash.edits.splash import SetSplash
from balenaflash.errors import ConfigError, EditError, InvalidConfigError
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.units import MIB

_MAX_PICTURE = 64 * MIB  # bytes; boot partitions have 40 to 100 MiB
_PRIORITY_MAX = 999  # NetworkManager's nm-settings-keyfile(5), connection.autoconnect-priority


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named list of edits."""

    path: Path
    name: str
    edits: tuple[Edit, ...]
    """In order; the first one may check the device type of the image."""


@dataclass(frozen=True, slots=True)
class RequireDeviceType:
    """Refuse an image for another device type; nothing is changed."""

    slugs: tuple[str, ...]
    recipe: Path

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        slug = read_slug(volume)
        if slug in self.slugs:
            return ()
        fact = f"the image is for {slug!r}" if slug else f"{DEVICE_TYPE_PATH} of the image has none"
        raise EditError(
            f"{self.recipe}: for: the recipe is for device type {' or '.join(self.slugs)}, "
            f"and {fact}",
            code="recipe-device-type",
        )

    def describe(self) -> str:
        return f"require device type {' or '.join(self.slugs)}"


@dataclass(frozen=True, slots=True)
class StepEdit:
    """An edit of a recipe; its errors name the step."""

    edit: Edit = field(repr=False)
    """It may contain a secret."""

    place: str

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        with errors_at(self.place):
            return self.edit.apply(volume)

    def describe(self) -> str:
        return self.edit.describe()


def read_recipe(path: Path, variables: Variables) -> Recipe:
    """The recipe in the file at ``path``; errors as `parse_recipe`.

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

    Each is the content of an inline table of TOML. Local paths are relative to the current
    directory. Errors as `parse_recipe`.
    """
    # One step per line, the first on line 1: the line of a TOML error is the number of its step.
    tables = ",\n".join(f"{{ {step} }}" for step in steps)
    text = f'step = [{tables}]\nname = "{COMMAND_LINE}"\n'
    return parse_recipe(text, COMMAND_LINE, variables)


def parse_recipe(text: str, path: Path, variables: Variables) -> Recipe:
    """The recipe in ``text``, which was read from ``path``.

    Local files are read now, except those that are copied unchanged.

    Raises:
        ConfigError: it is not valid. All problems are reported together, each with the number of
            its step; a TOML syntax error has the line.
    """
    try:
        content: dict[str, object] = tomllib.loads(text)
    except (RecursionError, ValueError) as error:  # ValueError: also for a number that is too long
        fact = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{path}: is not valid TOML: {fact}", code="recipe-toml") from error
    checker = Checker(path, variables)
    steps = content.pop("step", None)
    values = checker.check_table(content, RECIPE, str(path))
    edits = _edits(steps, checker)
    if checker.problems:
        raise InvalidConfigError(checker.problems)
    slugs = values.get("for")
    required = (RequireDeviceType(slugs, path),) if isinstance(slugs, tuple) else ()
    return Recipe(path, str(values["name"]), (*required, *edits))


def _edits(steps: object, checker: Checker) -> list[Edit]:
    edits: list[Edit] = []
    with checker.collected(str(checker.recipe)):
        if not isinstance(steps, list) or not steps:
            raise ConfigError(
                "there is no step", code="recipe-step", hint="Begin each with a line [[step]]."
            )
        for number, table in enumerate(steps, 1):
            step = checker.check_step(table, number)
            if step is not None:
                with checker.collected(step.place):
                    edits += [StepEdit(edit, step.place) for edit in _EDITS[step.kind](step)]
    return edits


def _put(step: RecipeStep) -> Iterator[Edit]:
    sources = tuple(map(step.local, step.texts("put")))
    if step.recipe.parent in sources:
        raise ConfigError(
            "a recipe cannot put its own directory",
            code="recipe-source",
            hint="Name the files and directories to put.",
        )
    yield CopyIn(sources, step.text("to") or "/")


def _splash(step: RecipeStep) -> Iterator[Edit]:
    path = step.path("splash")
    yield SetSplash(str(path), read_content(path, limit=_MAX_PICTURE))


def _unset(step: RecipeStep) -> Iterator[Edit]:
    keys = [_filled_in(parse_key(text), step) for text in step.texts("config-unset")]
    yield EditConfig(tuple(map(UnsetKey, keys)))


def _merge(step: RecipeStep) -> Iterator[Edit]:
    path = step.path("config-merge")
    content = given_bytes(read_content(path, limit=MAX_JSON), str(path))
    yield EditConfig((MergeObject(parse_document(content, str(path)).content),))


def _wifi(step: RecipeStep) -> Iterator[Edit]:
    ssid = step.text("wifi") or ""
    security, passphrase = _security(step)
    connection = WifiConnection(
        common=_common(step, default_name("wifi", ssid)),
        ssid=ssid.encode("utf-8", "surrogateescape"),
        security=security,
        passphrase=passphrase,
        hidden=step.flag("hidden"),
    )
    yield AddNetwork(connection.common.name, connection.keyfile(), step.flag("overwrite"))
    if (country := step.text("country")) is not None:
        yield EditConfig((SetKey(("country",), country.upper()),))


def _ethernet(step: RecipeStep) -> Iterator[Edit]:
    common = _common(step, default_name("ethernet", step.text("interface") or ""))
    keyfile = EthernetConnection(common).keyfile()
    yield AddNetwork(common.name, keyfile, step.flag("overwrite"))


def _keyfile(step: RecipeStep) -> Iterator[Edit]:
    path = step.path("keyfile")
    content = given_bytes(read_content(path, limit=MAX_SIZE), str(path))
    check_keyfile(content, str(path))
    yield AddNetwork(step.text("name") or path.name, content, step.flag("overwrite"))


_EDITS: Mapping[str, Callable[[RecipeStep], Iterable[Edit]]] = {
    "put": _put,
    "apply": lambda step: [
        ApplyFileList(parse(read_text(step.path("apply"))), step.path("deploy-dir"))
    ],
    "rm": lambda step: [Remove(path, step.flag("recursive")) for path in step.texts("rm")],
    "mkdir": lambda step: [
        MakeDirectory(path, step.flag("parents")) for path in step.texts("mkdir")
    ],
    "mv": lambda step: [Move(step.texts("mv"), step.text("to") or "/")],
    "use-internal": lambda step: [
        UseInternal(step.text("from"), step.text("to"), step.flag("keep-old"))
    ],
    "splash": _splash,
    "config-set": lambda step: [
        EditConfig(tuple(_assignment(step, text) for text in step.texts("config-set")))
    ],
    "config-unset": _unset,
    "config-merge": _merge,
    "wifi": _wifi,
    "ethernet": _ethernet,
    "keyfile": _keyfile,
    "network-rm": lambda step: [RemoveNetwork(name) for name in step.texts("network-rm")],
}
"""The edits of each kind of step."""


def _security(step: RecipeStep) -> tuple[Security, str | None]:
    """The security of the network, and the passphrase."""
    given = [name for name in ("psk", "psk-file", "open") if step.values.get(name)]
    if len(given) != 1:
        raise ConfigError(
            f"{' and '.join(given)} exclude each other" if given else "psk is missing",
            code="recipe-network",
            hint='Use one of psk = "${env:NAME}", psk-file = "FILE" and open = true.',
        )
    if step.flag("open"):
        if step.flag("wpa3"):
            raise ConfigError("open and wpa3 exclude each other", code="recipe-network")
        return Security.OPEN, None
    passphrase = step.text("psk") if "psk" in given else read_text(step.path("psk-file"))
    return Security.SAE if step.flag("wpa3") else Security.WPA_PSK, passphrase


def _common(step: RecipeStep, default_name: str) -> Common:
    priority = step.number("priority")
    if abs(priority) > _PRIORITY_MAX:
        raise ConfigError(
            f"priority is {priority}, but must be -{_PRIORITY_MAX} to {_PRIORITY_MAX}",
            code="recipe-network",
        )
    return Common(
        name=step.text("name") or default_name,
        interface=step.text("interface"),
        autoconnect=step.flag("autoconnect", default=True),
        priority=priority,
        ip=parse_ip(step.texts("address"), step.texts("gateway"), step.texts("dns")),
    )


def _assignment(step: RecipeStep, written: str) -> ConfigChange:
    """The change that ``written`` asks for.

    Variables are replaced after it has been parsed: no value of a variable can name a file or
    another key.
    """
    assignment = parse_assignment(written)
    assignment = replace(assignment, key=_filled_in(assignment.key, step))
    name = format_key(assignment.key)
    if assignment.source == "-":
        raise ConfigError(
            f"{name}: a recipe cannot read it from standard input",
            code="recipe-source",
            hint=f"Read it from a file: {name}=@FILE",
        )
    if assignment.source is not None:
        path = step.local(step.variables.fill_in(assignment.source))
        return assignment.change(assignment.value_in(read_text(path), str(path)))
    written_value = assignment.text or ""
    text = step.variables.fill_in(written_value, secret=is_secret(assignment.key))
    value = assignment.value_in(text, name)
    if is_secret(assignment.key, value):
        refuse_shown_secret(step.recipe, written_value)
    return assignment.change(value)


def _filled_in(key: KeyPath, step: RecipeStep) -> KeyPath:
    return tuple(step.variables.fill_in(name) for name in key)
