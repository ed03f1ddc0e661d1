"""Disks by serial number, port and slot; and the file that keeps the slots."""

import json
import tomllib
from pathlib import Path

import devicetree
import pytest
from commandline import RunBalenaflash
from devicetree import DeviceTree, RecordedUdev
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.errors import ConfigError, TargetRefusedError
from balenaflash.targets.disk_names import (
    DiskName,
    NameKind,
    find_named,
    list_names,
    name_port,
    parse_target,
    read_slots,
)
from balenaflash.targets.disks import Disk

HUB = (
    "pci0000:00/0000:00:02.0/usb1/1-2/1-2.{port}/1-2.{port}:1.0/host{port}/target{port}:0:0/"
    "{port}:0:0:{lun}/block/{name}"
)


@pytest.fixture
def tree(tmp_path: Path) -> DeviceTree:
    return DeviceTree(tmp_path / "machine")


def add_stick(
    tree: DeviceTree,
    name: str,
    port: int,
    serial: str | None,
    *,
    lun: int = 0,
    sectors: int = devicetree.GIB_SECTORS,
) -> None:
    number = f"8:{16 * (ord(name[-1]) - ord('a'))}"
    path = HUB.format(port=port, lun=lun, name=name)
    disk = tree.add_disk(path, number, sectors=sectors)
    if serial is not None:
        usb_device = next(each for each in disk.parents if each.name == f"1-2.{port}")
        (usb_device / "serial").write_text(serial)


def find(tree: DeviceTree, text: str, slots: dict[str, str] | None = None) -> Disk:
    return find_named(parse_target(text), tree.kernel, RecordedUdev(tree), slots or {})


def refusal(tree: DeviceTree, text: str, slots: dict[str, str] | None = None) -> tuple[str, str]:
    with pytest.raises(TargetRefusedError) as caught:
        find(tree, text, slots)
    (problem,) = caught.value.problems
    return problem.code, f"{problem.message} {problem.hint}"


def test_a_disk_is_found_by_serial_port_and_slot(tree: DeviceTree) -> None:
    add_stick(tree, "sda", 1, "AA11")
    add_stick(tree, "sdb", 2, "BB22")
    slots = {"left": "1-2.2"}
    for text in ("serial:BB22", "port:1-2.2", "slot:left"):
        assert find(tree, text, slots).node.name == "sdb"
    assert find(tree, "serial:AA11").node.name == "sda"


def test_what_is_not_there_is_refused_with_what_is(tree: DeviceTree) -> None:
    add_stick(tree, "sda", 1, "AA11")
    for text in ("serial:aa11", "port:1-2", "port:1-2.10", "serial:"):
        code, words = refusal(tree, text)
        assert code == "target-missing"
        assert "serial:AA11" in words
        assert "port:1-2.1" in words
    code, words = refusal(tree, "slot:left", {"right": "1-2.1"})
    assert (code, "right" in words) == ("target-missing", True)


def test_two_disks_of_one_serial_number_are_both_named(tree: DeviceTree) -> None:
    add_stick(tree, "sda", 1, "0123456789ABCDEF")
    add_stick(tree, "sdb", 2, "0123456789ABCDEF")
    add_stick(tree, "sdc", 3, None)
    code, words = refusal(tree, "serial:0123456789ABCDEF")
    assert code == "target-ambiguous"
    assert "port:1-2.1" in words
    assert "port:1-2.2" in words
    assert "sdc" not in words


def test_of_two_readers_of_one_serial_number_the_one_with_a_card_is_not_chosen(
    tree: DeviceTree,
) -> None:
    # As Alcor's: every reader of that make has this number.
    add_stick(tree, "sda", 1, "058F63666485", sectors=0)
    add_stick(tree, "sdb", 2, "058F63666485")
    code, words = refusal(tree, "serial:058F63666485")
    assert code == "target-ambiguous"
    assert "port:1-2.1" in words
    assert "port:1-2.2" in words
    assert find(tree, "port:1-2.2").node.name == "sdb"
    assert find(tree, "port:1-2.1").node.name == "sda"  # empty, and refused for that later
    assert find(tree, "slot:left", {"left": "1-2.2"}).node.name == "sdb"


def test_of_a_reader_the_slot_that_alone_holds_a_card_is_meant(tree: DeviceTree) -> None:
    add_stick(tree, "sda", 1, "READER", sectors=0)
    add_stick(tree, "sdb", 1, "READER", lun=1)
    assert find(tree, "port:1-2.1").node.name == "sdb"
    assert find(tree, "serial:READER").node.name == "sdb"
    add_stick(tree, "sdc", 1, "READER", lun=2)
    assert refusal(tree, "port:1-2.1")[0] == "target-ambiguous"


def test_every_name_that_is_offered_finds_its_disk(tree: DeviceTree) -> None:
    add_stick(tree, "sda", 1, "AA11")
    add_stick(tree, "sdb", 2, None)
    add_stick(tree, "sdc", 4, "SAME")
    add_stick(tree, "sdd", 5, "SAME", sectors=0)
    add_stick(tree, "sde", 6, "READER")
    add_stick(tree, "sdf", 6, "READER", lun=1)
    tree.add_disk(devicetree.NVME, "259:0", attributes={"device/serial": "S4EW"})
    slots = {"left": "1-2.2", "right": "1-2.3"}
    names = list_names(tree.kernel, RecordedUdev(tree), slots)
    ports = {"port:1-2.1", "port:1-2.2", "port:1-2.4", "port:1-2.5"}
    assert set(names) == {"serial:AA11", "serial:S4EW", "slot:left", *ports}
    for name, about in names.items():
        assert str(find(tree, name, slots).node) in about


