"""The map of a disk, drawn in a terminal: a row with a bar for each partition."""

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import click

from balenaflash.cli.output import ColoredLine, printable
from balenaflash.formats.partitions.model import PartitionKind
from balenaflash.units import MIB, Extent, format_size

MIN_WIDTH = 40
"""Minimum columns of a line, also in a narrower terminal."""

_MIN_GAP = MIB
"""Minimum unused bytes that get a row; alignment and tables leave smaller gaps."""

_SIZES_FROM = 60  # minimum columns of a terminal for showing sizes
_SIZE_COLUMNS = 10  # "1023.9 MiB"
_FILL_COLUMNS = 4  # "100%"
_MIN_NAME_COLUMNS = 8


class Cell(Enum):
    """The meaning of one column of a bar: word, Unicode symbol, ASCII symbol, colour."""

    USED = ("used", "█", "#", "cyan")
    FREE = ("free", "░", "-", "cyan")
    UNKNOWN = ("fill unknown", "▒", "=", "yellow")
    EXTENDED = ("extended", "═", "~", "magenta")
    NOTHING = ("no partition", "·", ".", "bright_black")

    def __init__(self, word: str, symbol: str, plain: str, color: str) -> None:
        self.word = word
        self.symbol = symbol
        self.plain = plain
        self.color = color


