"""``inspect``: its options, and its result for scripts."""

from dataclasses import asdict, fields

import click

from balenaflash.balena.signature import SignatureReport
from balenaflash.cli.arguments import IMAGE
from balenaflash.cli.image_options import read_certificate, sha256_option, steps_result
from balenaflash.cli.inspect_text import canvas_of_stdout, report_lines
from balenaflash.cli.network import network_result
from balenaflash.cli.options import member_option
from balenaflash.cli.output import Answer, ColorChoice, color_option, is_color_wanted
from balenaflash.cli.session import Session, with_session
from balenaflash.commands.disk_report import DiskReport, PartitionReport
from balenaflash.commands.inspect import (
    BmapReport,
    CarriedReport,
    FilesReport,
    ImageReport,
    Scope,
    find_failed_checks,
)
from balenaflash.commands.inspect import inspect as inspect_image
from balenaflash.edits.fingerprint import FingerprintReport
from balenaflash.source.location import ImageLocation


def image_result(report: ImageReport) -> dict[str, object]:
    """All of ``report``; what is unknown, or was not read, is null."""
    return {
        "path": str(report.location),
        "container": report.container.value,
        "member": report.member,
        **_layout_result(report.disk),
        **_files_result(report.files),
        "bmap": _bmap_result(report.bmap),
        "signature": _signature_result(report.signature),
        "flasher": None if report.carried is None else _carried_result(report.carried),
    }


def _layout_result(layout: DiskReport) -> dict[str, object]:
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
            "number": boot.partition.number,
            "reason": boot.reason,
            "fat_bits": layout.fat_bits,
            "total": layout.boot_fill.total_bytes,
            "free": layout.boot_fill.free_bytes,
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


def _partition_result(item: PartitionReport) -> dict[str, object]:
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


def _files_result(files: FilesReport | None) -> dict[str, object]:
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


def _fingerprint_result(report: FingerprintReport | None) -> dict[str, object] | None:
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


def _bmap_result(report: BmapReport | None) -> dict[str, object] | None:
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


def _signature_result(report: SignatureReport) -> dict[str, object]:
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


def _carried_result(carried: CarriedReport) -> dict[str, object]:
    flasher, layout = carried.flasher, carried.disk
    settings = flasher.settings
    return {
        "partition": flasher.partition.number,
        "settings": {
            **{each.name: getattr(settings, each.name) for each in fields(settings)},
            "internal_devices": list(settings.internal_devices),
            "bootloaders": [asdict(each) for each in settings.bootloaders],
            "others": dict(settings.others),
        },
        "devices": list(carried.devices),
        "image": {
            "path": flasher.image_path,
            "name": flasher.image_name,
            "size": flasher.image.source.size,
            "signature": _signature_result(carried.signature),
            "layout": None if layout is None else _layout_result(layout),
        },
        "steps": None if carried.steps is None else steps_result(carried.steps),
    }


@click.command()
@click.argument("image", type=IMAGE)
@click.option("-b", "--bytes", "exact", is_flag=True, help="Print sizes in bytes.")
@click.option("--show-secrets", is_flag=True, help="Do not mask keys and passwords of config.json.")
@click.option(
    "--check-files", is_flag=True, help="Read all boot files, and compare with the fingerprint."
)
@click.option(
    "--check-bmap", is_flag=True, help="Read all that the block map lists, and compare with it."
)
@click.option(
    "--check-signature", is_flag=True, help="Read all of the image, and verify its signature."
)
@click.option(
    "--certificate",
    type=click.Path(dir_okay=False, readable=False),
    metavar="FILE",
    help="Verify the signature against this one, in PEM or DER form, not the image's own.",
)
@color_option
@member_option
@sha256_option
@with_session
def inspect(
    session: Session,
    image: ImageLocation,
    *,
    exact: bool,
    show_secrets: bool,
    check_files: bool,
    check_bmap: bool,
    check_signature: bool,
    certificate: str | None,
    color: str,
    sha256: str | None,
) -> Answer:
    """Show what IMAGE is: partitions, boot partition, board, version, configuration.

    IMAGE is an image file, raw or compressed, or a block device such as a flashed card. Nothing
    is changed. Of a flasher the image that it carries is shown as well, and what it would do on
    its board. The fingerprint of the boot files, and a block map or a signature beside the image,
    are looked at in any case; comparing takes reading. The exit status is 3 where a check that was
    asked for could not be made or did not pass; and the certificate that an image carries itself
    is not enough to pass.

    \b
    Examples:
      balenaflash inspect balena.img
      balenaflash inspect --check-files --check-bmap balena.img
      balenaflash inspect --certificate kmod.crt balena.img
      balenaflash inspect --json balena.img | jq .result.balena.slug
    """
    given = None if certificate is None else read_certificate(certificate)
    scope = Scope(
        member=session.member,
        sha256=sha256,
        show_secrets=show_secrets,
        check_files=check_files,
        check_bmap=check_bmap,
        check_signature=check_signature or given is not None,
        certificate=given,
    )
    report = inspect_image(image, scope)
    result = image_result(report)
    failures = list(find_failed_checks(report, scope))
    if session.json:
        return Answer(result, warnings=report.warnings, failures=failures)
    canvas = canvas_of_stdout(color=is_color_wanted(ColorChoice(color)))
    lines = report_lines(report, canvas, exact=exact)
    return Answer(result, lines, report.warnings, failures=failures)
