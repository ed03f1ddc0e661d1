"""Options of commands that read an image from anywhere."""

import re

import click

from balenaflash.cli.session import Session


def _lower_case_sum(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    if value is None:
        return None
    if re.fullmatch(r"[0-9a-fA-F]{64}", value) is None:
        raise click.BadParameter("a SHA-256 has 64 hexadecimal digits")
    return value.lower()


def _store_member(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.ensure_object(Session).member = value


member_option = click.option(
    "--member",
    metavar="NAME",
    expose_value=False,
    callback=_store_member,
    help="The image to take from a zip file that holds several.",
)
"""Goes into the session."""

sha256_option = click.option(
    "--sha256",
    metavar="HEX",
    callback=_lower_case_sum,
    help="Refuse IMAGE unless this is its SHA-256, or that of the file as it was downloaded.",
)
