"""The options of ``network add`` that every kind of connection has."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import click

from balenaflash.cli.given_content import STANDARD_INPUT, complete_file, read_given
from balenaflash.cli.usage import words_of_command_line

if TYPE_CHECKING:
    from balenaflash.edits.network import AddNetwork, Common

F = TypeVar("F", bound=Callable[..., object])


class CommonOptions(TypedDict):
    """What click makes of `common_options`."""

    name: str | None
    keyfile: str | None
    interface: str | None
    priority: int
    no_autoconnect: bool
    address: tuple[str, ...]
    gateway: tuple[str, ...]
    dns: tuple[str, ...]


_OPTIONS = (
    click.option("--name", metavar="NAME", help="Name of its file; else made from the network's."),
    click.option(
        "--keyfile",
        metavar="FILE",
        shell_complete=complete_file,
        help="Put this keyfile of NetworkManager as it is, such as for WPA Enterprise.",
    ),
    click.option("--interface", metavar="IF", help="Use this interface only, such as wlan0."),
    click.option(
        "--priority",
        type=click.IntRange(-999, 999),
        default=0,
        help="Of several networks in reach, the one with the highest is joined.",
    ),
    click.option("--no-autoconnect", is_flag=True, help="Join it only when told to."),
    click.option(
        "--address",
        metavar="ADDRESS/PREFIX",
        multiple=True,
        help="Static address, such as 192.168.1.111/24; else the network gives one.",
    ),
    click.option("--gateway", metavar="ADDRESS", multiple=True, help="Gateway, with --address."),
    click.option("--dns", metavar="ADDRESS", multiple=True, help="Name server to ask."),
)


def common_options(command: F) -> F:
    """Give ``command`` the options of `CommonOptions`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def common_settings(options: CommonOptions, default_name: str) -> "Common":
    """The settings that ``options`` ask for.

    Raises:
        WrongUsageError: an address, or the name of the network or interface, is not one.
    """
    from balenaflash.edits.network import Common, check_interface_name, check_network_name, parse_ip

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
    options: CommonOptions, file: str, kind: str, *, more_given: bool, overwrite: bool
) -> "AddNetwork":
    """The edit that puts the keyfile ``file``, a connection of ``kind``.

    ``more_given`` tells that there are options of that kind besides.

    Raises:
        EditError: it cannot be read, or is no such connection.
    """
    from balenaflash.edits.given_text import given_bytes
    from balenaflash.edits.network import AddNetwork, check_keyfile

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
    return AddNetwork(options["name"] or Path(file).name, content, overwrite)
