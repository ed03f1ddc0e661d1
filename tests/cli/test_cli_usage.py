"""What is wrong with the words of a command line ends in 2, and the fault of a file in 3."""

import json
from pathlib import Path

import pytest
from commandline import RunBalenaflash


@pytest.fixture
def image(balenaflash: RunBalenaflash, tmp_path: Path) -> Path:
    path = tmp_path / "sample.img"
    assert balenaflash("sample", path).returncode == 0
    return path


WRONG = [
    (("config", "set", "IMAGE", "hostname"), "config-assignment"),
    (("config", "set", "IMAGE", "=x"), "config-key-invalid"),
    (("config", "set", "IMAGE", "os..x=1"), "config-key-invalid"),
    (("config", "set", "IMAGE", "os={"), "json-invalid"),
    (("config", "set", "IMAGE", "apiKey=0123456789abcdef0123456789abcdef"), "config-secret"),
    (("config", "unset", "IMAGE", "os..x"), "config-key-invalid"),
    (("config", "get", "IMAGE", "[x]"), "config-key-invalid"),
    (("edit", "IMAGE", "--step", "put ="), "recipe-toml"),
    (("edit", "IMAGE", "--step", 'putt = "x"'), "recipe-step-unknown"),
    (("edit", "IMAGE", "--step", 'put = "x", too = "/"'), "recipe-key-unknown"),
    (("edit", "IMAGE", "--step", "put = 7"), "recipe-type"),
    (("edit", "IMAGE", "--step", 'put = "x", to = "${place}"'), "recipe-variable"),
    (("edit", "IMAGE", "--step", 'put = "x", to = "/../x"'), "path-invalid"),
    (("write", "IMAGE", "COPY", "--step", 'rm = ""'), "path-invalid"),
    (("edit", "http://127.0.0.1:1/x.img", "--step", 'mkdir = "x"'), "image-not-a-file"),
    (("boot", "cat", "IMAGE", "../config.json"), "path-invalid"),
    (("boot", "get", "IMAGE", "EFI/../.."), "path-invalid"),
    (("boot", "mkdir", "IMAGE", ""), "path-invalid"),
    (("boot", "put", "IMAGE", "sample.img", "../x"), "path-invalid"),
    (("boot", "apply", "IMAGE", "--deploy-dir", ".", "--files", "a:b"), "file-list-invalid"),
    (("boot", "apply", "IMAGE", "--deploy-dir", ".", "--files", "a:/../b"), "path-invalid"),
    (("boot", "put", "IMAGE", "-", "../x"), "path-invalid"),
    (("network", "add", "wifi", "IMAGE", "--ssid", "x" * 33, "--open"), "network-invalid"),
    (("network", "add", "ethernet", "IMAGE", "--address", "10.0.0.7"), "network-invalid"),
    (("network", "add", "ethernet", "IMAGE", "--interface", "a/b"), "network-invalid"),
    (("network", "add", "ethernet", "IMAGE", "--name", ".hidden"), "network-name"),
    (("devices", "name", "1-2", "A slot"), "slot-name"),
    (("devices", "name", "left", "left"), "slot-port"),
]


@pytest.mark.parametrize(("words", "code"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_words_end_in_2(
    balenaflash: RunBalenaflash, image: Path, words: tuple[str, ...], code: str
) -> None:
    before = image.read_bytes()
    places = {"IMAGE": image, "COPY": image.with_name("copy.img")}
    home = {"HOME": str(image.parent), "XDG_CONFIG_HOME": str(image.parent)}
    run = balenaflash(
        *(places.get(word, word) for word in words), "--json", environment=home, cwd=image.parent
    )
    told = json.loads(run.stdout)
    assert (run.returncode, told["exit_status"]) == (2, 2), run.stdout
    assert code in [error["code"] for error in told["errors"]]
    assert image.read_bytes() == before
    assert [path.name for path in image.parent.iterdir()] == ["sample.img"]


def test_the_fault_of_a_file_ends_in_3(balenaflash: RunBalenaflash, image: Path) -> None:
    wrong = image.with_name("wrong")
    wrong.write_text("{")
    for words in (
        ("config", "set", image, f"os=@{wrong}"),
        ("config", "merge", image, wrong),
        ("edit", image, "--recipe", wrong),
        ("edit", image, "--step", f'config-merge = "{wrong}"'),
        ("edit", image, "--step", f'config-merge = "{wrong}.none"'),
        ("boot", "apply", image, "--files", wrong, "--deploy-dir", wrong.parent),
        ("network", "add", "wifi", image, "--ssid", "x", "--psk-file", wrong),
    ):
        assert balenaflash(*words).returncode == 3, words
