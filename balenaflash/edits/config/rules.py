"""The keys of config.json that balenaOS and its tools read, and the values each may hold.

Each function takes a value of the right type and says what is wrong with it, in words that
follow the key and never repeat a secret; or ``None``.

From meta-balena v8.0.2 (``balena-config-vars``, ``os-config``, the flasher), the supervisor's
``config/schema-type.ts`` and balena-cli. balena's tools often write numbers and booleans as
strings, and all readers but the installer's accept them so.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from balenaflash.edits.config.json_text import Json
from balenaflash.edits.config.keys import KeyPath, nested
from balenaflash.edits.secrets import masked

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
"""ISO 3166-1 alpha-2, the 249 officially assigned codes."""


def is_country(code: str) -> bool:
    """Whether ``code`` is an ISO 3166-1 alpha-2 code, in capitals."""
    return code in _CODES.split()


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
"""A number in a string, as balena's tools write it."""

_URL_PATTERN = re.compile(r"https?://[^\s/?#]+\S*")
_UUID = re.compile(r"(?:[0-9a-f]{2}){16,31}")  # balena-cli, ``^[0-9a-f]{32,62}$``, whole bytes
_DEVICE_KEY = re.compile(r"[0-9A-Za-z]{32}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")  # RFC 1123, section 2.1
_HOST_NAME_MAX = 64  # characters of a Linux host name, linux/utsname.h, __NEW_UTS_LEN
_PORT_MAX = 65535
_PUBLIC_KEY = re.compile(
    r"(?:\S+ )?(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+@openssh\.com)"
    r" [A-Za-z0-9+/]+=*(?: .*)?"
)
"""A line of authorized_keys, sshd(8), AUTHORIZED_KEYS FILE FORMAT."""


def check_url(value: Json) -> str | None:
    """os-config stops with a panic at any other."""
    if _URL_PATTERN.fullmatch(str(value)):
        return None
    return "must be an http:// or https:// URL"


def check_port(value: Json) -> str | None:
    """A TCP port."""
    text = str(value)
    if re.fullmatch(r"\d{1,5}", text, re.ASCII) and 0 < int(text) <= _PORT_MAX:
        return None
    return f"must be a port, 1 to {_PORT_MAX}"


def check_uuid(value: Json) -> str | None:
    """As balena-cli accepts it."""
    if _UUID.fullmatch(str(value)):
        return None
    return "must be 32 to 62 hexadecimal digits in small letters, an even count"


def check_country(value: Json) -> str | None:
    """As ``iw reg set`` takes it."""
    if is_country(str(value)):
        return None
    return "must be a country code of two capital letters, ISO 3166-1 alpha-2, such as DE"


def check_root_certificate(value: Json) -> str | None:
    """PEM in base64, as the host OS decodes it."""
    text = str(value)
    if text.lstrip().startswith("-----BEGIN"):
        return "must be the PEM file in base64, as base64 -w0 writes it, not the PEM file itself"
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: it has characters outside ASCII
        return "must be a PEM file in base64"
    return None if b"-----BEGIN CERTIFICATE-----" in content else "must hold a PEM certificate"


def check_ssh_keys(value: Json) -> str | None:
    """The host OS writes each on a line of authorized_keys."""
    keys = _strings(value)
    if any("PRIVATE KEY" in key for key in keys):
        return "must hold public keys, and one is a private key"
    if any("\n" in key or "\r" in key for key in keys):
        return "must hold one key in each string, without line ends"
    return None


def check_udev_rules(value: Json) -> str | None:
    """Each name becomes a file of /etc/udev/rules.d, and part of a shell command."""
    names = list(value) if isinstance(value, dict) else []
    if all(re.fullmatch(r"[\w.@+-]+", name, re.ASCII) for name in names):
        return None
    return "must have names of letters, digits and ._@+- only: they become file names"


def one_of(*choices: str) -> Callable[[Json], str | None]:
    """A rule: the value is one of ``choices``."""

    def rule(value: Json) -> str | None:
        return None if value in choices else f"must be one of {', '.join(choices)}"

    return rule


def advise_device_key(value: Json) -> str | None:
    """As os-config makes them, in hexadecimal, or balena's API, of any letters and digits."""
    if _DEVICE_KEY.fullmatch(str(value)):
        return None
    return "is not 32 letters and digits, as the keys that balena makes are"


