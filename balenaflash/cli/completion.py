"""``completion``: the script that lets a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

from balenaflash.cli.answer import Answer
from balenaflash.cli.session import Session, with_session


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@with_session
def completion(session: Session, shell: str) -> Answer:  # noqa: ARG001 - every command has it
    """Print the completion script for SHELL.

    \b
    Examples:
      balenaflash completion bash > /etc/bash_completion.d/balenaflash
      balenaflash completion zsh > ~/.zfunc/_balenaflash
    """
    from balenaflash.cli.main import app  # main imports this module

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choices above are click's own
    script = kind(app, {}, "balenaflash", "_BALENAFLASH_COMPLETE").source()
    return Answer({"shell": shell, "script": script}, lines=script.splitlines())
