"""Lines of ``inspect`` about a disk: its map, its partitions and their filesystems."""

from dataclasses import replace
from typing import TYPE_CHECKING

from balenaflash.cli.answer import printable
from balenaflash.cli.disk_map import Canvas, MapRow, draw_map
from balenaflash.cli.text import size_text, table_lines

if TYPE_CHECKING:
    from balenaflash.commands.disk_report import LayoutReport, PartitionReport


def layout_lines(layout: "LayoutReport", canvas: Canvas, *, exact: bool) -> list[str]:
    """The map of the disk, and two tables that say it exactly."""
    return [
        *draw_map([_map_row(layout, item) for item in layout.partitions], layout.size, canvas),
        "",
        *_partition_lines(layout, exact=exact),
        "",
        *_filesystem_lines(layout, exact=exact),
    ]


def _map_row(layout: "LayoutReport", item: "PartitionReport") -> MapRow:
    fill = None if item.fill is None else item.fill.used_bytes / item.fill.total_bytes
    row = MapRow.of_partition(item.partition, _label(item), fill)
    return row if layout.table.is_complete else replace(row, is_complete=False)


def _label(item: "PartitionReport") -> str:
    return item.partition.name or (item.filesystem.label if item.filesystem else None) or ""


def _partition_lines(layout: "LayoutReport", *, exact: bool) -> list[str]:
    boot_number = layout.boot.partition.partition.number
    rows = []
    for item in layout.partitions:
        partition = item.partition
        rows.append(
            [
                str(partition.number),
                printable(_label(item)),
                size_text(partition.extent.start, exact=exact),
                size_text(partition.extent.size, exact=exact),
                partition.kind.value,
                partition.type_id,
                "boot partition" if partition.number == boot_number else "",
            ]
        )
    heads = ("No", "Label", "Start", "Size", "Kind", "Type", "")
    return table_lines(heads, rows, right=frozenset({0, 2, 3}))


def _filesystem_lines(layout: "LayoutReport", *, exact: bool) -> list[str]:
    rows = [_filesystem_row(item, exact=exact) for item in layout.partitions if item.filesystem]
    unread = [str(item.partition.number) for item in layout.partitions if not item.was_read]
    heads = ("No", "Filesystem", "Label", "UUID", "Used", "Free")
    lines = table_lines(heads, rows, right=frozenset({0, 4, 5}))
    if unread:
        lines.append(f"Not looked for in partition {', '.join(unread)}: it lies too far behind.")
    return lines


def _filesystem_row(item: "PartitionReport", *, exact: bool) -> list[str]:
    filesystem, fill = item.filesystem, item.fill
    sizes = ["unknown", "unknown"]
    if fill is not None:
        sizes = [size_text(size, exact=exact) for size in (fill.used_bytes, fill.free_bytes)]
    if filesystem is None:
        return [str(item.partition.number), "", "", "", *sizes]
    return [
        str(item.partition.number),
        filesystem.type,
        printable(filesystem.label or ""),
        filesystem.uuid or "",
        *sizes,
    ]
