"""Connections of NetworkManager, as a board is to have them."""

import ipaddress
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from balenaflash.boot.given_text import BYTE_ORDER_MARK
from balenaflash.boot.keyfile import Groups, format_keyfile, format_list, format_ssid
from balenaflash.errors import EditError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

SSID_MAX = 32
"""Bytes of an SSID, IEEE 802.11-2020, section 9.4.2.2."""

_UUID_SPACE = uuid.UUID("0a0be8b3-1f5e-5f7e-9a3c-7f6a2a6a3d52")
_HEX_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_PASSPHRASE = range(8, 64)
"""Bytes of a WPA passphrase, IEEE 802.11-2020, section J.4.1."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_INTERFACE_NAME = re.compile(r"(?!\.\.?$)[^\s/:%]{1,15}", re.ASCII)  # linux, dev_valid_name()


class Security(StrEnum):
    """How a Wi-Fi network is secured; the values are NetworkManager's ``key-mgmt``."""

    OPEN = "open"
    WPA_PSK = "wpa-psk"
    """A passphrase, with WPA2 or WPA3."""

    SAE = "sae"
    """A passphrase, with WPA3 alone."""


@dataclass(frozen=True, slots=True)
class IpSettings:
    """Static addresses and name servers; each family without an address asks the network."""

    addresses: tuple[Interface, ...] = ()
    gateways: tuple[Address, ...] = ()
    dns: tuple[Address, ...] = ()

    def groups(self) -> Groups:
        """The groups ``ipv4`` and ``ipv6`` of a keyfile."""
        return {f"ipv{version}": self._group(version) for version in (4, 6)}

    def _group(self, version: int) -> dict[str, str]:
        addresses = [str(each) for each in self.addresses if each.version == version]
        gateways = [str(each) for each in self.gateways if each.version == version]
        dns = tuple(str(each) for each in self.dns if each.version == version)
        group = {f"address{number}": address for number, address in enumerate(addresses, 1)}
        if gateways:
            group["address1"] += f",{gateways[0]}"
        if dns:
            group["dns"] = format_list(dns)
        if version == 6:  # noqa: PLR2004 -- the protocol's version
            group["addr-gen-mode"] = "stable-privacy"  # as in balenaOS's own sample
        return group | {"method": "manual" if addresses else "auto"}


@dataclass(frozen=True, slots=True)
class Common:
    """What every kind of connection has."""

    name: str
    """Of its file and, unless ``id`` says otherwise, of the connection."""

    interface: str | None = None
    """Such as ``wlan0``; ``None`` for any of its kind."""

    autoconnect: bool = True
    priority: int = 0
    """Of two networks in reach, the one with the higher priority is used; -999 to 999."""

    ip: IpSettings = field(default_factory=IpSettings)

    def group(self, kind: str) -> dict[str, str]:
        """The group ``connection`` of a keyfile.

        The UUID follows from the name, so that the same edit always gives the same bytes.
        """
        group = {
            "id": self.name,
            "uuid": str(uuid.uuid5(_UUID_SPACE, self.name.casefold())),
            "type": kind,
        }
        if not self.autoconnect:
            group["autoconnect"] = "false"
        if self.priority:
            group["autoconnect-priority"] = str(self.priority)
        if self.interface is not None:
            group["interface-name"] = check_interface_name(self.interface)
        return group


@dataclass(frozen=True, slots=True)
class WifiConnection:
    """A Wi-Fi network with a passphrase, or open."""

    common: Common
    ssid: bytes
    security: Security = Security.WPA_PSK
    passphrase: str | None = field(default=None, repr=False)
    hidden: bool = False
    """Whether the network does not announce its SSID."""

    def keyfile(self) -> bytes:
        """Its keyfile.

        Raises:
            EditError: the SSID, the passphrase or the interface's name is not one.
        """
        wifi = {"hidden": "true"} if self.hidden else {}
        wifi |= {"mode": "infrastructure", "ssid": format_ssid(check_ssid(self.ssid))}
        groups: dict[str, dict[str, str]] = {
            "connection": self.common.group("wifi"),
            "wifi": wifi,
        }
        if self.security is not Security.OPEN:
            passphrase = check_passphrase(self.passphrase or "", self.security)
            groups["wifi-security"] = {"key-mgmt": self.security.value, "psk": passphrase}
        return format_keyfile({**groups, **self.common.ip.groups()})


