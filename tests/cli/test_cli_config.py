"""``config`` as its users meet it."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import BuiltImage, Layout, build_image, run
from commandline import RunBalenaflash
from imagecopies import MakeImage

SECRET = "5up3r-s3cret-0123456789"  # noqa: S105 -- of no account


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltImage]:
    """An image that no test may change; looked at when all have run."""
    path = tmp_path_factory.mktemp("untouched") / "image.img"
    built = build_image(path, Layout.GPT_FAT16)
    before = sha256(path)
    yield built
    assert sha256(path) == before


def config_of(built: BuiltImage) -> dict[str, object]:
    """The file as mtools reads it."""
    place = f"{built.path}@@{built.boot_extent.start}"
    content = json.loads(run("mtype", "-i", place, "::/config.json"))
    assert isinstance(content, dict)
    return content


def original(built: BuiltImage) -> dict[str, object]:
    content = json.loads(built.boot_files["/config.json"])
    assert isinstance(content, dict)
    return content


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def filesystem_is_sound(built: BuiltImage, folder: Path) -> bool:
    boot = folder / "boot.fat"
    with built.path.open("rb") as file:
        file.seek(built.boot_extent.start)
        boot.write_bytes(file.read(built.boot_extent.size))
    check = subprocess.run(["fsck.vfat", "-n", boot], capture_output=True, text=True, check=False)
    return check.returncode == 0


def test_typed_values_arrive_in_their_types(
    built: BuiltImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    key = tmp_path / "id.pub"
    key.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDe2 second\n")
    done = balenaflash(
        *("config", "set", built.path, "developmentMode=true", "hostname=12", "listenPort=8080"),
        *(f"os.sshKeys+=@{key}", "os.power.mode=high", 'lab={"rack": [1, 2.50]}'),
    )
    assert done.returncode == 0, done.stderr
    os_before = original(built)["os"]
    assert isinstance(os_before, dict)
    assert config_of(built) == original(built) | {
        "developmentMode": True,
        "hostname": "12",
        "listenPort": 8080,
        "os": os_before
        | {"sshKeys": [*os_before["sshKeys"], key.read_text().strip()], "power": {"mode": "high"}},
        "lab": {"rack": [1, 2.5]},
    }
    assert "warning: /config.json: lab is not a key" in done.stderr
    assert filesystem_is_sound(built, tmp_path)


def test_a_secret_comes_from_standard_input_and_is_never_shown(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    runs = [
        balenaflash("config", "set", "-n", built.path, "apiKey=-", input=f"{SECRET}\n"),
        balenaflash("config", "set", "-n", "--json", built.path, "apiKey=-", input=f"{SECRET}\n"),
        balenaflash("config", "set", built.path, "apiKey=-", input=f"{SECRET}\n"),
        balenaflash("config", "show", built.path),
        balenaflash("config", "show", "--json", built.path),
        balenaflash("config", "check", built.path),
        balenaflash("config", "unset", "-n", built.path, "apiKey"),
    ]
    assert [done.returncode for done in runs] == [0] * len(runs)
    assert config_of(built)["apiKey"] == SECRET
    assert SECRET not in "".join(done.stdout + done.stderr for done in runs)
    shown = balenaflash("config", "get", "--show-secrets", built.path, "apiKey")
    assert shown.stdout == f"{SECRET}\n"
    shown = balenaflash("config", "show", "--show-secrets", "--json", built.path)
    assert json.loads(shown.stdout)["result"]["config"] == config_of(built)


def test_a_secret_needs_to_be_asked_for(untouched: BuiltImage, balenaflash: RunBalenaflash) -> None:
    refused = balenaflash("config", "get", untouched.path, "apiKey")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "--show-secrets" in refused.stderr
    assert str(original(untouched)["apiKey"])[-4:] not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["set", "{}", "developmentMode=yes"], 3, "developmentMode must be true or false, not the"),
        (["set", "{}", "lab={"], 2, "lab: is not valid JSON at line 1, column 2"),
        (["set", "{}", "hostname=a", "uuid=x"], 3, "uuid must be 32 to 62"),
        (["set", "{}", "deviceType=raspberrypi3"], 3, "the image is for 'generic-amd64'"),
        (["set", "{}", f"apiKey={SECRET}"], 2, "apiKey is a secret"),
        (["set", "{}", f"apiKey {SECRET}"], 2, "apiKey: a value is missing"),
        (["set", "{}", f"api/Key {SECRET}="], 2, "a value is missing"),
        (["set", "{}", "hostname=@/nonexistent"], 3, "/nonexistent: cannot be read"),
        (["set", "{}", "hostname=@/bin/sh"], 3, "/bin/sh: is not UTF-8 text, at byte"),
        (["set", "{}", "balenaRootCA=@/dev/zero"], 3, "has more than"),
        (["unset", "{}", "hostname", "nope"], 3, "no key nope"),
        (["merge", "{}", "/dev/null"], 3, "/dev/null: is not valid JSON at line 1, column 1"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_the_image(
    untouched: BuiltImage,
    balenaflash: RunBalenaflash,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    before = untouched.path.stat()
    command = [str(untouched.path) if word == "{}" else word for word in arguments]
    done = balenaflash("config", *command)
    assert (done.returncode, done.stdout) == (status, "")
    first, *hint = done.stderr.splitlines()
    assert words in first
    assert len(hint) <= 1
    assert SECRET not in done.stderr
    assert untouched.path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_dry_run_shows_the_difference_and_changes_nothing(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    before = sha256(built.path)
    done = balenaflash("config", "set", "--dry-run", built.path, "hostname=lab-9")
    assert done.returncode == 0
    assert '-  "hostname": "bench-7",\n+  "hostname": "lab-9",\n' in done.stdout
    assert "nothing was written" in done.stdout
    assert sha256(built.path) == before


def test_the_json_of_an_edit_has_stable_keys(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    done = balenaflash("config", "set", "--json", built.path, "hostname=lab-9")
    envelope = json.loads(done.stdout)
    assert envelope["command"] == "config set"
    assert envelope["result"].keys() == {
        *("image", "dry_run", "partition", "changes", "sectors", "bytes", "diff"),
        *("warnings", "warning_codes", "repairs"),
    }
    assert [change["path"] for change in envelope["result"]["changes"]] == ["/config.json"]


def test_a_merge_replaces_what_the_file_has_and_keeps_the_rest(
    built: BuiltImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    generated = {
        "applicationId": 7,
        "deviceType": "generic-amd64",
        "uuid": "ab" * 16,
        "apiEndpoint": "https://api.lab.example",
        "deviceApiKey": "ab" * 16,
        "registered_at": 1700000000,
        "deviceId": 9,
        "os": {"sshKeys": []},
    }
    file = tmp_path / "generated.json"
    file.write_text(json.dumps(generated))
    done = balenaflash("config", "merge", built.path, file)
    assert done.returncode == 0, done.stderr
    assert config_of(built) == original(built) | generated
    assert list(config_of(built))[: len(original(built))] == list(original(built))
    assert "os is replaced as a whole, which removes os.network" in done.stderr
    assert "apiKey is set, but a board with registered_at" in done.stderr


def test_a_merge_for_another_board_is_refused(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    done = balenaflash("config", "merge", built.path, "-", input='{"deviceType": "raspberrypi3"}')
    assert done.returncode == 3
    assert "deviceType is 'raspberrypi3', but the image is for 'generic-amd64'" in done.stderr


def test_standard_input_is_for_one_thing(built: BuiltImage, balenaflash: RunBalenaflash) -> None:
    done = balenaflash("config", "set", built.path, "apiKey=-", "wifiKey=-", input=SECRET)
    assert done.returncode == 2
    assert "one thing only" in done.stderr


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("hostname", "bench-7"),
        ("listenPort", "48484"),
        ("os.network.connectivity", '{"interval": "300"}'),
        ('["x-lab-note"]', "kept as it is"),
    ],
)
def test_a_value_is_printed_for_scripts(
    built: BuiltImage, balenaflash: RunBalenaflash, key: str, line: str
) -> None:
    assert balenaflash("config", "get", built.path, key).stdout == f"{line}\n"


def test_check_tells_all_errors_at_once(built: BuiltImage, balenaflash: RunBalenaflash) -> None:
    place = f"{built.path}@@{built.boot_extent.start}"
    wrong = '{"uuid": "x", "listenPort": [], "deviceType": "y", "lab": 1}'
    run("mcopy", "-o", "-i", place, "-", "::/config.json", stdin=wrong)
    done = balenaflash("config", "check", built.path)
    assert (done.returncode, done.stdout) == (3, "")
    assert [line.split()[2] for line in done.stderr.splitlines()] == [
        *("uuid", "listenPort", "deviceType")
    ]
    envelope = json.loads(balenaflash("config", "check", "--json", built.path).stdout)
    assert [error["code"] for error in envelope["errors"]] == [
        *("config-value", "config-type", "config-device-type")
    ]


def test_check_passes_with_warnings(built: BuiltImage, balenaflash: RunBalenaflash) -> None:
    done = balenaflash("config", "check", "--json", built.path)
    result = json.loads(done.stdout)["result"]
    assert done.returncode == 0
    assert [(each["severity"], each["key"]) for each in result["findings"]] == [
        ("warning", "x-lab-note")
    ]


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_config_that_is_not_valid_is_told_with_its_place(
    built: BuiltImage, balenaflash: RunBalenaflash, command: str
) -> None:
    place = f"{built.path}@@{built.boot_extent.start}"
    run("mcopy", "-o", "-i", place, "-", "::/config.json", stdin='{\n  "a": 1\n2}\n')
    done = balenaflash("config", command, built.path)
    assert done.returncode == 3
    assert "/config.json: is not valid JSON at line 3, column 1" in done.stderr


def test_an_image_without_a_config_says_so(built: BuiltImage, balenaflash: RunBalenaflash) -> None:
    run("mdel", "-i", f"{built.path}@@{built.boot_extent.start}", "::/config.json")
    done = balenaflash("config", "show", built.path)
    assert done.returncode == 3
    assert "/config.json: is missing from the boot partition" in done.stderr
