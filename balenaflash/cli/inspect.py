"""``inspect``: what an image is and holds."""

from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.color import ColorChoice, color_option, is_color_wanted
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.image_options import member_option, read_certificate, sha256_option
from balenaflash.cli.session import Session, with_session

if TYPE_CHECKING:
    from balenaflash.source.location import ImageLocation


@click.command()
@click.argument("image", type=IMAGE)
@click.option("-b", "--bytes", "exact", is_flag=True, help="Print sizes in bytes.")
@click.option("--show-secrets", is_flag=True, help="Do not mask keys and passwords of config.json.")
@click.option(
    "--check-files", is_flag=True, help="Read all boot files, and compare with the fingerprint."
)
@click.option(
    "--check-bmap", is_flag=True, help="Read all that the block map lists, and compare with it."
)
@click.option(
    "--check-signature", is_flag=True, help="Read all of the image, and verify its signature."
)
@click.option(
    "--certificate",
    type=click.Path(dir_okay=False, readable=False),
    metavar="FILE",
    help="Verify the signature against this one, in PEM or DER form, not the image's own.",
)
@color_option
@member_option
@sha256_option
@with_session
def inspect(
    session: Session,
    image: "ImageLocation",
    *,
    exact: bool,
    show_secrets: bool,
    check_files: bool,
    check_bmap: bool,
    check_signature: bool,
    certificate: str | None,
    color: str,
    sha256: str | None,
) -> Answer:
    """Show what IMAGE is: partitions, boot partition, board, version, configuration.

    IMAGE is an image file, raw or compressed, or a block device such as a flashed card. Nothing
    is changed. Of a flasher the image that it carries is shown as well, and what it would do on
    its board. The fingerprint of the boot files, and a block map or a signature beside the image,
    are looked at in any case; comparing takes reading. The exit status is 3 where a check that was
    asked for could not be made or did not pass; and the certificate that an image carries itself
    is not enough to pass.

    \b
    Examples:
      balenaflash inspect balena.img
      balenaflash inspect --check-files --check-bmap balena.img
      balenaflash inspect --certificate kmod.crt balena.img
      balenaflash inspect --json balena.img | jq .result.balena.slug
    """
    from balenaflash.cli.inspect_result import image_result
    from balenaflash.cli.inspect_text import canvas_of_stdout, report_lines
    from balenaflash.commands.inspect import Scope, find_failed_checks
    from balenaflash.commands.inspect import inspect as inspect_image

    given = None if certificate is None else read_certificate(certificate)
    scope = Scope(
        member=session.member,
        sha256=sha256,
        show_secrets=show_secrets,
        check_files=check_files,
        check_bmap=check_bmap,
        check_signature=check_signature or given is not None,
        certificate=given,
    )
    report = inspect_image(image, scope)
    result = image_result(report)
    failures = list(find_failed_checks(report, scope))
    if session.json:
        return Answer(result, warnings=report.warnings, failures=failures)
    canvas = canvas_of_stdout(color=is_color_wanted(ColorChoice(color)))
    lines = report_lines(report, canvas, exact=exact)
    return Answer(result, lines, report.warnings, failures=failures)
