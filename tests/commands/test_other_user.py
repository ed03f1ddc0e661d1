"""What another local user can make root do, who runs balenaflash in a folder of theirs: nothing.

Everything of root's that an attack is after lies below ``root`` and is compared with what it was.
"""

import bz2
import gzip
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import capabilities
import commandline
import pytest
from mountlock import no_mounts_of_others

from balenaflash.commands.card_records import records_directory
from balenaflash.targets.disk_names import SYSTEM_SLOTS, slot_files

NOBODY = 65534
SECRET = b"root:$y$secret\n"

pytestmark = pytest.mark.needs("root", "util-linux", "dosfstools", "e2fsprogs", "fdisk", "mtools")

Snapshot = dict[str, tuple[int, int, int, bytes | str]]


@dataclass(frozen=True)
class Scene:
    """A folder of root's and one of the attacker's, side by side."""

    root: Path
    """Files of root's that nobody else may read or change."""

    theirs: Path
    """The attacker's own folder."""

    def as_nobody(self, *command: str | Path) -> None:
        """Run ``command`` as the attacker."""
        prefix = ["setpriv", "--reuid", "nobody", "--clear-groups"]
        subprocess.run([*prefix, *map(str, command)], check=True, cwd=self.theirs)

    def link(self, target: str | Path, name: str) -> None:
        """Make a symbolic link in the attacker's folder."""
        self.as_nobody("ln", "-s", target, name)

    def snapshot(self) -> Snapshot:
        """All that root has, with modes, times and content."""
        return {str(each): _look_at(each) for each in (self.root, *self.root.rglob("*"))}

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Nothing of root's is moved, changed or added within the block."""
        before = self.snapshot()
        yield
        assert self.snapshot() == before


def _look_at(path: Path) -> tuple[int, int, int, bytes | str]:
    status = path.lstat()
    content: bytes | str = ""
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    return status.st_mode, status.st_ino, status.st_mtime_ns, content


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    assert commandline.run("sample", folder / "raw.img").returncode == 0
    assert commandline.run("sample", "--flasher", folder / "flasher.img").returncode == 0
    return folder


@pytest.fixture
def scene(samples: Path) -> Iterator[Scene]:
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        scene = Scene(top / "root", top / "theirs")
        scene.root.mkdir()
        (scene.root / "shadow").write_bytes(SECRET)
        (scene.root / "shadow").chmod(0o600)
        (scene.root / "profile.d").mkdir()
        scene.theirs.mkdir()
        for each in samples.iterdir():
            subprocess.run(["cp", "--sparse=always", each, scene.theirs], check=True)
        for each in (scene.theirs, *scene.theirs.iterdir()):
            shutil.chown(each, NOBODY, NOBODY)
        yield scene


@pytest.fixture
def scene_mode(scene: Scene) -> Callable[[str], int]:
    """The mode of a file in the attacker's folder."""
    return lambda name: stat.S_IMODE((scene.theirs / name).stat().st_mode)


Attack = Callable[[Scene], None]


def _map_is_link(scene: Scene) -> None:
    scene.link("../root/shadow", "raw.img.bmap")


def _record_is_link(scene: Scene) -> None:
    scene.link("../root/shadow", ".raw.img.balenaflash-undo")


def _hidden_name_is_link(scene: Scene) -> None:
    _map_is_file(scene)
    for name in (".raw.img.bmap.new", "raw.img.bmap.stale", ".balenaflash-undo"):
        scene.link("../root/shadow", name)


def _map_is_file(scene: Scene) -> None:
    (scene.theirs / "raw.img.bmap").write_bytes(b"<bmap/>")


def _map_is_pipe(scene: Scene) -> None:
    for name in ("raw.img.bmap", "raw.img.sig", "raw.img.bmap.asc", ".raw.img.balenaflash-undo"):
        scene.as_nobody("mkfifo", name)


def _map_is_huge(scene: Scene) -> None:
    for name in ("raw.img.bmap", "raw.img.sig"):
        scene.as_nobody("truncate", "-s", "10G", name)


@pytest.mark.parametrize(
    "attack",
    [_map_is_link, _record_is_link, _hidden_name_is_link, _map_is_pipe, _map_is_huge],
)
def test_what_lies_beside_an_image_leads_nowhere(scene: Scene, attack: Attack) -> None:
    attack(scene)
    image = scene.theirs / "raw.img"
    with scene.untouched():
        commandline.run("inspect", image, timeout=60)
        commandline.run("config", "set", image, "hostname=bench-7", timeout=60)
        commandline.run("bmap", "check", image, timeout=60)


