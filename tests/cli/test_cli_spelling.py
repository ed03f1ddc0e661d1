"""What is mistyped is told with what was meant; what exists already ends in 4, everywhere."""

import json
from pathlib import Path

import pytest
from builders import Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage

from balenaflash.errors import closest


@pytest.fixture
def target(image: MakeImage) -> Path:
    return image(Layout.GPT_FAT16).path


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["inspct"], "Did you mean 'inspect'?"),
        (["boot", "ap"], "No such command 'ap'."),
        (["config", "chek"], "Did you mean 'check'?"),
        (["network", "add", "wfi"], "Did you mean 'wifi'?"),
        (["inspect", "--certifcate", "x", "y"], "--certificate"),
    ],
)
def test_a_mistyped_command_or_option_is_told(
    arguments: list[str], meant: str, balenaflash: RunBalenaflash
) -> None:
    run = balenaflash(*arguments)
    assert run.returncode == 2
    assert meant in run.stderr


def test_a_mistyped_key_is_told(target: Path, balenaflash: RunBalenaflash) -> None:
    run = balenaflash("config", "set", "--dry-run", target, "Hostname=x", "os.sshkeys=[]")
    assert "did you mean hostname?" in run.stderr
    assert "did you mean os.sshKeys?" in run.stderr
    run = balenaflash("config", "get", target, "deviceTyp")
    assert run.returncode == 3
    assert "Did you mean deviceType?" in run.stderr


@pytest.mark.parametrize("name", ["", "x", "zzzzzz", "restart"])
def test_nothing_is_guessed_that_is_far(name: str) -> None:
    assert closest(name, ["inspect", "write", "devices"]) is None


def test_what_exists_already_ends_in_4_and_overwrite_replaces_it(
    target: Path, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    (tmp_path / "psk").write_text("secret12")
    (tmp_path / "out").touch()
    (tmp_path / "out.gz").touch()
    add: list[str | Path] = ["network", "add", "wifi", target, "--ssid", "a"]
    add += ["--psk-file", tmp_path / "psk"]
    assert balenaflash(*add).returncode == 0
    (tmp_path / "psk").write_text("secret13")
    commands: list[list[str | Path]] = [
        ["write", target, tmp_path / "out"],
        ["sample", tmp_path / "out"],
        ["bmap", "create", target, "-o", tmp_path / "out"],
        ["config", "set", target, "hostname=x", "-o", tmp_path / "out"],
        ["boot", "get", target, "/config.json", tmp_path / "out"],
        add,
    ]
    for command in commands:
        run = balenaflash(*command, "--json")
        assert run.returncode == json.loads(run.stdout)["exit_status"] == 4, command
        run = balenaflash(*command, "--overwrite")
        assert run.returncode == 0, run.stderr
    assert balenaflash("boot", "mkdir", target, "/EFI").returncode == 4
    step = "mkdir = '/EFI'"
    assert balenaflash("edit", target, "--step", step).returncode == 4
    old = balenaflash("config", "set", target, "a=1", "-o", tmp_path / "out", "--overwrite-output")
    assert old.returncode == 0
    old = balenaflash("boot", "get", target, "/config.json", tmp_path / "out", "--force")
    assert old.returncode == 0
    assert "--overwrite-output" not in balenaflash("config", "set", "--help").stdout
