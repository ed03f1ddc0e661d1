"""``boot splash``: the picture that is shown while the board starts."""

from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.edit_answer import answer_edits
from balenaflash.cli.given_content import complete_file, read_given
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.session import Session, edit_options, with_session

if TYPE_CHECKING:
    from balenaflash.source.location import ImageLocation


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("logo", metavar="LOGO.png", shell_complete=complete_file)
@edit_options
@with_session
def splash(session: Session, image: "ImageLocation", logo: str) -> Answer:
    """Show the PNG image LOGO while boards start from IMAGE; - is standard input.

    It goes to /splash/balena-logo.png, or to /splash/resin-logo.png in older images. A board
    scales it to its screen, on a white background.

    \b
    Examples:
      balenaflash boot splash balena.img logo.png
      rsvg-convert -h 1080 logo.svg | balenaflash boot splash balena.img -
    """
    from balenaflash.edits.splash import SetSplash

    return answer_edits(session, image, [SetSplash(logo, read_given(logo))])
