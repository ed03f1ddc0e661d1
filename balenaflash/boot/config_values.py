"""What values of config.json must look like, beyond their type.

Each function takes a value of the right type and says what is wrong with it, in words that
follow the key and never repeat a secret; or ``None``.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable

from balenaflash.boot.country import is_country
from balenaflash.boot.json_text import Json

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
"""A number in a string, as balena's tools write it."""

_URL = re.compile(r"https?://[^\s/?#]+\S*")
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
    if _URL.fullmatch(str(value)):
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
