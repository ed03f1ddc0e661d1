"""``config show``, ``config get``, ``config check``: look at config.json."""

from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.image_options import member_option
from balenaflash.cli.session import Session, with_session
from balenaflash.cli.usage import words_of_command_line

if TYPE_CHECKING:
    from balenaflash.edits.config.check import Finding
    from balenaflash.source.location import ImageLocation

_show_secrets_option = click.option(
    "--show-secrets", is_flag=True, help="Do not mask keys and passwords."
)


@click.command()
@click.argument("image", type=IMAGE)
@_show_secrets_option
@member_option
@with_session
def show(session: Session, image: "ImageLocation", *, show_secrets: bool) -> Answer:
    """Print config.json with its secrets masked.

    \b
    Examples:
      balenaflash config show balena.img
      balenaflash config show --json balena.img | jq .result.config.uuid
    """
    from balenaflash.commands.edit import open_boot_volume
    from balenaflash.edits.config.edit import read_config
    from balenaflash.edits.config.json_text import format_lines
    from balenaflash.edits.secrets import masked

    with open_boot_volume(image, member=session.member) as boot:
        content = read_config(boot.files).content
        warnings = boot.warnings
    shown = dict(content) if show_secrets else masked(content)
    return Answer({"image": str(image), "config": shown}, format_lines(shown), warnings)


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("key")
@_show_secrets_option
@member_option
@with_session
def get(session: Session, image: "ImageLocation", key: str, *, show_secrets: bool) -> Answer:
    """Print the value of KEY: a string as it is, anything else as JSON.

    A KEY that is or holds a secret needs --show-secrets.

    \b
    Examples:
      balenaflash config get balena.img deviceType
      balenaflash config get --show-secrets balena.img apiKey
    """
    from balenaflash.commands.edit import open_boot_volume
    from balenaflash.edits.config.edit import read_config
    from balenaflash.edits.config.json_text import format_value
    from balenaflash.edits.config.keys import format_key, parse_key, value_at
    from balenaflash.edits.config.rules import is_secret
    from balenaflash.errors import ConfigError

    with words_of_command_line():
        path = parse_key(key)
    with open_boot_volume(image, member=session.member) as boot:
        value = value_at(read_config(boot.files).content, path)
        warnings = boot.warnings
    if not show_secrets and is_secret(path, value):
        raise ConfigError(
            f"{format_key(path)} is, or holds, a secret",
            code="config-secret",
            hint="Show it with --show-secrets.",
        )
    result = {"image": str(image), "key": format_key(path), "value": value}
    lines = value.split("\n") if isinstance(value, str) else [format_value(value)]
    return Answer(result, lines, warnings)


@click.command()
@click.argument("image", type=IMAGE)
@member_option
@with_session
def check(session: Session, image: "ImageLocation") -> Answer:
    """Check config.json: JSON, types and values, device type, whether the keys fit together.

    The exit status is 3 where balenaOS could not work with it. What is merely odd is a warning.

    \b
    Examples:
      balenaflash config check balena.img
      balenaflash config check --json balena.img | jq -r '.result.findings[].message'
    """
    from balenaflash.commands.edit import open_boot_volume
    from balenaflash.edits.config.check import Severity, check_config
    from balenaflash.edits.config.edit import invalid_config, read_config, read_slug

    with open_boot_volume(image, member=session.member) as boot:
        content = read_config(boot.files).content
        findings = check_config(content, read_slug(boot.files))
        warnings = boot.warnings
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


def _finding_result(finding: "Finding") -> dict[str, object]:
    return {
        "severity": finding.severity.value,
        "code": finding.code,
        "key": finding.key,
        "message": finding.message,
    }
