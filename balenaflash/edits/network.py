"""The network connections in the boot partition, and the keyfiles that describe them.

balenaOS copies the directory ``system-connections`` to ``/etc/NetworkManager`` at each start
(meta-balena, ``balena-net-config``). NetworkManager ignores some file names there. balenaOS's
samples use that: ``.ignore`` looks like the suffix of a temporary file.
"""

import ipaddress
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from balenaflash.edits.files import FileChange, Remove, join, make_directories, put_file
from balenaflash.edits.given_text import BYTE_ORDER_MARK
from balenaflash.edits.keyfile_syntax import (
    ALIASES,
    Groups,
    Keyfile,
    format_keyfile,
    format_list,
    format_ssid,
    parse_keyfile,
)
from balenaflash.errors import EditError, ExistsError, ImageError
from balenaflash.formats.fat.names import check_name
from balenaflash.formats.fat.volume import FatVolume

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

DIRECTORY = "/system-connections"
SAMPLE_SUFFIX = ".ignore"  # of sample connections, and of their README

_SSID_MAX = 32  # bytes, IEEE 802.11-2020, section 9.4.2.2
_UUID_SPACE = uuid.UUID("0a0be8b3-1f5e-5f7e-9a3c-7f6a2a6a3d52")
_HEX_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_PASSPHRASE = range(8, 64)  # bytes of a WPA passphrase, IEEE 802.11-2020, section J.4.1
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_INTERFACE_NAME = re.compile(r"(?!\.\.?$)[^\s/:%]{1,15}", re.ASCII)  # linux, dev_valid_name()
_TEMPORARY = re.compile(r"\.[A-Za-z0-9]{6}")  # the suffix of mkstemp(3)
_CERTIFICATE = re.compile(r".+\.(?:pem|der)", re.IGNORECASE | re.DOTALL)
_CERTIFICATE_KEYS = ("ca-cert", "client-cert", "private-key", "phase2-ca-cert")


class Security(StrEnum):
    """The security of a Wi-Fi network; the values are NetworkManager's ``key-mgmt``."""

    OPEN = "open"
    WPA_PSK = "wpa-psk"
    """A passphrase, with WPA2 or WPA3."""

    SAE = "sae"
    """A passphrase, with WPA3 only."""


@dataclass(frozen=True, slots=True)
class IpSettings:
    """Static addresses and name servers; an address family without addresses uses DHCP or SLAAC."""

    addresses: tuple[Interface, ...] = ()
    gateways: tuple[Address, ...] = ()
    dns: tuple[Address, ...] = ()

    def groups(self) -> Groups:
        """The groups ``ipv4`` and ``ipv6`` of the keyfile."""
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
    """The settings that every type of connection has."""

    name: str
    """Name of the file and of the connection."""

    interface: str | None = None
    """Name of the network interface, such as ``wlan0``; ``None`` for any of the type."""

    autoconnect: bool = True
    priority: int = 0
    """-999 to 999; NetworkManager prefers the network with the highest priority."""

    ip: IpSettings = field(default_factory=IpSettings)

    def group(self, kind: str) -> dict[str, str]:
        """The group ``connection`` of a keyfile.

        The UUID is computed from the name: the same edit always writes the same bytes.
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
    """True if the network does not announce its SSID."""

    def keyfile(self) -> bytes:
        """The keyfile of the connection.

        Raises:
            EditError: the SSID, the passphrase or the name of the interface is not valid.
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
        """The keyfile of the connection.

        Raises:
            EditError: the name of the interface is not valid.
        """
        groups = {"connection": self.common.group("ethernet"), "ethernet": {}}
        return format_keyfile({**groups, **self.common.ip.groups()})


def parse_ip(addresses: Sequence[str], gateways: Sequence[str], dns: Sequence[str]) -> IpSettings:
    """Static settings as users write them: ``192.168.1.111/24``, ``192.168.1.1``, ``8.8.8.8``.

    Raises:
        EditError: one is not an address, or a gateway has no address of its family.
    """
    settings = IpSettings(
        tuple(map(_parse_interface, addresses)),
        tuple(map(_parse_address, gateways)),
        tuple(map(_parse_address, dns)),
    )
    versions = [gateway.version for gateway in settings.gateways]
    for gateway in settings.gateways:
        if versions.count(gateway.version) > 1:
            raise _invalid(f"{gateway}: there are several IPv{gateway.version} gateways")
        family = [each for each in settings.addresses if each.version == gateway.version]
        if not family:
            raise _invalid(f"{gateway}: the gateway needs an IPv{gateway.version} address")
        if any(gateway == each.ip for each in family):
            raise _invalid(f"{gateway}: is both an address of the board and its gateway")
    return settings


