"""Random faults against every command that writes or verifies, judged by what the medium holds.

A trial is drawn from a number, its seed: a command, what the card held before, and what goes wrong.
It is judged by the backing file of the medium. Exit status 0 with anything wrong there is what no
trial may end in.

``python fault_trials.py FIRST END`` makes the trials of these seeds and counts how they ended.
"""

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from unittest.mock import patch

import boot_tree
import capabilities
from builders import BuiltImage, ExpectedPartition, Layout, copy_in, place, run, write_tree
from faultdev import (
    Beyond,
    Fault,
    FaultDevice,
    bit_flip,
    dropped_write,
    flush_error,
    read_error,
    write_error,
)
from write_judges import free_extents, whole_blocks

from balenaflash.cli.main import main
from balenaflash.units import KIB, MIB, SECTOR_SIZE, Extent

BOOT, ROOT = "resin-boot", "resin-rootA"
_SIZES = {BOOT: 5, ROOT: 4, "resin-rootB": 1, "resin-state": 1, "resin-data": 3}
"""MiB of each partition, in order; the first begins at 1 MiB."""

_CHS = range(447, 454)
"""Bytes of cylinders, heads and sectors in the first entry, which sgdisk writes anew."""

_BACKUP = 33 * SECTOR_SIZE
"""Bytes of a backup GPT at the end of a disk."""

_FINGERPRINT = "/balenaos.fingerprint"


class Command(StrEnum):
    """What is run."""

    WRITE = "write"
    SKIP_EQUAL = "write --skip-equal"
    FIX_GPT = "write --fix-gpt"
    REPAIR = "write, with something to repair"
    VERIFY = "verify"
    EDIT = "edit of a card"


class Trouble(StrEnum):
    """What goes wrong."""

    NOTHING = "nothing"
    WRAPS = "wraps"
    DISCARDS = "discards"
    STORED = "bits flipped on the medium"
    ONE_READ = "bits flipped in one read"
    EVERY_READ = "bits flipped in every read"
    DROPPED = "dropped writes"
    CACHE = "a lost volatile cache"
    ERROR = "an error once"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended."""

    command: Command
    trouble: Trouble
    status: int
    fault: str | None
    """What is wrong on the medium although it was said to be right; ``None`` where nothing is."""

    story: str
    """What was run, and what went wrong."""


@dataclass(slots=True)
class Images:
    """The image of all trials, one before it, and what of it counts; each made once."""

    folder: Path
    built: BuiltImage = field(init=False)
    data: bytes = field(init=False)
    earlier: bytes = field(init=False)
    """Of the same layout, with other content."""

    free: list[Extent] = field(init=False)
    """Whole blocks that no filesystem uses, by dumpe2fs and the tests' own reader of FAT."""

    packed: Path = field(init=False)
    _moved: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.built = _build(self.folder / "balena.img", seed=1)
        self.data = self.built.path.read_bytes()
        self.earlier = _build(self.folder / "earlier.img", seed=2).path.read_bytes()
        self.free = whole_blocks(free_extents(self.built, self.built.path))
        self.packed = self.folder / "balena.img.gz"
        self.packed.write_bytes(gzip.compress(self.data, 1))

    @property
    def size(self) -> int:
        return len(self.data)

    def on_larger_disk(self, size: int) -> tuple[bytes, bytes]:
        """The image as sgdisk leaves it on a disk of ``size`` bytes, and the backup at its end."""
        if size not in self._moved:
            path = self.folder / "moved.img"
            path.write_bytes(self.data)
            os.truncate(path, size)
            run("sgdisk", "--move-second-header", path)
            with path.open("rb") as file:
                start = file.read(self.size)
                file.seek(-_BACKUP, os.SEEK_END)
                self._moved[size] = start, file.read()
            path.unlink()
        return self._moved[size]


