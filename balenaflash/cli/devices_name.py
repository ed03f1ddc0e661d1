"""``devices name``: a lab's names for USB ports."""

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.session import Session, with_session
from balenaflash.cli.usage import words_of_command_line


@click.command("name")
@click.argument("port")
@click.argument("name", required=False)
@click.option("--remove", "removes", is_flag=True, help="Forget the name PORT.")
@with_session
def name_port(_session: Session, *, port: str, name: str | None, removes: bool) -> Answer:
    """Call the USB port PORT the slot NAME, for `write IMAGE slot:NAME`.

    PORT is a port as `devices` shows it, such as 1-2.3, or the node of a disk that is plugged into
    it. Names are kept in ~/.config/balenaflash/slots.toml or, by root, for all users in
    /etc/balenaflash/slots.toml.

    \b
    Examples:
      balenaflash devices name 1-2.3 left
      balenaflash devices name /dev/sdb right
      balenaflash devices name --remove left
    """
    from balenaflash.targets import names

    path = names.own_file()
    if removes:
        if name is not None:
            raise click.UsageError("With --remove there is one argument: the name.")
        names.name_port(path, port, None)
        return Answer(
            {"slot": port, "port": None, "file": str(path)}, [f"{path}: {port} is forgotten."]
        )
    if name is None:
        raise click.UsageError("Missing argument 'NAME'.")
    found = _port_of(port)
    with words_of_command_line():
        names.check_name(name)
        names.check_port(found)
    names.name_port(path, name, found)
    line = f"{path}: port {found} is slot:{name} now."
    return Answer({"slot": name, "port": found, "file": str(path)}, [line])


def _port_of(text: str) -> str:
    """The port that ``text`` is, or that the disk of that node is in.

    Raises:
        TargetRefusedError: no such disk is there, or it is not on USB.
    """
    if not text.startswith("/"):
        return text
    from balenaflash.errors import refusal
    from balenaflash.targets.disks import find_disk

    disk = find_disk(text)
    if disk.usb_port is None:
        raise refusal(
            "target-without-port",
            f"{disk.node}: is in no USB port ({disk.bus})",
            "Only USB ports have names.",
        )
    return disk.usb_port
