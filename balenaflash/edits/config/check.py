"""The known keys of config.json, the rules for their values, and the check of a whole file.

The rules are from meta-balena v8.0.2 (``balena-config-vars``, ``os-config``, the flasher), the
supervisor's ``config/schema-type.ts`` and balena-cli. balena's tools often write numbers and
booleans as strings. All readers except the installer accept that.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import TypeAlias

from balenaflash.balena.json_text import Json, format_value, kind_of
from balenaflash.edits.config.keys import KeyPath, format_key, nested
from balenaflash.edits.given_text import BYTE_ORDER_MARK
from balenaflash.edits.secrets import masked
from balenaflash.errors import closest

_CODES = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN
BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ
DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL
GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM
JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME
MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP
NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD
SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO
TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
"""
COUNTRIES = frozenset(_CODES.split())
"""ISO 3166-1 alpha-2, the 249 officially assigned codes."""


class ValueType(Enum):
    """The type of a key's value; the words follow "must be"."""

    STRING = "a string"
    NUMBER = "a number"
    BOOLEAN = "true or false"
    STRICT_BOOLEAN = "true or false, not a string"
    """For the installer: it reads the value with jq, for which the string "false" is true."""

    SCALAR = "a string or a number"
    STRINGS = "an array of strings"
    STRING_MAP = "an object of strings"
    OBJECTS = "an array of objects"
    OBJECT = "an object"
    ANY = "any value"

    def accepts(self, value: Json) -> bool:
        """True if ``value`` is of this type, or a string that balena's tools write for it."""
        return _ACCEPTED[self](value)


_NUMBER_TEXT = re.compile(r"-?\d+(?:\.\d+)?")


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _items_are(kind: type, items: Iterable[Json]) -> bool:
    return all(isinstance(each, kind) for each in items)


_ACCEPTED: Mapping[ValueType, Callable[[Json], bool]] = {
    ValueType.STRING: lambda value: isinstance(value, str),
    ValueType.NUMBER: lambda value: (
        _is_number(value) or (isinstance(value, str) and _NUMBER_TEXT.fullmatch(value) is not None)
    ),
    ValueType.BOOLEAN: lambda value: isinstance(value, bool) or value in ("true", "false"),
    ValueType.STRICT_BOOLEAN: lambda value: isinstance(value, bool),
    ValueType.SCALAR: lambda value: isinstance(value, str) or _is_number(value),
    ValueType.STRINGS: lambda value: isinstance(value, list) and _items_are(str, value),
    ValueType.STRING_MAP: lambda value: isinstance(value, dict) and _items_are(str, value.values()),
    ValueType.OBJECTS: lambda value: isinstance(value, list) and _items_are(dict, value),
    ValueType.OBJECT: lambda value: isinstance(value, dict),
    ValueType.ANY: lambda _value: True,
}


Rule: TypeAlias = Callable[[Json], str | None]
"""The problem with a value of the right type, in words that follow its key; or ``None``.

The words never contain a secret.
"""


def _rule(accepts: Callable[[str], object], fact: str) -> Rule:
    """A rule with the problem ``fact`` for each text that ``accepts`` does not accept."""
    return lambda value: None if accepts(str(value)) else fact


def _one_of(*choices: str) -> Rule:
    return _rule(choices.__contains__, f"must be one of {', '.join(choices)}")


_PORT_MAX = 65535
_HOST_NAME_MAX = 64  # characters of a Linux host name, linux/utsname.h, __NEW_UTS_LEN
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")  # RFC 1123, section 2.1
_PUBLIC_KEY = re.compile(
    r"(?:\S+ )?(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+@openssh\.com)"
    r" [A-Za-z0-9+/]+=*(?: .*)?"
)
"""A line of authorized_keys, sshd(8), AUTHORIZED_KEYS FILE FORMAT."""

_check_url = _rule(  # os-config stops with a panic at any other text
    re.compile(r"https?://[^\s/?#]+\S*").fullmatch, "must be an http:// or https:// URL"
)
_check_uuid = _rule(  # balena-cli, ``^[0-9a-f]{32,62}$``, whole bytes
    re.compile(r"(?:[0-9a-f]{2}){16,31}").fullmatch,
    "must be 32 to 62 hexadecimal digits in small letters, an even count",
)
_check_country = _rule(  # for ``iw reg set``
    COUNTRIES.__contains__,
    "must be a country code of two capital letters, ISO 3166-1 alpha-2, such as DE",
)
_advise_device_key = _rule(  # os-config makes hexadecimal keys; balena's API any letters and digits
    re.compile(r"[0-9A-Za-z]{32}").fullmatch,
    "is not 32 letters and digits, as the keys that balena makes are",
)
_advise_network_file = _rule(  # balenaOS 1.x alone reads the key
    lambda _text: False, "has no effect from balenaOS 2 on; use: balenaflash network add"
)


