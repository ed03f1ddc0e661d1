"""``config set``, ``config unset``, ``config merge``: change config.json."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.edit_answer import answer_edits
from balenaflash.cli.given_content import (
    complete_file,
    read_given,
    read_given_text,
    require_one_standard_input,
)
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.session import Session, edit_options, with_session
from balenaflash.cli.usage import words_of_command_line

if TYPE_CHECKING:
    from balenaflash.edits.config.edit import Assignment, ConfigStep
    from balenaflash.source.location import ImageLocation


@click.command("set")
@click.argument("image", type=IMAGE)
@click.argument("assignments", metavar="KEY=VALUE...", nargs=-1, required=True)
@edit_options
@with_session
def set_keys(session: Session, image: "ImageLocation", assignments: tuple[str, ...]) -> Answer:
    """Set keys of config.json, all of them or none.

    VALUE is text, or JSON where KEY takes something else than a string or is not known; @FILE
    is the content of a file, and - that of standard input; in quotes, as '"-"', it is always a
    string. KEY+=VALUE adds an item to an array. Secrets are taken from a file or standard input
    only, for a command line is seen by every user of the machine.

    \b
    Examples:
      balenaflash config set balena.img developmentMode=true hostname=bench-7
      balenaflash config set balena.img 'os.sshKeys+=@id_ed25519.pub'
      pass show balena/key | balenaflash config set balena.img apiKey=-
      balenaflash config set balena.img 'deviceApiKeys["api.balena-cloud.com"]=@key'
    """
    from balenaflash.edits.config.edit import parse_assignment

    with words_of_command_line():
        parsed = [parse_assignment(text) for text in assignments]
    require_one_standard_input([each.source for each in parsed])
    return _edit_config(session, image, [_step(each) for each in parsed])


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@edit_options
@with_session
def unset(session: Session, image: "ImageLocation", keys: tuple[str, ...]) -> Answer:
    """Remove keys from config.json, with all they hold.

    \b
    Examples:
      balenaflash config unset balena.img developmentMode
      balenaflash config unset balena.img os.sshKeys hostname
    """
    from balenaflash.edits.config.edit import UnsetKey
    from balenaflash.edits.config.keys import parse_key

    with words_of_command_line():
        steps = [UnsetKey(parse_key(key)) for key in keys]
    return _edit_config(session, image, steps)


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("file", shell_complete=complete_file)
@edit_options
@with_session
def merge(session: Session, image: "ImageLocation", file: str) -> Answer:
    """Take over every key of FILE, such as `balena config generate` makes; - is standard input.

    A key at the top is replaced as a whole, as balena's own tools do, so that an os in FILE
    leaves nothing of the one before; what is lost so is a warning. Other keys stay.

    \b
    Examples:
      balena config generate --device UUID --version 6.0.0 -o generated.json
      balenaflash config merge balena.img generated.json
    """
    from balenaflash.edits.config.edit import MergeObject
    from balenaflash.edits.config.json_text import parse_document
    from balenaflash.edits.given_text import given_bytes

    document = parse_document(given_bytes(read_given(file), file), file)
    return _edit_config(session, image, [MergeObject(document.content)])


def _step(assignment: "Assignment") -> "ConfigStep":
    from balenaflash.edits.config.edit import refuse_secret
    from balenaflash.edits.config.keys import format_key

    if assignment.source is not None:
        text = read_given_text(assignment.source)
        return assignment.step(assignment.value_in(text, assignment.source))
    with words_of_command_line():
        value = assignment.value_in(assignment.text or "", format_key(assignment.key))
        refuse_secret(assignment.key, value)
    return assignment.step(value)


def _edit_config(session: Session, image: "ImageLocation", steps: Sequence["ConfigStep"]) -> Answer:
    from balenaflash.edits.config.edit import EditConfig

    return answer_edits(session, image, [EditConfig(tuple(steps))])
