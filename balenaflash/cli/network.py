"""``network``: the networks a board knows from its first start."""

import os
from pathlib import Path
from typing import TypedDict, Unpack

import click

from balenaflash.cli.arguments import (
    IMAGE,
    STANDARD_INPUT,
    complete_file,
    read_given,
    read_given_text,
)
from balenaflash.cli.changes import answer_edits
from balenaflash.cli.options import edit_options, member_option
from balenaflash.cli.output import Answer, printable, table_lines
from balenaflash.cli.session import (
    Group,
    Session,
    with_options,
    with_session,
    words_of_command_line,
)
from balenaflash.commands.edit import open_image
from balenaflash.edits.config.edit import EditConfig, SetKey
from balenaflash.edits.given_text import given_bytes, without_mark
from balenaflash.edits.network import (
    AddNetwork,
    Common,
    EthernetConnection,
    Network,
    RemoveNetwork,
    Security,
    WifiConnection,
    check_interface_name,
    check_keyfile,
    check_network_name,
    check_ssid,
    list_networks,
    parse_ip,
)
from balenaflash.edits.network import default_name as name_connection
from balenaflash.source.location import ImageLocation


@click.group(cls=Group)
def network() -> None:
    """Show and change the networks that boards join: /system-connections of an image.

    Each network is a keyfile of NetworkManager. balenaOS's samples, which end in .ignore, are shown
    as such and not changed.

    \b
    Examples:
      balenaflash network add wifi balena.img --ssid Lab --psk-file lab.psk
      balenaflash network ls balena.img
    """


class CommonOptions(TypedDict):
    """The values of `common_options`."""

    name: str | None
    keyfile: str | None
    interface: str | None
    priority: int
    no_autoconnect: bool
    address: tuple[str, ...]
    gateway: tuple[str, ...]
    dns: tuple[str, ...]


common_options = with_options(
    (
        click.option(
            "--name",
            metavar="NAME",
            help="Name of its file. [default: made from the network's name]",
        ),
        click.option(
            "--keyfile",
            metavar="FILE",
            shell_complete=complete_file,
            help="Copy this keyfile of NetworkManager as it is, for example for WPA Enterprise.",
        ),
        click.option("--interface", metavar="IF", help="Use only this interface, such as wlan0."),
        click.option(
            "--priority",
            type=click.IntRange(-999, 999),
            default=0,
            help="Of several networks in range, the one with the highest priority is joined.",
        ),
        click.option("--no-autoconnect", is_flag=True, help="Do not join it automatically."),
        click.option(
            "--address",
            metavar="ADDRESS/PREFIX",
            multiple=True,
            help="Static address, such as 192.168.1.111/24. [default: by DHCP]",
        ),
        click.option(
            "--gateway", metavar="ADDRESS", multiple=True, help="Gateway, with --address."
        ),
        click.option("--dns", metavar="ADDRESS", multiple=True, help="Name server."),
    )
)
"""The options of `CommonOptions`."""


def common_settings(options: CommonOptions, default_name: str) -> Common:
    """The settings that ``options`` ask for.

    Raises:
        WrongUsageError: an address, or the name of the network or interface, is not one.
    """
    name = options["name"] or default_name
    with words_of_command_line():
        check_network_name(name)
        if options["interface"] is not None:
            check_interface_name(options["interface"])
        return Common(
            name=name,
            interface=options["interface"],
            autoconnect=not options["no_autoconnect"],
            priority=options["priority"],
            ip=parse_ip(options["address"], options["gateway"], options["dns"]),
        )


def network_from_keyfile(
    session: Session, options: CommonOptions, file: str, kind: str, *, more_given: bool
) -> AddNetwork:
    """The edit that adds the keyfile ``file``, a connection of type ``kind``.

    ``more_given`` is true if options that ``--keyfile`` excludes were given.

    Raises:
        EditError: it cannot be read, or is not such a connection.
    """
    settings = (options["interface"], options["priority"], options["no_autoconnect"])
    addresses = (options["address"], options["gateway"], options["dns"])
    if more_given or any((*settings, *addresses)):
        raise click.UsageError(
            "With --keyfile, only --name, --overwrite and --country can be given."
        )
    if file == STANDARD_INPUT and not options["name"]:
        raise click.UsageError("With --keyfile -, --name is needed.")
    content = given_bytes(read_given(file), file)
    check_keyfile(content, file, kind)
    return AddNetwork(options["name"] or Path(file).name, content, session.overwrite)


@network.group("add", cls=Group)
def add() -> None:
    """Add a network to an image.

    \b
    Examples:
      balenaflash network add wifi balena.img --ssid Lab --psk-file lab.psk --country DE
      balenaflash network add ethernet balena.img --address 10.0.0.7/24 --gateway 10.0.0.1
    """


