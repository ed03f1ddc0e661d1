"""A strict reader of FAT volumes of the tests' own: it shares no code with the package.

It follows Microsoft's FAT specification (fatgen103) and refuses whatever is not entirely in
order, so that reading a volume with it is also a check. It holds the whole volume in memory and
takes its time.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

LONG_NAME = 0x0F
LABEL = 0x08
DIRECTORY = 0x10


class DamagedError(Exception):
    """The volume is not entirely in order."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file or directory, with all that an edit of another one must leave alone."""

    content: bytes | None
    """``None`` for a directory."""

    clusters: tuple[int, ...]
    slots: bytes
    """Its directory slots: those of the long name and the one with the 8.3 name."""

    slot_offset: int
    """Where its slots begin, in bytes from the start of its directory."""

    @property
    def short_name(self) -> bytes:
        return self.slots[-32:-21]

    @property
    def attributes(self) -> int:
        return self.slots[-21]

    @property
    def case_bits(self) -> int:
        return self.slots[-20]

    @property
    def has_long_name(self) -> bool:
        return len(self.slots) > 32

    @property
    def created(self) -> tuple[int, int]:
        """Words of date and time."""
        time, date = struct.unpack_from("<HH", self.slots, len(self.slots) - 18)
        return date, time

    @property
    def modified(self) -> tuple[int, int]:
        """Words of date and time."""
        time, date = struct.unpack_from("<HH", self.slots, len(self.slots) - 10)
        return date, time


@dataclass(slots=True)
class Volume:
    """What a sound volume holds."""

    bits: int
    cluster_size: int
    cluster_count: int
    label: str | None = None
    entries: dict[str, Stored] = field(default_factory=dict)
    """Files and directories by absolute path, in the case in which they are stored."""

    free_clusters: int = 0

    def files(self) -> dict[str, bytes | None]:
        """Content by path, ``None`` for directories."""
        return {path: stored.content for path, stored in self.entries.items()}


def read_volume(data: bytes) -> Volume:
    """Read the whole volume.

    Raises:
        DamagedError: and says what is wrong where.
    """
    return _Reader(data).read()


