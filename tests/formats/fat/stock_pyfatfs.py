"""How many volumes stock pyfatfs breaks with the edits of ``test_fat_edits.py``.

A script, not a test: it says why ``balenaflash/formats/fat/`` is as it is. It needs what stock
pyfatfs needs and balenaflash does not, an old setuptools, in an environment of its own::

    pip install -e '.[test]' 'setuptools<81'
    PYTHONPATH=tests/support python tests/formats/fat/stock_pyfatfs.py [SEQUENCES]

Edits that must be refused are left out. One that pyfatfs fails to make should have changed
nothing, and the sequence goes on. At its end the volume is judged as in the test: by fsck.vfat,
whose word on FSInfo alone does not count, and by mtools finding every file as it should be.
"""

import io
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import capabilities
import fat_reader
import vfat
from fat_sequences import Edit, Model, Operation, Sequence
from pyfatfs.PyFatFS import PyFatBytesIOFS
from test_fat_edits import KINDS, PER_SEQUENCE

SEQUENCES = 100
GUARD = bytes(1 << 20)
"""Behind the partition, where nothing may be written."""


HARMLESS = "fsck.vfat: only the count of free clusters is wrong"


class KeptBytes(io.BytesIO):
    """Its content outlives ``close``, which pyfatfs calls."""

    def close(self) -> None:
        pass


def apply(volume: PyFatBytesIOFS, edit: Edit) -> None:
    match edit.operation:
        case Operation.WRITE:
            volume.writebytes(edit.path, edit.content)
        case Operation.REMOVE:
            volume.remove(edit.path)
        case Operation.MAKE_DIRECTORY:
            volume.makedir(edit.path)
        case Operation.REMOVE_DIRECTORY:
            volume.removedir(edit.path)
        case Operation.RENAME if volume.isdir(edit.path):
            volume.movedir(edit.path, edit.target, create=True)
        case Operation.RENAME:
            volume.move(edit.path, edit.target)


def run(kind: str, seed: int) -> tuple[bytes, Model, Counter[str]]:
    """The volume after a sequence, what it should hold, and the edits that failed, counted."""
    original, files = vfat.filled(kind)
    model = Model(files)
    before = fat_reader.read_volume(original)
    capacity = before.free_clusters * before.cluster_size
    content = KeptBytes(original + GUARD)
    volume = PyFatBytesIOFS(content)
    sequence = Sequence(
        f"{kind} {seed}", model, cluster_size=before.cluster_size, capacity=capacity
    )
    failures: Counter[str] = Counter()
    for edit in sequence.edits(PER_SEQUENCE):
        if model.refusal(edit) is not None:
            continue
        try:
            apply(volume, edit)
        except Exception as error:  # noqa: BLE001 -- the library under trial may raise anything
            message = re.sub(r"[0-9]+|'.*", "N", str(error))[:60]
            failures[f"{type(error).__name__}: {message}"] += 1
        else:
            model.apply(edit)
    volume.close()
    return content.getvalue(), model, failures


def judge(data: bytes, model: Model, image: Path) -> set[str]:
    """What is wrong."""
    volume = data[: -len(GUARD)]
    vfat.save(image, volume)
    faults = set()
    if data[-len(GUARD) :] != GUARD:
        faults.add("wrote behind the partition")
    said = vfat.fsck_says(image)
    if said and set(said.splitlines()) - {"", "Leaving filesystem unchanged."}:
        only_count = "Free cluster summary wrong" in said and len(said.splitlines()) <= 5
        faults.add(HARMLESS if only_count else "fsck.vfat: damage")
    try:
        found = vfat.mtools_reads(image)
    except subprocess.CalledProcessError:
        return faults | {"mtools: cannot read it"}
    expected = {path.upper(): content for path, content in model.entries.items()}
    if {path.upper(): content for path, content in found.items()} != expected:
        faults.add("mtools: files lost, wrong or left over")
    elif found != model.entries:
        faults.add("mtools: names in another case")
    return faults


def main() -> None:
    """Print the figures."""
    capabilities.extend_path()
    warnings.simplefilter("ignore")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else SEQUENCES
    broken: Counter[str] = Counter()
    volumes: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(count):
            kind = KINDS[seed % len(KINDS)]
            data, model, failures = run(kind, seed)
            faults = judge(data, model, Path(directory) / "volume")
            volumes[kind] += 1
            broken[kind] += bool(faults - {HARMLESS})
            seen.update(faults)
            failed.update(failures)
    for kind, number in volumes.items():
        show(f"{kind}: {broken[kind]} of {number} volumes broken")
    show(f"all: {broken.total()} of {volumes.total()} volumes broken")
    for fault, number in seen.most_common():
        show(f"{number:5} volumes: {fault}")
    for failure, number in failed.most_common(8):
        show(f"{number:5} edits failed: {failure}")


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
