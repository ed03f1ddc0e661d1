"""The networks a board knows from its first start: keyfiles in ``system-connections``.

balenaOS copies the directory to ``/etc/NetworkManager`` at each start (meta-balena,
``balena-net-config``). NetworkManager passes over some names there, and that is how balenaOS's
samples work: ``.ignore`` looks like the end of a temporary file's name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from balenaflash.boot.connection import Security, check_passphrase, check_ssid
from balenaflash.boot.files import FileChange, Remove, make_directories, put_file
from balenaflash.boot.keyfile import ALIASES, Keyfile, parse_keyfile
from balenaflash.boot.paths import join
from balenaflash.errors import EditError, ExistsError, ImageError
from balenaflash.image.fat.names import check_name
from balenaflash.image.fat.volume import FatVolume

DIRECTORY = "/system-connections"

SAMPLE_SUFFIX = ".ignore"
"""Of files that show how to write one, and of their README."""

_TEMPORARY = re.compile(r"\.[A-Za-z0-9]{6}")
"""What mkstemp(3) puts at the end of a name."""

_CERTIFICATE = re.compile(r".+\.(?:pem|der)", re.IGNORECASE | re.DOTALL)
_CERTIFICATE_KEYS = ("ca-cert", "client-cert", "private-key", "phase2-ca-cert")


class NetworkState(StrEnum):
    """What NetworkManager makes of a file."""

    USED = "used"
    SAMPLE = "sample"
    IGNORED = "ignored"
    """Its name is one that NetworkManager passes over."""

    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Network:
    """A file of ``system-connections``; ``None`` is what it does not tell."""

    name: str
    state: NetworkState
    fault: str | None = None
    """Why it is ignored or invalid."""

    id: str | None = None
    type: str | None = None
    """Such as ``wifi`` or ``ethernet``; always the short name."""

    ssid: bytes | None = None
    security: str | None = None
    """NetworkManager's ``key-mgmt``."""

    interface: str | None = None
    addresses: tuple[str, ...] = ()
    """Static ones, with their prefixes."""


@dataclass(frozen=True, slots=True)
class AddNetwork:
    """Give the board a network."""

    name: str
    """Of the file in ``system-connections``."""

    keyfile: bytes = field(repr=False)
    overwrite: bool = False
    """Whether a different network of that name may be replaced."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``; the directory is made if it is missing.

        Raises:
            EditError: NetworkManager would not read a file of this name, or there is another.
        """
        check_network_name(self.name)
        made = make_directories(volume, DIRECTORY)
        path = join(DIRECTORY, self.name)
        entry = volume.find(path)
        if (
            entry is not None
            and not entry.is_directory
            and not self.overwrite
            and volume.read_file(path) != self.keyfile
        ):
            raise ExistsError(
                f"{entry.path}: is there already, and is different",
                code="network-exists",
                hint="Replace it with --overwrite, or give another --name.",
            )
        return (*made, put_file(volume, path, self.keyfile).with_warnings(self._missing_files()))

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"add network {self.name}"

    def _missing_files(self) -> Iterator[str]:
        keyfile = parse_keyfile(self.keyfile, self.name)
        for key in _CERTIFICATE_KEYS:
            path = keyfile.value("802-1x", key)
            if path and not path.startswith("data:"):
                yield f"{self.name}: {path} must be there on the board; it is not put there."


@dataclass(frozen=True, slots=True)
class RemoveNetwork:
    """Take a network from the board."""

    name: str

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``.

        Raises:
            EditError: there is no such network, or it is a sample.
        """
        if _is_sample(self.name):
            raise EditError(
                f"{self.name}: is a sample, not a network",
                code="network-sample",
                hint=f"Remove it as a file: balenaflash boot rm IMAGE {DIRECTORY}/{self.name}",
            )
        check_name(self.name)
        path = join(DIRECTORY, self.name)
        if volume.find(path) is None:
            raise EditError(
                f"{self.name}: there is no such network",
                code="network-missing",
                hint="It is named by its file; see what there is: balenaflash network ls IMAGE",
            )
        return Remove(path).apply(volume)

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"remove network {self.name}"


def list_networks(volume: FatVolume) -> tuple[Network, ...]:
    """The files of ``system-connections``, by name; empty where there is no such directory."""
    entry = volume.find(DIRECTORY)
    if entry is None or not entry.is_directory:
        return ()
    files = [each for each in volume.entries(DIRECTORY) if not each.is_directory]
    return tuple(
        _read_network(volume, each.name, each.path)
        for each in sorted(files, key=lambda each: each.name)
    )


def default_name(kind: str, text: str) -> str:
    """A name for a network that every system can hold as a file: letters, digits and hyphens."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if text and not plain:
        plain = text.encode("utf-8", "surrogateescape").hex()
    return f"{kind}-{plain}" if plain else kind


def check_network_name(name: str) -> None:
    """Return if a file of this name would be read.

    Raises:
        EditError: FAT cannot hold it, or NetworkManager passes it over.
    """
    check_name(name)
    if fault := _why_ignored(name):
        raise EditError(f"{name}: NetworkManager would not read it: {fault}", code="network-name")


def check_keyfile(data: bytes, name: str, kind: str) -> None:
    """Return if ``data`` is a connection of ``kind`` that NetworkManager can load.

    Raises:
        EditError: it is not, and why.
    """
    keyfile = parse_keyfile(data, name)
    given = _type_of(keyfile)
    if given != kind:
        raise EditError(
            f"{name}: is a connection of type {given or 'unknown'}, not {kind}",
            code="keyfile-invalid",
            hint="[connection] needs a line such as type=wifi.",
        )
    if kind == "wifi":
        _check_wifi(keyfile)


def _check_wifi(keyfile: Keyfile) -> None:
    check_ssid(keyfile.ssid() or b"")
    passphrase = keyfile.value("wifi-security", "psk")
    if passphrase is not None:
        sae = keyfile.value("wifi-security", "key-mgmt") == Security.SAE
        check_passphrase(passphrase, Security.SAE if sae else Security.WPA_PSK)


def _read_network(volume: FatVolume, name: str, path: str) -> Network:
    if _is_sample(name):
        return Network(name, NetworkState.SAMPLE)
    if fault := _why_ignored(name):
        return Network(name, NetworkState.IGNORED, fault)
    try:
        return _tell(parse_keyfile(volume.read_file(path), name))
    except (EditError, ImageError) as error:
        return Network(name, NetworkState.INVALID, str(error))


def _tell(keyfile: Keyfile) -> Network:
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
    """What ``nm_keyfile_utils_ignore_filename()`` has against a name (NetworkManager 1.52)."""
    if name.startswith("."):
        return "its name begins with a dot"
    if name.endswith("~"):
        return "its name ends in ~, as a backup's does"
    if _TEMPORARY.fullmatch(name[name.rfind(".") :]):
        return "its name ends in a dot and six letters or digits, as a temporary file's does"
    if _CERTIFICATE.fullmatch(name):
        return "its name ends as a certificate's does"
    return None
