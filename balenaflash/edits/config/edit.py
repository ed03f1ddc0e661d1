"""Change keys of config.json: set, add to, unset, merge; nothing else in it changes."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from balenaflash.balena.image import CONFIG_PATH, DEVICE_TYPE_PATH
from balenaflash.edits.config.check import Finding, Severity, check_config
from balenaflash.edits.config.json_text import (
    Json,
    JsonDocument,
    format_document,
    format_value,
    is_same,
    kind_of,
    parse_document,
    parse_value,
    require_depth,
)
from balenaflash.edits.config.keys import KeyPath, format_key, holder_of, not_an_object, split_key
from balenaflash.edits.config.rules import Kind, is_secret, kind_at
from balenaflash.edits.files import FileChange, put_file
from balenaflash.edits.given_text import without_mark
from balenaflash.errors import ConfigError, InvalidConfigError, Problem
from balenaflash.formats.fat.pyfatfs import FatVolume


class ConfigStep(Protocol):
    """One change of a config.json in memory."""

    @property
    def keys(self) -> tuple[KeyPath, ...]:
        """What it changes."""

    def change(self, config: dict[str, Json]) -> tuple[str, ...]:
        """Make it in ``config``, and return what the user should know about it.

        Raises:
            ConfigError: it cannot be made.
        """

    def describe(self) -> str:
        """What it does, in a few words and without secrets."""


@dataclass(frozen=True, slots=True)
class SetKey:
    """Give a key a value; objects around it are made as needed."""

    key: KeyPath
    value: Json

    @property
    def keys(self) -> tuple[KeyPath, ...]:
        """What it changes."""
        return (self.key,)

    def change(self, config: dict[str, Json]) -> tuple[str, ...]:
        """Make it in ``config``; a key that is there keeps its place."""
        _make_holder(config, self.key)[self.key[-1]] = copy.deepcopy(self.value)
        return ()

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"set {format_key(self.key)}{_to(self.key, self.value)}"


@dataclass(frozen=True, slots=True)
class AppendItem:
    """Add an item to the end of an array; one that is there already is not added again."""

    key: KeyPath
    item: Json

    @property
    def keys(self) -> tuple[KeyPath, ...]:
        """What it changes."""
        return (self.key,)

    def change(self, config: dict[str, Json]) -> tuple[str, ...]:
        """Make it in ``config``; an array that is missing is made."""
        items = _make_holder(config, self.key).setdefault(self.key[-1], [])
        if not isinstance(items, list):
            raise ConfigError(
                f"config.json: {format_key(self.key)} is {kind_of(items)}, "
                "and only an array can be added to",
                code="config-type",
            )
        if any(is_same(self.item, each) for each in items):
            return (f"{format_key(self.key)} has that item already",)
        items.append(copy.deepcopy(self.item))
        return ()

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"add to {format_key(self.key)}"


@dataclass(frozen=True, slots=True)
class UnsetKey:
    """Remove a key and what it holds."""

    key: KeyPath

    @property
    def keys(self) -> tuple[KeyPath, ...]:
        """What it changes."""
        return (self.key,)

    def change(self, config: dict[str, Json]) -> tuple[str, ...]:
        """Make it in ``config``; the object around it stays, even if it is empty then."""
        del holder_of(config, self.key)[self.key[-1]]
        return ()

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"unset {format_key(self.key)}"


@dataclass(frozen=True, slots=True)
class MergeObject:
    """Take over every key at the top of another config.json, as ``jq '. + $other'`` does.

    A value is replaced as a whole, as balena's own tools do: which keys of ``os`` were left out
    on purpose is not known.
    """

    content: Mapping[str, Json]

    @property
    def keys(self) -> tuple[KeyPath, ...]:
        """What it changes."""
        return tuple((name,) for name in self.content)

    def change(self, config: dict[str, Json]) -> tuple[str, ...]:
        """Make it in ``config``; new keys come last, in their order."""
        warnings = tuple(_lost_keys(config, self.content))
        config.update(copy.deepcopy(dict(self.content)))
        return warnings

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"merge {', '.join(self.content)}"


def _make_holder(config: dict[str, Json], key: KeyPath) -> dict[str, Json]:
    """The object that the last name of ``key`` goes into."""
    holder = config
    for depth, name in enumerate(key[:-1], 1):
        inner = holder.setdefault(name, {})
        if not isinstance(inner, dict):
            raise not_an_object(key[:depth], inner)
        holder = inner
    return holder


def _lost_keys(config: Mapping[str, Json], other: Mapping[str, Json]) -> Iterator[str]:
    for name, new in other.items():
        old = config.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and (lost := old.keys() - new.keys()):
            names = ", ".join(format_key((name, each)) for each in old if each in lost)
            yield f"{name} is replaced as a whole: {names} is no longer there"


def _to(key: KeyPath, value: Json) -> str:
    return "" if is_secret(key, value) else f" to {format_value(value)}"


class ReadableFiles(Protocol):
    """A boot partition, as far as a plan looks at it."""

    def find(self, path: str) -> object | None:
        """What is at ``path``; ``None`` for nothing."""

    def read_file(self, path: str) -> bytes:
        """The content of the file at ``path``."""


@dataclass(frozen=True, slots=True)
class ConfigPlan:
    """What a config.json becomes."""

    before: JsonDocument
    after: JsonDocument
    data: bytes
    """Content of the file to write; what it was when no value changes."""

    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EditConfig:
    """Change keys of config.json, all or none."""

    steps: tuple[ConfigStep, ...]

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``.

        Raises:
            ConfigError: a step cannot be made, or the result would not be valid.
        """
        plan = plan_config(volume, self.steps)
        return (put_file(volume, CONFIG_PATH, plan.data).with_warnings(plan.warnings),)

    def describe(self) -> str:
        """What it does, in a few words and without secrets."""
        return f"{CONFIG_PATH}: {'; '.join(step.describe() for step in self.steps)}"


