"""What is wrong with a config.json, and what is merely odd."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from balenaflash.edits.config.json_text import Json, format_value, kind_of
from balenaflash.edits.config.keys import KeyPath, format_key
from balenaflash.edits.config.rules import GROUPS, KEYS, KeyRule, Kind, is_secret
from balenaflash.edits.given_text import BYTE_ORDER_MARK
from balenaflash.errors import closest

_SHOWN_LENGTH = 60  # characters of a wrong value in a message


class Severity(StrEnum):
    """Whether balenaOS can work with it."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd."""

    severity: Severity
    code: str
    """Stable name, such as ``config-type``."""

    key: str
    """Where, as `format_key` writes it."""

    message: str
    """A sentence that begins with the key and shows no secret."""

    concerns: tuple[KeyPath, ...]
    """The keys that it comes from; a change of none of them is not to blame."""

    def is_about(self, keys: Iterable[KeyPath]) -> bool:
        """Whether one of ``keys`` is, holds, or lies inside a key that it comes from."""
        return any(
            key[: len(each)] == each or each[: len(key)] == key
            for key in keys
            for each in self.concerns
        )


def check_config(config: dict[str, Json], slug: str | None) -> tuple[Finding, ...]:
    """Everything wrong or odd with ``config``, in its order; then what does not fit together.

    ``slug`` is the device type of the image, or ``None`` where it does not tell.
    """
    findings = [*_check_keys(config, ())]
    findings += _check_device_type(config, slug)
    findings += _check_registration(config)
    return tuple(findings)


def _check_keys(config: dict[str, Json], above: KeyPath) -> Iterator[Finding]:
    for name, value in config.items():
        key = (*above, name)
        if not above and (fault := _text_fault(name, value)):
            yield _error("config-value", key, fault)
        rule = KEYS.get(key)
        if rule is not None:
            yield from _check_value(key, value, rule)
        elif key not in GROUPS:
            near = closest(format_key(key), map(format_key, KEYS))
            meant = "" if near is None else f" (did you mean {near}?)"
            fact = f"is not a key that balenaOS is known to read{meant}"
            yield _warning("config-key-unknown", key, fact)
        elif isinstance(value, dict):
            yield from _check_keys(value, key)
        else:
            yield _wrong_type(key, value, Kind.OBJECT)


def _text_fault(name: str, value: Json) -> str | None:
    """What no text in ``value`` is meant to hold, at any depth."""
    text = format_value({name: value})
    if BYTE_ORDER_MARK in text:
        return "holds a byte order mark (U+FEFF), which cannot be seen"
    if re.search("[\ud800-\udfff]", text):
        return "holds text that is not UTF-8"
    return None


def _check_value(key: KeyPath, value: Json, rule: KeyRule) -> Iterator[Finding]:
    if not rule.kind.accepts(value):
        yield _wrong_type(key, value, rule.kind)
        return
    if rule.rule is not None and (fault := rule.rule(value)):
        given = "" if isinstance(value, list | dict) else f", not {_shown(key, value)}"
        yield _error("config-value", key, f"{fault}{given}")
    if rule.advice is not None and (advice := rule.advice(value)):
        yield _warning("config-value-odd", key, advice)


def _check_device_type(config: dict[str, Json], slug: str | None) -> Iterator[Finding]:
    device_type = config.get("deviceType")
    if slug is not None and isinstance(device_type, str) and device_type != slug:
        yield _error(
            "config-device-type",
            ("deviceType",),
            f"is {device_type!r}, but the image is for {slug!r}",
        )


def _check_registration(config: dict[str, Json]) -> Iterator[Finding]:
    """A pre-registered board has uuid, deviceApiKey, registered_at and deviceId, and no apiKey."""
    if "registered_at" in config:
        yield from _check_registered(config)
    elif "deviceApiKey" in config:
        if "uuid" not in config:
            yield _mismatch("deviceApiKey", "belongs to one board, but", "uuid")
        if "apiKey" not in config:
            yield _mismatch("deviceApiKey", "is set, but", "apiKey", "registered_at")
    yield from _check_endpoint(config)


def _check_registered(config: dict[str, Json]) -> Iterator[Finding]:
    for name in ("uuid", "deviceApiKey", "deviceId"):
        if name not in config:
            yield _mismatch("registered_at", "says that the board is registered, but", name)
    if "apiKey" in config:
        fact = "is there, though registered_at says that the board needs it no more"
        yield _odd_pair("apiKey", "registered_at", fact)


def _check_endpoint(config: dict[str, Json]) -> Iterator[Finding]:
    keys = [name for name in ("apiKey", "deviceApiKey") if name in config]
    if keys and "apiEndpoint" not in config:
        yield _mismatch(keys[0], "is there, and the board will stay unmanaged:", "apiEndpoint")
    if "apiEndpoint" in config and not keys:
        yield _mismatch("apiEndpoint", "is set, but", "deviceApiKey", "apiKey")


def _mismatch(name: str, fact: str, *missing: str) -> Finding:
    are = "is" if len(missing) == 1 else "are both"
    return _odd_pair(name, missing[-1], f"{fact} {' and '.join(missing)} {are} missing")


def _odd_pair(name: str, other: str, fact: str) -> Finding:
    finding = _warning("config-registration", (name,), fact)
    return replace(finding, concerns=((name,), (other,)))


def _wrong_type(key: KeyPath, value: Json, kind: Kind) -> Finding:
    return _error("config-type", key, f"must be {kind.value}, not {_shown(key, value)}")


def _error(code: str, key: KeyPath, fact: str) -> Finding:
    return Finding(Severity.ERROR, code, format_key(key), f"{format_key(key)} {fact}", (key,))


def _warning(code: str, key: KeyPath, fact: str) -> Finding:
    return Finding(Severity.WARNING, code, format_key(key), f"{format_key(key)} {fact}", (key,))


def _shown(key: KeyPath, value: Json) -> str:
    """``value`` in a message: what it is, and as much of it as may be shown."""
    kind = kind_of(value)
    if value is None or isinstance(value, bool | list | dict) or is_secret(key, value):
        return kind
    text = format_value(value)
    if len(text) > _SHOWN_LENGTH:
        text = f"{text[:_SHOWN_LENGTH]}..."
    return f"{kind.replace('a ', 'the ', 1)} {text}"
