"""Changes of keys in config.json: set, append, unset, merge. Nothing else in it changes."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from balenaflash.balena.image import CONFIG_PATH, DEVICE_TYPE_PATH
from balenaflash.balena.json_text import (
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
from balenaflash.edits.config.check import (
    Finding,
    Severity,
    ValueType,
    check_config,
    is_secret,
    type_of,
)
from balenaflash.edits.config.keys import KeyPath, format_key, holder_of, not_an_object, split_key
from balenaflash.edits.files import FileChange, put_file
from balenaflash.edits.given_text import without_mark
from balenaflash.errors import ConfigError, InvalidConfigError, Problem
from balenaflash.formats.fat.volume import FatVolume


class ConfigChange(Protocol):
    """One change of a config.json in memory."""

    @property
    def keys(self) -> tuple[KeyPath, ...]:
        """The keys that it changes."""

    def apply(self, config: dict[str, Json]) -> tuple[str, ...]:
        """Make the change in ``config``; the result are warnings, without the final dot.

        Raises:
            ConfigError: the change is impossible.
        """

    def describe(self) -> str:
        """The change in a few words, without secrets."""


@dataclass(frozen=True, slots=True)
class _OneKey:
    key: KeyPath

    @property
    def keys(self) -> tuple[KeyPath, ...]:
        return (self.key,)


@dataclass(frozen=True, slots=True)
class SetKey(_OneKey):
    """Set a key to a value; missing objects around it are created, and its place is kept."""

    value: Json

    def apply(self, config: dict[str, Json]) -> tuple[str, ...]:
        _make_holder(config, self.key)[self.key[-1]] = copy.deepcopy(self.value)
        return ()

    def describe(self) -> str:
        shown = "" if is_secret(self.key, self.value) else f" to {format_value(self.value)}"
        return f"set {format_key(self.key)}{shown}"


@dataclass(frozen=True, slots=True)
class AppendItem(_OneKey):
    """Append an item to an array, unless it is there already; a missing array is created."""

    item: Json

    def apply(self, config: dict[str, Json]) -> tuple[str, ...]:
        items = _make_holder(config, self.key).setdefault(self.key[-1], [])
        if not isinstance(items, list):
            raise ConfigError(
                f"config.json: {format_key(self.key)} is {kind_of(items)}, but += needs an array",
                code="config-type",
            )
        if any(is_same(self.item, each) for each in items):
            return (f"{format_key(self.key)} has that item already",)
        items.append(copy.deepcopy(self.item))
        return ()

    def describe(self) -> str:
        return f"add to {format_key(self.key)}"


@dataclass(frozen=True, slots=True)
class UnsetKey(_OneKey):
    """Remove a key and its value; the object around it stays, even if it is empty then."""

    def apply(self, config: dict[str, Json]) -> tuple[str, ...]:
        del holder_of(config, self.key)[self.key[-1]]
        return ()

    def describe(self) -> str:
        return f"unset {format_key(self.key)}"


@dataclass(frozen=True, slots=True)
class MergeObject:
    """Copy every top-level key of another config.json, as ``jq '. + $other'`` does.

    Each value is replaced as a whole, as balena's own tools do: a key that is missing inside
    ``os`` may be missing on purpose. New keys come last, in their order.
    """

    content: Mapping[str, Json]

    @property
    def keys(self) -> tuple[KeyPath, ...]:
        return tuple((name,) for name in self.content)

    def apply(self, config: dict[str, Json]) -> tuple[str, ...]:
        warnings = tuple(_lost_keys(config, self.content))
        config.update(copy.deepcopy(dict(self.content)))
        return warnings

    def describe(self) -> str:
        return f"merge {', '.join(self.content)}"


def _make_holder(config: dict[str, Json], key: KeyPath) -> dict[str, Json]:
    """The object for the last name of ``key``; it and those around it are created if missing."""
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
            yield f"{name} is replaced as a whole, which removes {names}"


class ReadableFiles(Protocol):
    """The part of a boot partition's interface that reads config.json."""

    def find(self, path: str) -> object | None:
        """The entry at ``path``; ``None`` if there is none."""

    def read_file(self, path: str) -> bytes:
        """The content of the file at ``path``."""


@dataclass(frozen=True, slots=True)
class EditConfig:
    """Make several changes in config.json, all or none."""

    changes: tuple[ConfigChange, ...]

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        data, warnings = change_config(volume, self.changes)
        return (put_file(volume, CONFIG_PATH, data).with_warnings(warnings),)

    def describe(self) -> str:
        return f"{CONFIG_PATH}: {'; '.join(each.describe() for each in self.changes)}"