@dataclass(frozen=True, slots=True)
class EthernetConnection:
    """A wired network."""

    common: Common

    def keyfile(self) -> bytes:
        """Its keyfile.

        Raises:
            EditError: the interface's name is not one.
        """
        groups = {"connection": self.common.group("ethernet"), "ethernet": {}}
        return format_keyfile({**groups, **self.common.ip.groups()})


def parse_ip(addresses: Sequence[str], gateways: Sequence[str], dns: Sequence[str]) -> IpSettings:
    """Static settings as users write them: ``192.168.1.111/24``, ``192.168.1.1``, ``8.8.8.8``.

    Raises:
        EditError: one is not an address, or a gateway has no address of its family to go with.
    """
    settings = IpSettings(
        tuple(_parse_interface(text) for text in addresses),
        tuple(_parse_address(text) for text in gateways),
        tuple(_parse_address(text) for text in dns),
    )
    versions = [gateway.version for gateway in settings.gateways]
    for gateway in settings.gateways:
        if versions.count(gateway.version) > 1:
            raise _invalid(f"{gateway}: is one of several IPv{gateway.version} gateways")
        family = [each for each in settings.addresses if each.version == gateway.version]
        if not family:
            raise _invalid(f"{gateway}: is a gateway for no IPv{gateway.version} address")
        if any(gateway == each.ip for each in family):
            raise _invalid(f"{gateway}: is both the board's address and its gateway")
    return settings


def check_ssid(ssid: bytes) -> bytes:
    """``ssid``, if it is one.

    Raises:
        EditError: it is empty or too long.
    """
    if 0 < len(ssid) <= SSID_MAX:
        return ssid
    raise _invalid(f"the SSID has {len(ssid)} bytes, where 1 to {SSID_MAX} can be")


def check_passphrase(passphrase: str, security: Security) -> str:
    """``passphrase``, if it is one.

    Raises:
        EditError: it is too short or too long; the message does not show it.
    """
    if _CONTROL.search(passphrase):
        raise _invalid("the passphrase has a line end or another control character in it")
    try:
        length = len(passphrase.encode("utf-8"))
    except UnicodeEncodeError as error:  # bytes of the environment, PEP 383
        raise _invalid("the passphrase is not UTF-8") from error
    if BYTE_ORDER_MARK in passphrase:
        raise _invalid("the passphrase has a byte order mark in it")
    if security is Security.SAE:
        if length == 0:
            raise _invalid("the passphrase is empty")
    elif length not in _PASSPHRASE and not _HEX_KEY.fullmatch(passphrase):
        raise _invalid(
            f"the passphrase has {length} bytes, where 8 to 63, or 64 hexadecimal digits, can be"
        )
    return passphrase


def check_interface_name(name: str) -> str:
    """``name``, if a network interface can have it.

    Raises:
        EditError: it cannot.
    """
    if _INTERFACE_NAME.fullmatch(name):
        return name
    raise _invalid(f"{name!r}: is not the name of a network interface, such as wlan0")


def _parse_interface(text: str) -> Interface:
    if "/" in text:
        try:
            return ipaddress.ip_interface(text)
        except ValueError:
            pass  # told below, as for an address without its prefix
    raise _invalid(f"{text!r}: is not an address with its prefix, such as 192.168.1.111/24")


def _parse_address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise _invalid(f"{text!r}: is not an IP address, such as 192.168.1.1") from error


def _invalid(message: str) -> EditError:
    return EditError(message, code="network-invalid")