def _build(path: Path, *, seed: int) -> BuiltImage:
    """A small image of balenaOS layout; what of it is random is drawn from ``seed``."""
    source = random.Random(seed)  # noqa: S311 - content, not a key
    start, partitions, words = MIB, list[ExpectedPartition](), list[str]()
    for number, (name, size) in enumerate(_SIZES.items(), 1):
        kind = "vfat" if name == BOOT else "ext4"
        partitions.append(ExpectedPartition(number, name, Extent(start, start + size * MIB), kind))
        words += [
            f"--new={number}:{start // SECTOR_SIZE}:+{size}M",
            f"--change-name={number}:{name}",
        ]
        start += size * MIB
    path.touch()
    os.truncate(path, start + MIB)
    run("sgdisk", *words, path)
    files = boot_tree.boot_files(boot_tree.GENERIC_AMD64, flasher=False)
    files["/notes.txt"] = source.randbytes(20_000)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        work = Path(folder)
        write_tree(work / "boot", files)
        content = {f"/file-{n}": source.randbytes(source.randrange(300_000)) for n in range(9)}
        write_tree(work / "root", content)
        for partition in partitions:
            part, size = work / "part", partition.extent.size // KIB
            part.unlink(missing_ok=True)
            if partition.label == BOOT:
                run("mkfs.vfat", "-n", BOOT, "-F", "16", "-s", "1", "-C", part, str(size))
                copy_in(part, sorted((work / "boot").iterdir()))
            else:
                tree = ["-d", str(work / "root")] if partition.label == ROOT else []
                label = ["-L", str(partition.label)]
                run("mkfs.ext4", "-q", "-F", *label, *tree, part, f"{size}k")
            place(part, path, partition.extent.start)
    boot = partitions[0]
    return BuiltImage(path, Layout.GPT_FAT16, 1, boot.extent, tuple(partitions), files)