def check_ssid(ssid: bytes) -> bytes:
    """``ssid``, if it is valid.

    Raises:
        EditError: it is empty or too long.
    """
    if 0 < len(ssid) <= _SSID_MAX:
        return ssid
    raise _invalid(f"the SSID has {len(ssid)} bytes, but must have 1 to {_SSID_MAX}")


def check_passphrase(passphrase: str, security: Security) -> str:
    """``passphrase``, if it is valid.

    Raises:
        EditError: it is not valid; the message does not show it.
    """
    if _CONTROL.search(passphrase):
        raise _invalid("the passphrase contains a line end or another control character")
    try:
        length = len(passphrase.encode("utf-8"))
    except UnicodeEncodeError as error:  # bytes of the environment, PEP 383
        raise _invalid("the passphrase is not UTF-8") from error
    if BYTE_ORDER_MARK in passphrase:
        raise _invalid("the passphrase contains a byte order mark")
    if security is Security.SAE:
        if length == 0:
            raise _invalid("the passphrase is empty")
    elif length not in _PASSPHRASE and not _HEX_KEY.fullmatch(passphrase):
        raise _invalid(
            f"the passphrase has {length} bytes, but must have 8 to 63, or 64 hexadecimal digits"
        )
    return passphrase


def check_interface_name(name: str) -> str:
    """``name``, if it is valid for a network interface.

    Raises:
        EditError: it is not.
    """
    if _INTERFACE_NAME.fullmatch(name):
        return name
    raise _invalid(f"{name!r}: is not the name of a network interface, such as wlan0")


def _parse_interface(text: str) -> Interface:
    if "/" in text:
        try:
            return ipaddress.ip_interface(text)
        except ValueError:
            pass  # the same message as for an address without a prefix
    raise _invalid(f"{text!r}: is not an address with a prefix, such as 192.168.1.111/24")


def _parse_address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise _invalid(f"{text!r}: is not an IP address, such as 192.168.1.1") from error


def _invalid(message: str) -> EditError:
    return EditError(message, code="network-invalid")


class NetworkState(StrEnum):
    """NetworkManager's use of a file."""

    USED = "used"
    SAMPLE = "sample"
    IGNORED = "ignored"
    """NetworkManager ignores a file of this name."""

    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Network:
    """A file of ``system-connections``; ``None`` is a setting that the file does not have."""

    name: str
    state: NetworkState
    fault: str | None = None
    """The reason why it is ignored or invalid."""

    id: str | None = None
    type: str | None = None
    """The short name of the type, such as ``wifi`` or ``ethernet``."""

    ssid: bytes | None = None
    security: str | None = None
    """NetworkManager's ``key-mgmt``."""

    interface: str | None = None
    addresses: tuple[str, ...] = ()
    """Static addresses with their prefixes."""


@dataclass(frozen=True, slots=True)
class AddNetwork:
    """Write the keyfile of a network; a missing directory is created."""

    name: str
    """Name of the file in ``system-connections``."""

    keyfile: bytes = field(repr=False)
    overwrite: bool = False
    """Replace a different network of the same name."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        check_network_name(self.name)
        made = make_directories(volume, DIRECTORY)
        path = join(DIRECTORY, self.name)
        entry = volume.find(path)
        is_kept = entry is not None and not entry.is_directory and not self.overwrite
        if entry and is_kept and volume.read_file(path) != self.keyfile:
            raise ExistsError(
                f"{entry.path}: exists already, with other content",
                code="network-exists",
                hint="Replace it with --overwrite, or choose another --name.",
            )
        return (*made, put_file(volume, path, self.keyfile).with_warnings(self._missing_files()))

    def describe(self) -> str:
        return f"add network {self.name}"

    def _missing_files(self) -> Iterator[str]:
        keyfile = parse_keyfile(self.keyfile, self.name)
        for key in _CERTIFICATE_KEYS:
            path = keyfile.value("802-1x", key)
            if path and not path.startswith("data:"):
                yield f"{self.name}: {path} must exist on the board; it is not copied there."


@dataclass(frozen=True, slots=True)
class RemoveNetwork:
    """Remove the keyfile of a network."""

    name: str

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        path = join(DIRECTORY, self.name)
        if _is_sample(self.name):
            raise EditError(
                f"{self.name}: is a sample, not a network",
                code="network-sample",
                hint=f"Remove it as a file: balenaflash boot rm IMAGE {path}",
            )
        check_name(self.name)
        if volume.find(path) is None:
            raise EditError(
                f"{self.name}: no such network",
                code="network-missing",
                hint="Use the name of its file; list them: balenaflash network ls IMAGE",
            )
        return Remove(path).apply(volume)

    def describe(self) -> str:
        return f"remove network {self.name}"


def list_networks(volume: FatVolume) -> tuple[Network, ...]:
    """The files of ``system-connections``, by name; empty if there is no such directory."""
    entry = volume.find(DIRECTORY)
    if entry is None or not entry.is_directory:
        return ()
    files = [each for each in volume.entries(DIRECTORY) if not each.is_directory]
    return tuple(
        _read_network(volume, each.name, each.path)
        for each in sorted(files, key=lambda each: each.name)
    )


def default_name(kind: str, text: str) -> str:
    """A file name for a network that is valid on every system: letters, digits and hyphens."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if text and not plain:
        plain = text.encode("utf-8", "surrogateescape").hex()
    return f"{kind}-{plain}" if plain else kind


