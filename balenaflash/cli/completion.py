"""``completion``: the script that lets a shell complete commands and options."""

from importlib import resources

import click

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
    path = resources.files("balenaflash").joinpath(f"share/completion.{shell}")
    script = path.read_text(encoding="utf-8")
    return Answer({"shell": shell, "script": script}, lines=script.splitlines())
