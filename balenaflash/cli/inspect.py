"""``inspect``: what an image is and holds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer, printable
from balenaflash.cli.session import Session, with_session
from balenaflash.cli.text import known, size_text, table_lines

if TYPE_CHECKING:
    from balenaflash.inspection import ImageReport, PartitionReport


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("-b", "--bytes", "exact", is_flag=True, help="Print sizes in bytes.")
@click.option("--show-secrets", is_flag=True, help="Do not mask keys and passwords of config.json.")
@with_session
def inspect(_session: Session, image: Path, *, exact: bool, show_secrets: bool) -> Answer:
    """Show what IMAGE is: partitions, boot partition, board, version, configuration.

    IMAGE is a raw image file, or a block device such as a flashed card. Nothing is changed.

    \b
    Examples:
      balenaflash inspect balena.img
      balenaflash inspect --json balena.img | jq .result.balena.slug
    """
    from balenaflash.inspection import inspect as inspect_image

    report = inspect_image(image, show_secrets=show_secrets)
    return Answer(_result(report), _lines(report, exact=exact), report.warnings)


def _result(report: "ImageReport") -> dict[str, object]:
    boot, facts = report.boot, report.facts
    return {
        "path": str(report.path),
        "container": report.container.value,
        "size": report.size,
        "table": {
            "kind": report.table.kind.value,
            "id": report.table.disk_id,
            "sector_size": report.table.sector_size,
        },
        "partitions": [_partition_result(item) for item in report.partitions],
        "boot_partition": {
            "number": boot.partition.partition.number,
            "reason": boot.partition.reason,
            "fat_bits": boot.fat_bits,
            "total": boot.total_bytes,
            "free": boot.free_bytes,
        },
        "balena": {
            "kind": facts.kind.value if facts.kind else None,
            "slug": facts.slug,
            "name": facts.name,
            "arch": facts.arch,
            "machine": facts.machine,
            "os_version": facts.os_version,
            "image_name": facts.image_name,
            "fingerprint_present": facts.fingerprint_present,
            "is_clone": facts.is_clone,
        },
        "config": report.config,
    }


def _partition_result(item: "PartitionReport") -> dict[str, object]:
    partition, filesystem = item.partition, item.filesystem
    return {
        "number": partition.number,
        "kind": partition.kind.value,
        "start": partition.extent.start,
        "size": partition.extent.size,
        "type": partition.type_id,
        "name": partition.name,
        "uuid": partition.uuid,
        "flags": list(partition.flags),
        "filesystem": None
        if filesystem is None
        else {
            "type": filesystem.type,
            "label": filesystem.label,
            "uuid": filesystem.uuid,
        },
    }


def _lines(report: "ImageReport", *, exact: bool) -> list[str]:
    boot, facts, table = report.boot, report.facts, report.table
    number = boot.partition.partition.number
    total = size_text(boot.total_bytes, exact=exact)
    free = size_text(boot.free_bytes, exact=exact)
    kind = facts.kind.value if facts.kind else "unknown"
    lines = [
        f"Image:      {report.path}",
        f"Container:  {report.container}, {size_text(report.size, exact=exact)}",
        f"Kind:       {kind} image",
        f"Board:      {known(facts.name)} ({known(facts.slug)}, {known(facts.arch)})",
        f"OS version: {known(facts.os_version)}",
        f"Image name: {known(facts.image_name)}",
        f"Table:      {table.kind}, id {table.disk_id}, sectors of {table.sector_size} bytes",
        f"Boot:       partition {number}, FAT{boot.fat_bits}, {free} of {total} free",
        f"            {boot.partition.reason}",
        "",
        *_partition_lines(report, exact=exact),
        "",
    ]
    if report.config is None:
        return [*lines, "config.json: none"]
    # json escapes control characters; names were made printable one by one.
    text = json.dumps(report.config, indent=2, ensure_ascii=False)
    return [*lines, "config.json:", *(f"  {line}" for line in text.splitlines())]


def _partition_lines(report: "ImageReport", *, exact: bool) -> list[str]:
    boot_number = report.boot.partition.partition.number
    rows = []
    for item in report.partitions:
        partition, filesystem = item.partition, item.filesystem
        label = partition.name or (filesystem.label if filesystem else None) or ""
        rows.append(
            [
                str(partition.number),
                printable(label),
                filesystem.type if filesystem else "",
                size_text(partition.extent.start, exact=exact),
                size_text(partition.extent.size, exact=exact),
                partition.kind.value,
                partition.type_id,
                "boot partition" if partition.number == boot_number else "",
            ]
        )
    heads = ("No", "Label", "Filesystem", "Start", "Size", "Kind", "Type", "")
    return table_lines(heads, rows, right=frozenset({0, 3, 4}))
