"""Images built the way balenaOS builds them, by the same tools.

The steps are those of ``IMAGE_CMD:balenaos-img`` in meta-balena's
``image_types_balena.bbclass``: an empty file, a table by ``parted``, a filesystem image for each
partition by ``mkfs``, ``mcopy`` for the boot files, ``dd conv=notrunc,sparse`` into place.
Nothing here comes from the package under test but ``Extent``, a pair of numbers: what a test
expects of an image is what was handed to those tools.
"""

import os
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import boot_tree
from boot_tree import Carried

from balenaflash.units import KIB, SECTOR_SIZE, Extent

ALIGNMENT = 4096  # KiB, BALENA_IMAGE_ALIGNMENT
BOOT_SIZE = 40960  # KiB, BALENA_BOOT_SIZE until v7
ROOT_SIZE = 24576  # KiB; the one size that is not true to balenaOS, whose hostapp fills it
STATE_SIZE = 20480  # KiB, BALENA_STATE_SIZE
DATA_SIZE = 8192  # KiB
EPOCH = 1_700_000_000  # every time stamp of an image; even, for FAT counts in two seconds
ENVIRONMENT = {
    "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    "LC_ALL": "C",
    "TZ": "UTC",
    "MTOOLS_SKIP_CHECK": "1",
    "MTOOLSRC": os.devnull,
    "SOURCE_DATE_EPOCH": str(EPOCH),
    "E2FSPROGS_FAKE_TIME": str(EPOCH),
}
"""What the tools run with: nothing of the user's own settings."""


class Layout(StrEnum):
    """The partition layouts that balenaOS ships."""

    MSDOS_FAT16 = "msdos-fat16"
    MSDOS_FAT32 = "msdos-fat32"
    GPT_FAT16 = "gpt-fat16"
    GPT_BOARD = "gpt-board"
    """A dozen raw board partitions and a formatted ``esp`` before the boot partition."""

    @property
    def table(self) -> str:
        """Name of the table as ``parted mklabel`` takes it."""
        return self.value.partition("-")[0]


@dataclass(frozen=True, slots=True)
class ExpectedPartition:
    """A partition as it was asked of parted."""

    number: int
    label: str | None
    """Label of its filesystem and, on GPT, its name; ``None`` for an extended partition."""

    extent: Extent
    filesystem: str | None
    """As ``blkid`` calls it; ``None`` for raw bytes."""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A finished image and what it was made of."""

    path: Path
    layout: Layout
    boot_number: int
    boot_extent: Extent
    partitions: tuple[ExpectedPartition, ...]
    boot_files: dict[str, bytes]
    """Content of the boot partition by absolute path."""

    inner: "BuiltImage | None" = None
    """The raw image a flasher carries; its path no longer exists."""


BOARDS = {
    Layout.MSDOS_FAT16: boot_tree.INTEL_NUC,
    Layout.MSDOS_FAT32: boot_tree.RASPBERRY_PI,
    Layout.GPT_FAT16: boot_tree.GENERIC_AMD64,
    Layout.GPT_BOARD: boot_tree.JETSON,
}
BOARD_PARTITIONS = (
    *("A_kernel", "A_kernel-dtb", "A_reserved_on_user", "B_kernel", "B_kernel-dtb"),
    *("B_reserved_on_user", "recovery", "recovery-dtb", "esp", "recovery_alt"),
    *("recovery-dtb_alt", "esp_alt", "UDA"),
)
"""Names of a Jetson Orin's board partitions, in their order on the medium."""


