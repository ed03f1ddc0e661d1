"""Words given as the name of a file that were meant as the name of a disk."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from balenaflash.errors import BalenaflashError, Problem, TargetRefusedError
from balenaflash.target.kernel import RUNNING_KERNEL, Kernel
from balenaflash.target.naming import NameKind, list_names
from balenaflash.target.slots import read_slots
from balenaflash.target.udev import UdevDatabase

_KERNEL_NAME = re.compile(
    r"(sd|hd|vd|xvd)[a-z]{1,3}\d{0,3}"
    r"|(mmcblk|loop|nbd|md|zd)\d+((p|boot)\d+)?"
    r"|nvme\d+n\d+(p\d+)?"
    r"|(dm-|bcache|sr|z?ram)\d+"
)
"""What the kernel calls disks and partitions, here or not."""

_ASSIGNMENT = re.compile(r"(?P<word>[^\W\d]\w*)\s*[:=]\s*(?P<value>.*)", re.DOTALL)
_LINK_DIRECTORIES = ("mapper", "md", "balenaflash")  # below /dev, beside disk/by-*


def check_file_name(
    text: str,
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> None:
    """Return if ``text`` may name a file; a word that was meant for a disk may not.

    Such are the name of a disk without ``/dev/``, a serial number, port or slot without its
    kind, and whatever looks like a kind: ``slot=left``. With a slash anything names a file.

    Raises:
        TargetRefusedError: ``target-misspelt``, with the right spelling where it is known.
    """
    spelling = find_spelling(text, kernel, database, slots)
    if spelling is None:
        return
    disk = f"For the disk: {spelling}" if spelling else "Disks are listed by: balenaflash devices"
    raise TargetRefusedError(
        [
            Problem(
                "target-misspelt",
                f"{text}: looks like the name of a disk, but is not one",
                f"{disk}; for a file of that name: ./{text.strip()}",
            )
        ]
    )


def find_spelling(
    text: str,
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> str | None:
    """How the disk is spelt that ``text`` was meant for; ``None`` if it looks like no disk.

    The answer is empty where it looks like one that is not here.
    """
    word = text.strip()
    assignment = _ASSIGNMENT.fullmatch(word)
    if assignment is not None:
        return _spell_kind(assignment["word"].lower(), assignment["value"].strip())
    if not word or "/" in word:
        return None
    spellings = [*_find_nodes(word, kernel), *_find_names(word, kernel, database, slots)]
    if spellings:
        return spellings[0]
    return "" if _KERNEL_NAME.fullmatch(word.lower()) else None


def _spell_kind(word: str, value: str) -> str:
    kinds = difflib.get_close_matches(word, list(NameKind), n=1)
    if kinds:
        return f"{kinds[0]}:{value}"
    return value if value.startswith("/dev/") else ""  # as dd has it: of=/dev/sdX


def _find_nodes(word: str, kernel: Kernel) -> Iterator[str]:
    for name in (word, word.lower()):
        if os.path.exists(kernel.sys / "class/block" / name):  # noqa: PTH110 - takes any name
            yield f"/dev/{name}"
    links = [
        *sorted((kernel.dev / "disk").glob("by-*")),
        *map(kernel.dev.joinpath, _LINK_DIRECTORIES),
    ]
    for directory in links:
        if os.path.lexists(directory / word):
            yield f"/dev/{directory.relative_to(kernel.dev)}/{word}"


def _find_names(
    word: str, kernel: Kernel, database: UdevDatabase | None, slots: Mapping[str, str] | None
) -> Iterator[str]:
    # Without libudev, or a valid file of slots, a file is written all the same.
    with suppress(BalenaflashError):
        slots = read_slots() if slots is None else slots
        if word in slots:
            yield f"{NameKind.SLOT}:{word}"
    with suppress(BalenaflashError):
        names = list_names(kernel, database, slots or {})
        yield from (name for name in names if name.partition(":")[2] == word)
