"""Texts as Windows saves them: what a user gives never keeps a byte order mark."""

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from builders import Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage

from balenaflash.edits.config.check import Severity, check_config
from balenaflash.edits.file_list import parse, read_list
from balenaflash.edits.given_text import given_text
from balenaflash.edits.network import Security, check_passphrase
from balenaflash.edits.recipe.step import Variables
from balenaflash.errors import EditError

if TYPE_CHECKING:
    from balenaflash.balena.json_text import Json

MARK = b"\xef\xbb\xbf"
"""U+FEFF in UTF-8, as Set-Content -Encoding UTF8 of Windows PowerShell 5 writes it first."""


@pytest.fixture
def target(image: MakeImage) -> Path:
    return image(Layout.GPT_FAT16).path


def test_no_file_of_a_command_brings_its_mark_along(
    target: Path, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    (tmp_path / "psk").write_bytes(MARK + b"secret12\r\n")
    (tmp_path / "key").write_bytes(MARK + b"0123456789abcdef0123456789abcdef\n")
    (tmp_path / "more.json").write_bytes(MARK + b'{"hostname": "bench"}\r\n')
    (tmp_path / "lab.nmconnection").write_bytes(
        MARK + b"[connection]\nid=lab\ntype=wifi\n[wifi]\nssid=Lab\n"
    )
    (tmp_path / "list").write_bytes(MARK + b"key:/key.txt\n")
    commands: list[list[str | Path]] = [
        ["network", "add", "wifi", target, "--ssid", "\ufeffA", "--psk-file", "psk", "--name", "a"],
        ["network", "add", "wifi", target, "--keyfile", "lab.nmconnection"],
        ["config", "set", target, "apiKey=@key", "initialDeviceName=\ufeffone"],
        ["config", "merge", target, "more.json"],
        ["boot", "apply", target, "--files", "list", "--deploy-dir", "."],
    ]
    for command in commands:
        run = balenaflash(*command, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    psk = balenaflash("boot", "cat", target, "/system-connections/a").stdout
    assert "\nssid=A\n" in psk
    assert "\npsk=secret12\n" in psk
    lab = balenaflash("boot", "cat", target, "/system-connections/lab.nmconnection").stdout
    assert lab.startswith("[connection]")
    config = json.loads(balenaflash("boot", "cat", target, "/config.json").stdout)
    assert config["apiKey"] == "0123456789abcdef0123456789abcdef"
    assert (config["initialDeviceName"], config["hostname"]) == ("one", "bench")


def test_a_sum_on_the_command_line_loses_its_mark(
    target: Path, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    summed = subprocess.run(["sha256sum", target], capture_output=True, text=True, check=True)
    run = balenaflash("write", "--sha256", f"\ufeff{summed.stdout[:64]}", target, tmp_path / "out")
    assert run.returncode == 0, run.stderr


def test_no_text_of_a_recipe_brings_its_mark_along(
    target: Path, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    (tmp_path / "key").write_bytes(MARK + b"0123456789abcdef0123456789abcdef\n")
    (tmp_path / "more.json").write_bytes(MARK + b'{"hostname": "bench"}')
    recipe = tmp_path / "lab.toml"
    recipe.write_bytes(
        MARK + b'name = "lab"\r\n[[step]]\r\nconfig-merge = "more.json"\r\n'
        b'[[step]]\r\nconfig-set = ["apiKey=@key", "initialDeviceName=${name}"]\r\n'
        b'[[step]]\r\nwifi = "Lab"\r\npsk = "${env:PSK}"\r\n'
    )
    run = balenaflash(
        *("edit", target, "--recipe", recipe, "--var", "name=\ufeffone"),
        environment={"PSK": "\ufeffsecret12"},
    )
    assert run.returncode == 0, run.stderr
    config = json.loads(balenaflash("boot", "cat", target, "/config.json").stdout)
    assert config["apiKey"] == "0123456789abcdef0123456789abcdef"
    assert (config["initialDeviceName"], config["hostname"]) == ("one", "bench")
    psk = balenaflash("boot", "cat", target, "/system-connections/wifi-lab").stdout
    assert "\npsk=secret12\n" in psk


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_is_refused_by_name(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(EditError, match="psk: is UTF-16 text") as failure:
        given_text("secret12\r\n".encode(encoding), "psk")
    assert failure.value.hint
    assert failure.value.code == "source-encoding"
    (tmp_path / "list").write_bytes("a:/b".encode(encoding))
    with pytest.raises(EditError, match="is UTF-16 text"):
        read_list(str(tmp_path / "list"))


@pytest.mark.parametrize("text", ["", "a", "ü", "Größe\n", "日本語", "a\0b", "ab\0", "\0\0"])
def test_a_text_without_mark_is_as_it_was(text: str) -> None:
    assert given_text(text.encode(), "name") == text
    assert given_text(MARK + text.encode(), "name") == text


def test_the_place_of_a_byte_that_is_not_utf_8_counts_the_mark() -> None:
    with pytest.raises(EditError, match="psk: is not UTF-8 text, at byte 4"):
        given_text(MARK + b"a\xff", "psk")


def test_a_list_and_a_variable_lose_their_mark() -> None:
    assert parse("\ufeffa:/b") == parse("a:/b")
    variables = Variables({"name": "\ufeffone"}, {})
    assert variables.fill_in("\ufeffx-${name}") == "x-one"


def test_a_mark_that_config_json_holds_already_is_an_error() -> None:
    configs: list[dict[str, Json]] = [{"apiKey": "\ufeff0"}, {"new": {"key": ["a\ufeff"]}}]
    for config in configs:
        errors = [each for each in check_config(config, None) if each.severity is Severity.ERROR]
        assert [(each.code, "byte order mark" in each.message) for each in errors] == [
            ("config-value", True)
        ]


@pytest.mark.parametrize("odd", ["secret12\udcff", "secret\ufeff12"])
def test_a_passphrase_that_is_no_plain_text_is_refused(odd: str) -> None:
    for security in (Security.SAE, Security.WPA_PSK):
        with pytest.raises(EditError, match="the passphrase"):
            check_passphrase(odd, security)


def test_bytes_that_are_not_utf_8_reach_no_config(
    target: Path, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    run = balenaflash("config", "set", target, "hostname=a\udcff")
    assert run.returncode == 3
    assert "not UTF-8" in run.stderr
    recipe = tmp_path / "lab.toml"
    recipe.write_text('name = "lab"\n[[step]]\nwifi = "Lab"\npsk = "${env:PSK}"\n')
    run = balenaflash("edit", target, "--recipe", recipe, environment={"PSK": "secret12\udcff"})
    assert run.returncode == 3
    assert "the passphrase is not UTF-8" in run.stderr
