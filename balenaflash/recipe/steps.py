"""The edits that the steps of a recipe stand for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from balenaflash.boot.bootloader import UseInternal
from balenaflash.boot.config_assignment import parse_assignment
from balenaflash.boot.config_edit import EditConfig
from balenaflash.boot.config_keys import is_secret
from balenaflash.boot.config_path import KeyPath, format_key, parse_key
from balenaflash.boot.config_steps import ConfigStep, MergeObject, UnsetKey
from balenaflash.boot.copy_in import CopyIn
from balenaflash.boot.file_list import ApplyFileList, parse
from balenaflash.boot.files import FileChange, MakeDirectory, Remove
from balenaflash.boot.given_text import given_bytes
from balenaflash.boot.json_text import MAX_SIZE as MAX_JSON
from balenaflash.boot.json_text import parse_document
from balenaflash.boot.move import Move
from balenaflash.boot.network import RemoveNetwork
from balenaflash.boot.splash import SetSplash
from balenaflash.editing import Edit
from balenaflash.errors import ConfigError
from balenaflash.extent import MIB
from balenaflash.image.fat.volume import FatVolume
from balenaflash.recipe.local_files import read_content, read_text
from balenaflash.recipe.networks import ethernet_edits, keyfile_edits, wifi_edits
from balenaflash.recipe.step import Step

_MAX_PICTURE = 64 * MIB
"""Bytes; boot partitions have 40 to 100 MiB."""


@dataclass(frozen=True, slots=True)
class StepEdit:
    """An edit of a recipe; what is wrong with it is said with the line of its step."""

    edit: Edit = field(repr=False)
    """It may hold a secret."""

    step: Step

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        with self.step.source.blamed(self.step.key(self.step.kind)):
            return self.edit.apply(volume)

    def describe(self) -> str:
        """What it does, in a few words."""
        return self.edit.describe()


def edits_of(step: Step) -> tuple[StepEdit, ...]:
    """What ``step`` asks for; the local files that it names are read, but for those it copies.

    Raises:
        ConfigError: it cannot be done; the message begins with its place.
        EditError: likewise, such as for a file that cannot be read.
    """
    if step.kind == "config-set":
        # Each assignment has a line of its own.
        edits: tuple[Edit, ...] = (EditConfig(tuple(_assignments(step))),)
    else:
        with step.source.blamed(step.key(step.kind)):
            edits = tuple(_EDITS[step.kind](step))
    return tuple(StepEdit(edit, step) for edit in edits)


def _put(step: Step) -> Iterator[Edit]:
    sources = tuple(map(step.local, step.texts("put")))
    if step.source.path.parent in sources:
        raise ConfigError(
            "a recipe does not put the directory it is in",
            code="recipe-source",
            hint="Name what is to be put.",
        )
    yield CopyIn(sources, step.text("to") or "/")


def _apply(step: Step) -> Iterator[Edit]:
    yield ApplyFileList(parse(read_text(step.path("apply"))), step.path("deploy-dir"))


def _remove(step: Step) -> Iterator[Edit]:
    for path in step.texts("rm"):
        yield Remove(path, step.flag("recursive"))


def _make_directory(step: Step) -> Iterator[Edit]:
    for path in step.texts("mkdir"):
        yield MakeDirectory(path, step.flag("parents"))


def _move(step: Step) -> Iterator[Edit]:
    yield Move(step.texts("mv"), step.text("to") or "/")


def _use_internal(step: Step) -> Iterator[Edit]:
    yield UseInternal(step.text("from"), step.text("to"), step.flag("keep-old"))


def _splash(step: Step) -> Iterator[Edit]:
    path = step.path("splash")
    yield SetSplash(str(path), read_content(path, limit=_MAX_PICTURE))


def _unset(step: Step) -> Iterator[Edit]:
    keys = [_filled_in(parse_key(text), step) for text in step.texts("config-unset")]
    yield EditConfig(tuple(UnsetKey(key) for key in keys))


def _merge(step: Step) -> Iterator[Edit]:
    path = step.path("config-merge")
    content = given_bytes(read_content(path, limit=MAX_JSON), str(path))
    document = parse_document(content, str(path))
    yield EditConfig((MergeObject(document.content),))


def _remove_network(step: Step) -> Iterator[Edit]:
    for name in step.texts("network-rm"):
        yield RemoveNetwork(name)


_EDITS: Mapping[str, Callable[[Step], Iterator[Edit]]] = {
    "put": _put,
    "apply": _apply,
    "rm": _remove,
    "mkdir": _make_directory,
    "mv": _move,
    "use-internal": _use_internal,
    "splash": _splash,
    "config-unset": _unset,
    "config-merge": _merge,
    "wifi": wifi_edits,
    "ethernet": ethernet_edits,
    "keyfile": keyfile_edits,
    "network-rm": _remove_network,
}


def _assignments(step: Step) -> Iterator[ConfigStep]:
    for number, text in enumerate(step.texts("config-set")):
        with step.source.blamed((*step.key("config-set"), number)):
            yield _assignment(step, text)


def _assignment(step: Step, written: str) -> ConfigStep:
    """The change that ``written`` stands for.

    Variables are filled in once it has been taken apart, so that no value of one can name a file
    or another key.
    """
    assignment = parse_assignment(written)
    assignment = replace(assignment, key=_filled_in(assignment.key, step))
    name = format_key(assignment.key)
    if assignment.source == "-":
        raise ConfigError(
            f"{name}: a recipe cannot take it from standard input",
            code="recipe-source",
            hint=f"Take it from a file: {name}=@FILE",
        )
    if assignment.source is not None:
        path = step.local(step.variables.fill_in(assignment.source))
        return assignment.step(assignment.value_in(read_text(path), str(path)))
    secret = is_secret(assignment.key)
    text = step.variables.fill_in(assignment.text or "", secret=secret)
    value = assignment.value_in(text, name)
    if is_secret(assignment.key, value):
        step.source.refuse_shown_secret(assignment.text or "")
    return assignment.step(value)


def _filled_in(key: KeyPath, step: Step) -> KeyPath:
    return tuple(step.variables.fill_in(name) for name in key)
