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
      balenaflash completion zsh > /usr/local/share/zsh/site-functions/_balenaflash
      balenaflash completion fish > ~/.config/fish/completions/balenaflash.fish
    """
    from balenaflash.cli.main import app  # main imports this module

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choices above are click's own
    script = kind(app, {}, "balenaflash", "_BALENAFLASH_COMPLETE").source()
    # click's own takes a comma in a help for the end of the word (fish 3.1 and later split once).
    script = script.replace('(string split "," $completion)', '(string split -m 1 "," $completion)')
    return Answer({"shell": shell, "script": script}, lines=script.splitlines())
