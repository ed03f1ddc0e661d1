"""What ``inspect`` tells people: all that there is of an image, the most wanted first."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from balenaflash.cli.disk_map import Canvas
from balenaflash.cli.inspect_files import bmap_lines, files_lines
from balenaflash.cli.inspect_flasher import carried_lines, signature_lines, step_lines
from balenaflash.cli.inspect_tables import layout_lines
from balenaflash.cli.text import known, size_text

if TYPE_CHECKING:
    from balenaflash.commands.inspect import ImageReport


def canvas_of_stdout(*, color: bool) -> Canvas:
    """As wide as the terminal, or 80 columns; in the encoding that stdout has."""
    width = shutil.get_terminal_size().columns
    return Canvas(width, sys.stdout.encoding or "ascii", color=color)


def report_lines(report: "ImageReport", canvas: Canvas, *, exact: bool) -> list[str]:
    """All of ``report`` for people, in a width that suits the canvas where that is possible."""
    layout, carried = report.layout, report.carried
    lines = [
        *_head_lines(report, exact=exact),
        *carried_lines(carried, exact=exact),
        "",
        *layout_lines(layout, canvas, exact=exact),
        "",
        *_config_lines("config.json", layout.config),
    ]
    if carried is None:
        return lines
    if carried.layout is not None:
        name = carried.flasher.image_name
        lines += ["", f"Inside {name}:", *layout_lines(carried.layout, canvas, exact=exact)]
        lines += ["", *_config_lines(f"config.json of {name}", carried.layout.config)]
    return [*lines, "", *step_lines(carried.steps, canvas.width)]


def _head_lines(report: "ImageReport", *, exact: bool) -> list[str]:
    layout = report.layout
    boot, facts, table = layout.boot, layout.facts, layout.table
    number = boot.partition.partition.number
    total = size_text(boot.total_bytes, exact=exact)
    free = size_text(boot.free_bytes, exact=exact)
    size = "size unknown" if layout.size is None else size_text(layout.size, exact=exact)
    size += " by its GPT" if layout.size_by_table else ""
    container = f"{report.container}, {report.member}" if report.member else report.container
    return [
        f"Image:      {report.location}",
        f"Container:  {container}, {size}",
        f"Kind:       {facts.kind.value if facts.kind else 'unknown'} image",
        f"Board:      {known(facts.name)} ({known(facts.slug)}, {known(facts.arch)})",
        f"OS version: {known(facts.os_version)}",
        f"Image name: {known(facts.image_name)}",
        f"Table:      {table.kind}, id {table.disk_id}, sectors of {table.sector_size} bytes",
        f"Boot:       partition {number}, FAT{boot.fat_bits}, {free} of {total} free",
        f"            {boot.partition.reason}",
        *files_lines(report.files, exact=exact),
        *bmap_lines(report.bmap),
        *signature_lines(report.signature),
    ]


def _config_lines(title: str, config: Mapping[str, object] | None) -> Sequence[str]:
    if config is None:
        return [f"{title}: none"]
    text = json.dumps(config, indent=2, ensure_ascii=False)
    return [f"{title}:", *(f"  {line}" for line in text.split("\n"))]
