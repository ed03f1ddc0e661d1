"""The drawn map of a disk: nothing missing, nothing too wide, everything in its place."""

import ctypes
import re
from dataclasses import replace

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.cli.disk_map import Canvas, Cell, MapRow, draw_map
from balenaflash.formats.partitions.model import PartitionKind
from balenaflash.units import GIB, MIB, Extent

NAMES = st.text(max_size=40) | st.sampled_from(["resin-boot", "数据分区", "a\u0301b", "\x1b[2J"])
SYMBOLS = "".join(cell.symbol for cell in Cell)
FEW = settings(max_examples=40)
LIBC = ctypes.CDLL(None)
ROW = re.compile(rf"^ *(\d+ .*?|\(gap\)) +([{SYMBOLS}]+)(?: |$)")


@st.composite
def disks(draw: st.DrawFn) -> tuple[list[MapRow], int]:
    """Partitions one behind the other, some inside an extended one, and the size of the disk."""
    sizes = st.integers(1, 3 * GIB)
    spaces = st.just(0) | st.integers(0, 600 * MIB)
    position, rows = 0, []

    def add(number: int, kind: PartitionKind) -> None:
        nonlocal position
        start = position + draw(spaces)
        position = start + draw(sizes)
        fill = draw(st.none() | st.floats(0, 1))
        rows.append(MapRow(Extent(start, position), number, draw(NAMES), kind, fill))

    for number in range(1, draw(st.integers(1, 45)) + 1):
        add(number, PartitionKind.PRIMARY)
    if len(rows) < 4 and draw(st.booleans()):
        start, first = position, len(rows)
        for number in range(5, draw(st.integers(5, 20)) + 1):
            add(number, PartitionKind.LOGICAL)
        extended = MapRow(Extent(start, position), 4, "", PartitionKind.EXTENDED)
        rows.insert(first, extended)
    return rows, position + draw(spaces)


def columns_of(text: str) -> int:
    """As the C library counts them; what it does not know takes one."""
    return sum(width if (width := LIBC.wcwidth(ord(char))) >= 0 else 1 for char in text)


@FEW
@given(disk=disks(), width=st.integers(40, 200), encoding=st.sampled_from(["utf-8", "ascii"]))
def test_every_partition_has_its_row_in_the_order_of_the_disk(
    disk: tuple[list[MapRow], int], width: int, encoding: str
) -> None:
    rows, size = disk
    lines = draw_map(rows, size, Canvas(width, encoding))
    numbers = [int(found[1]) for line in lines[1:] if (found := re.match(r" *(\d+) ", line))]
    assert numbers == [row.number for row in rows]
    for line in lines:
        assert columns_of(line) <= width
        assert line.isprintable()
        line.encode(encoding)


@FEW
@given(disk=disks(), width=st.integers(40, 200))
def test_bars_lie_where_the_partitions_do(disk: tuple[list[MapRow], int], width: int) -> None:
    rows, size = disk
    named = [replace(row, name="x") for row in rows]
    lines = draw_map(named, size, Canvas(width, "utf-8"))
    ends = lines[0].index("0"), len(lines[0])
    drawn = [found for line in lines if (found := ROW.match(line))]
    bars = {int(row[1].split()[0]): row.span(2) for row in drawn if "(" not in row[1]}
    bars.update((4, row.span(2)) for row in drawn if "(extended)" in row[1])
    last = max(row.extent.end for row in rows)
    # A space of less than a MiB after the last partition is not drawn.
    scale = (ends[1] - ends[0]) / (size if size - last >= MIB else last)
    for row in rows:
        start, end = bars[row.number or 0]
        assert ends[0] <= start < end <= ends[1]
        assert abs(start - (ends[0] + row.extent.start * scale)) <= 1
        assert abs(end - start - row.extent.size * scale) <= 1
    starts = [bars[row.number or 0][0] for row in rows]
    assert starts == sorted(starts)