def require(condition: object, message: str) -> None:
    if not condition:
        raise DamagedError(message)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        (
            self.sector_size,
            sectors_per_cluster,
            reserved,
            self.table_count,
            self.root_slots,
            sectors16,
            self.media,
            table_sectors16,
        ) = struct.unpack_from("<HBHBHHBH", data, 11)
        sectors = sectors16 or struct.unpack_from("<L", data, 32)[0]
        table_sectors = table_sectors16 or struct.unpack_from("<L", data, 36)[0]
        root_sectors = -(-self.root_slots * 32 // self.sector_size)
        first_data = reserved + self.table_count * table_sectors + root_sectors
        self.table_start = reserved * self.sector_size
        self.table_size = table_sectors * self.sector_size
        self.root_start = self.table_start + self.table_count * self.table_size
        self.data_start = first_data * self.sector_size
        self.cluster_size = sectors_per_cluster * self.sector_size
        self.cluster_count = (sectors - first_data) // sectors_per_cluster
        self.bits = 32 if table_sectors16 == 0 else 12 if self.cluster_count < 4085 else 16
        require(data[510:512] == b"\x55\xaa", "no signature in the boot sector")
        require(sectors * self.sector_size <= len(data), "larger than what holds it")
        entries = self.decode_table()
        self.table = entries[: self.cluster_count + 2]
        self.surplus = entries[self.cluster_count + 2 :]
        self.owners: dict[int, str] = {}
        self.volume = Volume(self.bits, self.cluster_size, self.cluster_count)

    def decode_table(self) -> list[int]:
        """All entries the table has room for, be there a cluster of that number or not."""
        raw = self.data[self.table_start :][: self.table_size]
        if self.bits == 32:
            return [entry & 0x0FFF_FFFF for (entry,) in struct.iter_unpack("<L", raw)]
        if self.bits == 16:
            return [entry for (entry,) in struct.iter_unpack("<H", raw)]
        whole = int.from_bytes(raw, "little")
        digits = f"{whole:0{2 * len(raw)}x}"[::-1]
        return [int(digits[at : at + 3][::-1], 16) for at in range(0, len(digits) - 2, 3)]

    @property
    def ones(self) -> int:
        return {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFF_FFFF}[self.bits]

    def read(self) -> Volume:
        if self.bits == 32:
            root = self.chain(struct.unpack_from("<L", self.data, 44)[0], "/")
            content = b"".join(map(self.cluster, root))
        else:
            content = self.data[self.root_start : self.root_start + self.root_slots * 32]
        self.read_directory(content, "", own=0, parent=None)
        self.check_table()
        return self.volume

    def check_table(self) -> None:
        copies = [
            self.data[start : start + self.table_size]
            for start in range(self.table_start, self.root_start, self.table_size)
        ]
        require(len(set(copies)) == 1, "the file allocation tables differ")
        require(self.table[0] == self.ones & ~0xFF | self.media, "first entry of the table")
        free = [cluster for cluster in range(2, self.cluster_count + 2) if not self.table[cluster]]
        used = self.cluster_count - len(free) - self.table.count(self.ones - 8)
        require(used == len(self.owners), f"{used - len(self.owners)} lost clusters")
        self.volume.free_clusters = len(free)
        require(not any(self.surplus), "table entries of clusters that do not exist")
        if self.bits == 32:
            self.check_fsinfo()

    def check_fsinfo(self) -> None:
        number, backup = struct.unpack_from("<HH", self.data, 48)
        sector = self.data[number * self.sector_size :][: self.sector_size]
        require(sector[:4] == b"RRaA" and sector[484:488] == b"rrAa", "signature of FSInfo")
        free, first = struct.unpack_from("<LL", sector, 488)
        require(free == self.volume.free_clusters, f"FSInfo counts {free} free clusters")
        require(first == 0xFFFF_FFFF or 2 <= first < self.cluster_count + 2, "next free in FSInfo")
        copy = self.data[backup * self.sector_size :][: self.sector_size]
        require(copy == self.data[: self.sector_size], "backup of the boot sector")

    def chain(self, first: int, owner: str) -> tuple[int, ...]:
        clusters = []
        cluster = first
        while True:
            require(2 <= cluster < self.cluster_count + 2, f"{owner}: chain leads to {cluster}")
            require(
                cluster not in self.owners, f"{owner}: {cluster} is {self.owners.get(cluster)}'s"
            )
            self.owners[cluster] = owner
            clusters.append(cluster)
            cluster = self.table[cluster]
            if cluster >= self.ones - 7:
                return tuple(clusters)

    def cluster(self, number: int) -> bytes:
        start = self.data_start + (number - 2) * self.cluster_size
        return self.data[start : start + self.cluster_size]

    def read_directory(self, content: bytes, path: str, *, own: int, parent: int | None) -> None:
        shown = path or "/"
        used_names: set[str] = set()
        slots = list(_entries(content, shown))
        if parent is not None:
            require(len(slots) >= 2, f"{shown}: '.' and '..'")
            for (_, raw), dots, cluster in zip(slots, (b".", b".."), (own, parent), strict=False):
                require(raw[:11] == dots.ljust(11), f"{shown}: {dots!r} is missing")
                require(self.first_cluster(raw) == cluster, f"{shown}: {dots!r} leads elsewhere")
                require(raw[11] == DIRECTORY, f"{shown}: {dots!r} is no directory")
            slots = slots[2:]
        for offset, raw in slots:
            if raw[-21] & LABEL:
                require(path == "" and self.volume.label is None, f"{shown}: a label")
                self.volume.label = raw[-32:-21].decode("ascii").rstrip()
                continue
            name, short = _names(raw, shown)
            for variant in {name.upper(), short}:
                require(variant not in used_names, f"{shown}: {variant} is there twice")
                used_names.add(variant)
            self.read_entry(raw, offset, f"{path}/{name}", parent=own)

    def read_entry(self, raw: bytes, offset: int, path: str, *, parent: int) -> None:
        first = self.first_cluster(raw)
        size = struct.unpack_from("<L", raw, len(raw) - 4)[0]
        if raw[-21] & DIRECTORY:
            require(size == 0, f"{path}: a directory with a size")
            clusters = self.chain(first, path)
            self.volume.entries[path] = Stored(None, clusters, raw, offset)
            content = b"".join(map(self.cluster, clusters))
            self.read_directory(content, path, own=first, parent=parent)
            return
        clusters = self.chain(first, path) if first else ()
        require(len(clusters) == -(-size // self.cluster_size), f"{path}: clusters and size")
        content = b"".join(map(self.cluster, clusters))[:size]
        self.volume.entries[path] = Stored(content, clusters, raw, offset)

    def first_cluster(self, raw: bytes) -> int:
        low: int = struct.unpack_from("<H", raw, len(raw) - 6)[0]
        high: int = struct.unpack_from("<H", raw, len(raw) - 12)[0]
        require(self.bits == 32 or high == 0, "upper half of a cluster number")
        return high << 16 | low


def _entries(content: bytes, path: str) -> Iterator[tuple[int, bytes]]:
    """Offset and slots of each entry; a long name must belong to the 8.3 name behind it."""
    pending = b""
    for offset in range(0, len(content), 32):
        slot = content[offset : offset + 32]
        if slot[0] == 0:
            require(not any(content[offset::32]), f"{path}: slots in use behind the end")
            break
        if slot[0] == 0xE5:
            require(not pending, f"{path}: a long name without an entry")
            continue
        pending += slot
        if slot[11] != LONG_NAME:
            yield offset + 32 - len(pending), pending
            pending = b""
    require(not pending, f"{path}: a long name without an entry")


def _names(raw: bytes, path: str) -> tuple[str, str]:
    """The name to show, and the 8.3 name in capitals."""
    slot = raw[-32:]
    base, extension = slot[:8].decode("cp437").rstrip(" "), slot[8:11].decode("cp437").rstrip(" ")
    short = f"{base}.{extension}" if extension else base
    require(not set(short[1:]) & set('"*+,/:;<=>?[\\]|'), f"{path}: characters of {short!r}")
    require(short == short.upper() and min(short) > " ", f"{path}: characters of {short!r}")
    if len(raw) == 32:
        shown = base.lower() if slot[12] & 0x08 else base
        if extension:
            shown += "." + (extension.lower() if slot[12] & 0x10 else extension)
        return shown, short
    require(not slot[12] & 0x18, f"{path}/{short}: bits for small letters beside a long name")
    return _long_name(raw, f"{path}/{short}"), short


def _long_name(raw: bytes, path: str) -> str:
    total = 0
    for byte in raw[-32:-21]:
        total = ((total >> 1) | (total & 1) << 7) + byte & 0xFF
    units = b""
    count = len(raw) // 32 - 1
    for number in range(1, count + 1):
        slot = raw[(count - number) * 32 :][:32]
        require(slot[0] == number | (0x40 if number == count else 0), f"{path}: slot {number}")
        require(slot[12] == 0 and slot[26:28] == b"\0\0", f"{path}: reserved fields")
        require(slot[13] == total, f"{path}: checksum of the long name")
        units += slot[1:11] + slot[14:26] + slot[28:32]
    text, mark, padding = units.decode("utf-16-le").partition("\0")
    require(padding == "\uffff" * len(padding), f"{path}: padding of the long name")
    require(mark or len(units) % 26 == 0, f"{path}: end of the long name")
    require(len(units) - 2 * len(padding) > 26 * (count - 1), f"{path}: a slot too many")
    return text