@dataclass(slots=True)
class Trial:
    """One of them, and what was drawn for it."""

    images: Images
    seed: int
    folder: Path
    draw: random.Random = field(init=False)
    command: Command = field(init=False)
    trouble: Trouble = field(init=False)
    size: int = field(init=False)
    """Bytes that the card claims to have."""

    real: int | None = None
    beyond: Beyond = Beyond.DISCARD
    before: bytes = b""
    """What the card held, from its start."""

    faults: list[Fault] = field(default_factory=list)
    volatile: bool = False
    cache_lost_after: int | None = None

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)  # noqa: S311 - chance, not a key
        # In turn, so that any number of trials has each command with each trouble.
        kinds = [(command, trouble) for trouble in Trouble for command in Command]
        self.command, self.trouble = kinds[self.seed % len(kinds)]
        larger = self.command is Command.FIX_GPT
        self.size = self.images.size * self.draw.choice([2, 3] if larger else [1, 1, 2])
        self._draw_trouble(self.trouble)
        if self.draw.random() < 0.2:  # two things at a time
            self._draw_trouble(self.draw.choice(list(Trouble)))
        if self.command is Command.REPAIR:
            self._draw_what_is_repaired()
        self._draw_content()

    def make(self) -> Ended:
        """Run it."""
        with FaultDevice(self.size) as device:
            device.fill(self.before[: self.real])
            device.set(
                faults=self.faults,
                real_size=self.real,
                beyond=self.beyond,
                volatile=self.volatile,
                cache_lost_after=self.cache_lost_after,
            )
            arguments, judge = self._choose(device)
            held = self._held(device)
            status, said = self._run(arguments)
            # The power goes, and what was not flushed with it.
            device.set()
            now = self._held(device)
        fault = judge(held, now) if status == 0 else None
        if "it is as it was before" in said and now != held:
            fault = "it is not as it was before"
        story = (
            f"seed {self.seed}: {' '.join(arguments)}: {self.trouble}, {self.size} bytes, "
            f"really {self.real}, {self.beyond}, {self.faults}, cache {self.cache_lost_after}: "
            f"exit {status}: {said[-600:]}"
        )
        return Ended(self.command, self.trouble, status, fault, story)

    # What goes wrong

    def _draw_trouble(self, trouble: Trouble) -> None:  # noqa: C901 - one line for each
        draw = self.draw
        match trouble:
            case Trouble.WRAPS | Trouble.DISCARDS:
                self._draw_real_size()
                self.beyond = Beyond.WRAP if trouble is Trouble.WRAPS else Beyond.DISCARD
            case Trouble.STORED:
                count = draw.choice([None, 1, 2])
                self.faults += [replace(each, count=count) for each in self._flips()]
            case Trouble.ONE_READ:
                flips = self._flips(on_read=True)
                self.faults += [replace(each, count=1) for each in flips]
            case Trouble.EVERY_READ:
                self.faults += self._flips(on_read=True)
            case Trouble.DROPPED:
                self.faults += self._drops(count=draw.choice([None, 1, 2]))
            case Trouble.CACHE:
                self.volatile = True
                self.cache_lost_after = draw.choice([None, draw.randrange(1, self.images.size)])
            case Trouble.ERROR:
                start = self._place()
                end = start + draw.choice([1, 4 * KIB, MIB])
                kind = draw.choice([read_error, read_error, write_error])
                error = kind(start, end, count=1)
                self.faults.append(draw.choice([error, error, error, flush_error(count=1)]))
            case Trouble.NOTHING:
                pass

    def _draw_real_size(self) -> None:
        """A counterfeit of about half to a sixteenth of what it claims."""
        draw, image = self.draw, self.images.size
        larger = self.command is Command.FIX_GPT
        # What was there before and is right there is of interest where only some is written.
        match draw.choice([0, 1, 1, 1, 2] if self.command is Command.SKIP_EQUAL else [0, 1, 2]):
            case 0:
                # All of the image fits, and the end of the disk is really some place in it.
                parts = draw.randrange(2, 4)
                self.size = (parts + 1) * image
                distance = self.size - _BACKUP - self._place()
                self.real = distance // (parts * SECTOR_SIZE) * SECTOR_SIZE
            case 1:
                # What lands on the start of the image, which is written last, is free.
                self.size = 2 * image
                runs = [each for each in self.images.free if each.size > MIB]
                run = draw.choice(runs)
                self.real = draw.randrange(run.start, run.end - MIB, 4 * KIB)
            case _:
                self.size = image * draw.choice([2, 3, 4] if larger else [1, 2, 3, 4])
                unit = draw.choice([SECTOR_SIZE, 4 * KIB, MIB])
                real = int(self.size * draw.uniform(1 / 16, 1 / 2))
                self.real = max(real // unit * unit, MIB)

    def _draw_what_is_repaired(self) -> None:
        self.faults += self._drops(count=1)
        self.faults += [replace(each, count=1) for each in self._flips()]

    def _flips(self, *, on_read: bool = False) -> list[Fault]:
        return [
            bit_flip(self._place(), mask=1 << self.draw.randrange(8), on_read=on_read)
            for _ in range(self.draw.randrange(1, 4))
        ]

    def _drops(self, *, count: int | None) -> list[Fault]:
        start = self._place()
        length = self.draw.choice([1, 4 * KIB, 64 * KIB, 2 * MIB])
        return [dropped_write(start, start + length, count=count)]

    def _place(self) -> int:
        """An offset on the card: often where the tables, directories and edited files are."""
        draw, boot = self.draw, self.images.built.boot_extent
        config = self.images.data.index(self.images.built.boot_files["/config.json"])
        decides = [
            (0, 34 * SECTOR_SIZE),
            (boot.start, boot.start + SECTOR_SIZE),
            (boot.start, boot.start + 60 * KIB),  # allocation tables and root directory
            (config, config + SECTOR_SIZE),
        ]
        anywhere = [(boot.start, boot.end), *[(0, self.images.size)] * 2]
        end = (self.size - _BACKUP, self.size)
        is_edit = self.command is Command.EDIT
        # Most of what an edit reads it takes no notice of; not so of the file that it changes.
        places = [*decides, *[decides[-1]] * 4] if is_edit else [*decides, *anywhere, end]
        return draw.randrange(*draw.choice(places))

    # What the card held before

    def _draw_content(self) -> None:
        images, draw = self.images, self.draw
        if self.command in {Command.VERIFY, Command.EDIT}:
            self.before = images.data
            if self.command is Command.VERIFY and draw.random() < 0.5:
                self.before = self._spoiled(images.data)
            return
        contents = [*[images.data] * 3, images.earlier, self._spoiled(images.data), b""]
        self.before = draw.choice(contents)
        if draw.random() < 0.3:
            # An old GPT has left its backup at the end.
            end = images.data[-SECTOR_SIZE:]
            self.before = self.before.ljust(self.size, b"\0")[: self.size - SECTOR_SIZE] + end

    def _spoiled(self, data: bytes) -> bytes:
        content = bytearray(data)
        for _ in range(self.draw.randrange(1, 4)):
            content[self._place() % len(content)] ^= 1 << self.draw.randrange(8)
        return bytes(content)

    def _held(self, device: FaultDevice) -> bytes:
        """What the card holds, as it shows it: of a counterfeit the same cells at many places."""
        cells = device.raw(0, self.size)
        if self.real is None or self.real >= self.size:
            return cells
        if self.beyond is Beyond.DISCARD:
            return cells[: self.real].ljust(self.size, b"\0")
        return (cells[: self.real] * (self.size // self.real + 1))[: self.size]

    # What is run, and who judges

    def _choose(
        self, device: FaultDevice
    ) -> tuple[list[str], Callable[[bytes, bytes], str | None]]:
        node, draw, images = str(device.node), self.draw, self.images
        image = str(draw.choice([images.built.path, images.built.path, images.packed]))
        writes_all = ["--all"] if draw.random() < 0.2 else []
        match self.command:
            case Command.EDIT:
                return self._choose_edit(node)
            case Command.VERIFY:
                return ["verify", *writes_all, image, node], self._judge_image(all_of_it=writes_all)
            case Command.FIX_GPT:
                options = ["--fix-gpt", *draw.choice([[], ["--skip-equal"]])]
                judge: Callable[[bytes, bytes], str | None] = self._judge_moved
            case Command.SKIP_EQUAL:
                options = ["--skip-equal"]
                judge = self._judge_image(all_of_it=writes_all, wiped=True)
            case _:
                options = []
                judge = self._judge_image(all_of_it=writes_all, wiped=True)
        return ["write", "--yes", *options, *writes_all, image, node], judge

    def _choose_edit(self, node: str) -> tuple[list[str], Callable[[bytes, bytes], str | None]]:
        expected = dict(self.images.built.boot_files)
        match self.draw.randrange(4):
            case 0 | 1:
                config = json.loads(expected["/config.json"])
                expected["/config.json"] = json.dumps({**config, "hostname": "lab-12"}).encode()
                arguments = ["config", "set", node, "hostname=lab-12", "--yes"]
            case 2:
                content = self.draw.randbytes(self.draw.choice([1, 700, 50_000, 500_000]))
                given = self.folder / "new.bin"
                given.write_bytes(content)
                expected["/new.bin"] = content
                arguments = ["boot", "put", "--yes", node, str(given)]
            case _:
                del expected["/notes.txt"]
                arguments = ["boot", "rm", "--yes", node, "/notes.txt"]

        def judge(before: bytes, after: bytes) -> str | None:
            return self._judge_edit(expected, before, after)

        return arguments, judge

    def _judge_image(
        self, *, all_of_it: Sequence[str], wiped: bool = False
    ) -> Callable[[bytes, bytes], str | None]:
        def judge(_before: bytes, after: bytes) -> str | None:
            free = [] if all_of_it else self.images.free
            wrong = _differing(self.images.data, after, free)
            if wrong is not None:
                return f"byte {wrong} is not as in the image"
            if wiped and self.size > self.images.size and after[-SECTOR_SIZE:][:8] == b"EFI PART":
                return "the backup of an earlier GPT is still there"
            return None

        return judge

    def _judge_moved(self, _before: bytes, after: bytes) -> str | None:
        """Compare with what sgdisk leaves; behind the image only the backup counts."""
        moved, backup = self.images.on_larger_disk(self.size)
        expected = bytearray(moved)
        for index in _CHS:
            expected[index] = after[index]
        # sgdisk keeps the old backup in the image, as we do.
        wrong = _differing(bytes(expected), after, self.images.free)
        if wrong is not None:
            return f"byte {wrong} is not as sgdisk has it"
        if backup != after[-_BACKUP:]:
            return "the backup GPT at the end is not as sgdisk has it"
        return None

    def _judge_edit(self, expected: dict[str, bytes], before: bytes, after: bytes) -> str | None:
        image, boot = self.images.data, self.images.built.boot_extent
        around = [boot, *self.images.free]
        for start in range(0, self.images.size, SECTOR_SIZE):
            piece = slice(start, start + SECTOR_SIZE)
            counts = not any(each.overlaps(Extent(start, start + SECTOR_SIZE)) for each in around)
            if counts and before[piece] == image[piece] != after[piece]:
                return f"byte {start} was right before the edit"
        part, tree = self.folder / "boot.part", self.folder / "tree"
        part.write_bytes(after[boot.start : boot.end])
        was_right = before[boot.start : boot.end] == image[boot.start : boot.end]
        checked = subprocess.run(["fsck.vfat", "-n", part], capture_output=True, check=False)
        if was_right and checked.returncode:
            return f"fsck.vfat: {checked.stdout.decode()}"
        tree.mkdir()
        run("mcopy", "-s", "-n", "-i", part, "::/*", tree)
        found = {
            f"/{path.relative_to(tree)}": path.read_bytes()
            for path in tree.rglob("*")
            if path.is_file()
        }
        edited = {"/config.json", "/new.bin", "/notes.txt"}
        paths = found.keys() | expected.keys() if was_right else edited
        wrong = [
            path
            for path in sorted(paths - {_FINGERPRINT})
            if _meaning(path, found.get(path)) != _meaning(path, expected.get(path))
        ]
        sums = found.get(_FINGERPRINT, b"").decode().splitlines() if was_right else []
        for line in sums:
            digest, path = line.split(maxsplit=1)
            # md5sum marks what was read as binary with an asterisk.
            content = expected.get(f"/{path.removeprefix('*')}", b"")
            if digest != hashlib.md5(content, usedforsecurity=False).hexdigest():
                wrong.append(f"{path} in the fingerprint")
        return f"{', '.join(wrong)}: not what it should be" if wrong else None

    def _run(self, arguments: list[str]) -> tuple[int, str]:
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            status = main([*arguments, "-q"])
        return status, out.getvalue()


def _meaning(path: str, content: bytes | None) -> object:
    """What counts of a file: an object in JSON may be laid out otherwise."""
    return content if content is None or path != "/config.json" else json.loads(content)


def _differing(expected: bytes, found: bytes, free: Sequence[Extent]) -> int | None:
    """The first byte outside of ``free`` that is not as in ``expected``."""
    position = 0
    for extent in (*free, Extent(len(expected), len(expected))):
        if expected[position : extent.start] != found[position : extent.start]:
            return next(
                index for index in range(position, extent.start) if expected[index] != found[index]
            )
        position = extent.end
    return None


def make_trial(images: Images, seed: int) -> Ended:
    """The trial of ``seed``, in a folder of its own."""
    with (
        tempfile.TemporaryDirectory(dir=images.folder) as folder,
        patch.dict(os.environ, {"XDG_STATE_HOME": f"{folder}/state"}),
    ):
        return Trial(images, seed, Path(folder)).make()


def _main() -> None:
    first, end = map(int, sys.argv[1:])
    capabilities.extend_path()
    counts, wrong = Counter[tuple[str, str, int]](), list[Ended]()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        images = Images(Path(folder))
        for seed in range(first, end):
            ended = make_trial(images, seed)
            counts[ended.command, ended.trouble, ended.status] += 1
            if ended.fault is not None or ended.status == 1:
                wrong.append(ended)
                print(f"WRONG: {ended.fault}: {ended.story}", flush=True)  # noqa: T201
    for (command, trouble, status), count in sorted(counts.items()):
        print(f"{command:34} {trouble:28} exit {status}: {count}")  # noqa: T201
    print(f"{end - first} trials, {len(wrong)} wrong")  # noqa: T201


if __name__ == "__main__":
    _main()
