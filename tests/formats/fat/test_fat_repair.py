"""Boot partitions as they come from the field: what is wrong is repaired, told, and nothing lost.

Each state is made with mtools and single bytes at places that the boot sector names; whether it
is right afterwards is for fsck.vfat and mtools to say.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import vfat
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage
from loopdev import AttachLoop

from balenaflash.errors import EditError

pytestmark = pytest.mark.needs("dosfstools", "mtools")

NODE_MODULES = os.environ.get("BALENAFLASH_NODE_MODULES")
"""A directory with balena-image-fs and balena-config-json in it, to have them make images."""


class Raw:
    """A FAT volume in a file, to change behind every driver's back (fields of fatgen103)."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        self.start = start
        boot = self.read(0, 512)
        self.is_fat32 = boot[22:24] == b"\0\0"
        sectors = boot[36:40] if self.is_fat32 else boot[22:24]
        self.table = int.from_bytes(boot[14:16], "little") * 512
        self.table_size = int.from_bytes(sectors, "little") * 512
        self.width = 4 if self.is_fat32 else 2
        self.media = boot[21]

    @property
    def volume(self) -> str:
        """As mtools takes it."""
        return f"{self.path}@@{self.start}"

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start + offset)
            return file.read(length)

    def write(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.start + offset)
            file.write(data)

    def entry(self, cluster: int) -> int:
        return int.from_bytes(self.read(self.table + cluster * self.width, self.width), "little")

    def link(self, cluster: int, value: int, copies: tuple[int, ...] = (0, 1)) -> None:
        for copy in copies:
            offset = self.table + copy * self.table_size + cluster * self.width
            self.write(offset, value.to_bytes(self.width, "little"))

    def copy_of_table(self, copy: int) -> bytes:
        return self.read(self.table + copy * self.table_size, self.table_size)

    def set_table(self, copy: int, content: bytes) -> None:
        self.write(self.table + copy * self.table_size, content)

    def slot(self, short_name: bytes) -> int:
        """Offset of the 8.3 slot of that name, which must be there once."""
        content = self.read(0, 8 << 20)
        assert content.count(short_name) == 1
        return content.index(short_name)

    def put(self, name: str, content: bytes) -> None:
        source = self.path.with_name("put")
        source.write_bytes(content)
        vfat.mtools("mcopy", Path(self.volume), "-o", str(source), f"::{name}")
        source.unlink()


def second_table_stale(raw: Raw) -> None:
    """As balena-image-fs and macOS write: the first table alone."""
    old = raw.copy_of_table(1)
    raw.put("new.bin", os.urandom(200_000))
    raw.set_table(1, old)


def lost_chain(raw: Raw) -> None:
    """A power cut while a file was written: ten clusters that no file owns."""
    for cluster in range(3000, 3010):
        assert raw.entry(cluster) == 0
        raw.link(cluster, cluster + 1 if cluster < 3009 else 0x0FFF_FFFF % (1 << raw.width * 8))


def not_clean_by_macos(raw: Raw) -> None:
    """The clean bit of the first table's second entry (macOS, FreeBSD)."""
    raw.link(1, raw.entry(1) & ~(1 << (27 if raw.is_fat32 else 15)), copies=(0,))


def not_clean_by_windows(raw: Raw) -> None:
    """The same in both tables."""
    raw.link(1, raw.entry(1) & ~(1 << (27 if raw.is_fat32 else 15)))


def not_clean_by_linux(raw: Raw) -> None:
    """The state byte of the boot sector."""
    raw.write(0x41 if raw.is_fat32 else 0x25, b"\1")


def no_size_yet(raw: Raw) -> None:
    """A power cut between the clusters of a new file and its size."""
    raw.put("z.txt", b"x" * 3000)
    raw.write(raw.slot(b"Z       TXT") + 28, bytes(4))


def size_of_before(raw: Raw) -> None:
    """The same of a file that has grown."""
    raw.put("z.txt", b"x" * 30_000)
    raw.write(raw.slot(b"Z       TXT") + 28, (1000).to_bytes(4, "little"))


def shortened_by_balena(raw: Raw) -> None:
    """A file that balena-image-fs has made shorter.

    It means to free the clusters that are left over, and marks them with the upper bits alone:
    0xFF00 and 0x0FFFFF00 (fatfs 0.10.8, ``storeToFAT`` with "free"). The chain leads there.
    """
    raw.put("z.txt", b"x" * 30_000)
    slot = raw.read(raw.slot(b"Z       TXT"), 32)
    cluster = int.from_bytes(slot[26:28], "little")
    raw.write(raw.slot(b"Z       TXT") + 28, (1).to_bytes(4, "little"))
    following = raw.entry(cluster)
    while following < 0xFFF8:
        cluster, following = following, raw.entry(following)
        raw.link(cluster, 0x0FFF_FF00 if raw.is_fat32 else 0xFF00, copies=(0,))