def check_network_name(name: str) -> None:
    """Refuse a name that NetworkManager would not read.

    Raises:
        EditError: FAT cannot store it, or NetworkManager ignores it.
    """
    check_name(name)
    if fault := _why_ignored(name):
        raise EditError(f"{name}: NetworkManager would ignore it: {fault}", code="network-name")


def check_keyfile(data: bytes, name: str, kind: str | None = None) -> None:
    """Refuse ``data`` that is not a connection for NetworkManager, of the type ``kind`` if given.

    Raises:
        EditError: it is not.
    """
    keyfile = parse_keyfile(data, name)
    given = _type_of(keyfile)
    if given is None or kind not in {None, given}:
        raise EditError(
            f"{name}: is a connection of type {given or 'unknown'}, not {kind or 'wifi'}",
            code="keyfile-invalid",
            hint=f"Add a line to [connection]: type={kind or 'wifi'}",
        )
    if given != "wifi":
        return
    check_ssid(keyfile.ssid() or b"")
    passphrase = keyfile.value("wifi-security", "psk")
    if passphrase is not None:
        is_sae = keyfile.value("wifi-security", "key-mgmt") == Security.SAE
        check_passphrase(passphrase, Security.SAE if is_sae else Security.WPA_PSK)


def _read_network(volume: FatVolume, name: str, path: str) -> Network:
    if _is_sample(name):
        return Network(name, NetworkState.SAMPLE)
    if fault := _why_ignored(name):
        return Network(name, NetworkState.IGNORED, fault)
    try:
        return _network_in(parse_keyfile(volume.read_file(path), name))
    except (EditError, ImageError) as error:
        return Network(name, NetworkState.INVALID, str(error))


def _network_in(keyfile: Keyfile) -> Network:
    kind = _type_of(keyfile)
    fault = None if kind else "[connection] has no type"
    return Network(
        name=keyfile.name,
        state=NetworkState.USED if fault is None else NetworkState.INVALID,
        fault=fault,
        id=keyfile.value("connection", "id"),
        type=kind,
        ssid=keyfile.ssid(),
        security=keyfile.value("wifi-security", "key-mgmt"),
        interface=keyfile.value("connection", "interface-name"),
        addresses=tuple(
            value.partition(",")[0]
            for group in ("ipv4", "ipv6")
            for key, value in keyfile.groups.get(group, {}).items()
            if re.fullmatch(r"address(?:es)?\d*", key)
        ),
    )


def _is_sample(name: str) -> bool:
    return name.casefold().endswith(SAMPLE_SUFFIX)


def _type_of(keyfile: Keyfile) -> str | None:
    kind = keyfile.value("connection", "type")
    return None if kind is None else ALIASES.get(kind, kind)


def _why_ignored(name: str) -> str | None:
    """The rule of ``nm_keyfile_utils_ignore_filename()`` for the name (NetworkManager 1.52)."""
    if name.startswith("."):
        return "its name begins with a dot"
    if name.endswith("~"):
        return "its name ends in ~ like that of a backup"
    if _TEMPORARY.fullmatch(name[name.rfind(".") :]):
        return "its name ends in a dot and six letters or digits like that of a temporary file"
    if _CERTIFICATE.fullmatch(name):
        return "its name ends like that of a certificate"
    return None
