"""What scripts get of an image that was inspected; the keys are an interface."""

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from balenaflash.cli.network_list import network_result

if TYPE_CHECKING:
    from balenaflash.balena.settings import FlasherSettings
    from balenaflash.balena.signature import SignatureReport
    from balenaflash.commands.disk_report import LayoutReport, PartitionReport
    from balenaflash.commands.inspect import BmapReport, CarriedReport, FilesReport, ImageReport
    from balenaflash.edits.fingerprint import FingerprintReport


def image_result(report: "ImageReport") -> dict[str, object]:
    """All of ``report``; what is unknown, or was not read, is null."""
    return {
        "path": str(report.location),
        "container": report.container.value,
        "member": report.member,
        **_layout_result(report.layout),
        **_files_result(report.files),
        "bmap": _bmap_result(report.bmap),
        "signature": _signature_result(report.signature),
        "flasher": None if report.carried is None else _carried_result(report.carried),
    }


def _layout_result(layout: "LayoutReport") -> dict[str, object]:
    boot, facts, version = layout.boot, layout.facts, layout.os_version
    return {
        "size": layout.size,
        "size_by_table": layout.size_by_table,
        "table": {
            "kind": layout.table.kind.value,
            "id": layout.table.disk_id,
            "sector_size": layout.table.sector_size,
            "complete": layout.table.is_complete,
        },
        "partitions": [_partition_result(item) for item in layout.partitions],
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
            "os_version_from": None
            if version is None
            else {"partition": version.partition, "path": version.path},
            "image_name": facts.image_name,
            "fingerprint_present": facts.fingerprint_present,
            "is_clone": facts.is_clone,
        },
        "config": layout.config,
    }


def _partition_result(item: "PartitionReport") -> dict[str, object]:
    partition, filesystem, fill = item.partition, item.filesystem, item.fill
    return {
        "number": partition.number,
        "kind": partition.kind.value,
        "start": partition.extent.start,
        "size": partition.extent.size,
        "type": partition.type_id,
        "name": partition.name,
        "uuid": partition.uuid,
        "flags": list(partition.flags),
        "filesystem_read": item.was_read,
        "filesystem": None
        if filesystem is None
        else {
            "type": filesystem.type,
            "label": filesystem.label,
            "uuid": filesystem.uuid,
            "total": None if fill is None else fill.total_bytes,
            "used": None if fill is None else fill.used_bytes,
            "free": None if fill is None else fill.free_bytes,
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


def _signature_result(report: "SignatureReport") -> dict[str, object]:
    certificate = report.certificate
    is_open = report.path is None and report.state == "unknown"
    return {
        "signed": None if is_open else report.path is not None,
        "state": report.state.value,
        "path": report.path,
        "reason": report.reason,
        "certificate": None
        if certificate is None
        else {
            "name": certificate.name,
            "of_image": certificate.of_image,
            "subject": report.subject,
            "sha256": report.sha256,
            "not_valid": report.odd_time,
        },
    }


def _carried_result(carried: "CarriedReport") -> dict[str, object]:
    flasher, layout = carried.flasher, carried.layout
    return {
        "partition": flasher.partition.number,
        "settings": _settings_result(flasher.settings),
        "devices": list(carried.devices),
        "image": {
            "path": flasher.image_path,
            "name": flasher.image_name,
            "size": flasher.image.size,
            "signature": _signature_result(carried.signature),
            "layout": None if layout is None else _layout_result(layout),
        },
        "steps": None
        if carried.steps is None
        else [
            {
                "code": step.code,
                "action": step.action,
                "state": step.state.value,
                "meaning": step.meaning,
            }
            for step in carried.steps
        ],
    }


def _settings_result(settings: "FlasherSettings") -> dict[str, object]:
    """All of them, by their names in `FlasherSettings`."""
    result = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {
        **result,
        "internal_devices": list(settings.internal_devices),
        "bootloaders": [asdict(each) for each in settings.bootloaders],
        "others": dict(settings.others),
    }