def wrong_count(raw: Raw) -> None:
    """FSInfo as a card that was pulled has it."""
    raw.write(512 + 488, (7).to_bytes(4, "little"))


def parent_by_number(raw: Raw) -> None:
    """A directory in the root that balena-image-fs has made: ``..`` is 2 and not 0."""
    vfat.mtools("mmd", Path(raw.volume), "::made")
    slot = raw.read(raw.slot(b"MADE       "), 32)
    cluster = int.from_bytes(slot[26:28], "little")
    data_start = raw.table + 2 * raw.table_size
    per_cluster = raw.read(13, 1)[0] * 512
    raw.write(data_start + (cluster - 2) * per_cluster + 32 + 26, b"\2\0")


def second_table_in_use(raw: Raw) -> None:
    """FAT32 whose flags name the second table as the one in use, and the first one is old."""
    old = raw.copy_of_table(0)
    raw.put("new.bin", os.urandom(200_000))
    raw.set_table(0, old)
    raw.write(40, b"\x81\0")
    backup = int.from_bytes(raw.read(50, 2), "little") * 512
    raw.write(backup + 40, b"\x81\0")


@dataclass(frozen=True, slots=True)
class State:
    make: Callable[[Raw], None]
    codes: frozenset[str]
    fat32_only: bool = False


FSINFO = "fat-free-count"
STATES = [
    State(second_table_stale, frozenset({"fat-tables-differ"})),
    State(lost_chain, frozenset({"fat-lost-clusters", FSINFO})),
    State(not_clean_by_macos, frozenset({"fat-tables-differ", "fat-not-unmounted"})),
    State(not_clean_by_windows, frozenset({"fat-not-unmounted"})),
    State(not_clean_by_linux, frozenset({"fat-not-unmounted"})),
    State(no_size_yet, frozenset({"fat-clusters-past-end"})),
    State(size_of_before, frozenset({"fat-clusters-past-end"})),
    State(
        shortened_by_balena,
        frozenset({"fat-tables-differ", "fat-clusters-past-end", "fat-lost-clusters"}),
    ),
    State(wrong_count, frozenset({FSINFO}), fat32_only=True),
    State(parent_by_number, frozenset({"fat-parent-link"}), fat32_only=True),
    State(second_table_in_use, frozenset({"fat-tables-differ"}), fat32_only=True),
]
CASES = [
    pytest.param(kind, state, id=f"{kind}-{state.make.__name__}")
    for state in STATES
    for kind in ("fat16-16m", "fat32-40m")
    if kind == "fat32-40m" or not state.fat32_only
]


