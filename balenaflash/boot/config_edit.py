"""Change keys of config.json, checked, and nothing else in it."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from balenaflash.boot.config_check import Finding, Severity, check_config
from balenaflash.boot.config_path import KeyPath
from balenaflash.boot.config_steps import ConfigStep
from balenaflash.boot.files import FileChange, put_file
from balenaflash.boot.json_text import (
    JsonDocument,
    format_document,
    parse_document,
    require_depth,
)
from balenaflash.errors import ConfigError, InvalidConfigError, Problem
from balenaflash.image.balenaos import CONFIG_PATH, DEVICE_TYPE_PATH
from balenaflash.image.fat.volume import FatVolume


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