@dataclass(frozen=True, slots=True)
class MapRow:
    """A partition, or unpartitioned space."""

    extent: Extent
    number: int | None = None
    """``None`` for unpartitioned space."""

    name: str = ""
    kind: PartitionKind = PartitionKind.PRIMARY
    fill: float | None = None
    """Used fraction, 0 to 1; ``None`` if unknown."""

    is_complete: bool = True
    """False for an extended partition whose logical partitions were not read."""

    @property
    def depth(self) -> int:
        """1 inside an extended partition, else 0."""
        return int(self.kind is PartitionKind.LOGICAL)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The terminal that the map is drawn on."""

    width: int
    """Columns of the terminal."""

    encoding: str
    """Encoding of stdout; without block characters the map is drawn in ASCII."""

    color: bool = False


def draw_map(partitions: Sequence[MapRow], size: int | None, canvas: Canvas) -> list[str]:
    """A scale, a row for each partition and each unpartitioned space, and a legend.

    Rows are in the order of the disk, logical partitions after their extended one. Even the
    smallest partition gets one column. ``size`` of the image is in bytes; if it is unknown, the
    map ends with the last partition. No line is wider than the canvas.
    """
    rows = _with_gaps(partitions, size)
    if not rows:
        return []
    columns = _Columns.for_rows(rows, canvas)
    total = max(row.extent.end for row in rows)
    lines = [columns.scale(total)]
    seen: dict[Cell, None] = {}
    for row in rows:
        start, cells = _bar(row, total, columns.bar)
        seen |= dict.fromkeys(cells)
        lines.append(_line(columns, row, start, cells))
    return [*lines, *_legend(seen, canvas)]


def _with_gaps(partitions: Sequence[MapRow], size: int | None) -> list[MapRow]:
    """``partitions`` in their order, and the spaces between them."""
    outer = [row for row in partitions if not row.depth]
    end = max([size or 0, *(row.extent.end for row in partitions)])
    rows = [*partitions, *_gaps(outer, Extent(0, end), PartitionKind.PRIMARY)]
    for row in outer:
        if row.kind is PartitionKind.EXTENDED and row.is_complete:
            inside = [each for each in partitions if each.depth]
            rows += _gaps(inside, row.extent, PartitionKind.LOGICAL)
    return sorted(rows, key=lambda row: (row.extent.start, row.depth, row.number or 0))


def _gaps(rows: Sequence[MapRow], around: Extent, kind: PartitionKind) -> Iterator[MapRow]:
    position = around.start
    last = Extent(around.end, around.end)
    for extent in [*sorted(row.extent for row in rows), last]:
        if extent.start - position >= _MIN_GAP:
            yield MapRow(Extent(position, extent.start), kind=kind)
        position = max(position, extent.end)


@dataclass(frozen=True, slots=True)
class _Columns:
    """How the width is shared out; numbers of columns."""

    canvas: Canvas
    number: int
    name: int
    bar: int
    has_sizes: bool

    @classmethod
    def for_rows(cls, rows: Sequence[MapRow], canvas: Canvas) -> "_Columns":
        width = max(MIN_WIDTH, canvas.width)
        number = max(len(str(row.number or "")) for row in rows)
        longest = max(_width(_name(row, canvas)) for row in rows)
        name = min(longest, max(_MIN_NAME_COLUMNS, width // 4))
        has_sizes = width >= _SIZES_FROM
        beside = number + 1 + name + 1 + 1 + _FILL_COLUMNS
        if has_sizes:
            beside += 1 + _SIZE_COLUMNS
        return cls(canvas, number, name, width - beside, has_sizes)

    def scale(self, total: int) -> str:
        end = format_size(total)
        return " " * (self.number + self.name + 2) + "0" + end.rjust(self.bar - 1)

    def left(self, row: MapRow) -> str:
        number = "" if row.number is None else str(row.number)
        return f"{number.rjust(self.number)} {_fitted(_name(row, self.canvas), self.name)} "

    def right(self, row: MapRow) -> str:
        fill = "" if row.fill is None else f"{int(row.fill * 100)}%"
        size = f" {format_size(row.extent.size):>{_SIZE_COLUMNS}}" if self.has_sizes else ""
        return f"{size} {fill:>{_FILL_COLUMNS}}"


def _bar(row: MapRow, total: int, columns: int) -> tuple[int, list[Cell]]:
    """The column where the bar of ``row`` starts, and what it is made of."""
    start = min(columns - 1, row.extent.start * columns // total)
    end = max(start + 1, row.extent.end * columns // total)
    return start, _cells(row, end - start)


def _cells(row: MapRow, count: int) -> list[Cell]:
    if row.number is None:
        return [Cell.NOTHING] * count
    if row.kind is PartitionKind.EXTENDED:
        return [Cell.EXTENDED] * count
    if row.fill is None:
        return [Cell.UNKNOWN] * count
    used = round(row.fill * count)
    if count > 1:  # what is there shows, if there is more than one column to show it in
        used = max(int(row.fill > 0), min(used, count - int(row.fill < 1)))
    return [Cell.USED] * used + [Cell.FREE] * (count - used)


def _line(columns: _Columns, row: MapRow, start: int, cells: Sequence[Cell]) -> str:
    left = columns.left(row) + " " * start
    right = " " * (columns.bar - start - len(cells)) + columns.right(row)
    if not columns.canvas.color:
        return (left + _drawn(cells, columns.canvas) + right).rstrip()
    return ColoredLine((left + _painted(cells, columns.canvas) + right).rstrip())


def _drawn(cells: Sequence[Cell], canvas: Canvas) -> str:
    if _has_blocks(canvas.encoding):
        return "".join(cell.symbol for cell in cells)
    return "".join(cell.plain for cell in cells)


@functools.cache
def _has_blocks(encoding: str) -> bool:
    try:
        "".join(cell.symbol for cell in Cell).encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _painted(cells: Sequence[Cell], canvas: Canvas) -> str:
    kinds = dict.fromkeys(cells)
    return "".join(
        click.style(_drawn([kind] * cells.count(kind), canvas), fg=kind.color) for kind in kinds
    )


def _legend(seen: dict[Cell, None], canvas: Canvas) -> list[str]:
    """The signs that occur, explained, in lines that are not too wide."""
    lines = [""]
    for cell in Cell:
        if cell not in seen:
            continue
        entry = f"{_drawn([cell], canvas)} {cell.word}"
        if len(lines[-1]) + 3 + len(entry) > max(MIN_WIDTH, canvas.width):
            lines.append("")
        lines[-1] += f"   {entry}" if lines[-1] else entry
    return lines


def _name(row: MapRow, canvas: Canvas) -> str:
    name = printable(row.name) if row.number is not None else "(gap)"
    if row.kind is PartitionKind.EXTENDED:
        name = name or ("(extended)" if row.is_complete else "(not read)")
    shown = name.encode(canvas.encoding, "backslashreplace").decode(canvas.encoding)
    return "  " * row.depth + shown


def _fitted(text: str, columns: int) -> str:
    """``text`` filled up with blanks, or cut off with a tilde, to that many columns."""
    if _width(text) > columns:
        while _width(text) > columns - 1:
            text = text[:-1]
        text += "~"
    return text + " " * (columns - _width(text))


def _width(text: str) -> int:
    """Columns that a terminal takes for ``text``, which is printable."""
    return sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:  # combine with the character before
        return 0
    # Unicode Standard Annex 11: wide and full-width characters take two columns.
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
