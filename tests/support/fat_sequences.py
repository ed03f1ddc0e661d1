"""Random sequences of edits of a boot partition, and what must come of them.

A sequence is a function of its seed and of the files that are there at its start. The model is a
dictionary of paths; it knows what every edit must do, and which edits must be refused. Only
whether there is room is left to the volume.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

NAMES = (
    *("config.json", "grub.cfg", "GRUB.CFG", "Grub.Cfg", "README", "readme", "noext", "x.y.z"),
    *("my-connection", "balena-wifi", "balena-w", "BALENA-W", "BALENA~1", "vc4-kms-v3d-pi4.dtbo"),
    *("name with spaces.txt", " leading", "12345678.123", "123456789.1234", "+plus,[x];=.cfg"),
    *(
        "déjà-vu.txt",
        "DÉJÀ-VU.TXT",
        "файл.conf",
        "日本.json",
        "~tilde~1.txt",
        ".hidden",
        "lower.TXT",
    ),
    *("collide-1.dtbo", "collide-2.dtbo", "collide-3.dtbo", "COLLID~1.DTB", "CON", "thirteenchars"),
    *("twenty-six-characters-long", "n" * 200, "a.b", "A.b", "a.B"),
)
COLLIDING = tuple(f"A very long name, number {number} of many.config" for number in range(40))
REFUSED_NAMES = ("a:b", "a*b", "q?.txt", 'quo"te', "pi|pe", "<gt>", "back\\slash", "tab\there")
REFUSED_ENDINGS = ("dot.", "space ", "bell\x07", "n" * 256, "\udc80")

SIZES = (0, 1, 57, 300, 511, 512, 513, 1024, 2047, 2048, 2049, 5000, 8192, 8193, 20_000, 70_000)


MAX_PATH = 1024  # characters; the package's own bound


class Operation(StrEnum):
    WRITE = "write"
    REMOVE = "remove"
    MAKE_DIRECTORY = "mkdir"
    REMOVE_DIRECTORY = "rmdir"
    RENAME = "rename"


@dataclass(frozen=True, slots=True)
class Edit:
    operation: Operation
    path: str
    content: bytes = b""
    target: str = ""

    def __str__(self) -> str:
        size = f" {len(self.content)} bytes" if self.operation is Operation.WRITE else ""
        return f"{self.operation} {self.path!r}{size} {self.target!r}"


class Model:
    """What a volume must hold: paths as stored, each with its content or ``None``."""

    def __init__(self, entries: Mapping[str, bytes | None]) -> None:
        self.entries: dict[str, bytes | None] = dict(entries)
        for path in entries:
            while path := path.rpartition("/")[0]:
                self.entries.setdefault(path, None)

    def files(self) -> list[str]:
        return [path for path, content in self.entries.items() if content is not None]

    def directories(self) -> list[str]:
        return [path for path, content in self.entries.items() if content is None]

    def stored(self, path: str) -> str | None:
        """``path`` in the case in which it is stored; ``None`` where nothing is."""
        folded = path.upper()
        return next((known for known in self.entries if known.upper() == folded), None)

    def below(self, path: str) -> list[str]:
        return [known for known in self.entries if known.startswith(f"{path}/")]

    def refusal(self, edit: Edit) -> str | None:
        """The code with which ``edit`` must be refused; ``None`` if it must succeed."""
        there = self.stored(edit.path)
        refused = self._refusal_of_place(edit.path)
        if refused is not None:
            return refused
        if there is None:
            creates = edit.operation in {Operation.WRITE, Operation.MAKE_DIRECTORY}
            return refusal_of_name(edit.path) if creates else "no-such-file"
        return self._refusal_of_existing(edit, there)

    def _refusal_of_existing(self, edit: Edit, there: str) -> str | None:
        match edit.operation:
            case Operation.WRITE | Operation.REMOVE:
                return "is-a-directory" if self.entries[there] is None else None
            case Operation.MAKE_DIRECTORY:
                return "file-exists"
            case Operation.REMOVE_DIRECTORY:
                return self._refusal_to_empty(there)
            case Operation.RENAME:
                refused = self._refusal_of_place(edit.target)
                return refused or self._refusal_to_move(there, edit.target)

    def apply(self, edit: Edit) -> None:
        """Do what a successful edit does."""
        there = self.stored(edit.path)
        match edit.operation:
            case Operation.WRITE:
                self.entries[there or self._placed(edit.path)] = edit.content
            case Operation.MAKE_DIRECTORY:
                self.entries[self._placed(edit.path)] = None
            case Operation.REMOVE | Operation.REMOVE_DIRECTORY:
                assert there is not None
                del self.entries[there]
            case Operation.RENAME:
                assert there is not None
                target = self._placed(edit.target)
                for old in [there, *self.below(there)]:
                    self.entries[target + old[len(there) :]] = self.entries.pop(old)

    def _placed(self, path: str) -> str:
        """``path`` with the names of its directories as they are stored."""
        parent, _, name = path.rpartition("/")
        return f"{self.stored(parent) if parent else ''}/{name}"

    def _refusal_of_place(self, path: str) -> str | None:
        parent = path.rpartition("/")[0]
        stored = self.stored(parent)
        if len(path) > MAX_PATH:
            return "path-invalid"
        if parent and stored is None:
            return "no-such-file"
        return "not-a-directory" if stored and self.entries[stored] is not None else None

    def _refusal_to_empty(self, path: str) -> str | None:
        if self.entries[path] is not None:
            return "not-a-directory"
        return "directory-not-empty" if self.below(path) else None

    def _refusal_to_move(self, path: str, target: str) -> str | None:
        if self.stored(target) not in {None, path}:
            return "file-exists"
        longest = max(map(len, [path, *self.below(path)]))
        if longest - len(path) + len(target) > MAX_PATH:
            return "path-invalid"
        if target.upper().startswith(f"{path.upper()}/"):
            return "path-invalid"
        return refusal_of_name(target)


def refusal_of_name(path: str) -> str | None:
    name = path.rpartition("/")[2]
    return "name-invalid" if name in {*REFUSED_NAMES, *REFUSED_ENDINGS} else None


class Sequence:
    """Edits, each chosen with a look at what the model holds by then."""

    def __init__(self, seed: str, model: Model, *, cluster_size: int, capacity: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 -- repeatable, not secret
        self._model = model
        self._sizes = (*SIZES, cluster_size - 1, cluster_size, cluster_size + 1, 3 * cluster_size)
        self._capacity = capacity
        self._tight = self._random.random() < 0.25  # of some, the volume is soon full

    def edits(self, count: int) -> Iterator[Edit]:
        """``count`` edits; the model must be brought up to date after each."""
        waiting: list[Edit] = []
        for _ in range(count):
            if not waiting:
                waiting = self._burst() if self._random.random() < 0.04 else [self._single()]
            yield waiting.pop(0)

    def _single(self) -> Edit:
        choices = (
            *((self._put_new, 24), (self._overwrite, 20), (self._append, 6), (self._remove, 16)),
            *((self._make, 10), (self._unmake, 8), (self._move_file, 8), (self._move_tree, 5)),
            *((self._refused_name, 3), (self._refused_place, 3)),
        )
        functions, weights = zip(*choices, strict=True)
        edit: Edit = self._random.choices(functions, weights)[0]()
        return edit

    def _burst(self) -> list[Edit]:
        """Edits that belong together."""
        directory = self._directory()
        match self._random.randrange(5):
            case 0:  # fill a directory, then take most of it away again
                paths = [f"{directory}/{number:03} of a batch.bin" for number in range(26)]
                written = [Edit(Operation.WRITE, path, path.encode()) for path in paths]
                gone = self._random.sample(paths, 22)
                return [*written, *(Edit(Operation.REMOVE, path) for path in gone)]
            case 1:  # 8.3 names that collide
                paths = [f"{directory}/{name}" for name in self._random.sample(COLLIDING, 12)]
                return [Edit(Operation.WRITE, path, path.encode()) for path in paths]
            case 2:  # a full root, where its size is fixed
                names = self._random.sample(COLLIDING, 10)
                return [Edit(Operation.WRITE, f"/{name}", self._content()) for name in names]
            case 3:  # a deep tree
                names = [f"/level {number}" for number in range(8)]
                deep = [directory + "".join(names[:depth]) for depth in range(1, 9)]
                made = [Edit(Operation.MAKE_DIRECTORY, path) for path in deep]
                return [*made, Edit(Operation.WRITE, f"{deep[-1]}/leaf", self._content())]
            case _:  # a full volume
                size = max(self._capacity // 6, 1)
                return [
                    Edit(Operation.WRITE, f"{directory}/fill{number}", self._random.randbytes(size))
                    for number in range(8)
                ]

    def _put_new(self) -> Edit:
        return Edit(Operation.WRITE, self._new_path(), self._content())

    def _overwrite(self) -> Edit:
        path = self._file()
        kept = self._model.entries.get(path) or b""
        content = self._random.choice((self._content(), self._content(), b"", kept, kept[::-1]))
        return Edit(Operation.WRITE, self._in_any_case(path), content)

    def _append(self) -> Edit:
        path = self._file()
        kept = self._model.entries.get(path) or b""
        return Edit(Operation.WRITE, path, kept + self._content()[:9000])

    def _remove(self) -> Edit:
        return Edit(Operation.REMOVE, self._in_any_case(self._file()))

    def _make(self) -> Edit:
        return Edit(Operation.MAKE_DIRECTORY, self._new_path())

    def _unmake(self) -> Edit:
        empty = [path for path in self._model.directories() if not self._model.below(path)]
        paths = empty if empty and self._random.random() < 0.8 else self._model.directories()
        path = self._random.choice(paths or ["/nothing"])
        return Edit(Operation.REMOVE_DIRECTORY, path)

    def _move_file(self) -> Edit:
        path = self._file()
        same_place = f"{path.rpartition('/')[0]}/{path.rpartition('/')[2].swapcase()}"
        target = same_place if self._random.random() < 0.2 else self._new_path()
        return Edit(Operation.RENAME, path, target=target)

    def _move_tree(self) -> Edit:
        directories = self._model.directories() or ["/nothing"]
        return Edit(Operation.RENAME, self._random.choice(directories), target=self._new_path())

    def _refused_name(self) -> Edit:
        name = self._random.choice((*REFUSED_NAMES, *REFUSED_ENDINGS))
        operation = self._random.choice((Operation.WRITE, Operation.MAKE_DIRECTORY))
        return Edit(operation, f"{self._directory()}/{name}", b"refused")

    def _refused_place(self) -> Edit:
        place = self._random.choice(
            (self._file(), "/no/such/directory", *self._model.directories())
        )
        path = f"{place}/config.json" if self._random.random() < 0.6 else place
        return Edit(self._random.choice(tuple(Operation)), path, b"refused", target=f"{place}/new")

    def _file(self) -> str:
        return self._random.choice(self._model.files() or ["/nothing"])

    def _directory(self) -> str:
        """A directory to put things into; the root, which cannot grow, more often than others."""
        directories = ["", "", *self._model.directories()]
        return self._random.choice(directories)

    def _new_path(self) -> str:
        names = NAMES if self._random.random() < 0.8 else COLLIDING
        return f"{self._directory()}/{self._random.choice(names)}"

    def _in_any_case(self, path: str) -> str:
        return self._random.choice((path, path, path.lower(), path.upper()))

    def _content(self) -> bytes:
        if self._tight and self._random.random() < 0.4:
            return self._random.randbytes(self._random.randrange(self._capacity // 3))
        return self._random.randbytes(self._random.choice(self._sizes))