@add.command()
@click.argument("image", type=IMAGE)
@click.option("--ssid", metavar="SSID", help="Name of the network; any bytes, 32 at most.")
@click.option(
    "--psk-file",
    metavar="FILE",
    shell_complete=complete_file,
    help="File with the passphrase; - is standard input.",
)
@click.option("--open", "unsecured", is_flag=True, help="The network has no passphrase.")
@click.option("--wpa3", is_flag=True, help="Join with WPA3 (SAE) only, never with WPA2.")
@click.option("--hidden", is_flag=True, help="The network does not announce its name.")
@click.option(
    "--country", metavar="CC", help="Country of the radio rules, such as DE; set in config.json."
)
@common_options
@edit_options
@with_session
def wifi(
    session: Session,
    image: ImageLocation,
    *,
    ssid: str | None,
    psk_file: str | None,
    unsecured: bool,
    wpa3: bool,
    hidden: bool,
    country: str | None,
    **common: Unpack[CommonOptions],
) -> Answer:
    """Add a Wi-Fi network to IMAGE.

    The passphrase is read from a file or standard input, because a command line is visible to every
    user of the machine. For other settings of NetworkManager write a keyfile and add it with
    --keyfile. With --overwrite a network of the same name is replaced.

    \b
    Examples:
      balenaflash network add wifi balena.img --ssid Lab --psk-file lab.psk --country DE
      pass show wifi/lab | balenaflash network add wifi balena.img --ssid Lab --psk-file -
      balenaflash network add wifi balena.img --keyfile enterprise.nmconnection
    """
    if (file := common["keyfile"]) is not None:
        more = any((ssid, psk_file, unsecured, wpa3, hidden))
        network = network_from_keyfile(session, common, file, "wifi", more_given=more)
    else:
        security = _security(psk_file, unsecured=unsecured, wpa3=wpa3)
        if ssid is None:
            raise click.UsageError("One of --ssid and --keyfile is needed.")
        ssid = without_mark(ssid)
        with words_of_command_line():
            # Bytes that are not UTF-8 come back as they were on the command line (PEP 383).
            ssid_bytes = check_ssid(os.fsencode(ssid))
        settings = common_settings(common, name_connection("wifi", ssid))
        passphrase = None if psk_file is None else read_given_text(psk_file)
        connection = WifiConnection(settings, ssid_bytes, security, passphrase, hidden)
        network = AddNetwork(settings.name, connection.keyfile(), session.overwrite)
    return _add(session, image, network, country)


@add.command()
@click.argument("image", type=IMAGE)
@common_options
@edit_options
@with_session
def ethernet(session: Session, image: ImageLocation, **common: Unpack[CommonOptions]) -> Answer:
    """Add a wired network to IMAGE. Without one, boards use DHCP on any wired network.

    With --overwrite a network of the same name is replaced.

    \b
    Examples:
      balenaflash network add ethernet balena.img --address 10.0.0.7/24 --gateway 10.0.0.1
      balenaflash network add ethernet balena.img --interface eth1 --address 10.1.0.7/24
    """
    if (file := common["keyfile"]) is not None:
        network = network_from_keyfile(session, common, file, "ethernet", more_given=False)
    else:
        settings = common_settings(common, name_connection("ethernet", common["interface"] or ""))
        keyfile = EthernetConnection(settings).keyfile()
        network = AddNetwork(settings.name, keyfile, session.overwrite)
    return _add(session, image, network, None)


def _security(psk_file: str | None, *, unsecured: bool, wpa3: bool) -> Security:
    if unsecured:
        if psk_file or wpa3:
            raise click.UsageError("--open excludes --psk-file and --wpa3.")
        return Security.OPEN
    if psk_file is None:
        raise click.UsageError("One of --psk-file, --open and --keyfile is needed.")
    return Security.SAE if wpa3 else Security.WPA_PSK


def _add(
    session: Session, image: ImageLocation, network: AddNetwork, country: str | None
) -> Answer:
    edits: list[AddNetwork | EditConfig] = [network]
    if country is not None:
        edits.append(EditConfig((SetKey(("country",), country.upper()),)))
    return answer_edits(session, image, edits)


@network.command("ls")
@click.argument("image", type=IMAGE)
@member_option
@with_session
def list_all(session: Session, image: ImageLocation) -> Answer:
    """List the networks of IMAGE, without their secrets.

    \b
    Examples:
      balenaflash network ls balena.img
      balenaflash network ls --json balena.img | jq -r '.result.networks[].ssid'
    """
    with open_image(image, member=session.member) as opened:
        networks = list_networks(opened.files)
        warnings = opened.warnings
    result = {"image": str(image), "networks": [network_result(each) for each in networks]}
    faults = (f"{each.name}: {each.fault}." for each in networks if each.fault)
    return Answer(result, _lines(networks), (*warnings, *faults))


@network.command("rm")
@click.argument("image", type=IMAGE)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@edit_options
@with_session
def remove(session: Session, image: ImageLocation, names: tuple[str, ...]) -> Answer:
    """Remove networks from IMAGE, by the names that `network ls` shows.

    \b
    Examples:
      balenaflash network rm balena.img resin-wifi
    """
    return answer_edits(session, image, [RemoveNetwork(name) for name in names])


def network_result(network: Network) -> dict[str, object]:
    """A network, for scripts."""
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


def _lines(networks: tuple[Network, ...]) -> list[str]:
    if not networks:
        return ["No network is configured."]
    rows = []
    for each in networks:
        ssid, addresses = ssid_text(each.ssid), ", ".join(each.addresses)
        facts = (each.name, each.state.value, each.type, ssid, each.security, each.interface)
        rows.append([printable(fact or "") for fact in (*facts, addresses)])
    return table_lines(("Name", "State", "Type", "SSID", "Security", "Interface", "Address"), rows)


def ssid_text(ssid: bytes | None) -> str | None:
    """An SSID as text; bytes that are not UTF-8 are escaped."""
    return None if ssid is None else ssid.decode("utf-8", "backslashreplace")