@pytest.mark.parametrize(("kind", "state"), CASES)
def test_what_the_field_leaves_is_repaired_by_an_edit_and_nothing_is_lost(
    kind: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "volume"
    vfat.save(path, vfat.filled(kind)[0])
    state.make(Raw(path))
    assert vfat.fsck_says(path), "fsck.vfat agrees that something is wrong"
    before, data = vfat.mtools_reads(path), path.read_bytes()
    volume = vfat.open_bytes(data)
    assert volume.read_file("/config.json") == before["/config.json"]
    volume.may_repair = False
    with pytest.raises(EditError, match="needs a repair") as refused:
        volume.write_file("/config.json", b"edited")
    assert refused.value.code == "volume-needs-repair"
    assert volume.changes() == ()
    volume.may_repair = True
    volume.write_file("/config.json", b"edited")
    found = {fault.code for fault in volume.repairs}
    assert found - {FSINFO} == state.codes - {FSINFO}
    vfat.save(path, vfat.patched(data, volume.changes()))
    assert vfat.fsck_says(path) == ""
    assert vfat.mtools_reads(path) == {**before, "/config.json": b"edited"}
    assert vfat.open_bytes(path.read_bytes()).faults() == ()


# ---- the command line ----


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    """An image whose boot partition has an old second table and lost clusters."""
    made = image(Layout.GPT_FAT16)
    raw = Raw(made.path, made.boot_extent.start)
    second_table_stale(raw)
    lost_chain(raw)
    return made


def partition(built: BuiltImage, folder: Path, image: Path | None = None) -> Path:
    """The boot partition as a file."""
    path = folder / "partition"
    with (image or built.path).open("rb") as file:
        file.seek(built.boot_extent.start)
        path.write_bytes(file.read(built.boot_extent.size))
    return path


def require_edited(
    built: BuiltImage,
    folder: Path,
    before: dict[str, bytes | None],
    image: Path | None = None,
) -> None:
    """fsck.vfat finds nothing, the new file is there, and each other one equal."""
    path = partition(built, folder, image)
    assert vfat.fsck_says(path) == ""
    after = vfat.mtools_reads(path)
    assert after.pop("/note.txt") == b"note"
    after.pop("/balenaos.fingerprint")
    assert after == {name: content for name, content in before.items() if "finger" not in name}


REPAIRED = (
    "boot partition repaired: made copy 2 of the file allocation table equal to copy 1; "
    "freed 10 clusters (20.0 KiB) without a file"
)


@pytest.fixture
def note(tmp_path: Path) -> Path:
    path = tmp_path / "note.txt"
    path.write_bytes(b"note")
    return path


def test_an_edit_in_place_repairs_and_says_so_in_one_line(
    balenaflash: RunBalenaflash, built: BuiltImage, note: Path, tmp_path: Path
) -> None:
    before = vfat.mtools_reads(partition(built, tmp_path))
    run = balenaflash("boot", "put", "-q", built.path, note)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[0] == REPAIRED
    require_edited(built, tmp_path, before)


def test_a_dry_run_says_what_would_be_repaired_and_repairs_nothing(
    balenaflash: RunBalenaflash, built: BuiltImage, note: Path
) -> None:
    content = built.path.read_bytes()
    run = balenaflash("boot", "put", "--dry-run", built.path, note)
    assert run.returncode == 0
    assert REPAIRED.replace("repaired", "would be repaired") in run.stdout.splitlines()
    assert built.path.read_bytes() == content


def test_no_repair_refuses_with_a_hint_that_works_as_printed(
    balenaflash: RunBalenaflash, built: BuiltImage, note: Path
) -> None:
    content = built.path.read_bytes()
    run = balenaflash("boot", "put", "--no-repair", "--json", built.path, note)
    assert run.returncode == 3
    [error] = json.loads(run.stdout)["errors"]
    assert error["code"] == "volume-needs-repair"
    command = shlex.split(error["hint"].partition("-m balenaflash ")[2])
    assert command[:2] == ["boot", "check"]
    assert built.path.read_bytes() == content
    assert balenaflash(*command).returncode == 0
    assert balenaflash("boot", "put", "--no-repair", built.path, note).returncode == 0


def test_a_new_file_and_a_stream_are_repaired_too(
    balenaflash: RunBalenaflash, built: BuiltImage, note: Path, tmp_path: Path
) -> None:
    before = vfat.mtools_reads(partition(built, tmp_path))
    content = built.path.read_bytes()
    out = tmp_path / "out.img"
    run = balenaflash("boot", "put", "--json", "-o", out, built.path, note)
    assert run.returncode == 0, run.stderr
    repairs = json.loads(run.stdout)["result"]["repairs"]
    assert [each["code"] for each in repairs] == ["fat-tables-differ", "fat-lost-clusters"]
    require_edited(built, tmp_path, before, out)

    step = f'put = "{note}"'
    written = tmp_path / "written.img"
    refused = balenaflash("write", "--no-repair", built.path, written, "--step", step)
    assert refused.returncode == 3
    assert not written.exists()
    run = balenaflash("write", "--json", built.path, written, "--step", step)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["result"]["repairs"] == repairs
    require_edited(built, tmp_path, before, written)
    verified = balenaflash("verify", built.path, written, "--step", step)
    assert verified.returncode == 0, verified.stderr
    assert built.path.read_bytes() == content


def test_a_card_is_repaired_too(
    balenaflash: RunBalenaflash,
    built: BuiltImage,
    note: Path,
    attach_loop: AttachLoop,
    tmp_path: Path,
) -> None:
    before = vfat.mtools_reads(partition(built, tmp_path))
    node = attach_loop(built.path)
    checked = balenaflash("boot", "check", node)
    assert checked.returncode == 3
    run = balenaflash("boot", "put", "-q", "--yes", "--allow-internal", node, note)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == REPAIRED
    require_edited(built, tmp_path, before)
    assert balenaflash("boot", "check", node).returncode == 0


def test_boot_check_tells_sound_repairable_and_unsound_apart(
    balenaflash: RunBalenaflash, image: MakeImage, tmp_path: Path
) -> None:
    made = image(Layout.GPT_FAT16)
    run = balenaflash("boot", "check", made.path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{made.path}: the filesystem of partition {made.boot_number} is sound\n"

    raw = Raw(made.path, made.boot_extent.start)
    lost_chain(raw)
    run = balenaflash("boot", "check", "--json", made.path)
    assert run.returncode == 3
    answer = json.loads(run.stdout)
    assert not answer["result"]["sound"]
    [fault] = answer["result"]["faults"]
    assert (fault["code"], fault["gravity"]) == ("fat-lost-clusters", "repairable")
    assert [error["code"] for error in answer["errors"]] == ["fat-lost-clusters"]
    assert balenaflash("boot", "check", "--repair", "-n", made.path).returncode == 0
    assert balenaflash("boot", "check", made.path).returncode == 3
    run = balenaflash("boot", "check", "--repair", made.path)
    assert run.returncode == 0
    assert "freed 10 clusters" in run.stdout
    assert vfat.fsck_says(partition(made, tmp_path)) == ""
    assert balenaflash("boot", "check", made.path).returncode == 0

    raw.link(3, 3)  # a chain that loops
    content = made.path.read_bytes()
    for command in (["boot", "check"], ["boot", "check", "--repair"], ["boot", "rm"]):
        arguments = ["/config.json"] if command[1] == "rm" else []
        run = balenaflash(*command, "--json", made.path, *arguments)
        assert run.returncode == 3
        errors = json.loads(run.stdout)["errors"]
        assert errors[0]["code"] in {"fat-unsound", "volume-unsound", "fat-invalid"}
    assert made.path.read_bytes() == content


def test_a_volume_that_was_not_unmounted_is_told_wherever_it_is_looked_at(
    balenaflash: RunBalenaflash, image: MakeImage, tmp_path: Path
) -> None:
    made = image(Layout.GPT_FAT16)
    not_clean_by_windows(Raw(made.path, made.boot_extent.start))
    for command in (["inspect"], ["boot", "ls"], ["config", "show"]):
        run = balenaflash(*command, "--json", made.path)
        assert run.returncode == 0
        assert "fat-not-unmounted" in json.loads(run.stdout)["result"]["warning_codes"]
        assert "not unmounted cleanly" in run.stderr
    copy = tmp_path / "copy.img"
    run = balenaflash("write", "--json", made.path, copy)
    assert run.returncode == 0
    assert json.loads(run.stdout)["result"]["warning_codes"] == ["fat-not-unmounted"]
    assert copy.read_bytes() == made.path.read_bytes()


# ---- balena's own tools ----

BALENA_STEPS = """
const imagefs = require('balena-image-fs'), config = require('balena-config-json');
const {promisify} = require('util');
(async () => {
  const image = process.argv[2];
  const content = await config.read(image, '');
  content.hostname = 'x'.repeat(9000);
  await config.write(image, '', content);
  const number = await config.getBootPartition(image);
  await imagefs.interact(image, number, async fs => {
    const write = promisify(fs.writeFile);
    await write('/system-connections/lab', '[connection]\\n'.repeat(400));
    await write('/a long name of a file.txt', 'y'.repeat(20000));
    await write('/empty.txt', '');
    await promisify(fs.mkdir)('/made');
    await write('/made/inside.txt', 'z');
  });
  content.hostname = 'short';
  await config.write(image, '', content);
})().catch(error => { console.error(String(error).slice(0, 300)); process.exit(1); });
"""


@pytest.mark.skipif(
    NODE_MODULES is None or shutil.which("node") is None,
    reason="BALENAFLASH_NODE_MODULES names no directory with balena-config-json, or no node",
)
@pytest.mark.parametrize("layout", [Layout.GPT_FAT16, Layout.MSDOS_FAT32])
def test_an_image_configured_by_balenas_own_tools_is_edited(
    layout: Layout, balenaflash: RunBalenaflash, image: MakeImage, note: Path, tmp_path: Path
) -> None:
    made = image(layout)
    script = tmp_path / "steps.js"
    script.write_text(BALENA_STEPS)
    environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
    subprocess.run(["node", script, made.path], env=environment, check=True)
    assert vfat.fsck_says(partition(made, tmp_path)), "what it leaves is not sound"
    before = vfat.mtools_reads(partition(made, tmp_path))
    assert before["/made/inside.txt"] == b"z"
    run = balenaflash("boot", "put", "-q", made.path, note)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("boot partition repaired: ")
    require_edited(made, tmp_path, before)