@given(st.text(), st.sampled_from(NameKind))
def test_a_name_comes_back_and_a_path_stays_a_path(value: str, kind: NameKind) -> None:
    name = DiskName(kind, value)
    assert parse_target(str(name)) == name
    path = f"./{kind}:{value}".replace("\0", "")
    assert parse_target(path) == Path(path)


NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True)
PORTS = st.from_regex(r"[0-9]{1,2}-[0-9]{1,2}(\.[0-9]{1,2}){0,3}", fullmatch=True)


@given(st.lists(st.tuples(NAMES, PORTS | st.none()), max_size=12))
def test_the_file_holds_what_was_named_last(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str | None]]
) -> None:
    path = tmp_path_factory.mktemp("slots") / "deeper/slots.toml"
    expected: dict[str, str] = {}
    for name, port in steps:
        if port is not None:
            name_port(path, name, port)
            expected[name] = port
        elif name in expected:
            name_port(path, name, None)
            del expected[name]
        else:
            with pytest.raises(ConfigError):
                name_port(path, name, None)
    assert read_slots([path]) == expected
    if path.exists():
        assert tomllib.loads(path.read_text()) == expected


def test_what_people_wrote_around_stays(tmp_path: Path) -> None:
    path = tmp_path / "slots.toml"
    path.write_text('# the bench\nleft = "1-2.1"  # blue\n\nright="1-2.2"\n')
    name_port(path, "right", "1-3")
    name_port(path, "top", "2-1")
    assert path.read_text() == (
        '# the bench\nleft = "1-2.1"  # blue\n\n"right" = "1-3"\n"top" = "2-1"\n'
    )


def test_the_file_of_the_user_overrules_that_of_the_machine(tmp_path: Path) -> None:
    machine, user = tmp_path / "machine", tmp_path / "user"
    machine.write_text('left = "1-1"\nright = "1-2"\n')
    user.write_text('left = "3-1"\n')
    assert read_slots([machine, user]) == {"left": "3-1", "right": "1-2"}


@pytest.mark.parametrize(
    "text",
    ['left = "1.2"', "left = 3", 'Left = "1-2"', "[slots]", "left", '"a/b" = "1-2"', "\udcff"],
)
def test_a_file_that_is_not_valid_is_told_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "slots.toml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=str(path)):
        read_slots([path])
    with pytest.raises(ConfigError):
        name_port(path, "right", "1-2")
    assert path.read_text(errors="surrogateescape") == text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["1-2", "a/b"], 2, "is not a name for a slot"),
        (["2.3", "left"], 2, "not a USB port"),
        (["--remove", "left"], 3, "no slot 'left'"),
        (["--remove", "left", "right"], 2, "one argument"),
        (["1-2"], 2, "NAME"),
        (["/dev/null", "left"], 4, "not a block device"),
    ],
)
def test_a_wrong_name_or_port_is_refused(
    balenaflash: RunBalenaflash, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    run = balenaflash(
        "devices", "name", *arguments, environment={"BALENAFLASH_SLOTS": str(tmp_path / "slots")}
    )
    assert run.returncode == status, run.stderr
    assert words in run.stderr
    assert not (tmp_path / "slots").exists()


def test_a_slot_is_named_and_forgotten(balenaflash: RunBalenaflash, tmp_path: Path) -> None:
    environment = {"BALENAFLASH_SLOTS": str(tmp_path / "slots.toml")}
    run = balenaflash("devices", "name", "--json", "1-2.3", "left", environment=environment)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)["result"]
    assert (result["slot"], result["port"]) == ("left", "1-2.3")
    assert tomllib.loads((tmp_path / "slots.toml").read_text()) == {"left": "1-2.3"}
    run = balenaflash("devices", "name", "--remove", "left", environment=environment)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "slots.toml").read_text() == ""


@pytest.mark.parametrize("command", ["write", "verify"])
@pytest.mark.parametrize("target", ["serial:of-no-disk", "port:99-1", "slot:none", "slot:left"])
def test_a_name_of_no_disk_is_refused_and_makes_no_file(
    balenaflash: RunBalenaflash, tmp_path: Path, command: str, target: str
) -> None:
    image = tmp_path / "sample.img"
    assert balenaflash("sample", image).returncode == 0
    slots = tmp_path / "slots.toml"
    slots.write_text('left = "99-2"\n')
    run = balenaflash(
        *(command, "--json", image, target),
        cwd=tmp_path,
        environment={"BALENAFLASH_SLOTS": str(slots)},
    )
    assert run.returncode == 4, run.stderr
    assert [error["code"] for error in json.loads(run.stdout)["errors"]] == ["target-missing"]
    assert {path.name for path in tmp_path.iterdir()} == {"sample.img", "slots.toml"}


def test_a_file_with_the_name_of_a_disk_is_written_by_its_path(
    balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    assert balenaflash("sample", tmp_path / "sample.img").returncode == 0
    run = balenaflash("write", "sample.img", "./serial:1", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "serial:1").read_bytes() == (tmp_path / "sample.img").read_bytes()
