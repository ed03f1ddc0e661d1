"""The frame of the command line: help, wrong usage, envelope, bugs, closed pipes."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import commandline
import pytest
from commandline import RunBalenaflash, clean_environment

import balenaflash as package
from balenaflash.cli.main import app
from balenaflash.cli.output import COMMANDS, printable


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        found.append(path)
        if isinstance(command, click.Group):
            for name, child in commandline.commands_of(command).items():
                walk(child, (*path, name))

    walk(app, ())
    return found


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_an_example(
    path: tuple[str, ...], flag: str, balenaflash: RunBalenaflash
) -> None:
    run = balenaflash(*path, flag)
    assert run.returncode == 0
    assert run.stderr == ""
    assert run.stdout.startswith(" ".join(("Usage: balenaflash", *path)))
    assert "Examples:" in run.stdout


def test_every_option_of_the_same_name_means_the_same() -> None:
    helps: dict[str, set[str | None]] = {}
    for path in all_commands():
        command: click.Command = app
        for name in path:
            assert isinstance(command, click.Group)
            command = commandline.commands_of(command)[name]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name in {"json", "quiet", "yes"}:
                helps.setdefault(parameter.name, set()).add(parameter.help)
    assert all(len(texts) == 1 for texts in helps.values())


def test_without_arguments_help_is_shown_and_the_status_is_2(balenaflash: RunBalenaflash) -> None:
    run = balenaflash()
    assert run.returncode == 2
    assert "Usage: balenaflash" in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["inspect"], ["inspect", "--no-such-option", "x"], ["insp"]]
)
def test_wrong_usage_ends_in_2(arguments: list[str], balenaflash: RunBalenaflash) -> None:
    run = balenaflash(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert "Usage: balenaflash" in run.stderr
    run = balenaflash(*arguments, "--json")
    envelope = json.loads(run.stdout)
    assert (run.returncode, envelope["exit_status"]) == (2, 2)
    assert envelope["errors"][0]["code"] == "usage"


def test_version_is_that_of_the_package(balenaflash: RunBalenaflash) -> None:
    for flag in ("-V", "--version"):
        assert balenaflash(flag).stdout == f"balenaflash {package.__version__}\n"
    verbose = balenaflash("-v", "--version").stdout
    for library in ("pyfatfs 1.1.0", "pyparted 3.", "libparted 3.", "pyudev 0."):
        assert f"\n{library}" in verbose


def test_the_envelope_has_these_keys_and_no_others(balenaflash: RunBalenaflash) -> None:
    run = balenaflash("inspect", "--json", "/no/such/image")
    envelope = json.loads(run.stdout)
    assert list(envelope) == ["format", "command", "status", "exit_status", "result", "errors"]
    assert envelope["format"] == 1
    assert envelope["command"] == "inspect"
    assert envelope["status"] == "error"
    assert envelope["exit_status"] == run.returncode == 3
    assert envelope["result"] is None
    [error] = envelope["errors"]
    assert list(error) == ["code", "message", "hint", "lifted_by"]
    assert error["code"] == "image-unreadable"


def test_the_exit_statuses_of_help_and_readme_are_the_same() -> None:
    in_help = re.findall(r"^  (\d)  ", app.epilog or "", re.MULTILINE)
    assert in_help == list("01234567")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert re.findall(r"^\| (\d) \|", readme, re.MULTILINE) == in_help


def test_a_closed_pipe_is_met_in_silence(balenaflash: RunBalenaflash) -> None:
    shell = f"{sys.executable} -m balenaflash completion bash | true; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(
        ["bash", "-c", shell], env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    assert run.stdout.strip() in {"0", "141"}
    assert balenaflash("completion", "bash").stdout.count("_BALENAFLASH_COMPLETE")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_sound(
    shell: str, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    script = balenaflash("completion", shell).stdout
    assert "balenaflash" in script
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(script)
        subprocess.run([shell, "-n", path], check=True)


def test_a_bug_keeps_its_traceback_and_asks_for_a_report(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import click, balenaflash.cli.main as cli\n"
        "def fail(*_args, **_kwargs): raise ZeroDivisionError('oops')\n"
        "cli.app.get_command(click.Context(cli.app), 'inspect').callback = fail\n"
        "import sys; sys.argv = ['balenaflash', 'inspect', 'x']\n"
        "cli.entry()\n"
    )
    run = subprocess.run(
        [sys.executable, broken],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert "this is a bug" in run.stderr
    assert "ZeroDivisionError: oops" in run.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("resin-boot", "resin-boot"),
        ("übergröße 日本", "übergröße 日本"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("line\nbreak", "line\\nbreak"),
        ("\udcff", "\\udcff"),
        ("right\u202eleft", "right\\u202eleft"),
    ],
)
def test_text_is_shown_without_control_characters(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_help_is_quick() -> None:
    # Twice the time of importing click is the bound; counted in modules, which does not waver.
    def modules(code: str) -> int:
        run = subprocess.run(
            [sys.executable, "-c", f"{code}; import sys; print(len(sys.modules))"],
            env=clean_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(run.stdout)

    ours = modules("import balenaflash.cli.main")
    bare = modules("import click")
    assert ours < bare * 1.5


def test_the_summaries_of_the_help_are_the_first_sentences_of_the_commands() -> None:
    context = click.Context(app)
    for name, summary in COMMANDS.items():
        command = app.get_command(context, name)
        assert command is not None
        first = inspect.cleandoc(command.help or "").partition("\n\n")[0]
        assert " ".join(first.split()) == summary
