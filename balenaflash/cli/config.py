"""``config``: the keys of config.json."""

from collections.abc import Sequence

import click

from balenaflash.balena.json_text import format_lines, format_value, parse_document
from balenaflash.cli.arguments import (
    IMAGE,
    complete_file,
    read_given,
    read_given_text,
    require_one_standard_input,
)
from balenaflash.cli.changes import answer_edits
from balenaflash.cli.options import edit_options, member_option
from balenaflash.cli.output import Answer
from balenaflash.cli.session import Group, Session, with_session, words_of_command_line
from balenaflash.commands.edit import open_image
from balenaflash.edits.config.check import Finding, Severity, check_config, is_secret
from balenaflash.edits.config.edit import (
    Assignment,
    ConfigChange,
    EditConfig,
    MergeObject,
    UnsetKey,
    invalid_config,
    parse_assignment,
    read_config,
    read_slug,
    refuse_secret,
)
from balenaflash.edits.config.keys import format_key, parse_key, value_at
from balenaflash.edits.given_text import given_bytes
from balenaflash.edits.secrets import masked
from balenaflash.errors import ConfigError
from balenaflash.source.location import ImageLocation


@click.group(cls=Group)
def config() -> None:
    """Show and change config.json in the boot partition of an image.

    A KEY is a path such as developmentMode or os.sshKeys. A name with a dot in it is written in
    brackets and quotes, as in 'deviceApiKeys["api.balena-cloud.com"]'. Keys that balenaOS is known
    to read are checked; other keys are accepted with a warning. Order, layout and all other values
    stay as they are.

    \b
    Examples:
      balenaflash config show balena.img
      balenaflash config set balena.img developmentMode=true 'os.sshKeys+=@id_ed25519.pub'
      balenaflash config merge balena.img generated.json
    """


_show_secrets_option = click.option(
    "--show-secrets", is_flag=True, help="Do not mask keys and passwords."
)


@config.command("show")
@click.argument("image", type=IMAGE)
@_show_secrets_option
@member_option
@with_session
def show(session: Session, image: ImageLocation, *, show_secrets: bool) -> Answer:
    """Print config.json, secrets masked.

    \b
    Examples:
      balenaflash config show balena.img
      balenaflash config show --json balena.img | jq .result.config.uuid
    """
    with open_image(image, member=session.member) as opened:
        content = read_config(opened.files).content
        warnings = opened.warnings
    shown = dict(content) if show_secrets else masked(content)
    return Answer({"image": str(image), "config": shown}, format_lines(shown), warnings)


@config.command("get")
@click.argument("image", type=IMAGE)
@click.argument("key")
@_show_secrets_option
@member_option
@with_session
def get(session: Session, image: ImageLocation, key: str, *, show_secrets: bool) -> Answer:
    """Print the value of KEY: a string as it is, anything else as JSON.

    A KEY that is or contains a secret needs --show-secrets.

    \b
    Examples:
      balenaflash config get balena.img deviceType
      balenaflash config get --show-secrets balena.img apiKey
    """
    with words_of_command_line():
        path = parse_key(key)
    with open_image(image, member=session.member) as opened:
        value = value_at(read_config(opened.files).content, path)
        warnings = opened.warnings
    if not show_secrets and is_secret(path, value):
        raise ConfigError(
            f"{format_key(path)} is, or contains, a secret",
            code="config-secret",
            hint="Show it with --show-secrets.",
        )
    result = {"image": str(image), "key": format_key(path), "value": value}
    lines = value.split("\n") if isinstance(value, str) else [format_value(value)]
    return Answer(result, lines, warnings)


