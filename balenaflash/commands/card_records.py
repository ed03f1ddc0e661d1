"""Undo records of edits of cards, which cannot be kept beside a device node.

The name of a record has the serial number and size of the disk, then the boot of this machine and
the disk's sequence number in it, which the kernel never assigns twice. The serial number of a disk
in a card reader is that of the reader: once the card is taken out, another one of that size looks
the same. So a record with another sequence number is used only if the disk is half-edited, and has
only old and new sectors of that very edit; otherwise the record stays.
"""

import os
import re
from datetime import datetime
from pathlib import Path

from balenaflash.durable import FileType, find_type, is_private
from balenaflash.errors import EditError, WriteError
from balenaflash.source.commit import (
    EditState,
    NeitherOldNorNewError,
    find_state,
    recover_image,
    undo_failed,
)
from balenaflash.source.undo_record import (
    MarkedStore,
    RecordFile,
    Store,
    StoreFailedError,
    open_record,
)
from balenaflash.targets.disks import Disk
from balenaflash.targets.sysfs import RUNNING_KERNEL, DeviceNumber, read_serial, read_size

_SUFFIX = ".undo"
_UNNAMED = re.compile(r"[^A-Za-z0-9_-]")


def records_directory() -> Path:
    """The directory of the records.

    ``$XDG_STATE_HOME/balenaflash`` if that variable is set (XDG Base Directory Specification 0.8),
    else for root ``/var/lib/balenaflash`` and for others ``~/.local/state/balenaflash``. Root may
    have the variable of the user who called sudo, but does not keep records in that user's folder.
    """
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    is_root = os.geteuid() == 0
    # By the specification, any other value is ignored.
    if given.is_absolute() and (not is_root or is_private(given / "balenaflash")):
        return given / "balenaflash"
    if is_root:
        return Path("/var/lib/balenaflash")
    return Path.home() / ".local/state/balenaflash"


def record_of(disk: Disk) -> RecordFile:
    """The record of an edit of ``disk``; its directory is made.

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
            hint="An edit keeps the replaced bytes there until it is done. Or set XDG_STATE_HOME.",
        ) from error
    return _record_file(path, disk)


def drop_record(disk: Disk) -> None:
    """Remove the record of an edit of ``disk`` that was cut off: the disk is written anew.

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
    """A warning if an edit of the disk at ``node`` was cut off; for reading it is not undone.

    Nothing is returned if ``node`` is not a block device.
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
        "recovers it first."
    )
    return (sentence,)


def recover_records(disk: Disk, store: Store) -> tuple[str, ...]:
    """Recover edits of ``disk`` that were cut off; it is open and locked as ``store``.

    The result is a sentence for each record that was used, or that may concern another disk.

    Raises:
        EditError: one of this disk cannot be undone; nothing was touched.
        WriteError: writing the old bytes failed; the record stays.
    """
    own = record_of(disk)
    sentences: list[str] = []
    for path in _find_records(_identity(read_serial(disk.sys_path), disk.size)):
        file = own if path == own.path else _record_file(path, disk)
        if file is not own and _is_of_another(file, store):
            sentences.append(
                f"{path} belongs to an edit of such a disk, cut off at {_time_of(path)}, but this "
                "disk is not half-edited; remove it if no other disk is."
            )
        elif (recovery := recover_image(file, store)) is not None:
            sentences.append(str(recovery))
    return tuple(sentences)


def _is_of_another(file: RecordFile, store: Store) -> bool:
    """True unless the disk is half-edited by the edit of this record."""
    try:
        with open_record(file, store.size) as record:
            if record is None or not record.is_finished:
                return False  # it was never complete, and no disk was changed by it
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


def _record_file(path: Path, disk: Disk) -> RecordFile:
    return RecordFile(
        path,
        subject=str(disk.node),
        owner=os.geteuid(),
        group=os.getegid(),
        undone_by=f"the next edit of it (by the undo record {path})",
        if_stuck="Write it anew, unless that has been done since",
    )


def _record_path(disk: Disk) -> Path:
    name = f"{_identity(read_serial(disk.sys_path), disk.size)}.{_insertion(disk)}{_SUFFIX}"
    return records_directory() / name


def _find_records(identity: str) -> tuple[Path, ...]:
    return tuple(sorted(records_directory().glob(f"{identity}.*{_SUFFIX}")))


def _identity(serial: str | None, size: int) -> str:
    # The serial number is any text that the device returns.
    return f"{_UNNAMED.sub('_', serial or 'unnamed')[:64]}-{size}"


def _insertion(disk: Disk) -> str:
    """A text that stays the same until the disk is taken out or the machine is restarted."""
    boot = (RUNNING_KERNEL.proc / "sys/kernel/random/boot_id").read_text(encoding="ascii")
    return f"{boot[:8]}-{disk.disk_sequence}"
