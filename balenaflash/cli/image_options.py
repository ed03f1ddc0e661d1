"""Options of commands that read an image from anywhere."""

import re
from typing import TYPE_CHECKING

import click

from balenaflash.cli.session import Session
from balenaflash.edits.given_text import without_mark

if TYPE_CHECKING:
    from balenaflash.balena.signature import CertificateFile, SignatureCheck
    from balenaflash.source.location import ImageLocation


def _lower_case_sum(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    if value is None:
        return None
    value = without_mark(value)
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

certificate_option = click.option(
    "--certificate",
    type=click.Path(dir_okay=False, readable=False),
    metavar="FILE",
    help="Refuse IMAGE unless the signature beside it verifies against this one, in PEM or DER.",
)


def read_certificate(name: str) -> "CertificateFile":
    """The certificate that the user named.

    Raises:
        EditError: it cannot be read.
    """
    from balenaflash.balena.signature import MAX_CERTIFICATE_SIZE, CertificateFile
    from balenaflash.cli.given_content import read_given
    from balenaflash.edits.given_text import given_bytes

    content = given_bytes(read_given(name, limit=MAX_CERTIFICATE_SIZE), name)
    return CertificateFile(name, content, of_image=False)


def signature_checks(
    image: "ImageLocation", certificate: str | None
) -> "tuple[SignatureCheck, ...]":
    """What ``--certificate`` asks to be checked of ``image``; nothing without it.

    Raises:
        ImageError, EditError, ToolMissingError: it cannot be checked.
    """
    if certificate is None:
        return ()
    from balenaflash.balena.signature import require_signature

    return (require_signature(image, read_certificate(certificate)),)