def advise_dns_servers(value: Json) -> str | None:
    """Each becomes a ``server=`` line of dnsmasq; "null" stands for none."""
    for server in str(value).split() if value != "null" else ():
        try:
            ipaddress.ip_address(server.partition("#")[0])
        except ValueError:
            return f"holds {server!r}, which is not an IP address"
    return None


def advise_hostname(value: Json) -> str | None:
    """RFC 1123, and the kernel's limit."""
    text = str(value)
    if len(text) > _HOST_NAME_MAX:
        return f"is longer than {_HOST_NAME_MAX} characters"
    if all(_HOST_LABEL.fullmatch(label) for label in text.split(".")):
        return None
    return "is not a host name of letters, digits and hyphens"


def advise_network_file(_value: Json) -> str | None:
    """Read by balenaOS 1.x only."""
    return "has no effect from balenaOS 2 on; use: balenaflash network add"


def advise_ssh_keys(value: Json) -> str | None:
    """A line that sshd would not read as a key."""
    odd = [at for at, key in enumerate(_strings(value), 1) if not _PUBLIC_KEY.fullmatch(key)]
    return f"holds no OpenSSH public key at place {odd[0]}" if odd else None


def _strings(value: Json) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


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
_URL = KeyRule(Kind.STRING, rule=check_url)
_PORT = KeyRule(Kind.NUMBER, rule=check_port)
_NO_EFFECT = KeyRule(Kind.STRING, advice=advise_network_file)

KEYS: Mapping[KeyPath, KeyRule] = {
    tuple(name.split(".")): rule
    for name, rule in {
        "apiEndpoint": _URL,
        "apiKey": _TEXT,
        "apiTimeout": _NUMBER,
        "appUpdatePollInterval": _NUMBER,
        "applicationId": _NUMBER,
        "applicationName": _TEXT,
        "balenaRootCA": KeyRule(Kind.STRING, rule=check_root_certificate),
        "bootstrapRetryDelay": _NUMBER,
        "connectivity": KeyRule(Kind.STRING, advice=advise_network_file),
        "country": KeyRule(Kind.STRING, rule=check_country),
        "debug": KeyRule(Kind.ANY),
        "deltaEndpoint": _URL,
        "deviceApiKey": KeyRule(Kind.STRING, advice=advise_device_key),
        "deviceApiKeys": KeyRule(Kind.STRING_MAP),
        "deviceId": _NUMBER,
        "deviceType": _TEXT,
        "developmentMode": _FLAG,
        "dnsServers": KeyRule(Kind.STRING, advice=advise_dns_servers),
        "files": KeyRule(Kind.STRING_MAP, advice=advise_network_file),
        "hostname": KeyRule(Kind.STRING, advice=advise_hostname),
        "initialDeviceName": _TEXT,
        "installer.migrate.force": _INSTALLER_FLAG,
        "installer.secureboot": _INSTALLER_FLAG,
        "installer.target_devices": _TEXT,
        "installer.whitelist_pcr2": _INSTALLER_FLAG,
        "listenPort": _PORT,
        "logsEndpoint": _URL,
        "mixpanelToken": _TEXT,
        "network": KeyRule(Kind.OBJECTS, advice=advise_network_file),
        "ntpServers": _TEXT,
        "os.fan.profile": KeyRule(Kind.STRING, rule=one_of("quiet", "cool")),
        "os.kernel.extraFirmwareVol": _TEXT,
        "os.network.connectivity.interval": KeyRule(Kind.SCALAR),
        "os.network.connectivity.response": _TEXT,
        "os.network.connectivity.uri": _TEXT,
        "os.network.wifi.randomMacAddressScan": _FLAG,
        "os.power.mode": KeyRule(Kind.STRING, rule=one_of("low", "mid", "high")),
        "os.sshKeys": KeyRule(Kind.STRINGS, rule=check_ssh_keys, advice=advise_ssh_keys),
        "os.udevRules": KeyRule(Kind.STRING_MAP, rule=check_udev_rules),
        "persistentLogging": _FLAG,
        "pubnubPublishKey": _TEXT,
        "pubnubSubscribeKey": _TEXT,
        "registered_at": _NUMBER,
        "registryEndpoint": _TEXT,
        "userId": _NUMBER,
        "username": _TEXT,
        "uuid": KeyRule(Kind.STRING, rule=check_uuid),
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
    return isinstance(value, str) and NUMBER.fullmatch(value) is not None


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