def plan_config(volume: ReadableFiles, steps: Sequence[ConfigStep]) -> ConfigPlan:
    """What ``steps`` make of the config.json of ``volume``, which is not changed.

    A file that is missing counts as an empty object. What was wrong before, in keys that no step
    touches, is a warning and stays.

    Raises:
        ConfigError: the file is not valid, a step cannot be made, or its result is not valid.
    """
    warnings: list[str] = []
    if volume.find(CONFIG_PATH) is None:
        warnings.append(f"{CONFIG_PATH} was missing from the boot partition; it is made.")
        data = b""
        before = JsonDocument({})
    else:
        data = volume.read_file(CONFIG_PATH)
        before = parse_document(data, CONFIG_PATH)
    config = copy.deepcopy(before.content)
    for step in steps:
        warnings += [f"{CONFIG_PATH}: {text}." for text in step.change(config)]
    require_depth(config, CONFIG_PATH)
    keys = [key for step in steps for key in step.keys]
    findings = check_config(config, read_slug(volume))
    warnings += _sort_out(findings, keys)
    after = replace(before, content=config)
    if data and format_document(before) == format_document(after):
        return ConfigPlan(before, after, data, tuple(warnings))
    return ConfigPlan(before, after, format_document(after), tuple(warnings))


def read_config(volume: ReadableFiles) -> JsonDocument:
    """The config.json of ``volume``.

    Raises:
        ConfigError: it is missing or not valid.
    """
    if volume.find(CONFIG_PATH) is None:
        raise ConfigError(
            f"{CONFIG_PATH}: is missing from the boot partition",
            code="config-missing",
            hint="Make one: balenaflash config merge IMAGE FILE",
        )
    return parse_document(volume.read_file(CONFIG_PATH), CONFIG_PATH)


def find_errors(volume: ReadableFiles) -> tuple[Finding, ...]:
    """What balenaOS could not work with in config.json; nothing where it is missing.

    Raises:
        ConfigError: it is not a JSON object.
    """
    if volume.find(CONFIG_PATH) is None:
        return ()
    content = read_config(volume).content
    findings = check_config(content, read_slug(volume))
    return tuple(each for each in findings if each.severity is Severity.ERROR)


