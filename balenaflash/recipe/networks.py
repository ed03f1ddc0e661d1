"""Steps of a recipe that give boards a network."""

from collections.abc import Iterator

from balenaflash.boot.config_edit import EditConfig
from balenaflash.boot.config_steps import SetKey
from balenaflash.boot.connection import (
    Common,
    EthernetConnection,
    Security,
    WifiConnection,
    parse_ip,
)
from balenaflash.boot.given_text import given_bytes
from balenaflash.boot.keyfile import ALIASES, MAX_SIZE, parse_keyfile
from balenaflash.boot.network import AddNetwork, check_keyfile, default_name
from balenaflash.editing import Edit
from balenaflash.errors import ConfigError
from balenaflash.recipe.local_files import read_content, read_text
from balenaflash.recipe.step import Step

_PRIORITY_MAX = 999  # NetworkManager's nm-settings-keyfile(5), connection.autoconnect-priority


def wifi_edits(step: Step) -> Iterator[Edit]:
    """Add a Wi-Fi network, and set the country if one is given."""
    ssid = step.text("wifi") or ""
    security, passphrase = _security(step)
    connection = WifiConnection(
        common=_common(step, default_name("wifi", ssid)),
        ssid=ssid.encode("utf-8", "surrogateescape"),
        security=security,
        passphrase=passphrase,
        hidden=step.flag("hidden"),
    )
    yield AddNetwork(connection.common.name, connection.keyfile(), step.flag("overwrite"))
    if (country := step.text("country")) is not None:
        yield EditConfig((SetKey(("country",), country.upper()),))


def ethernet_edits(step: Step) -> Iterator[Edit]:
    """Add a wired network."""
    common = _common(step, default_name("ethernet", step.text("interface") or ""))
    keyfile = EthernetConnection(common).keyfile()
    yield AddNetwork(common.name, keyfile, step.flag("overwrite"))


def keyfile_edits(step: Step) -> Iterator[Edit]:
    """Add the network of a keyfile as it is."""
    path = step.path("keyfile")
    content = given_bytes(read_content(path, limit=MAX_SIZE), str(path))
    kind = parse_keyfile(content, str(path)).value("connection", "type") or "wifi"
    check_keyfile(content, str(path), ALIASES.get(kind, kind))
    yield AddNetwork(step.text("name") or path.name, content, step.flag("overwrite"))


def _security(step: Step) -> tuple[Security, str | None]:
    """How the network is secured, and the passphrase."""
    given = [name for name in ("psk", "psk-file", "open") if step.values.get(name)]
    if len(given) != 1:
        raise ConfigError(
            f"{' and '.join(given)} exclude each other" if given else "psk is missing",
            code="recipe-network",
            hint='Give one of psk = "${env:NAME}", psk-file = "FILE" and open = true.',
        )
    if step.flag("open"):
        if step.flag("wpa3"):
            raise ConfigError("open and wpa3 exclude each other", code="recipe-network")
        return Security.OPEN, None
    passphrase = step.text("psk") if "psk" in given else read_text(step.path("psk-file"))
    return Security.SAE if step.flag("wpa3") else Security.WPA_PSK, passphrase


def _common(step: Step, default_name: str) -> Common:
    priority = step.number("priority")
    if abs(priority) > _PRIORITY_MAX:
        raise ConfigError(
            f"priority is {priority}, where -{_PRIORITY_MAX} to {_PRIORITY_MAX} can be",
            code="recipe-network",
        )
    return Common(
        name=step.text("name") or default_name,
        interface=step.text("interface"),
        autoconnect=step.flag("autoconnect", default=True),
        priority=priority,
        ip=parse_ip(step.texts("address"), step.texts("gateway"), step.texts("dns")),
    )
