"""``edit``, and the answer of every command that edits the boot partition."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from balenaflash.cli.arguments import IMAGE
from balenaflash.cli.changes import answer_edits
from balenaflash.cli.image_options import chosen_recipe, recipe_options
from balenaflash.cli.options import edit_options
from balenaflash.cli.output import Answer
from balenaflash.cli.session import Session, with_session
from balenaflash.source.location import ImageLocation


@click.command()
@click.argument("image", type=IMAGE)
@recipe_options
@edit_options
@with_session
def edit(
    session: Session,
    image: ImageLocation,
    *,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
) -> Answer:
    """Make all edits of a recipe in the boot partition of IMAGE, or none of them.

    Single ones may be given as --step. A recipe is a TOML file. Each [[step]] has the key that
    says what it does, named as the command is, and keys named as the options of that command:

    \b
      name = "bench"                     # optional: for = ["generic-amd64"]
      [[step]]
      put = ["logo.txt", "certs"]        # relative to the recipe
      to = "/"                           # in the boot partition
      [[step]]
      config-set = ["hostname=bench-${bench}", "os.sshKeys+=@lab.pub"]
      [[step]]
      wifi = "Lab"
      psk = "${env:LAB_PSK}"             # or: psk-file = "lab.psk"
      country = "DE"

    \b
    Steps                        and their other keys
      put = FILES                to
      apply = LIST               deploy-dir
      rm = PATHS                 recursive
      mkdir = PATHS              parents
      mv = PATHS                 to
      use-internal = true        from, to, keep-old
      splash = FILE
      config-set = ASSIGNMENTS   (KEY=VALUE, KEY+=VALUE, KEY=@FILE)
      config-unset = KEYS
      config-merge = FILE
      wifi = SSID                psk, psk-file, open, wpa3, hidden, country; those of ethernet
      ethernet = true            name, interface, autoconnect, priority, address, gateway, dns,
                                 overwrite
      keyfile = FILE             name, overwrite
      network-rm = NAMES

    ${NAME} is what --var NAME=VALUE says, and $$ a dollar sign. Secrets come from files or, as
    ${env:NAME}, from the environment, and are shown nowhere.

    \b
    Examples:
      balenaflash edit balena.img --recipe bench.toml --var bench=7 --dry-run
      LAB_PSK=$(pass show wifi/lab) balenaflash edit balena.img --recipe bench.toml --var bench=7
      balenaflash edit balena.img --step 'splash = "logo.png"' --step 'rm = "/overlays/*-old*"'
      balenaflash write balena.img /dev/sdX --recipe bench.toml --var bench=7
    """
    read = chosen_recipe(recipe, steps, variables)
    if read is None:
        raise click.UsageError("One of --recipe and --step is needed.")
    answer = answer_edits(session, image, read.edits)
    return replace(answer, result={"recipe": read.name, **answer.result})
