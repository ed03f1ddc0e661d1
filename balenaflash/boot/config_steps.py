"""Changes of a config.json in memory: set, add to, unset, merge."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from balenaflash.boot.config_keys import is_secret
from balenaflash.boot.config_path import KeyPath, format_key, holder_of, not_an_object
from balenaflash.boot.json_text import Json, format_value, is_same, kind_of
from balenaflash.errors import ConfigError


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