@config.command("check")
@click.argument("image", type=IMAGE)
@member_option
@with_session
def check(session: Session, image: ImageLocation) -> Answer:
    """Check config.json: JSON, types and values, device type, and keys that belong together.

    The exit status is 3 if balenaOS could not work with it. Anything else unusual is a warning.

    \b
    Examples:
      balenaflash config check balena.img
      balenaflash config check --json balena.img | jq -r '.result.findings[].message'
    """
    with open_image(image, member=session.member) as opened:
        content = read_config(opened.files).content
        findings = check_config(content, read_slug(opened.files))
        warnings = opened.warnings
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise invalid_config(findings)
    result = {
        "image": str(image),
        "keys": len(content),
        "findings": [_finding_result(finding) for finding in findings],
    }
    odd = tuple(f"{finding.message}." for finding in findings)
    count = "1 key" if len(content) == 1 else f"{len(content)} keys"
    line = f"{image}: config.json is valid, {count}"
    return Answer(result, [line], (*warnings, *odd))


def _finding_result(finding: Finding) -> dict[str, object]:
    return {
        "severity": finding.severity.value,
        "code": finding.code,
        "key": finding.key,
        "message": finding.message,
    }


@config.command("set")
@click.argument("image", type=IMAGE)
@click.argument("assignments", metavar="KEY=VALUE...", nargs=-1, required=True)
@edit_options
@with_session
def set_keys(session: Session, image: ImageLocation, assignments: tuple[str, ...]) -> Answer:
    """Set keys of config.json, all of them or none.

    VALUE is text, or JSON if KEY does not take a string or is not known. @FILE reads the value from
    a file, - from standard input; in quotes, as '"-"', it is always a string. KEY+=VALUE adds an
    item to an array. Secrets are read from a file or standard input only, because a command line
    is visible to every user of the machine.

    \b
    Examples:
      balenaflash config set balena.img developmentMode=true hostname=bench-7
      balenaflash config set balena.img 'os.sshKeys+=@id_ed25519.pub'
      pass show balena/key | balenaflash config set balena.img apiKey=-
      balenaflash config set balena.img 'deviceApiKeys["api.balena-cloud.com"]=@key'
    """
    with words_of_command_line():
        parsed = [parse_assignment(text) for text in assignments]
    require_one_standard_input([each.source for each in parsed])
    return _edit_config(session, image, [_step(each) for each in parsed])


@config.command("unset")
@click.argument("image", type=IMAGE)
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@edit_options
@with_session
def unset(session: Session, image: ImageLocation, keys: tuple[str, ...]) -> Answer:
    """Remove keys from config.json, with everything in them.

    \b
    Examples:
      balenaflash config unset balena.img developmentMode
      balenaflash config unset balena.img os.sshKeys hostname
    """
    with words_of_command_line():
        steps = [UnsetKey(parse_key(key)) for key in keys]
    return _edit_config(session, image, steps)


@config.command("merge")
@click.argument("image", type=IMAGE)
@click.argument("file", shell_complete=complete_file)
@edit_options
@with_session
def merge(session: Session, image: ImageLocation, file: str) -> Answer:
    """Merge the keys of FILE, made for example by `balena config generate`; - is standard input.

    A top-level key is replaced as a whole, as balena's own tools do: an os in FILE replaces all of
    the previous one. Values that are lost this way are a warning. Other keys stay.

    \b
    Examples:
      balena config generate --device UUID --version 6.0.0 -o generated.json
      balenaflash config merge balena.img generated.json
    """
    document = parse_document(given_bytes(read_given(file), file), file)
    return _edit_config(session, image, [MergeObject(document.content)])


def _step(assignment: Assignment) -> ConfigChange:
    if assignment.source is not None:
        text = read_given_text(assignment.source)
        return assignment.change(assignment.value_in(text, assignment.source))
    with words_of_command_line():
        value = assignment.value_in(assignment.text or "", format_key(assignment.key))
        refuse_secret(assignment.key, value)
    return assignment.change(value)


def _edit_config(session: Session, image: ImageLocation, steps: Sequence[ConfigChange]) -> Answer:
    return answer_edits(session, image, [EditConfig(tuple(steps))])