def _check_port(value: Json) -> str | None:
    text = str(value)
    if re.fullmatch(r"\d{1,5}", text, re.ASCII) and 0 < int(text) <= _PORT_MAX:
        return None
    return f"must be a port, 1 to {_PORT_MAX}"


def _check_root_certificate(value: Json) -> str | None:
    """The host OS decodes it from base64 and expects PEM."""
    text = str(value)
    if text.lstrip().startswith("-----BEGIN"):
        return "must be the PEM file in base64, as base64 -w0 writes it, not the PEM file itself"
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: it has characters outside ASCII
        return "must be a PEM file in base64"
    return None if b"-----BEGIN CERTIFICATE-----" in content else "must contain a PEM certificate"


def _check_ssh_keys(value: Json) -> str | None:
    """The host OS writes each key on a line of authorized_keys."""
    keys = _strings(value)
    if any("PRIVATE KEY" in key for key in keys):
        return "must contain public keys, but one is a private key"
    if any("\n" in key or "\r" in key for key in keys):
        return "must contain one key in each string, without line ends"
    return None


def _advise_ssh_keys(value: Json) -> str | None:
    """The host OS writes each key on a line of authorized_keys, where sshd skips any other text."""
    odd = [at for at, key in enumerate(_strings(value), 1) if not _PUBLIC_KEY.fullmatch(key)]
    return f"has an item that is not an OpenSSH public key, item {odd[0]}" if odd else None


def _check_udev_rules(value: Json) -> str | None:
    """Each name becomes a file of /etc/udev/rules.d, and part of a shell command."""
    names = list(value) if isinstance(value, dict) else []
    if all(re.fullmatch(r"[\w.@+-]+", name, re.ASCII) for name in names):
        return None
    return "must have names of letters, digits and ._@+- only: they become file names"


def _advise_dns_servers(value: Json) -> str | None:
    """Each word becomes a ``server=`` line of dnsmasq; "null" stands for no servers."""
    for server in str(value).split() if value != "null" else ():
        try:
            ipaddress.ip_address(server.partition("#")[0])
        except ValueError:
            return f"contains {server!r}, which is not an IP address"
    return None


def _advise_hostname(value: Json) -> str | None:
    """RFC 1123, and the kernel's limit."""
    text = str(value)
    if len(text) > _HOST_NAME_MAX:
        return f"is longer than {_HOST_NAME_MAX} characters"
    if all(_HOST_LABEL.fullmatch(label) for label in text.split(".")):
        return None
    return "is not a host name of letters, digits and hyphens"


def _strings(value: Json) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class KeyRule:
    """The type and the rules of one key."""

    type: ValueType
    rule: Rule | None = None
    """Its problems are errors: balenaOS would not work, or not as intended."""

    advice: Rule | None = None
    """Its problems are warnings."""


_TEXT = KeyRule(ValueType.STRING)
_NUMBER = KeyRule(ValueType.NUMBER)
_FLAG = KeyRule(ValueType.BOOLEAN)
_INSTALLER_FLAG = KeyRule(ValueType.STRICT_BOOLEAN)
_URL = KeyRule(ValueType.STRING, rule=_check_url)
_PORT = KeyRule(ValueType.NUMBER, rule=_check_port)
_NO_EFFECT = KeyRule(ValueType.STRING, advice=_advise_network_file)

