"""The command group, and the one way out."""

import io
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

import balenaflash
from balenaflash.cli.output import (
    COMMANDS,
    Answer,
    OutputError,
    output_failed,
    prepare_standard_streams,
    say,
    show,
    show_answer,
    show_problems,
)
from balenaflash.cli.progress import show_waiting
from balenaflash.cli.session import LazyGroup, Session, with_session
from balenaflash.cli.signals import die_by, interruptible, unblock_signals
from balenaflash.errors import BalenaflashError, InterruptedWriteError, Problem
from balenaflash.progress import listen_for_delays

_EPILOG = """\b
Exit status:
  0  done, and read back unless --no-verify
  1  a bug (please report the traceback), or the result could not be printed
  2  wrong usage; nothing was touched
  3  image or edit not valid or not readable; nothing was written
  4  target refused, there already or not confirmed; nothing was written
  5  I/O failed while writing: the target's content is undefined
  6  the read-back differs
  7  the image failed midway (unreadable, damaged, changed, wrong sum): the
     target holds part of it; the medium is not at fault
Interrupted by a signal, it dies by that signal.
"""


def _library_versions() -> list[tuple[str, str]]:
    """Names and versions of the libraries that do the work, libparted's own included."""
    from importlib import metadata

    from balenaflash.formats.partitions.table import libparted_version

    names = ("click", "pyfatfs", "pyparted", "pyudev", "tqdm", "xxhash")
    return [*((name, metadata.version(name)) for name in names), ("libparted", libparted_version())]


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it so
    if not value or context.resilient_parsing:
        return
    say(f"balenaflash {balenaflash.__version__}", err=False)
    if context.params.get("verbose"):
        for name, version in _library_versions():
            say(f"{name} {version}", err=False)
    context.exit()


@click.group(
    cls=LazyGroup,
    summaries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.option(
    "-v", "--verbose", is_flag=True, is_eager=True, help="With --version: the libraries' too."
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version and leave.",
)
def app(verbose: bool) -> None:  # noqa: FBT001 - click calls it so
    """Inspect, edit, write and verify balenaOS images.

    \b
    Examples:
      balenaflash inspect balena.img
      balenaflash boot put balena.img config.json
      balenaflash devices
      balenaflash write balena.img /dev/sdX
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; 128 + N when signal N interrupted it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Set before click parses anything, so that wrong usage is reported as JSON too.
    session = Session(json="--json" in arguments)
    listen_for_delays(partial(show_waiting, session))
    with interruptible(session):
        try:
            unblock_signals()
            return _run(arguments, session)
        except (click.Abort, KeyboardInterrupt):
            status = 128 + (session.signal or signal.SIGINT)
            return _show_problems((Problem("interrupted", "Interrupted."),), status, session)


def _run(arguments: list[str], session: Session) -> int:
    status = 0
    try:
        answer = app.main(
            args=arguments, prog_name="balenaflash", standalone_mode=False, obj=session
        )
        if isinstance(answer, Answer):
            status = _show_answer(answer, session)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        return _show_usage_error(error, session)
    except BalenaflashError as error:
        status = _status_of([error], error.exit_status, session)
        return _show_problems(error.problems, status, session)
    except OutputError as error:
        return output_failed(error, status)
    return status


def _show_answer(answer: Answer, session: Session) -> int:
    status = _status_of(answer.failures, answer.exit_status, session)
    return show(
        status,
        lambda: show_answer(
            answer,
            command=session.command,
            exit_status=status,
            as_json=session.json,
            quiet=session.quiet,
        ),
    )


def _show_usage_error(error: click.ClickException, session: Session) -> int:
    if not session.json:
        shown = io.StringIO()
        error.show(shown)
        for line in shown.getvalue().rstrip("\n").split("\n"):
            say(line)
        return error.exit_code
    return _show_problems((Problem("usage", error.format_message()),), error.exit_code, session)


def _show_problems(problems: Sequence[Problem], status: int, session: Session) -> int:
    return show(
        status,
        lambda: show_problems(
            problems, command=session.command, exit_status=status, as_json=session.json
        ),
    )


def _status_of(errors: Sequence[BalenaflashError], status: int, session: Session) -> int:
    """``status``, or that of a death by the signal which interrupted the work."""
    if any(isinstance(error, InterruptedWriteError) for error in errors):
        return 128 + (session.signal or signal.SIGINT)
    return status


def entry() -> None:
    """Run as the ``balenaflash`` command: exit with the status, or die by the signal."""
    prepare_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python's own would end in a traceback before and after `main`.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        status = main()
    except Exception:
        say("balenaflash: this is a bug; please report it with the lines below.")
        raise
    if status > 128:  # noqa: PLR2004 - shells report a death by signal N as 128 + N
        die_by(status - 128)
    sys.exit(status)


@app.command()
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
    path = Path(balenaflash.__file__).with_name("share") / f"completion.{shell}"
    script = path.read_text(encoding="utf-8")
    return Answer({"shell": shell, "script": script}, lines=script.splitlines())