@dataclass(slots=True)
class _Plan:
    """Partitions in their order, each asked of parted at the end of the one before."""

    table: str
    position: int = 0
    commands: list[str] = field(default_factory=list)
    partitions: list[ExpectedPartition] = field(default_factory=list)

    def add(self, label: str, size: int, filesystem: str | None, *, mkpart: str) -> None:
        """``size`` KiB; ``mkpart`` is what stands between the verb and the offsets."""
        end = self.position + size
        self._ask(mkpart, str(end))
        extent = Extent(self.position * KIB, end * KIB)
        self._expect(label, extent, filesystem)
        self.position = end

    def add_rest(
        self, label: str | None, image_size: int, filesystem: str | None, *, mkpart: str, end: str
    ) -> None:
        """To the end of the image, in parted's own way to say so; the position stays."""
        self._ask(mkpart, end)
        # "100%" is the last usable sector of an image this small (parted 3.5 leaves up to 1 MiB
        # in larger ones): 33 sectors hold the backup GPT (UEFI 2.10, section 5.3.1).
        last = image_size * KIB - (0 if self.table == "msdos" else 33 * SECTOR_SIZE)
        self._expect(label, Extent(self.position * KIB, last), filesystem)

    def _ask(self, mkpart: str, end: str) -> None:
        self.commands += ["mkpart", *mkpart.split(), str(self.position), end]

    def _expect(self, label: str | None, extent: Extent, filesystem: str | None) -> None:
        number = len(self.partitions) + 1
        if self.table == "msdos" and label is not None and number > 3:
            number = max(5, number)
        self.partitions.append(ExpectedPartition(number, label, extent, filesystem))


def build_image(
    path: Path,
    layout: Layout,
    *,
    flasher: bool = False,
    boot_files: Mapping[str, bytes | None] | None = None,
    carried: Carried | None = None,
) -> BuiltImage:
    """A balenaOS image at ``path``: raw, or a flasher that carries a raw one.

    ``boot_files`` (absolute path to content) adds files to the boot partition, takes the place
    of some or, with ``None``, leaves some out. ``carried`` is what a flasher carries that is not
    as ever. The file is sparse.
    """
    board = BOARDS[layout]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        work = Path(folder)
        root, inner = boot_tree.root_files(board), None
        root_tree = work / "root"
        if flasher:
            carried = carried or Carried()
            inner_name = f"balena-image-{board.machine}.balenaos-img"
            (root_tree / "opt").mkdir(parents=True)
            inner_path = root_tree / "opt" / inner_name
            inner = build_image(inner_path, layout, boot_files=carried.boot_files)
            root["/etc/resin-init-flasher.conf"] = boot_tree.flasher_conf(board, carried.settings)
            root |= carried.root_files
        write_tree(root_tree, root)
        (root_tree / "current").symlink_to("hostapps/0")
        content = boot_tree.boot_files(board, flasher=flasher, replaced=boot_files)
        write_tree(work / "boot", content)
        plan = _partition(path, layout, flasher=flasher)
        boot = next(each for each in plan.partitions if each.label in {"resin-boot", "flash-boot"})
        for partition in plan.partitions:
            _fill(path, partition, work, fat32=layout is Layout.MSDOS_FAT32)
    return BuiltImage(
        path, layout, boot.number, boot.extent, tuple(plan.partitions), content, inner
    )


def write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    """Each file below ``folder``, with the one time stamp of all images."""
    for name, data in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (EPOCH, EPOCH))