KEYS: Mapping[KeyPath, KeyRule] = {
    tuple(name.split(".")): rule
    for name, rule in {
        "apiEndpoint": _URL,
        "apiKey": _TEXT,
        "apiTimeout": _NUMBER,
        "appUpdatePollInterval": _NUMBER,
        "applicationId": _NUMBER,
        "applicationName": _TEXT,
        "balenaRootCA": KeyRule(ValueType.STRING, rule=_check_root_certificate),
        "bootstrapRetryDelay": _NUMBER,
        "connectivity": KeyRule(ValueType.STRING, advice=_advise_network_file),
        "country": KeyRule(ValueType.STRING, rule=_check_country),
        "debug": KeyRule(ValueType.ANY),
        "deltaEndpoint": _URL,
        "deviceApiKey": KeyRule(ValueType.STRING, advice=_advise_device_key),
        "deviceApiKeys": KeyRule(ValueType.STRING_MAP),
        "deviceId": _NUMBER,
        "deviceType": _TEXT,
        "developmentMode": _FLAG,
        "dnsServers": KeyRule(ValueType.STRING, advice=_advise_dns_servers),
        "files": KeyRule(ValueType.STRING_MAP, advice=_advise_network_file),
        "hostname": KeyRule(ValueType.STRING, advice=_advise_hostname),
        "initialDeviceName": _TEXT,
        "installer.migrate.force": _INSTALLER_FLAG,
        "installer.secureboot": _INSTALLER_FLAG,
        "installer.target_devices": _TEXT,
        "installer.whitelist_pcr2": _INSTALLER_FLAG,
        "listenPort": _PORT,
        "logsEndpoint": _URL,
        "mixpanelToken": _TEXT,
        "network": KeyRule(ValueType.OBJECTS, advice=_advise_network_file),
        "ntpServers": _TEXT,
        "os.fan.profile": KeyRule(ValueType.STRING, rule=_one_of("quiet", "cool")),
        "os.kernel.extraFirmwareVol": _TEXT,
        "os.network.connectivity.interval": KeyRule(ValueType.SCALAR),
        "os.network.connectivity.response": _TEXT,
        "os.network.connectivity.uri": _TEXT,
        "os.network.wifi.randomMacAddressScan": _FLAG,
        "os.power.mode": KeyRule(ValueType.STRING, rule=_one_of("low", "mid", "high")),
        "os.sshKeys": KeyRule(ValueType.STRINGS, rule=_check_ssh_keys, advice=_advise_ssh_keys),
        "os.udevRules": KeyRule(ValueType.STRING_MAP, rule=_check_udev_rules),
        "persistentLogging": _FLAG,
        "pubnubPublishKey": _TEXT,
        "pubnubSubscribeKey": _TEXT,
        "registered_at": _NUMBER,
        "registryEndpoint": _TEXT,
        "userId": _NUMBER,
        "username": _TEXT,
        "uuid": KeyRule(ValueType.STRING, rule=_check_uuid),
        "version": _TEXT,
        "vpnEndpoint": _TEXT,
        "vpnPort": _PORT,
        "wifiKey": _NO_EFFECT,
        "wifiSsid": _NO_EFFECT,
    }.items()
}
"""Every known key with a value; keys that only hold other keys, such as ``os``, are in `GROUPS`."""

GROUPS = frozenset(key[:depth] for key in KEYS for depth in range(1, len(key)))
"""The keys that only hold other keys."""


def type_of(key: KeyPath) -> ValueType | None:
    """The type of the value of ``key``; ``None`` for an unknown key."""
    if key in KEYS:
        return KEYS[key].type
    if key in GROUPS:
        return ValueType.OBJECT
    around = KEYS.get(key[:-1])
    return ValueType.STRING if around and around.type is ValueType.STRING_MAP else None


def is_secret(key: KeyPath, value: Json = "any") -> bool:
    """True if ``value`` at ``key`` is, or contains, something that must not be shown."""
    config = nested(key, value)
    return masked(config) != config


_SHOWN_LENGTH = 60  # characters of a wrong value in a message


