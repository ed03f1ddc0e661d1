"""``network ls``, ``network rm``: see and remove the networks of an image."""

from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer, printable
from balenaflash.cli.edit_answer import answer_edits
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.image_options import member_option
from balenaflash.cli.session import Session, edit_options, with_session
from balenaflash.cli.text import table_lines

if TYPE_CHECKING:
    from balenaflash.edits.network import Network
    from balenaflash.source.location import ImageLocation


@click.command("ls")
@click.argument("image", type=IMAGE)
@member_option
@with_session
def list_all(session: Session, image: "ImageLocation") -> Answer:
    """List the networks of IMAGE, without their secrets.

    \b
    Examples:
      balenaflash network ls balena.img
      balenaflash network ls --json balena.img | jq -r '.result.networks[].ssid'
    """
    from balenaflash.commands.edit import open_boot_volume
    from balenaflash.edits.network import list_networks

    with open_boot_volume(image, member=session.member) as boot:
        networks = list_networks(boot.files)
        warnings = boot.warnings
    result = {"image": str(image), "networks": [network_result(each) for each in networks]}
    return Answer(result, _lines(networks), (*warnings, *_faults(networks)))


@click.command("rm")
@click.argument("image", type=IMAGE)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@edit_options
@with_session
def remove(session: Session, image: "ImageLocation", names: tuple[str, ...]) -> Answer:
    """Remove networks from IMAGE, by the names that `network ls` shows.

    \b
    Examples:
      balenaflash network rm balena.img resin-wifi
    """
    from balenaflash.edits.network import RemoveNetwork

    return answer_edits(session, image, [RemoveNetwork(name) for name in names])


def network_result(network: "Network") -> dict[str, object]:
    """What scripts get of a network."""
    return {
        "name": network.name,
        "state": network.state.value,
        "fault": network.fault,
        "id": network.id,
        "type": network.type,
        "ssid": ssid_text(network.ssid),
        "ssid_hex": None if network.ssid is None else network.ssid.hex(),
        "security": network.security,
        "interface": network.interface,
        "addresses": list(network.addresses),
    }


def _lines(networks: "tuple[Network, ...]") -> list[str]:
    if not networks:
        return ["No network is configured."]
    rows = [
        [
            printable(each.name),
            each.state.value,
            printable(each.type or ""),
            printable(ssid_text(each.ssid) or ""),
            printable(each.security or ""),
            printable(each.interface or ""),
            printable(", ".join(each.addresses)),
        ]
        for each in networks
    ]
    return table_lines(("Name", "State", "Type", "SSID", "Security", "Interface", "Address"), rows)


def _faults(networks: "tuple[Network, ...]") -> tuple[str, ...]:
    return tuple(f"{each.name}: {each.fault}." for each in networks if each.fault)


def ssid_text(ssid: bytes | None) -> str | None:
    """An SSID as text; bytes that are no UTF-8 are escaped."""
    return None if ssid is None else ssid.decode("utf-8", "backslashreplace")
