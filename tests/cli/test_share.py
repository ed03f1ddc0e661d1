"""What ships beside the code: man page, completion scripts, udev rules."""

import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from commandline import RunBalenaflash, clean_environment, commands_of

import balenaflash as package
from balenaflash.cli.main import app

SHARE = Path(package.__file__).parent / "share"
REPOSITORY = Path(package.__file__).parents[1]


def test_the_man_page_is_that_of_the_commands(balenaflash: RunBalenaflash) -> None:
    page = balenaflash("manual").stdout
    assert page == (SHARE / "balenaflash.1").read_text(), (
        "run: balenaflash manual > balenaflash/share/balenaflash.1"
    )


def test_bash_completes_commands_with_the_shipped_script(tmp_path: Path) -> None:
    command = tmp_path / "balenaflash"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m balenaflash "$@"\n')
    command.chmod(0o755)
    shell = (
        f"PATH={tmp_path}:$PATH; source {SHARE}/completion.bash; COMP_WORDS=(balenaflash ve);"
        "COMP_CWORD=1; _balenaflash_completion balenaflash; echo ${COMPREPLY[@]}"
    )
    run = subprocess.run(
        ["bash", "-c", shell], env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["verify"]


def options(command: click.Command) -> set[str]:
    own = {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in parameter.opts
    }
    if isinstance(command, click.Group):
        return own.union(*(options(child) for child in commands_of(command).values()))
    return own


def test_every_command_and_option_is_in_the_man_page() -> None:
    page = (SHARE / "balenaflash.1").read_text().replace("\\-", "-")
    own = options(app) - {"--version", "-V", "--verbose", "-v"}
    assert {name for name in own if name not in page} == set()
    for title in ("EXIT STATUS", "ENVIRONMENT", "FILES", "COMMANDS"):
        assert f".SH {title}\n" in page


@pytest.mark.needs("man")
def test_man_has_nothing_to_say_against_the_page() -> None:
    run = subprocess.run(
        ["man", "--warnings", "--local-file", SHARE / "balenaflash.1"],
        capture_output=True,
        text=True,
        check=True,
        env={"MANWIDTH": "80", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    assert run.stderr == ""
    assert "balenaflash write balena.img /dev/sdX" in run.stdout


def test_the_wheel_holds_all_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    built = subprocess.run(
        [*command, tmp_path, REPOSITORY], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "balenaflash/py.typed",
        "balenaflash/share/udev/60-balenaflash.rules",
        f"balenaflash-{package.__version__}.data/data/share/man/man1/balenaflash.1",
    ):
        assert name in names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shipped_completions_are_those_of_the_command(
    shell: str, balenaflash: RunBalenaflash
) -> None:
    script = balenaflash("completion", shell).stdout
    assert script.strip() == (SHARE / f"completion.{shell}").read_text().strip()


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", ""],
        ["network", "add", "wifi", "x.img", "--psk-file", ""],
        ["network", "add", "ethernet", "x.img", "--keyfile", ""],
        ["config", "merge", "x.img", ""],
        ["boot", "put", "x.img", ""],
        ["boot", "get", "x.img", "/config.json", ""],
        ["boot", "splash", "x.img", ""],
        ["inspect", "--certificate", ""],
        ["edit", "x.img", "--recipe", ""],
        ["boot", "apply", "x.img", "--files", ""],
        ["write", "x.img", "/dev/n"],
    ],
    ids=" ".join,
)
def test_what_names_a_file_is_completed_by_the_shell(words: list[str]) -> None:
    completion = ShellComplete(app, {}, "balenaflash", "_BALENAFLASH_COMPLETE")
    found = completion.get_completions(words[:-1], words[-1])
    assert [each.type for each in found] == ["file"]