@pytest.mark.parametrize(
    "command",
    [
        ["unwrap", "flasher.img"],
        ["sample", "--overwrite"],
        ["bmap", "create", "raw.img", "--overwrite", "-o"],
        ["write", "raw.img", "--overwrite"],
        ["edit", "raw.img", "--step", 'config-set = "hostname=x"', "--overwrite", "-o"],
        ["boot", "get", "--overwrite", "raw.img", "/config.json"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("target", ["shadow", "profile.d/zz.sh"])
def test_an_output_that_is_a_link_is_refused(scene: Scene, command: list[str], target: str) -> None:
    scene.link(f"../root/{target}", "out.img")
    with scene.untouched():
        run = commandline.run(*command, "out.img", cwd=scene.theirs)
    assert (run.returncode, "symbolic link" in run.stderr) == (4, True), run.stderr


def test_a_name_beside_an_output_leads_nowhere(scene: Scene) -> None:
    scene.link("../root/shadow", "new.img.bmap")
    with scene.untouched():
        run = commandline.run("unwrap", "flasher.img", "new.img", "--overwrite", cwd=scene.theirs)
    assert run.returncode == 4
    assert list((scene.root / "profile.d").iterdir()) == []


@pytest.mark.parametrize("source", [0o600, 0o644])
def test_nobody_may_read_an_output_who_may_not_read_the_image(
    scene: Scene, scene_mode: Callable[[str], int], source: int
) -> None:
    (scene.theirs / "psk").write_text("sup3rs3cret")
    for name in ("raw.img", "flasher.img"):
        (scene.theirs / name).chmod(source)
    (scene.theirs / "old.img").touch(0o666)
    (scene.theirs / "old.img").chmod(0o666)
    add_network = ["network", "add", "wifi", "raw.img", "--ssid", "Lab", "--psk-file", "psk"]
    plain = ["config", "set", "raw.img", "hostname=x"]
    expected = {
        "copy.img": (["write", "raw.img", "copy.img"], source),
        "old.img": (["write", "raw.img", "old.img", "--overwrite"], source),
        "plain.img": ([*plain, "-o", "plain.img"], source),
        "secret.img": ([*add_network, "-o", "secret.img"], 0o600),
        "inner.img": (["unwrap", "flasher.img", "inner.img"], source),
        "inner.img.bmap": ([], source),
        "raw.img.bmap": (["bmap", "create", "raw.img"], source),
        "got/config.json": (["boot", "get", "raw.img", "/", "got"], 0o600),
    }
    modes = {}
    for name, (command, _) in expected.items():
        if command:
            run = commandline.run(*command, cwd=scene.theirs)
            assert run.returncode == 0, run.stderr
        modes[name] = scene_mode(name)
    wanted = {name: mode for name, (_, mode) in expected.items()}
    if source == 0o644:
        wanted["old.img"] = 0o666  # as it was
    assert modes == wanted


def test_root_keeps_no_record_and_reads_no_slots_in_a_home_of_somebody_else(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BALENAFLASH_SLOTS", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(scene.theirs))
    monkeypatch.setenv("XDG_STATE_HOME", str(scene.theirs / "state"))
    assert records_directory() == Path("/var/lib/balenaflash")
    scene.as_nobody("mkdir", "state")
    (scene.theirs / "state/balenaflash").mkdir()  # of root's, and yet they may exchange it
    assert records_directory() == Path("/var/lib/balenaflash")
    assert slot_files() == (SYSTEM_SLOTS,)
    scene.link("../theirs", "link")
    monkeypatch.setenv("XDG_STATE_HOME", str(scene.root))
    assert records_directory() == scene.root / "balenaflash"
    scene.root.chmod(0o777)
    assert records_directory() == Path("/var/lib/balenaflash")


def test_a_record_of_another_user_holds_up_no_reading(scene: Scene) -> None:
    image = scene.root / "shared.img"
    subprocess.run(["cp", "--sparse=always", scene.theirs / "raw.img", image], check=True)
    scene.root.chmod(0o777)
    for make in (["touch"], ["mkfifo"], ["ln", "-s", "shadow"]):
        record = scene.root / f".{image.name}.balenaflash-undo"
        scene.as_nobody(*make, record)
        with scene.untouched():
            run = commandline.run("boot", "ls", image, timeout=60)
        assert (run.returncode, "belongs to another user" in run.stderr) == (0, True), run.stderr
        run = commandline.run("config", "set", image, "hostname=x", timeout=60)
        assert (run.returncode, str(record) in run.stderr) == (3, True), run.stderr
        record.unlink()


def test_a_tree_that_is_copied_out_lands_nowhere_else(scene: Scene) -> None:
    payload = scene.root / "payload"
    payload.mkdir()
    (payload / "1big").write_bytes(bytes(20 << 20))
    (payload / "zz.sh").write_text("id")
    image = scene.theirs / "raw.img"
    assert commandline.run("boot", "put", image, payload, "/").returncode == 0
    scene.as_nobody("mkdir", "out")
    swap = (
        "import os\nwhile not os.path.exists('out/payload/1big'): pass\n"
        "os.rename('out/payload', 'out/moved')\nos.symlink('../../root/profile.d', 'out/payload')"
    )
    prefix = ["setpriv", "--reuid", "nobody", "--clear-groups"]
    command = [*prefix, capabilities.SYSTEM_PYTHON, "-c", swap]
    with scene.untouched(), subprocess.Popen(command, cwd=scene.theirs) as attacker:
        commandline.run("boot", "get", image, "/", scene.theirs / "out")
        attacker.kill()


def test_what_root_makes_in_a_folder_of_somebody_else_has_no_name_to_exchange(
    scene: Scene,
) -> None:
    """Nothing but the output itself is ever seen there."""
    watch = (
        "import os, sys\nseen = set()\n"
        "while not os.path.exists('stop'): seen |= set(os.listdir('.'))\nprint(*sorted(seen))"
    )
    prefix = ["setpriv", "--reuid", "nobody", "--clear-groups"]
    command = [*prefix, capabilities.SYSTEM_PYTHON, "-c", watch]
    before = {each.name for each in scene.theirs.iterdir()}
    with subprocess.Popen(command, cwd=scene.theirs, stdout=subprocess.PIPE, text=True) as watcher:
        for words in (["unwrap", "flasher.img", "a.img"], ["bmap", "create", "raw.img"]):
            commandline.run(*words, cwd=scene.theirs)
        commandline.run("config", "set", "raw.img", "hostname=x", cwd=scene.theirs)
        (scene.theirs / "stop").touch()
        assert watcher.stdout is not None
        seen = set(watcher.stdout.read().split())
    made = {"a.img", "a.img.bmap", "raw.img.bmap"}
    assert seen - before - {"stop"} <= made | {
        ".raw.img.balenaflash-undo",  # its name is for the next look; never read but by its owner
        *(name for name in seen if name.startswith(".balenaflash-") and name.endswith(".new")),
    }


@pytest.mark.parametrize("target", ["../../root/shadow", "../../root/private"])
def test_a_link_among_files_that_are_put_brings_nothing_of_root_into_an_image(
    scene: Scene, target: str
) -> None:
    (scene.root / "private").mkdir(mode=0o700)
    (scene.root / "private/key").write_bytes(SECRET)
    scene.as_nobody("mkdir", "files")
    scene.as_nobody("touch", "files/own")
    scene.link("own", "files/fine")
    image = scene.theirs / "raw.img"
    assert commandline.run("boot", "put", image, "files", "/", cwd=scene.theirs).returncode == 0
    scene.link(target, "files/passwords")
    for source in ("files", "files/passwords"):
        run = commandline.run("boot", "put", image, source, "/", cwd=scene.theirs)
        assert (run.returncode, "link of another user" in run.stderr) == (3, True), run.stderr
    run = commandline.run(
        *("boot", "apply", image, "--files", "passwords:/passwords", "--deploy-dir", "files"),
        cwd=scene.theirs,
    )
    assert run.returncode == 3, run.stderr
    assert SECRET not in image.read_bytes()


def test_a_name_that_somebody_else_chose_does_nothing_to_the_terminal(scene: Scene) -> None:
    name = "raw\x1b]0;x\x07\u202e\x9b2J.img"
    (scene.theirs / "raw.img").rename(scene.theirs / name)
    for words in (["inspect"], ["inspect", "--json"], ["boot", "ls"], ["config", "set"]):
        last = ["hostname=x"] if words[-1] == "set" else []
        run = commandline.run(*words, name, *last, cwd=scene.theirs)
        assert run.returncode == 0, run.stderr
        assert not set(run.stdout + run.stderr) & set("\x1b\x07\x9b\u202e")


def test_what_was_not_checked_is_not_called_checked(scene: Scene) -> None:
    (scene.theirs / "raw.img.sig").write_bytes(b"no signature")
    (scene.theirs / "raw.img.bmap").write_bytes(b"<bmap/>")
    for option in ("--check-signature", "--check-bmap"):
        run = commandline.run("inspect", option, "raw.img", cwd=scene.theirs)
        assert run.returncode == 3, run.stdout


def _bomb(path: Path, size: int) -> None:
    """A gzip in a zip, of an image whose boot partition lies ``size`` bytes into it."""
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0x0C, bytes(3), size // 512, 81920)
    record = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    packed = gzip.compress(record + b"\xaa" * (size - 512) + bytes(40 << 20), compresslevel=1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("balena.img.gz", packed)


def test_a_small_file_does_not_fill_the_disk(scene: Scene) -> None:
    bomb = scene.theirs / "bomb.zip"
    _bomb(bomb, 512 << 20)
    assert bomb.stat().st_size < 1 << 20
    room = scene.theirs / "room"
    room.mkdir()
    script = (
        'mount -t tmpfs -o size=160m none "$1" && TMPDIR=$1 exec "$2" -m balenaflash inspect "$3"'
    )
    with scene.untouched(), no_mounts_of_others():
        run = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", room, sys.executable, bomb],
            env=commandline.clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    # It was looked for behind all that was skipped.
    assert "none of its 1 partitions is a FAT" in run.stderr


def _huge_table(path: Path) -> None:
    header = struct.pack("<8sIIIIQQQQ16sQIII", *_HUGE_HEADER)
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0xEE, b"\xff" * 3, 1, 2**32 - 1)
    record = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    path.write_bytes(gzip.compress(record + header.ljust(512, b"\0") + bytes(1 << 20)))


_HUGE_HEADER = (
    b"EFI PART",
    0x10000,
    92,
    0,
    0,
    1,
    2**60 - 1,
    34,
    2**60 - 34,
    b"2" * 16,
    2,
    128,
    128,
    0,
)


def _nameless_member(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo("q"), b"x")
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 46] = 0
    path.write_bytes(content)


def _label_of_aix(path: Path) -> None:
    path.write_bytes(b"\xc9\xc2\xd4\xc1".ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))


@pytest.mark.parametrize("craft", [_huge_table, _nameless_member, _label_of_aix])
@pytest.mark.parametrize("words", [["inspect"], ["boot", "ls"], ["config", "set"]])
def test_a_crafted_file_ends_in_status_3(
    scene: Scene, craft: Callable[[Path], None], words: list[str]
) -> None:
    image = scene.theirs / "crafted"
    craft(image)
    last = ["hostname=x", "-o", "out.img"] if words[-1] == "set" else []
    with scene.untouched():
        run = commandline.run(*words, image, *last, cwd=scene.theirs)
    assert (run.returncode, "Traceback" in run.stderr) == (3, False), run.stderr
    assert not (scene.theirs / "out.img").exists()


def test_root_runs_no_program_of_another_user(scene: Scene) -> None:
    programs = scene.theirs / "bin"
    programs.mkdir()
    for name in ("sfdisk", "mkfs.vfat", "mkfs.ext4", "debugfs", "lbzip2", "dmidecode", "udevadm"):
        program = programs / name
        program.write_text(f"#!/bin/sh\necho {name} >{scene.root}/owned\nexit 1\n")
        program.chmod(0o755)
    packed = scene.theirs / "packed.img.bz2"
    noise = os.urandom(8 << 20)  # large enough for the decoder that is a program
    packed.write_bytes(bz2.compress((scene.theirs / "raw.img").read_bytes() + noise, 1))
    path = f"{programs}:{os.environ['PATH']}"
    with scene.untouched():
        for words in (["inspect", "raw.img"], ["inspect", packed], ["sample", "new.img"]):
            run = commandline.run(*words, environment={"PATH": path}, cwd=scene.theirs)
            assert run.returncode == 0, run.stderr