def run(*command: str | Path, stdin: str | None = None) -> str:
    """Standard output of a tool that must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _partition(path: Path, layout: Layout, *, flasher: bool) -> _Plan:
    prefix = "flash" if flasher else "resin"
    msdos = layout.table == "msdos"
    plan = _Plan(layout.table, position=ALIGNMENT)
    if layout is Layout.GPT_BOARD:
        _add_board_partitions(plan)
    root_b, state = (ALIGNMENT, ALIGNMENT) if flasher else (ROOT_SIZE, STATE_SIZE)
    data = ALIGNMENT if flasher else DATA_SIZE
    # The three alignments are in the formula of the class, whatever the table is.
    image_size = plan.position + BOOT_SIZE + ROOT_SIZE + root_b + state + data + 3 * ALIGNMENT
    boot_type = "fat32" if layout is Layout.MSDOS_FAT32 else "fat16"

    def name(label: str, on_msdos: str) -> str:
        return on_msdos if msdos else label

    boot, root_a, root_b_label = f"{prefix}-boot", f"{prefix}-rootA", f"{prefix}-rootB"
    plan.add(boot, BOOT_SIZE, "vfat", mkpart=name(boot, f"primary {boot_type}"))
    plan.commands += ["set", str(len(plan.partitions)), "boot", "on"]
    plan.add(root_a, ROOT_SIZE, "ext4", mkpart=name(root_a, "primary ext4"))
    plan.add(root_b_label, root_b, "ext4", mkpart=name(root_b_label, "primary ext4"))
    filesystem = None if flasher else "ext4"
    if msdos:
        plan.add_rest(None, image_size, None, mkpart="extended", end="-1s")
        plan.position += ALIGNMENT
    plan.add(f"{prefix}-state", state, filesystem, mkpart=name(f"{prefix}-state", "logical ext4"))
    if msdos:
        plan.position += ALIGNMENT
    label = f"{prefix}-data"
    plan.add_rest(label, image_size, filesystem, mkpart=name(label, "logical"), end="100%")

    path.touch()
    os.truncate(path, image_size * KIB)
    run("parted", "-s", path, "--", "unit", "KiB", "mklabel", layout.table, *plan.commands)
    return plan


def _add_board_partitions(plan: _Plan) -> None:
    for name in BOARD_PARTITIONS:
        size, filesystem = (16384, "vfat") if name == "esp" else (ALIGNMENT, None)
        plan.add(name, size, filesystem, mkpart=name)


def _fill(path: Path, partition: ExpectedPartition, work: Path, *, fat32: bool) -> None:
    part = work / "partition.img"
    part.unlink(missing_ok=True)
    size = str(partition.extent.size // KIB)
    match partition.filesystem, partition.label:
        case "vfat", "esp":
            _make_esp(part, size, work)
        case "vfat", label:
            fat = ["-F", "32"] if fat32 else []
            run("mkfs.vfat", "-n", f"{label}", "-S", "512", *fat, "-C", part, size)
            copy_in(part, sorted((work / "boot").iterdir()))
        case "ext4", label:
            _make_ext4(part, f"{label}", size, work / "root")
        case _, str() as name if not name.startswith("flash-"):
            part.write_bytes(boot_tree.noise(name, 70_000))
        case _:
            return  # an extended partition, or one that a flasher leaves without content
    place(part, path, partition.extent.start)


def _make_esp(part: Path, size: str, work: Path) -> None:
    write_tree(work / "esp", {"/EFI/BOOT/BOOTAA64.EFI": boot_tree.noise("esp", 90_000)})
    run("mkfs.vfat", "-n", "esp", "-S", "512", "-C", part, size)
    copy_in(part, [work / "esp" / "EFI"])


def _make_ext4(part: Path, label: str, size: str, root: Path) -> None:
    match label.partition("-")[2]:
        case "rootA":
            options = ["-d", str(root)]
        case "rootB":
            options = ["-E", "lazy_itable_init=0,lazy_journal_init=0", "-i", "8192"]
        case "state":
            options = ["-b", "4096"]
        case _:
            # Made elsewhere, by docker-disk, smaller than the partition it is placed in.
            options, size = [], str(DATA_SIZE)
    # Fixed, so that only the identifiers which parted draws differ between two builds.
    options += ["-U", str(uuid.uuid5(uuid.NAMESPACE_DNS, label))]
    run("mkfs.ext4", "-q", "-F", "-L", label, *options, part, f"{size}k")


def copy_in(volume: Path, entries: Sequence[Path]) -> None:
    """Files and folders to the root of the FAT volume, as mcopy does it for balenaOS."""
    run("mcopy", "-i", volume, "-svm", *entries, "::")


def place(part: Path, image: Path, offset: int) -> None:
    """``part`` into ``image`` at ``offset``, a multiple of 1 KiB; zeros become holes."""
    seek = f"seek={offset // KIB}"
    run("dd", f"if={part}", f"of={image}", "conv=notrunc,sparse", "bs=1024", seek, "status=none")
