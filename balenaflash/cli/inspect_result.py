"""What scripts get of an image that was inspected; the keys are an interface."""

from typing import TYPE_CHECKING

from balenaflash.cli.network_list import network_result

if TYPE_CHECKING:
    from balenaflash.boot.fingerprint import FingerprintReport
    from balenaflash.inspection import BmapReport, FilesReport, ImageReport, PartitionReport


def image_result(report: "ImageReport") -> dict[str, object]:
    """All of ``report``; what is unknown, or was not read, is null."""
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
        **_files_result(report.files),
        "bmap": _bmap_result(report.bmap),
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


def _files_result(files: "FilesReport | None") -> dict[str, object]:
    if files is None:
        keys = ("files", "networks", "fingerprint", "overwritten_by_update")
        return dict.fromkeys(keys)
    largest = files.largest
    return {
        "files": {
            "count": files.count,
            "largest": None if largest is None else {"path": largest.path, "size": largest.size},
        },
        "networks": [network_result(each) for each in files.networks],
        "fingerprint": _fingerprint_result(files.fingerprint),
        "overwritten_by_update": None if files.overwritten is None else list(files.overwritten),
    }


def _fingerprint_result(report: "FingerprintReport | None") -> dict[str, object] | None:
    if report is None:
        return None
    return {
        "path": report.path,
        "matches": report.matches,
        "differing": None if report.differing is None else list(report.differing),
        "missing": list(report.missing),
        "new": list(report.new),
        "malformed_lines": list(report.malformed),
    }


def _bmap_result(report: "BmapReport | None") -> dict[str, object] | None:
    if report is None:
        return None
    bmap, differing = report.bmap, report.differing
    return {
        "path": str(report.path),
        "fault": report.fault,
        "block_size": None if bmap is None else bmap.block_size,
        "blocks": None if bmap is None else bmap.blocks,
        "mapped_blocks": None if bmap is None else bmap.mapped_blocks,
        "differing": None
        if differing is None
        else [{"start": extent.start, "size": extent.size} for extent in differing],
    }
