"""Words that are given as a file's name and were meant for a disk."""

import json
from pathlib import Path

import commandline
import devicetree
import pytest
from commandline import RunBalenaflash
from devicetree import DeviceTree, RecordedUdev

from balenaflash.errors import TargetRefusedError
from balenaflash.targets.disk_names import check_file_name, find_spelling

SLOTS = {"left": "1-2.3"}


@pytest.fixture
def tree(tmp_path: Path) -> DeviceTree:
    tree = DeviceTree(tmp_path / "machine")
    stick = tree.add_disk(devicetree.USB_BEHIND_HUB, "8:64")
    (stick.parents[5] / "serial").write_text("4C530001\n")
    tree.add_partition(stick, 1, "8:65")
    links = tree.root / "dev/disk/by-id"
    links.mkdir(parents=True)
    (links / "usb-SanDisk_Ultra_4C530001-0:0").symlink_to("../../sde")
    (tree.root / "dev/mapper").mkdir()
    (tree.root / "dev/mapper/vg-data").symlink_to("../dm-0")
    return tree


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("sde", "/dev/sde"),
        ("SDE", "/dev/sde"),
        (" sde ", "/dev/sde"),
        ("sde1", "/dev/sde1"),
        ("usb-SanDisk_Ultra_4C530001-0:0", "/dev/disk/by-id/usb-SanDisk_Ultra_4C530001-0:0"),
        ("vg-data", "/dev/mapper/vg-data"),
        ("left", "slot:left"),
        ("4C530001", "serial:4C530001"),
        ("1-2.3", "port:1-2.3"),
        ("slot=left", "slot:left"),
        ("SLOT:left", "slot:left"),
        ("slot :left", "slot:left"),
        (" slot:left", "slot:left"),
        ("SERIAL:x", "serial:x"),
        ("seriel:x", "serial:x"),
        ("of=/dev/sde", "/dev/sde"),
        # What looks like a disk that is not here.
        *((name, "") for name in ("sdz", "nvme7n1", "mmcblk9", "loop99", "dm-77", "md126", "vdz")),
        *(
            (name, "")
            for name in ("label:resin-boot", "http://host/x.img", "C:\\x.img", "of=x.img")
        ),
    ],
)
def test_what_was_meant_for_a_disk_is_refused_with_its_spelling(
    tree: DeviceTree, text: str, spelling: str
) -> None:
    with pytest.raises(TargetRefusedError) as caught:
        check_file_name(text, tree.kernel, RecordedUdev(tree), SLOTS)
    (problem,) = caught.value.problems
    assert problem.code == "target-misspelt"
    assert spelling in (problem.hint or "")
    assert f"./{text.strip()}" in (problem.hint or "")
    assert find_spelling(text, tree.kernel, RecordedUdev(tree), SLOTS) == spelling


@pytest.mark.parametrize(
    "text",
    [
        *(
            "copy.img",
            "sde.img",
            "sda-backup",
            "sdcard",
            "loop",
            "left.img",
            "nvme",
            "4C53",
            "x" * 300,
        ),
        *(
            "./sde",
            "./slot:left",
            "dir/sde",
            "/srv/sde",
            "dir/slot=left",
            "../left",
            "1-2",
            "=",
            ":x",
        ),
        *("2024-05-01T10:00.img", "\udcff\x1b"),
    ],
)
def test_the_name_of_a_file_stays_one(tree: DeviceTree, text: str) -> None:
    check_file_name(text, tree.kernel, RecordedUdev(tree), SLOTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image."""
    folder = tmp_path_factory.mktemp("typos")
    assert commandline.run("sample", folder / "sample.img").returncode == 0
    return folder


@pytest.mark.parametrize(
    ("word", "code"),
    [("slot=left", "target-misspelt"), ("sdb", "target-misspelt"), ("/dev/sdb ", None)],
)
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("write", ("--yes", "sample.img")),
        ("verify", ("sample.img",)),
        ("devices probe", ("--destructive", "--yes")),
        ("sample", ()),
        ("unwrap", ("sample.img",)),
        ("bmap create", ("sample.img", "-o")),
        ("config set", ("sample.img", "hostname=x", "-o")),
    ],
)
def test_a_typo_makes_no_file(
    balenaflash: RunBalenaflash,
    folder: Path,
    command: str,
    arguments: tuple[str, ...],
    word: str,
    code: str | None,
) -> None:
    run = balenaflash(*command.split(), *arguments, word, "--json", cwd=folder)
    assert run.returncode == 4, run.stderr
    answer = json.loads(run.stdout)
    assert answer["command"] == command
    assert code in {None, answer["errors"][0]["code"]}
    assert [path.name for path in folder.iterdir()] == ["sample.img"]


@pytest.mark.parametrize("word", ["sdb", "serial:x", "slot=left"])
def test_an_edit_of_a_card_that_is_misspelt_names_the_right_way(
    balenaflash: RunBalenaflash, folder: Path, word: str
) -> None:
    run = balenaflash("config", "set", word, "hostname=x", cwd=folder)
    assert run.returncode == 3
    assert "a disk is named by its node; see " in run.stderr
    assert "balenaflash devices" in run.stderr


def test_a_new_file_is_announced_before_it_is_written(
    balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    assert balenaflash("sample", tmp_path / "sample.img").returncode == 0
    for target, kind in (("copy", "a new file"), ("copy", "a file, whose content is lost")):
        run = balenaflash("write", "--overwrite", "sample.img", target, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert f"Target:  {target}, {kind}\n" in run.stderr
        assert run.stderr.index(kind) < run.stderr.index("write:")
