"""``network add``: give boards a network."""

import os
from typing import TYPE_CHECKING, Unpack

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.edit_answer import answer_edits
from balenaflash.cli.given_content import complete_file, read_given_text
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.network_options import (
    CommonOptions,
    common_options,
    common_settings,
    network_from_keyfile,
)
from balenaflash.cli.session import Session, edit_options, with_session
from balenaflash.cli.usage import words_of_command_line

if TYPE_CHECKING:
    from balenaflash.edits.network import AddNetwork, Security
    from balenaflash.source.location import ImageLocation


@click.group()
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
    "--country", metavar="CC", help="Whose radio rules hold, such as DE; goes into config.json."
)
@common_options
@edit_options
@with_session
def wifi(
    session: Session,
    image: "ImageLocation",
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

    The passphrase comes from a file or standard input, for a command line is seen by every user
    of the machine. What else NetworkManager can do is put in a keyfile, and that with --keyfile.
    With --overwrite a network of the same name is replaced.

    \b
    Examples:
      balenaflash network add wifi balena.img --ssid Lab --psk-file lab.psk --country DE
      pass show wifi/lab | balenaflash network add wifi balena.img --ssid Lab --psk-file -
      balenaflash network add wifi balena.img --keyfile enterprise.nmconnection
    """
    if (file := common["keyfile"]) is not None:
        more = any((ssid, psk_file, unsecured, wpa3, hidden))
        network = network_from_keyfile(
            common, file, "wifi", more_given=more, overwrite=session.edit.overwrite
        )
    else:
        security = _security(psk_file, unsecured=unsecured, wpa3=wpa3)
        network = _wifi_network(
            common, ssid, psk_file, security, hidden=hidden, overwrite=session.edit.overwrite
        )
    return _add(session, image, network, country)


@add.command()
@click.argument("image", type=IMAGE)
@common_options
@edit_options
@with_session
def ethernet(session: Session, image: "ImageLocation", **common: Unpack[CommonOptions]) -> Answer:
    """Add a wired network to IMAGE. Without one, boards ask any wired network for an address.

    With --overwrite a network of the same name is replaced.

    \b
    Examples:
      balenaflash network add ethernet balena.img --address 10.0.0.7/24 --gateway 10.0.0.1
      balenaflash network add ethernet balena.img --interface eth1 --address 10.1.0.7/24
    """
    from balenaflash.edits.network import AddNetwork, EthernetConnection, default_name

    if (file := common["keyfile"]) is not None:
        network = network_from_keyfile(
            common, file, "ethernet", more_given=False, overwrite=session.edit.overwrite
        )
    else:
        settings = common_settings(common, default_name("ethernet", common["interface"] or ""))
        keyfile = EthernetConnection(settings).keyfile()
        network = AddNetwork(settings.name, keyfile, session.edit.overwrite)
    return _add(session, image, network, None)


def _security(psk_file: str | None, *, unsecured: bool, wpa3: bool) -> "Security":
    from balenaflash.edits.network import Security

    if unsecured:
        if psk_file or wpa3:
            raise click.UsageError("--open excludes --psk-file and --wpa3.")
        return Security.OPEN
    if psk_file is None:
        raise click.UsageError("One of --psk-file, --open and --keyfile is needed.")
    return Security.SAE if wpa3 else Security.WPA_PSK


def _wifi_network(
    common: CommonOptions,
    ssid: str | None,
    psk_file: str | None,
    security: "Security",
    *,
    hidden: bool,
    overwrite: bool,
) -> "AddNetwork":
    from balenaflash.edits.given_text import without_mark
    from balenaflash.edits.network import AddNetwork, WifiConnection, check_ssid, default_name

    if ssid is None:
        raise click.UsageError("One of --ssid and --keyfile is needed.")
    ssid = without_mark(ssid)
    with words_of_command_line():
        # Bytes that are no UTF-8 come back as they were on the command line (PEP 383).
        ssid_bytes = check_ssid(os.fsencode(ssid))
    settings = common_settings(common, default_name("wifi", ssid))
    connection = WifiConnection(
        settings,
        ssid_bytes,
        security,
        None if psk_file is None else read_given_text(psk_file),
        hidden,
    )
    return AddNetwork(settings.name, connection.keyfile(), overwrite)


def _add(
    session: Session, image: "ImageLocation", network: "AddNetwork", country: str | None
) -> Answer:
    from balenaflash.edits.config.edit import EditConfig, SetKey

    edits: list[AddNetwork | EditConfig] = [network]
    if country is not None:
        edits.append(EditConfig((SetKey(("country",), country.upper()),)))
    return answer_edits(session, image, edits)