def change_config(
    volume: ReadableFiles, changes: Sequence[ConfigChange]
) -> tuple[bytes, tuple[str, ...]]:
    """The config.json of ``volume`` after ``changes``, and warnings; ``volume`` does not change.

    A missing file counts as an empty object. The bytes stay as they are if no value changes. An
    error that was there before, in a key that ``changes`` do not touch, is a warning.

    Raises:
        ConfigError: the file is not valid, a change is impossible, or its result is not valid.
    """
    warnings: list[str] = []
    data = b""
    document = JsonDocument({})
    if volume.find(CONFIG_PATH) is None:
        warnings.append(f"{CONFIG_PATH} was missing from the boot partition; it is created.")
    else:
        data = volume.read_file(CONFIG_PATH)
        document = parse_document(data, CONFIG_PATH)
    config = copy.deepcopy(document.content)
    for each in changes:
        warnings += [f"{CONFIG_PATH}: {text}." for text in each.apply(config)]
    require_depth(config, CONFIG_PATH)
    keys = [key for each in changes for key in each.keys]
    warnings += _warnings_about(check_config(config, read_slug(volume)), keys)
    after = format_document(replace(document, content=config))
    is_unchanged = data and format_document(document) == after
    return data if is_unchanged else after, tuple(warnings)


def read_config(volume: ReadableFiles) -> JsonDocument:
    """The config.json of ``volume``.

    Raises:
        ConfigError: it is missing or not valid.
    """
    if volume.find(CONFIG_PATH) is None:
        raise ConfigError(
            f"{CONFIG_PATH}: is missing from the boot partition",
            code="config-missing",
            hint="Create it: balenaflash config merge IMAGE FILE",
        )
    return parse_document(volume.read_file(CONFIG_PATH), CONFIG_PATH)


def find_errors(volume: ReadableFiles) -> tuple[Finding, ...]:
    """The errors in config.json, without its warnings; none if the file is missing.

    Raises:
        ConfigError: it is not a JSON object.
    """
    if volume.find(CONFIG_PATH) is None:
        return ()
    findings = check_config(read_config(volume).content, read_slug(volume))
    return tuple(each for each in findings if each.severity is Severity.ERROR)


def read_slug(volume: ReadableFiles) -> str | None:
    """The device type that the image was built for; ``None`` if the image does not contain it."""
    if volume.find(DEVICE_TYPE_PATH) is None:
        return None
    try:
        content = parse_document(volume.read_file(DEVICE_TYPE_PATH), DEVICE_TYPE_PATH).content
    except ConfigError:
        return None  # not an error of config.json; inspect reports it
    slug = content.get("slug")
    return slug if isinstance(slug, str) else None


def invalid_config(findings: Sequence[Finding]) -> InvalidConfigError:
    """One exception for all errors among ``findings``."""
    return InvalidConfigError(
        [
            Problem(each.code, f"{CONFIG_PATH}: {each.message}")
            for each in findings
            if each.severity is Severity.ERROR
        ]
    )


def _warnings_about(findings: Sequence[Finding], keys: Sequence[KeyPath]) -> Iterator[str]:
    """Refuse errors in ``keys``; warnings about ``keys``, and about errors elsewhere."""
    ours = [each for each in findings if each.is_about(keys)]
    if any(each.severity is Severity.ERROR for each in ours):
        raise invalid_config(ours)
    for each in findings:
        if each in ours or each.severity is Severity.ERROR:
            yield f"{CONFIG_PATH}: {each.message}."


_QUOTED = re.compile(r'\s*"(?:[^"\\]|\\.)*"\s*')


@dataclass(frozen=True, slots=True)
class Assignment:
    """A key with its value or new item, or with the file that contains that."""

    key: KeyPath
    append: bool
    text: str | None = field(repr=False)
    """The value itself; ``None`` if it is in ``source``."""

    source: str | None
    """Name of the file with the value, ``-`` for standard input; or ``None``."""

    def value_in(self, text: str, name: str) -> Json:
        """The value or item in ``text``; ``name`` is the name of the text in messages.

        For a key of type string it is the text itself, or a string in double quotes. For any other
        key it is JSON, or the text itself if that is not JSON.

        Raises:
            ConfigError: it begins like a JSON object or array, and is not valid JSON.
        """
        wanted = type_of(self.key)
        if self.append:
            wanted = ValueType.STRING if wanted is ValueType.STRINGS else None
        if wanted in {ValueType.STRING, ValueType.SCALAR} and not _QUOTED.fullmatch(text):
            return text
        try:
            return parse_value(text, name)
        except ConfigError:
            if text.lstrip().startswith(("{", "[")):
                raise
            return text

    def change(self, value: Json) -> ConfigChange:
        """The change that sets or appends ``value``."""
        return AppendItem(self.key, value) if self.append else SetKey(self.key, value)


def parse_assignment(text: str) -> Assignment:
    """The assignment in ``text``; ``KEY=@FILE`` and ``KEY=-`` name a source.

    Raises:
        ConfigError: it is not an assignment.
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
    return Assignment(key, operator == "+=", None if source is not None else value, source)


def refuse_secret(key: KeyPath, value: Json) -> None:
    """Refuse a secret ``value`` of ``key``, which was given on the command line.

    Raises:
        ConfigError: it is a secret.
    """
    if is_secret(key, value):
        shown = format_key(key)
        raise ConfigError(
            f"{shown} is a secret, and every user of this machine can see a command line",
            code="config-secret",
            hint=f"Read it from a file or standard input: {shown}=@FILE or {shown}=-",
        )
