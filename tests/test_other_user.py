"""What another local user can make root do, who runs balenaflash in a folder of theirs: nothing.

Everything of root's that an attack is after lies below ``root`` and is compared with what it was.
"""

import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import commandline
import pytest

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
    ("command", "status"),
    [
        (["unwrap", "flasher.img"], 4),
        (["sample", "--overwrite"], 4),
        (["bmap", "create", "raw.img", "--overwrite", "-o"], 4),
        (["write", "raw.img", "--overwrite"], 4),
        (["edit", "raw.img", "--step", 'config-set = "hostname=x"', "--overwrite-output", "-o"], 4),
        (["boot", "get", "-f", "raw.img", "/config.json"], 3),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("target", ["shadow", "profile.d/zz.sh"])
def test_an_output_that_is_a_link_is_refused(
    scene: Scene, command: list[str], status: int, target: str
) -> None:
    scene.link(f"../root/{target}", "out.img")
    with scene.untouched():
        run = commandline.run(*command, "out.img", cwd=scene.theirs)
    assert (run.returncode, "symbolic link" in run.stderr) == (status, True), run.stderr


def test_a_name_beside_an_output_leads_nowhere(scene: Scene) -> None:
    scene.link("../root/shadow", "new.img.bmap")
    with scene.untouched():
        run = commandline.run("unwrap", "flasher.img", "new.img", "--overwrite", cwd=scene.theirs)
    assert run.returncode == 4
    assert list((scene.root / "profile.d").iterdir()) == []
