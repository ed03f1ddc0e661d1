"""Random edits of boot partitions, judged by fsck.vfat, by mtools and by a reader of our own.

``BALENAFLASH_FAT_EDITS`` is the number of edits over all volumes. A failure names the sequence:
``pytest tests/formats/fat/test_fat_edits.py -k SEQUENCE`` repeats it.
"""

import os
from pathlib import Path

import fat_reader
import pytest
import vfat
from fat_sequences import Edit, Model, Operation, Sequence

from balenaflash.errors import EditError
from balenaflash.formats.fat.volume import FatVolume

EDITS = int(os.environ.get("BALENAFLASH_FAT_EDITS", "3000"))
PER_SEQUENCE = 60
KINDS = ("fat12-2m", "fat16-16m", "fat32-40m", "fat16-small-root", "fat12-16m", "fat16-40m")
SEQUENCES = [
    pytest.param(KINDS[number % len(KINDS)], number, id=f"{KINDS[number % len(KINDS)]}-{number}")
    for number in range(-(-EDITS // PER_SEQUENCE))
]

pytestmark = pytest.mark.needs("dosfstools", "mtools")


class Run:
    """A sequence at work on a volume."""

    def __init__(self, kind: str, seed: int) -> None:
        self.original, files = vfat.filled(kind)
        self.data = self.original
        self.model = Model(files)
        self.untouched = set(self.model.entries)
        self.volume = vfat.open_bytes(self.data)
        self.log: list[str] = []
        self.sequence = Sequence(
            f"{kind} {seed}",
            self.model,
            cluster_size=self.volume.cluster_size,
            capacity=self.volume.free_bytes,
        )

    def edit(self, edit: Edit) -> None:
        """Make one edit; its outcome must be the model's."""
        self.log.append(str(edit))
        if self._is_alias(edit.path) or self._is_alias(edit.target):
            return
        expected = self.model.refusal(edit)
        before = state_of(self.volume)
        free = self.volume.free_bytes
        refused = refusal(self.volume, edit)
        self.log[-1] += f": {refused or 'done'}"
        if refused is not None:
            assert state_of(self.volume) == before, "a refused edit has changed something"
        if refused in {"no-space", "directory-full"}:
            self._require_full(edit, refused, free)
            return
        assert refused == expected
        if refused is None:
            self._touch(edit)
            self.model.apply(edit)

    def reopen(self) -> None:
        self.data = vfat.patched(self.data, self.volume.changes())
        self.volume = vfat.open_bytes(self.data)

    def _is_alias(self, path: str) -> bool:
        """Whether the path reaches something by its 8.3 name, of which the model knows nothing."""
        if "~" not in path or self.model.stored(path) is not None:
            return False
        found = None
        if self.model.stored(path.rpartition("/")[0]) is not None or path.count("/") == 1:
            found = self.volume.find(path)
        assert found is None or found.path in self.model.entries
        return found is not None

    def _touch(self, edit: Edit) -> None:
        there = self.model.stored(edit.path)
        if there is not None:
            self.untouched.discard(there)
            if edit.operation is Operation.RENAME:
                self.untouched.difference_update(self.model.below(there))

    def _require_full(self, edit: Edit, code: str, free: int) -> None:
        """There really must be no room."""
        size = self.volume.cluster_size
        target = edit.target if edit.operation is Operation.RENAME else edit.path
        if code == "directory-full":
            assert target.count("/") == 1
            assert self.volume.fat_bits != 32
            return
        assert code == "no-space"
        there = self.model.stored(edit.path)
        # Only a file that is written again gives up clusters of its own.
        written = edit.operation is Operation.WRITE
        own = len(self.model.entries.get(there or "") or b"") if written else 0
        needed = -(-len(edit.content) // size) - -(-own // size)
        # A longer directory takes up to two clusters for one entry, a new one takes another.
        assert (needed + 3) * size > free


def refusal(volume: FatVolume, edit: Edit) -> str | None:
    """Make the edit; the code of the error if it is refused."""
    try:
        apply(volume, edit)
    except EditError as error:
        return error.code
    return None


def apply(volume: FatVolume, edit: Edit) -> None:
    match edit.operation:
        case Operation.WRITE:
            volume.write_file(edit.path, edit.content)
        case Operation.REMOVE:
            volume.remove_file(edit.path)
        case Operation.MAKE_DIRECTORY:
            volume.make_directory(edit.path)
        case Operation.REMOVE_DIRECTORY:
            volume.remove_directory(edit.path)
        case Operation.RENAME:
            volume.rename(edit.path, edit.target)


def state_of(volume: FatVolume) -> dict[int, bytes]:
    """All that its edits have made: the pages it holds."""
    assert not volume._core.table._changed
    return dict(volume._core.window._pages)


@pytest.mark.parametrize(("kind", "seed"), SEQUENCES)
def test_a_volume_is_whole_after_any_edits(kind: str, seed: int, tmp_path: Path) -> None:
    run = Run(kind, seed)
    count = min(PER_SEQUENCE, EDITS - seed * PER_SEQUENCE)
    try:
        for number, edit in enumerate(run.sequence.edits(count)):
            run.edit(edit)
            if number % 25 == 24:
                run.reopen()
        run.reopen()
        require_whole(run, tmp_path / "volume")
    except (AssertionError, fat_reader.DamagedError) as error:
        error.add_note(f"{kind}, seed {seed}; the edits were:\n" + "\n".join(run.log))
        raise


def require_whole(run: Run, image: Path) -> None:
    """Everything is there, in the eyes of every reader, and nothing else has changed."""
    vfat.save(image, run.data)
    assert vfat.fsck_says(image) == ""
    assert run.volume.problems() == ()
    expected = run.model.entries
    stored = fat_reader.read_volume(run.data)
    assert stored.files() == expected
    assert vfat.mtools_reads(image) == expected
    assert {entry.path for entry in run.volume.walk()} == set(expected)
    assert run.volume.free_bytes == stored.free_clusters * stored.cluster_size
    for path in run.model.files():
        assert run.volume.read_file(path) == expected[path]
    before = fat_reader.read_volume(run.original)
    for path in run.untouched & before.entries.keys():
        old, new = before.entries[path], stored.entries[path]
        assert new.slots == old.slots
        assert new.slot_offset == old.slot_offset
        if old.content is None:  # a directory may have grown
            assert new.clusters[: len(old.clusters)] == old.clusters
        else:
            assert new.clusters == old.clusters
