"""``inspect``: what an image is and holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer, printable
from balenaflash.cli.inspect_result import image_result
from balenaflash.cli.network_list import ssid_text
from balenaflash.cli.session import Session, with_session
from balenaflash.cli.text import known, size_text, table_lines

if TYPE_CHECKING:
    from balenaflash.boot.fingerprint import FingerprintReport
    from balenaflash.boot.network import Network
    from balenaflash.inspection import BmapReport, FilesReport, ImageReport

_NAMED = 5  # paths named in a line; the others are counted


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("-b", "--bytes", "exact", is_flag=True, help="Print sizes in bytes.")
@click.option("--show-secrets", is_flag=True, help="Do not mask keys and passwords of config.json.")
@click.option(
    "--check-files", is_flag=True, help="Read all boot files, and compare with the fingerprint."
)
@click.option(
    "--check-bmap", is_flag=True, help="Read all that the block map lists, and compare with it."
)
@with_session
def inspect(
    _session: Session,
    image: Path,
    *,
    exact: bool,
    show_secrets: bool,
    check_files: bool,
    check_bmap: bool,
) -> Answer:
    """Show what IMAGE is: partitions, boot partition, board, version, configuration.

    IMAGE is a raw image file, or a block device such as a flashed card. Nothing is changed. The
    fingerprint of the boot files and a block map beside the image are looked at in any case;
    comparing takes reading.

    \b
    Examples:
      balenaflash inspect balena.img
      balenaflash inspect --check-files --check-bmap balena.img
      balenaflash inspect --json balena.img | jq .result.balena.slug
    """
    from balenaflash.inspection import inspect as inspect_image

    report = inspect_image(
        image, show_secrets=show_secrets, check_files=check_files, check_bmap=check_bmap
    )
    return Answer(image_result(report), _lines(report, exact=exact), report.warnings)


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
        *_files_lines(report.files, exact=exact),
        *_bmap_lines(report.bmap),
        "",
        *_partition_lines(report, exact=exact),
        "",
    ]
    if report.config is None:
        return [*lines, "config.json: none"]
    # json escapes control characters; names were made printable one by one.
    text = json.dumps(report.config, indent=2, ensure_ascii=False)
    return [*lines, "config.json:", *(f"  {line}" for line in text.splitlines())]


def _files_lines(files: "FilesReport | None", *, exact: bool) -> list[str]:
    if files is None:
        return ["Files:      unknown"]
    largest = ""
    if files.largest is not None:
        size = size_text(files.largest.size, exact=exact)
        largest = f", the largest {files.largest.path} ({size})"
    lines = [f"Files:      {files.count}{largest}"]
    lines += [f"            {line}" for line in _fingerprint_lines(files.fingerprint)]
    if files.overwritten:
        lines.append(f"            the next host OS update replaces {_named(files.overwritten)}")
    return [*lines, f"Networks:   {_networks_text(files.networks)}"]


def _fingerprint_lines(report: "FingerprintReport | None") -> list[str]:
    if report is None:
        return ["no fingerprint"]
    if report.matches:
        return ["as in the fingerprint"]
    lines = [
        f"{what}: {_named(paths)}"
        for what, paths in (
            ("other than in the fingerprint", report.differing),
            ("in the fingerprint, and missing", report.missing),
            ("not in the fingerprint", report.new),
        )
        if paths
    ]
    if report.differing is None:
        lines.append("not compared with the fingerprint (--check-files does)")
    return lines


def _networks_text(networks: "Sequence[Network]") -> str:
    used = [_network_text(each) for each in networks if each.state == "used"]
    others = [each.state.value for each in networks if each.state != "used"]
    counts = [f"{state}: {others.count(state)}" for state in dict.fromkeys(others)]
    return "; ".join([*(used or ["none"]), *counts])


def _network_text(network: "Network") -> str:
    ssid = ssid_text(network.ssid)
    return f"{network.name} ({network.type}{'' if ssid is None else f', SSID {ssid}'})"


def _bmap_lines(report: "BmapReport | None") -> list[str]:
    if report is None:
        return []
    if report.fault is not None:
        return [f"Block map:  {report.fault}"]
    if report.differing is None:
        fact = "for an image of this size, not compared (--check-bmap does)"
    elif report.differing:
        start = report.differing[0].start
        fact = f"the image differs in {len(report.differing)} ranges, the first at byte {start}"
    else:
        fact = "true of the image"
    return [f"Block map:  {report.path}: {fact}"]


def _named(paths: Sequence[str]) -> str:
    more = len(paths) - _NAMED
    return ", ".join(paths[:_NAMED]) + (f" and {more} more" if more > 0 else "")


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
