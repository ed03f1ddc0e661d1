"""Undo records of edits of cards, which cannot lie beside a device node.

A record is kept under what is known of the disk: its serial number and size, then the boot of this
machine and the disk's sequence number in it, which the kernel never gives twice. Of a disk in a
card reader the serial number is the reader's: another card of that size looks alike once the
first was taken out. So a record of another sequence number is only acted on where the disk is
found half-edited, with nothing but old and new sectors of that very edit; if not, it stays.
"""

import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from balenaflash.durable import FileType, find_type, is_private
from balenaflash.errors import EditError, WriteError
from balenaflash.source.commit import (
    EditState,
    NeitherOldNorNewError,
    find_state,
    recover_image,
    undo_failed,
)
from balenaflash.source.undo import MarkedStore, RecordFile, Store, StoreFailedError, open_record
from balenaflash.targets.sysfs import RUNNING_KERNEL, DeviceNumber, read_serial, read_size

if TYPE_CHECKING:
    from balenaflash.targets.disks import Disk


_SUFFIX = ".undo"
_UNNAMED = re.compile(r"[^A-Za-z0-9_-]")


def records_directory() -> Path:
    """Where records are kept.

    ``$XDG_STATE_HOME/balenaflash`` if that variable is set (XDG Base Directory Specification 0.8),
    else for root ``/var/lib/balenaflash`` and for others ``~/.local/state/balenaflash``. Root may
    have the variable of the user who called sudo, and does not keep records in a folder of theirs.
    """
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    is_root = os.geteuid() == 0
    # As the specification has it; any other is to be ignored.
    if given.is_absolute() and (not is_root or is_private(given / "balenaflash")):
        return given / "balenaflash"
    if is_root:
        return Path("/var/lib/balenaflash")
    return Path.home() / ".local/state/balenaflash"


def record_of(disk: "Disk") -> RecordFile:
    """Where the record of an edit of ``disk`` is to be kept; the directory is made.

    Raises:
        EditError: the directory cannot be made.
    """
    path = _record_path(disk)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EditError(
            f"{disk.node}: cannot be edited safely: {path.parent} cannot be made: {error.strerror}",
            code="undo-record-failed",
            hint="An edit keeps there what it replaces until it is done; or set XDG_STATE_HOME.",
        ) from error
    return _record_file(path, disk)


def drop_record(disk: "Disk") -> None:
    """Remove the record of an edit of ``disk`` that was cut off, since all of it is written anew.

    Raises:
        WriteError: it cannot be removed; ``disk`` was not touched.
    """
    path = _record_path(disk)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"{path}: the undo record of {disk.node} cannot be removed: {error.strerror}",
            code="undo-record-stays",
            hint="Remove it: the disk is to be written anew.",
        ) from error


def warn_of_cut_off(node: Path) -> tuple[str, ...]:
    """A sentence if an edit of the disk at ``node`` was cut off; for reading it is not undone.

    Of anything but a block device there is nothing to tell.
    """
    is_disk = find_type(node) is FileType.BLOCK_DEVICE
    if not is_disk or not any(records_directory().glob(f"*{_SUFFIX}")):
        return ()
    directory = RUNNING_KERNEL.find_directory(DeviceNumber.from_raw(node.stat().st_rdev))
    if directory is None:
        return ()  # it was unplugged just now
    size = read_size(directory) or 0
    if not _find_records(_identity(read_serial(directory), size)):
        return ()
    sentence = (
        "An edit of this disk, or of one that looks like it, was cut off; the next edit of it "
        "deals with that first."
    )
    return (sentence,)


def settle_records(disk: "Disk", store: Store) -> tuple[str, ...]:
    """Deal with edits that were cut off, of ``disk``, which is open and locked as ``store``.

    The answer is a sentence for each thing that the user should know.

    Raises:
        EditError: one of this disk cannot be undone; nothing was touched.
        WriteError: putting old bytes back failed; the record stays.
    """
    own = record_of(disk)
    return tuple(
        sentence
        for path in _find_records(_identity(read_serial(disk.sys_path), disk.size))
        for sentence in _settle(
            own if path == own.path else _record_file(path, disk), store, is_own=path == own.path
        )
    )


def _settle(file: RecordFile, store: Store, *, is_own: bool) -> Iterator[str]:
    if not is_own and _is_of_another(file, store):
        yield (
            f"{file.path} is of an edit of such a disk, cut off at {_time_of(file.path)}, but this "
            "disk is not half-edited; remove it if no other disk is."
        )
        return
    recovery = recover_image(file, store)
    if recovery is not None:
        yield str(recovery)


def _is_of_another(file: RecordFile, store: Store) -> bool:
    """Whether the disk is anything else than half-edited by the edit of this record."""
    try:
        with open_record(file, store.size) as record:
            if record is None or not record.is_finished:
                return False  # never finished, and so of no use to any disk
            marked = MarkedStore(store, record.mark)
            is_begun = record.mark is not None and marked.is_marked
            return find_state(marked, record) is not EditState.MIXED and not is_begun
    except NeitherOldNorNewError:
        return True
    except StoreFailedError as error:
        raise undo_failed(file, error.reason) from error


def _time_of(path: Path) -> str:
    try:
        modified = path.stat().st_mtime
    except FileNotFoundError:
        return "an unknown time"
    return datetime.fromtimestamp(modified).astimezone().isoformat(" ", "minutes")


def _record_file(path: Path, disk: "Disk") -> RecordFile:
    return RecordFile(
        path,
        subject=str(disk.node),
        owner=os.geteuid(),
        group=os.getegid(),
        undone_by=f"the next edit of it (by the undo record {path})",
        if_stuck="Write it anew, unless that has been done since",
    )


def _record_path(disk: "Disk") -> Path:
    name = f"{_identity(read_serial(disk.sys_path), disk.size)}.{_insertion(disk)}{_SUFFIX}"
    return records_directory() / name


def _find_records(identity: str) -> tuple[Path, ...]:
    return tuple(sorted(records_directory().glob(f"{identity}.*{_SUFFIX}")))


def _identity(serial: str | None, size: int) -> str:
    # The serial number is the device's own text.
    return f"{_UNNAMED.sub('_', serial or 'unnamed')[:64]}-{size}"


def _insertion(disk: "Disk") -> str:
    """What is the same until the disk is taken out or the machine started anew."""
    boot = (RUNNING_KERNEL.proc / "sys/kernel/random/boot_id").read_text(encoding="ascii")
    return f"{boot[:8]}-{disk.disk_sequence}"