class Severity(StrEnum):
    """The effect of a finding on balenaOS."""

    ERROR = "error"
    """balenaOS would not work, or not as intended."""

    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of a config.json."""

    severity: Severity
    code: str
    """Stable name, such as ``config-type``."""

    key: str
    """The key as `format_key` writes it."""

    message: str
    """A sentence that begins with the key and shows no secret."""

    concerns: tuple[KeyPath, ...]
    """The keys that cause it; an edit of other keys is not to blame."""

    def is_about(self, keys: Iterable[KeyPath]) -> bool:
        """True if one of ``keys`` is, contains, or lies inside a key that causes the finding."""
        return any(
            key[: len(each)] == each or each[: len(key)] == key
            for key in keys
            for each in self.concerns
        )


def check_config(config: dict[str, Json], slug: str | None) -> tuple[Finding, ...]:
    """The findings about ``config``: first each key in order, then keys that contradict each other.

    ``slug`` is the device type of the image; ``None`` if the image does not contain it.
    """
    findings = [*_check_keys(config, ())]
    device_type = config.get("deviceType")
    if slug is not None and isinstance(device_type, str) and device_type != slug:
        fact = f"is {device_type!r}, but the image is for {slug!r}"
        findings.append(_error("config-device-type", ("deviceType",), fact))
    return (*findings, *_check_registration(config), *_check_endpoint(config))


def _check_keys(config: dict[str, Json], above: KeyPath) -> Iterator[Finding]:
    for name, value in config.items():
        key = (*above, name)
        if not above and (problem := _text_problem(name, value)):
            yield _error("config-value", key, problem)
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
            yield _wrong_type(key, value, ValueType.OBJECT)


def _text_problem(name: str, value: Json) -> str | None:
    """The problem with a text in ``value``, at any depth."""
    text = format_value({name: value})
    if BYTE_ORDER_MARK in text:
        return "contains a byte order mark (U+FEFF), which is invisible"
    if re.search("[\ud800-\udfff]", text):
        return "contains text that is not UTF-8"
    return None


def _check_value(key: KeyPath, value: Json, rule: KeyRule) -> Iterator[Finding]:
    if not rule.type.accepts(value):
        yield _wrong_type(key, value, rule.type)
        return
    if rule.rule is not None and (problem := rule.rule(value)):
        given = "" if isinstance(value, list | dict) else f", not {_shown(key, value)}"
        yield _error("config-value", key, f"{problem}{given}")
    if rule.advice is not None and (advice := rule.advice(value)):
        yield _warning("config-value-odd", key, advice)


def _check_registration(config: dict[str, Json]) -> Iterator[Finding]:
    """A pre-registered board has uuid, deviceApiKey, registered_at and deviceId, and no apiKey."""
    if "registered_at" in config:
        for name in ("uuid", "deviceApiKey", "deviceId"):
            if name not in config:
                yield _mismatch("registered_at", "means that the board is registered, but", name)
        if "apiKey" in config:
            fact = "is set, but a board with registered_at does not need it any more"
            yield _odd_pair("apiKey", "registered_at", fact)
    elif "deviceApiKey" in config:
        if "uuid" not in config:
            yield _mismatch("deviceApiKey", "belongs to one board, but", "uuid")
        if "apiKey" not in config:
            yield _mismatch("deviceApiKey", "is set, but", "apiKey", "registered_at")


def _check_endpoint(config: dict[str, Json]) -> Iterator[Finding]:
    keys = [name for name in ("apiKey", "deviceApiKey") if name in config]
    if keys and "apiEndpoint" not in config:
        yield _mismatch(keys[0], "is set, but the board will stay unmanaged:", "apiEndpoint")
    if "apiEndpoint" in config and not keys:
        yield _mismatch("apiEndpoint", "is set, but", "deviceApiKey", "apiKey")


def _mismatch(name: str, fact: str, *missing: str) -> Finding:
    are = "is" if len(missing) == 1 else "are both"
    return _odd_pair(name, missing[-1], f"{fact} {' and '.join(missing)} {are} missing")


def _odd_pair(name: str, other: str, fact: str) -> Finding:
    finding = _warning("config-registration", (name,), fact)
    return replace(finding, concerns=((name,), (other,)))


def _wrong_type(key: KeyPath, value: Json, wanted: ValueType) -> Finding:
    return _error("config-type", key, f"must be {wanted.value}, not {_shown(key, value)}")


def _error(code: str, key: KeyPath, fact: str) -> Finding:
    return Finding(Severity.ERROR, code, format_key(key), f"{format_key(key)} {fact}", (key,))


def _warning(code: str, key: KeyPath, fact: str) -> Finding:
    return replace(_error(code, key, fact), severity=Severity.WARNING)


def _shown(key: KeyPath, value: Json) -> str:
    """The type of ``value`` for a message, and its first characters if it is not a secret."""
    kind = kind_of(value)
    if value is None or isinstance(value, bool | list | dict) or is_secret(key, value):
        return kind
    text = format_value(value)
    if len(text) > _SHOWN_LENGTH:
        text = f"{text[:_SHOWN_LENGTH]}..."
    return f"{kind.replace('a ', 'the ', 1)} {text}"
