"""The udev rules, and the commands that install them."""

import fnmatch
import json
import re
import shutil
import subprocess
from pathlib import Path

import devicetree
import machines
import pytest
from commandline import RunBalenaflash
from devicetree import DeviceTree, RecordedUdev

from balenaflash.commands.udev import (
    Scope,
    State,
    find_covered_system,
    find_scope,
    installation,
    read_files,
    slot_rules,
)
from balenaflash.programs import run_and_explain

REPOSITORY = Path(__file__).parents[2]
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
    assert 'KERNELS=="1-2.4:*"' in (root / SLOT_RULES).read_text()
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
    lines = slot_rules({"left": "1-2.3"}, Scope.ALL).splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules == [
        'SUBSYSTEM!="block", GOTO="balenaflash_slots_end"',
        'SUBSYSTEMS=="usb", KERNELS=="1-2.3:*", ENV{UDISKS_IGNORE}="1"',
        'SUBSYSTEMS=="usb", KERNELS=="1-2.3:*", ENV{DEVTYPE}=="disk", SYMLINK+="balenaflash/left"',
        'LABEL="balenaflash_slots_end"',
    ]


def test_only_named_ports_are_opened_where_that_is_asked_for(
    balenaflash: RunBalenaflash, tmp_path: Path, slots: Path
) -> None:
    root = tmp_path / "root"

    def install(*options: str) -> subprocess.CompletedProcess[str]:
        arguments: list[str | Path] = ["udev", "install", "--yes", "--root", root]
        environment = {"BALENAFLASH_SLOTS": str(slots)}
        return balenaflash(*arguments, *options, environment=environment)

    assert install("--slots-only").returncode == 3  # no port is named
    slots.write_text('left = "1-2.3"\n')
    assert install().returncode == 0
    assert "GROUP" not in (root / SLOT_RULES).read_text()
    assert install("--slots-only").returncode == 0
    assert not (root / RULES).exists()
    access = 'KERNELS=="1-2.3:*", ENV{DEVTYPE}=="disk", GROUP="balenaflash", MODE="0660"'
    assert access in (root / SLOT_RULES).read_text()
    assert find_scope(root) is Scope.SLOTS
    assert install().returncode == 0
    assert find_scope(root) is Scope.ALL


def _is_matched(rule: str, disk: Path) -> bool:
    """Whether one parent has all that a rule says of parents, udev(7)."""
    kernels = re.search(r'KERNELS=="([^"]*)"', rule)
    subsystems = re.search(r'SUBSYSTEMS=="([^"]*)"', rule)
    assert kernels is not None
    assert subsystems is not None
    return any(
        (link := parent / "subsystem").is_symlink()
        and fnmatch.fnmatchcase(parent.name, kernels[1])
        and fnmatch.fnmatchcase(link.readlink().name, subsystems[1])
        for parent in [disk, *disk.parents]
    )


def test_the_rule_of_a_port_is_true_of_no_disk_behind_a_hub_in_it(tmp_path: Path) -> None:
    tree = DeviceTree(tmp_path / "machine")
    (_comment, rule, *_rest) = [
        line for line in slot_rules({"left": "1-2"}, Scope.ALL).splitlines() if "SUBSYSTEM" in line
    ]
    behind_hub = tree.add_disk(devicetree.USB_BEHIND_HUB, "8:64")  # in port 1-2.3
    other = tree.add_disk(devicetree.USB_STICK, "8:48")  # in port 2-1
    path = "pci0000:00/0000:00:02.0/usb1/1-2/1-2:1.0/host9/target9:0:0/9:0:0:0/block/sdf"
    direct = tree.add_disk(path, "8:80")
    assert [_is_matched(rule, disk) for disk in (direct, behind_hub, other)] == [True, False, False]


def covered(tmp_path: Path, machine: str, scope: Scope, *ports: str) -> list[str]:
    """Disks of a machine that the rules would give away, and with them its system."""
    tree = DeviceTree(tmp_path / f"{machine} {scope} {ports}")
    machines.MACHINES[machine].build(tree)
    slots = {f"slot{index}": port for index, port in enumerate(ports)}
    problems = find_covered_system(slots, scope, tree.kernel, RecordedUdev(tree))
    return [problem.message.partition(":")[0].rpartition("/")[2] for problem in problems]


def test_rules_that_cover_the_disk_of_the_running_system_are_refused(tmp_path: Path) -> None:
    assert covered(tmp_path, "Raspberry Pi", Scope.ALL) == ["mmcblk0"]
    assert covered(tmp_path, "Raspberry Pi", Scope.SLOTS, "1-1.2") == []
    assert covered(tmp_path, "live system of Ubuntu", Scope.ALL) == ["sda"]
    assert covered(tmp_path, "live system of Ubuntu", Scope.SLOTS, "1-2") == []
    assert covered(tmp_path, "live system of Ubuntu", Scope.SLOTS, "1-1", "1-2") == ["sda"]
    assert covered(tmp_path, "root on ZFS without udevd", Scope.ALL) == ["sda", "sdb"]
    assert covered(tmp_path, "laptop", Scope.ALL) == []
    assert covered(tmp_path, "board with eMMC", Scope.ALL) == ["mmcblk0"]


@pytest.mark.parametrize(
    "place", ["etc", "run", "usr/local/lib", "usr/lib", "lib"], ids=lambda place: place
)
def test_rules_are_found_in_every_folder_of_udev(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place / "udev/rules.d"
    folder.mkdir(parents=True)
    (folder / SHIPPED.name).write_bytes(SHIPPED.read_bytes())
    general, own = read_files(tmp_path, {}, Scope.ALL)
    assert (general.path, general.state, own.state) == (folder / SHIPPED.name, State.CURRENT, None)
    assert installation(tmp_path, {}, Scope.ALL) == ()
    # A file in /etc comes before one of that name elsewhere.
    first = tmp_path / RULES
    first.parent.mkdir(parents=True, exist_ok=True)
    first.write_text("of an earlier version\n")
    assert [each.words for each in installation(tmp_path, {}, Scope.ALL)] == [f"replace {first}"]


def test_programs_of_the_administrator_are_found_without_their_folder_in_the_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # what su(1) leaves
    assert run_and_explain(["groupadd", "--help"]) is None
