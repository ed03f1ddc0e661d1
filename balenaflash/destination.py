"""What TARGET names: a block device that may be written, or a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from balenaflash.card_records import drop_record
from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.planning import WritePlan
from balenaflash.safety import Assessment, assess, require_writable
from balenaflash.target.discovery import find_disk
from balenaflash.target.disk import open_disk
from balenaflash.target.file import create_file, open_file
from balenaflash.target.medium import Medium

_DEVICES = Path("/dev")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a tmpfs for files, shm_overview(7)


@dataclass(frozen=True, slots=True)
class DiskDestination:
    """A block device that was found and may be written."""

    assessment: Assessment

    @property
    def name(self) -> str:
        """Its node."""
        return str(self.assessment.disk.node)


@dataclass(frozen=True, slots=True)
class FileDestination:
    """A regular file, there or to be created."""

    path: Path
    overwrite: bool

    @property
    def name(self) -> str:
        """Its path as the user gave it."""
        return str(self.path)


Destination = DiskDestination | FileDestination


def find_destination(
    target: Path, *, image: Path, plan: WritePlan, allow_internal: bool, overwrite: bool
) -> Destination:
    """What ``target`` names, checked: whatever is returned may be written with ``image``.

    Raises:
        TargetRefusedError: with every reason at once. Nothing was opened for writing.
    """
    if not _is_device(target):
        if target.exists() and target.samefile(image):
            raise TargetRefusedError(
                [Problem("target-is-image", f"{target}: is the image itself", "Name another file.")]
            )
        return FileDestination(target, overwrite)
    assessment = assess(
        find_disk(target),
        image_size=plan.image_size,
        image_path=image,
        image_sector_size=plan.table.sector_size,
        allow_internal=allow_internal,
    )
    require_writable(assessment)
    return DiskDestination(assessment)


@contextmanager
def open_destination(destination: Destination, size: int) -> Iterator[Medium]:
    """Open what was confirmed for writing ``size`` bytes, until the block ends.

    Raises:
        TargetRefusedError: it is not what was confirmed any more, or somebody else has it.
    """
    match destination:
        case DiskDestination(assessment=assessment):
            with open_disk(assessment.disk) as disk:
                drop_record(assessment.disk)
                yield disk
        case FileDestination(path=path, overwrite=overwrite):
            with create_file(path, size=size, overwrite=overwrite) as file:
                yield file


@contextmanager
def open_for_comparison(target: Path) -> Iterator[Medium]:
    """Open ``target``, a block device or a file, to compare what it holds.

    Raises:
        TargetRefusedError: it is not there, or may not be read.
    """
    if _is_device(target):
        with open_disk(find_disk(target), for_writing=False) as disk:
            yield disk
    else:
        with open_file(target) as file:
            yield file


def _is_device(target: Path) -> bool:
    # A node that is not there yet, or a misspelt one, must not become a file below /dev.
    if target.is_block_device() or target.is_char_device():
        return True
    return target.parent.resolve().is_relative_to(
        _DEVICES
    ) and not target.parent.resolve().is_relative_to(_SHARED_MEMORY)