def read_slug(volume: ReadableFiles) -> str | None:
    """The device type the image was built for; ``None`` where the image does not tell."""
    if volume.find(DEVICE_TYPE_PATH) is None:
        return None
    try:
        content = parse_document(volume.read_file(DEVICE_TYPE_PATH), DEVICE_TYPE_PATH).content
    except ConfigError:
        return None  # of config.json it says nothing; inspect reports it
    slug = content.get("slug")
    return slug if isinstance(slug, str) else None


def invalid_config(findings: Sequence[Finding]) -> InvalidConfigError:
    """What to raise for the errors among ``findings``, told at once."""
    return InvalidConfigError(
        [
            Problem(each.code, f"{CONFIG_PATH}: {each.message}")
            for each in findings
            if each.severity is Severity.ERROR
        ]
    )


def _sort_out(findings: Sequence[Finding], keys: Sequence[KeyPath]) -> Iterator[str]:
    """Refuse what ``keys`` brought; warn of it, and of errors that were there before."""
    ours = [each for each in findings if each.is_about(keys)]
    if any(each.severity is Severity.ERROR for each in ours):
        raise invalid_config(ours)
    for each in findings:
        if each in ours or each.severity is Severity.ERROR:
            yield f"{CONFIG_PATH}: {each.message}."


_QUOTED = re.compile(r'\s*"(?:[^"\\]|\\.)*"\s*')


@dataclass(frozen=True, slots=True)
class Assignment:
    """A key, and where its value or new item comes from."""

    key: KeyPath
    appends: bool
    text: str | None = field(repr=False)
    """The value itself; ``None`` when it is in ``source``."""

    source: str | None
    """Name of the file that holds it, ``-`` for standard input; or ``None``."""

    def value_in(self, text: str, name: str) -> Json:
        """The value or item that ``text`` stands for; ``name`` is what messages call it.

        For a key that takes a string it is the text itself, or a string in double quotes. For
        any other it is JSON, or the text where it is no JSON.

        Raises:
            ConfigError: it begins as a JSON object or array does, and is none.
        """
        kind = kind_at(self.key)
        if self.appends:
            kind = Kind.STRING if kind is Kind.STRINGS else None
        if kind in {Kind.STRING, Kind.SCALAR} and not _QUOTED.fullmatch(text):
            return text
        try:
            return parse_value(text, name)
        except ConfigError:
            if text.lstrip().startswith(("{", "[")):
                raise
            return text

    def step(self, value: Json) -> ConfigStep:
        """The change that it stands for with ``value``."""
        return AppendItem(self.key, value) if self.appends else SetKey(self.key, value)


def parse_assignment(text: str) -> Assignment:
    """The assignment in ``text``; ``KEY=@FILE`` and ``KEY=-`` name a source.

    Raises:
        ConfigError: it is none.
    """
    key, rest = split_key(text)
    operator = next((each for each in ("+=", "=") if rest.startswith(each)), None)
    if operator is None:
        raise ConfigError(
            f"{format_key(key)}: a value is missing",
            code="config-assignment",
            hint=f"Write it as {format_key(key)}=VALUE",
        )
    value = without_mark(rest.removeprefix(operator))
    source = value[1:] if value.startswith("@") else value if value == "-" else None
    appends = operator == "+="
    return Assignment(key, appends, None if source is not None else value, source)


def refuse_secret(key: KeyPath, value: Json) -> None:
    """Return if ``value`` may stand on a command line.

    Raises:
        ConfigError: it is a secret, and any user of the machine could have seen it there.
    """
    if is_secret(key, value):
        shown = format_key(key)
        raise ConfigError(
            f"{shown} is a secret, and every user of this machine can see a command line",
            code="config-secret",
            hint=f"Take it from a file or standard input: {shown}=@FILE or {shown}=-",
        )