@FEW
@given(disk=disks(), width=st.integers(40, 200))
def test_all_of_the_disk_is_shown(disk: tuple[list[MapRow], int], width: int) -> None:
    rows, size = disk
    lines = draw_map([replace(row, name="x") for row in rows], size, Canvas(width, "utf-8"))
    drawn = [found for line in lines if (found := ROW.match(line))]
    spaces = sum("(gap)" in row[1] for row in drawn)
    assert len(drawn) == len(rows) + spaces
    taken = sum(row.extent.size for row in rows if row.kind is not PartitionKind.EXTENDED)
    if size - taken < MIB:
        assert spaces == 0
    if size - taken >= MIB * (len(rows) + 2):
        assert spaces > 0


@FEW
@given(fill=st.floats(0, 1), width=st.integers(40, 200))
def test_the_fill_is_as_much_of_the_bar_as_of_the_partition(fill: float, width: int) -> None:
    row = MapRow(Extent(0, GIB), 1, "data", fill=fill)
    line = draw_map([row], GIB, Canvas(width, "ascii"))[1]
    used, free = line.count("#"), line.count("-")
    assert abs(used - fill * (used + free)) <= 1
    assert (used > 0) == (fill > 0)
    assert (free > 0) == (fill < 1)
    assert line.endswith(f" {int(fill * 100)}%")


def test_a_card_is_drawn_as_its_partitions_lie() -> None:
    rows = [
        MapRow(Extent(4 * MIB, 44 * MIB), 1, "resin-boot", fill=0.5),
        MapRow(Extent(44 * MIB, 124 * MIB), 2, "resin-rootA", fill=0.999),
        MapRow(Extent(124 * MIB, 160 * MIB), 4, "", PartitionKind.EXTENDED),
        MapRow(Extent(128 * MIB, 148 * MIB), 5, "resin-state", PartitionKind.LOGICAL, fill=0.0),
        MapRow(Extent(152 * MIB, 160 * MIB), 6, "resin-data", PartitionKind.LOGICAL),
    ]
    # 29 columns for 160 MiB: one is 5.5 MiB.
    assert draw_map(rows, 160 * MIB, Canvas(61, "ascii")) == [
        "                0                   160.0 MiB",
        "  (gap)         .                                4.0 MiB",
        "1 resin-boot    ####---                         40.0 MiB  50%",
        "2 resin-rootA          ##############-          80.0 MiB  99%",
        "4 (extended)                          ~~~~~~~   36.0 MiB",
        "    (gap)                             .          4.0 MiB",
        "5   resin-state                        ---      20.0 MiB   0%",
        "    (gap)                                 .      4.0 MiB",
        "6   resin-data                             ==    8.0 MiB",
        "# used   - free   = fill unknown   ~ extended",
        ". no partition",
    ]


def test_without_colour_the_map_says_the_same() -> None:
    rows = [
        MapRow(Extent(4 * MIB, 44 * MIB), 1, "resin-boot", fill=0.5),
        MapRow(Extent(60 * MIB, 160 * MIB), 2, "raw"),
    ]
    plain = draw_map(rows, 160 * MIB, Canvas(80, "utf-8"))
    colored = draw_map(rows, 160 * MIB, Canvas(80, "utf-8", color=True))
    assert [click.unstyle(line) for line in colored] == plain
    assert colored != plain
    assert all(
        line.endswith("\x1b[0m") or line[-1].isalnum() or line[-1] == "%" for line in colored
    )


def test_nothing_is_drawn_of_a_disk_without_partitions() -> None:
    assert draw_map([], None, Canvas(80, "utf-8")) == []


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "cp1252"])
def test_a_terminal_without_blocks_gets_ascii(encoding: str) -> None:
    lines = draw_map([MapRow(Extent(MIB, GIB), 1, "数据", fill=0.3)], GIB, Canvas(80, encoding))
    assert "\n".join(lines).isascii()
    assert "\\u6570" in lines[2]
