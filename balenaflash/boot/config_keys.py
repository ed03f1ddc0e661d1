"""The keys of config.json that balenaOS and its tools read, and what each may hold.

From meta-balena v8.0.2 (``balena-config-vars``, ``os-config``, the flasher), the supervisor's
``config/schema-type.ts`` and balena-cli. balena's tools often write numbers and booleans as
strings, and all readers but the installer's accept them so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from balenaflash.boot import config_values as values
from balenaflash.boot.config_path import KeyPath, nested
from balenaflash.boot.json_text import Json
from balenaflash.boot.secrets import masked


class Kind(Enum):
    """The type that a key's value has, in words that follow "must be"."""

    STRING = "a string"
    NUMBER = "a number"
    BOOLEAN = "true or false"
    STRICT_BOOLEAN = "true or false, not a string"
    """The installer asks jq for the value itself, to which the string "false" is true."""

    SCALAR = "a string or a number"
    STRINGS = "an array of strings"
    STRING_MAP = "an object of strings"
    OBJECTS = "an array of objects"
    OBJECT = "an object"
    ANY = "any value"

    def accepts(self, value: Json) -> bool:
        """Whether ``value`` is of this type, or a string that balena's tools write for it."""
        return _ACCEPTED[self](value)


Rule: TypeAlias = Callable[[Json], str | None]
"""What is wrong with a value of the right type, in words that follow its key; or ``None``."""


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What one key may hold."""

    kind: Kind
    rule: Rule | None = None
    """What it breaks is an error: balenaOS would not work, or not as meant."""

    advice: Rule | None = None
    """What it breaks is a warning."""


_TEXT = KeyRule(Kind.STRING)
_NUMBER = KeyRule(Kind.NUMBER)
_FLAG = KeyRule(Kind.BOOLEAN)
_INSTALLER_FLAG = KeyRule(Kind.STRICT_BOOLEAN)
_URL = KeyRule(Kind.STRING, rule=values.check_url)
_PORT = KeyRule(Kind.NUMBER, rule=values.check_port)
_NO_EFFECT = KeyRule(Kind.STRING, advice=values.advise_network_file)

KEYS: Mapping[KeyPath, KeyRule] = {
    tuple(name.split(".")): rule
    for name, rule in {
        "apiEndpoint": _URL,
        "apiKey": _TEXT,
        "apiTimeout": _NUMBER,
        "appUpdatePollInterval": _NUMBER,
        "applicationId": _NUMBER,
        "applicationName": _TEXT,
        "balenaRootCA": KeyRule(Kind.STRING, rule=values.check_root_certificate),
        "bootstrapRetryDelay": _NUMBER,
        "connectivity": KeyRule(Kind.STRING, advice=values.advise_network_file),
        "country": KeyRule(Kind.STRING, rule=values.check_country),
        "debug": KeyRule(Kind.ANY),
        "deltaEndpoint": _URL,
        "deviceApiKey": KeyRule(Kind.STRING, advice=values.advise_device_key),
        "deviceApiKeys": KeyRule(Kind.STRING_MAP),
        "deviceId": _NUMBER,
        "deviceType": _TEXT,
        "developmentMode": _FLAG,
        "dnsServers": KeyRule(Kind.STRING, advice=values.advise_dns_servers),
        "files": KeyRule(Kind.STRING_MAP, advice=values.advise_network_file),
        "hostname": KeyRule(Kind.STRING, advice=values.advise_hostname),
        "initialDeviceName": _TEXT,
        "installer.migrate.force": _INSTALLER_FLAG,
        "installer.secureboot": _INSTALLER_FLAG,
        "installer.target_devices": _TEXT,
        "installer.whitelist_pcr2": _INSTALLER_FLAG,
        "listenPort": _PORT,
        "logsEndpoint": _URL,
        "mixpanelToken": _TEXT,
        "network": KeyRule(Kind.OBJECTS, advice=values.advise_network_file),
        "ntpServers": _TEXT,
        "os.fan.profile": KeyRule(Kind.STRING, rule=values.one_of("quiet", "cool")),
        "os.kernel.extraFirmwareVol": _TEXT,
        "os.network.connectivity.interval": KeyRule(Kind.SCALAR),
        "os.network.connectivity.response": _TEXT,
        "os.network.connectivity.uri": _TEXT,
        "os.network.wifi.randomMacAddressScan": _FLAG,
        "os.power.mode": KeyRule(Kind.STRING, rule=values.one_of("low", "mid", "high")),
        "os.sshKeys": KeyRule(
            Kind.STRINGS, rule=values.check_ssh_keys, advice=values.advise_ssh_keys
        ),
        "os.udevRules": KeyRule(Kind.STRING_MAP, rule=values.check_udev_rules),
        "persistentLogging": _FLAG,
        "pubnubPublishKey": _TEXT,
        "pubnubSubscribeKey": _TEXT,
        "registered_at": _NUMBER,
        "registryEndpoint": _TEXT,
        "userId": _NUMBER,
        "username": _TEXT,
        "uuid": KeyRule(Kind.STRING, rule=values.check_uuid),
        "version": _TEXT,
        "vpnEndpoint": _TEXT,
        "vpnPort": _PORT,
        "wifiKey": _NO_EFFECT,
        "wifiSsid": _NO_EFFECT,
    }.items()
}
"""Every known key that holds a value; ``os`` and the like, which only hold keys, follow from it."""

GROUPS = frozenset(key[:depth] for key in KEYS for depth in range(1, len(key)))
"""The keys that only hold other keys."""


def kind_at(key: KeyPath) -> Kind | None:
    """The type of what ``key`` holds; ``None`` when nothing is known of it."""
    if key in KEYS:
        return KEYS[key].kind
    if key in GROUPS:
        return Kind.OBJECT
    around = KEYS.get(key[:-1])
    return Kind.STRING if around is not None and around.kind is Kind.STRING_MAP else None


def is_secret(key: KeyPath, value: Json = "any") -> bool:
    """Whether ``value`` at ``key`` is, or holds, something that must not be shown."""
    config = nested(key, value)
    return masked(config) != config


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_number_text(value: Json) -> bool:
    return isinstance(value, str) and values.NUMBER.fullmatch(value) is not None


_ACCEPTED: Mapping[Kind, Callable[[Json], bool]] = {
    Kind.STRING: lambda value: isinstance(value, str),
    Kind.NUMBER: lambda value: _is_number(value) or _is_number_text(value),
    Kind.BOOLEAN: lambda value: isinstance(value, bool) or value in ("true", "false"),
    Kind.STRICT_BOOLEAN: lambda value: isinstance(value, bool),
    Kind.SCALAR: lambda value: isinstance(value, str) or _is_number(value),
    Kind.STRINGS: lambda value: (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    ),
    Kind.STRING_MAP: lambda value: (
        isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    ),
    Kind.OBJECTS: lambda value: (
        isinstance(value, list) and all(isinstance(each, dict) for each in value)
    ),
    Kind.OBJECT: lambda value: isinstance(value, dict),
    Kind.ANY: lambda _value: True,
}
