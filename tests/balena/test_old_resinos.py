"""Images of resinOS 1.x, which keep config.json in a small partition of its own."""

import json
import subprocess
from pathlib import Path

import pytest
from builders import ALIGNMENT, place, run
from commandline import RunBalenaflash
from imagedigest import digest

pytestmark = pytest.mark.needs("dosfstools", "mtools")

CONFIG = b'{"uuid": "0123456789abcdef0123456789abcdef"}'


@pytest.fixture(params=["vfat", "ext4"])
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A boot partition of 40 MiB, and config.json in a partition of 4 MiB after it."""
    image, part = tmp_path / "old.img", tmp_path / "part"
    kind = "c" if request.param == "vfat" else "83"
    table = f"label: dos\n{ALIGNMENT * 2},81920,c,*\n90112,8192,{kind}\n"
    with image.open("wb") as file:
        file.truncate(52 << 20)
    subprocess.run(["sfdisk", "-q", image], input=table.encode(), check=True)
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / "device-type.json").write_text('{"slug": "raspberry-pi2"}')
    run("mkfs.vfat", "-n", "resin-boot", "-C", part, "40960")
    run("mcopy", "-i", part, tmp_path / "device-type.json", "::")
    place(part, image, ALIGNMENT * 1024)
    part.unlink()
    if request.param == "vfat":
        run("mkfs.vfat", "-n", "resin-conf", "-C", part, "4096")
        run("mcopy", "-i", part, tmp_path / "config.json", "::")
    else:
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "config.json").write_bytes(CONFIG)
        run("mkfs.ext4", "-q", "-F", "-L", "resin-conf", "-d", tree, part, "4096k")
    place(part, image, 90112 * 512)
    return image


@pytest.mark.parametrize("way", ["config set", "config merge", "boot put", "stream"])
def test_no_second_config_is_made_that_the_board_never_reads(
    way: str, old: Path, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    before = digest(old)
    config = tmp_path / "config.json"
    commands: dict[str, list[str | Path]] = {
        "config set": ["config", "set", old, "hostname=a"],
        "config merge": ["config", "merge", old, config],
        "boot put": ["boot", "put", old, config],
        "stream": ["write", old, tmp_path / "new.img", "--step", 'config-set = "hostname=a"'],
    }
    done = balenaflash(*commands[way], "--json")
    assert done.returncode == 3
    [error] = json.loads(done.stdout)["errors"]
    assert error["code"] == "config-elsewhere"
    assert "partition 2" in error["message"]
    assert digest(old) == before
    other = balenaflash("boot", "put", old, tmp_path / "device-type.json", "/other.json")
    assert other.returncode == 0, other.stderr


def test_inspect_says_where_config_json_is(old: Path, balenaflash: RunBalenaflash) -> None:
    done = balenaflash("inspect", "--json", old)
    assert done.returncode == 0
    result = json.loads(done.stdout)["result"]
    assert "config-elsewhere" in result["warning_codes"]
    assert "config.json is in partition 2, as resinOS 1.x has it." in result["warnings"]
