"""The udev rules, and the commands that install them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from commandline import RunBalenaflash

from balenaflash.udev_setup import slot_rules

REPOSITORY = Path(__file__).parents[1]
SHIPPED = REPOSITORY / "udev/60-balenaflash.rules"
RULES = "etc/udev/rules.d/60-balenaflash.rules"
SLOT_RULES = "etc/udev/rules.d/61-balenaflash-slots.rules"


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    return tmp_path / "slots.toml"


def test_what_is_installed_is_what_is_shipped_and_is_removed_again(
    balenaflash: RunBalenaflash, tmp_path: Path, slots: Path
) -> None:
    root = tmp_path / "root"
    environment = {"BALENAFLASH_SLOTS": str(slots)}

    def udev(*words: str) -> list[str]:
        run = balenaflash("udev", *words, "--root", root, "--json", environment=environment)
        assert run.returncode == 0, run.stderr
        actions: list[str] = json.loads(run.stdout)["result"]["actions"]
        return actions

    assert udev("install", "--dry-run") == [f"write {root / RULES}"]
    assert not root.exists()
    udev("install", "--yes")
    assert (root / RULES).read_bytes() == SHIPPED.read_bytes()
    assert not (root / SLOT_RULES).exists()
    assert udev("install", "--yes") == []

    slots.write_text('left = "1-2.3"\n')
    assert udev("install", "--yes") == [f"write {root / SLOT_RULES}"]
    (root / RULES).write_text("of an earlier version\n")
    slots.write_text('left = "1-2.4"\n')
    assert udev("install", "--yes") == [f"replace {root / RULES}", f"replace {root / SLOT_RULES}"]
    assert 'KERNELS=="1-2.4"' in (root / SLOT_RULES).read_text()
    slots.unlink()
    assert udev("install", "--yes") == [f"remove {root / SLOT_RULES}"]
    (root / RULES).with_name("70-of-somebody-else.rules").touch()
    assert udev("uninstall", "--yes") == [f"remove {root / RULES}"]
    assert [path.name for path in (root / RULES).parent.iterdir()] == ["70-of-somebody-else.rules"]
    assert udev("uninstall", "--yes") == []


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_nothing_is_changed_without_an_answer(
    balenaflash: RunBalenaflash, tmp_path: Path, command: str
) -> None:
    (tmp_path / RULES).parent.mkdir(parents=True)
    (tmp_path / RULES).write_text("old\n")
    run = balenaflash("udev", command, "--root", tmp_path)
    assert run.returncode == 4
    assert run.stdout == ""
    assert f"{tmp_path / RULES}" in run.stderr
    assert "--yes" in run.stderr
    assert (tmp_path / RULES).read_text() == "old\n"


def test_what_cannot_be_written_is_told(balenaflash: RunBalenaflash, tmp_path: Path) -> None:
    (tmp_path / "etc").touch()
    run = balenaflash("udev", "install", "--yes", "--root", tmp_path)
    assert run.returncode == 4
    assert f"cannot write {tmp_path / RULES}" in run.stderr


def test_check_tells_what_is_missing(balenaflash: RunBalenaflash) -> None:
    if Path("/", RULES).exists():
        pytest.skip("the rules are installed on this machine")
    run = balenaflash("udev", "check", "--json")
    assert run.returncode == 4
    assert json.loads(run.stdout)["errors"][0]["code"] == "udev-rules-missing"


@pytest.fixture
def installed(balenaflash: RunBalenaflash, tmp_path: Path) -> Path:
    """Rules with two slots, installed below a folder."""
    slots = tmp_path / "slots.toml"
    slots.write_text('left = "1-2.3"\n"a.b-c_9" = "3-1"\n')
    run = balenaflash(
        *("udev", "install", "--yes", "--root", tmp_path),
        environment={"BALENAFLASH_SLOTS": str(slots)},
    )
    assert run.returncode == 0, run.stderr
    return tmp_path


def test_udevadm_finds_nothing_wrong_with_them(installed: Path) -> None:
    paths = [installed / RULES, installed / SLOT_RULES]
    if shutil.which("udevadm") is None:
        pytest.skip("no program udevadm")
    verified = subprocess.run(
        ["udevadm", "verify", *paths], capture_output=True, text=True, check=False
    )
    if "Unknown command" in verified.stderr or "verify" not in _udevadm_help():
        pytest.skip("udevadm verify came with systemd 254")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _udevadm_help() -> str:
    return subprocess.run(["udevadm", "--help"], capture_output=True, text=True, check=True).stdout


def test_each_slot_has_a_link_and_is_kept_from_the_desktop() -> None:
    lines = slot_rules({"left": "1-2.3"}).splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules == [
        'SUBSYSTEM!="block", GOTO="balenaflash_slots_end"',
        'SUBSYSTEMS=="usb", KERNELS=="1-2.3", ENV{UDISKS_IGNORE}="1"',
        'SUBSYSTEMS=="usb", KERNELS=="1-2.3", ENV{DEVTYPE}=="disk", SYMLINK+="balenaflash/left"',
        'LABEL="balenaflash_slots_end"',
    ]
