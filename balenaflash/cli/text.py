"""Text for people: sizes and aligned tables."""

from collections.abc import Sequence

from balenaflash.units import format_size


def size_text(size: int, *, exact: bool) -> str:
    """``size`` in binary units, or with ``exact`` in bytes."""
    return str(size) if exact else format_size(size)


def known(value: object | None) -> str:
    """``value`` as text; "unknown" where there is none."""
    return "unknown" if value is None else str(value)


def table_lines(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()
) -> list[str]:
    """``rows`` below ``heads``, columns two blanks apart, those in ``right`` flush right."""
    grid = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in grid) for column in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in grid
    ]
