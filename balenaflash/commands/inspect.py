"""The report on an image: its partitions, boot files, signature, block map, and inner image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.balena.flasher_contents import Flasher, read_flasher
from balenaflash.balena.image import BalenaImage, ImageKind
from balenaflash.balena.signature import (
    SIGNATURE_SUFFIX,
    CertificateFile,
    SignatureReport,
    SignatureState,
    check_signature,
    find_certificate,
    report_beside,
)
from balenaflash.commands.card_records import warn_of_cut_off
from balenaflash.commands.disk_report import DiskReport, follow_logical, report_disk
from balenaflash.commands.flasher_steps import FlasherStep, Unwrapping
from balenaflash.edits.consequences import find_overwritten, warn_of_low_space
from balenaflash.edits.fingerprint import FingerprintReport, listed_paths
from balenaflash.edits.fingerprint import check as check_fingerprint
from balenaflash.edits.network import Network, list_networks
from balenaflash.errors import ConfigError, ImageError
from balenaflash.formats.fat.volume import FatEntry, FatVolume
from balenaflash.source.base import Source
from balenaflash.source.block_map import Bmap, differing_ranges, require_same_size
from balenaflash.source.container.decoder import Container
from balenaflash.source.location import ImageLocation
from balenaflash.source.map_beside import find_beside, read_bmap
from balenaflash.source.opening import open_for_reading
from balenaflash.units import GIB, MIB, Extent

_MOST_DECODED = GIB
"""Bytes of a compressed file to decode only for its logical partitions: a second or two."""

_MOST_DECODED_ELSEWHERE = 64 * MIB
"""The same for a slow decoder, a network or a pipe."""

_FAST = frozenset({Container.GZIP, Container.ZIP, Container.ZSTD})
"""Containers that are decoded at hundreds of MB per second."""


@dataclass(frozen=True, slots=True)
class FilesReport:
    """The files of the boot partition."""

    count: int
    largest: FatEntry | None
    """A host OS update needs room for twice its size; ``None`` if there are no files."""

    networks: tuple[Network, ...]
    fingerprint: FingerprintReport | None
    overwritten: tuple[str, ...] | None
    """Files that differ from the fingerprint and that the next host OS update replaces; ``None``
    if they were not read."""


@dataclass(frozen=True, slots=True)
class BmapReport:
    """The block map that bmaptool would use for the image."""

    path: Path
    bmap: Bmap | None
    """Its content; ``None`` if it cannot be used."""

    fault: str | None
    """Reason why it cannot be used; ``None`` if it can."""

    differing: tuple[Extent, ...] | None
    """Mapped ranges of the image that have another checksum; ``None`` if they were not read."""


@dataclass(frozen=True, slots=True)
class CarriedReport:
    """The image that a flasher carries, and what the flasher does with it."""

    flasher: Flasher
    disk: DiskReport | None
    """``None`` if it is not an image of balenaOS layout."""

    signature: SignatureReport
    devices: tuple[str, ...]
    """Names, by the board's kernel, of the disks it may write; it writes the first there is."""

    steps: tuple[FlasherStep, ...] | None
    """The steps of the flasher, in its order; ``None`` if they are unknown."""


@dataclass(frozen=True, slots=True)
class ImageReport:
    """The report of ``inspect``."""

    location: ImageLocation
    container: Container
    member: str | None
    """Name of the image in a container that has members."""

    disk: DiskReport
    files: FilesReport | None
    """``None`` if the boot partition is too damaged."""

    signature: SignatureReport
    carried: CarriedReport | None
    """``None`` if the image is not a flasher, or a flasher that is too damaged."""

    bmap: BmapReport | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """The checks beyond what is read quickly."""

    member: str | None = None
    """Name of the image in a container that holds several."""

    sha256: str | None = None
    """Sum that the image, or the file it comes in, must have."""

    show_secrets: bool = False
    check_files: bool = False
    """Read all files of the boot partition: a tenth of a second or two for a file, and seconds for
    a card."""

    check_bmap: bool = False
    """Read all ranges of the block map."""

    check_signature: bool = False
    """Read all of each signed image: the image itself, the one in a flasher, or both."""

    certificate: CertificateFile | None = None
    """Certificate to check against instead of the image's own."""


QUICK = Scope()


def inspect(location: ImageLocation, scope: Scope = QUICK) -> ImageReport:
    """The report on the image at ``location``, and on a block map and signature beside a file.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
    """
    path = location if isinstance(location, Path) else None
    with open_for_reading(location, member=scope.member, sha256=scope.sha256) as opened:
        source = opened.source
        image = BalenaImage(source, opened.warnings)
        disk = report_disk(image, show_secrets=scope.show_secrets)
        warnings: list[str] = []
        files = _report_files(image.files, warnings, check=scope.check_files)
        warnings += (*image.mark_warnings, *image.files.problems())
        certificate = _choose_certificate(image.files, scope, warnings)
        limit = _most_decoded(location, opened.container)
        carried = _report_carried(image, certificate, scope, limit, warnings)
        signature = report_beside(path, source, certificate, check=scope.check_signature)
        bmap = _report_bmap(path, source, check=scope.check_bmap)
        # Last: they are after everything else that is read.
        disk = follow_logical(image, disk, limit=limit)
        about_card = warn_of_cut_off(path) if path else ()
        if scope.sha256 is not None or scope.check_bmap or scope.check_signature:
            source.finish()
        opened.require_unchanged()
        return ImageReport(
            location=location,
            container=opened.container,
            member=opened.member,
            disk=disk,
            files=files,
            signature=signature,
            carried=carried,
            bmap=bmap,
            warnings=tuple(
                dict.fromkeys(
                    (
                        *image.opening_warnings,
                        *about_card,
                        *disk.warnings,
                        *warnings,
                        *opened.reading_warnings,
                    )
                )
            ),
        )


def _most_decoded(location: ImageLocation, container: Container) -> int:
    """Bytes to decode only for logical partitions."""
    is_fast = isinstance(location, Path) and container in _FAST
    return _MOST_DECODED if is_fast else _MOST_DECODED_ELSEWHERE


def _choose_certificate(
    files: FatVolume, scope: Scope, warnings: list[str]
) -> CertificateFile | None:
    if scope.certificate is not None:
        return scope.certificate
    try:
        return find_certificate(files)
    except ImageError as error:
        warnings.append(str(error))
        return None


def _report_files(volume: FatVolume, warnings: list[str], *, check: bool) -> FilesReport | None:
    try:
        files = [entry for entry in volume.walk() if not entry.is_directory]
        fingerprint = check_fingerprint(volume, contents=check)
        overwritten = None
        if fingerprint is not None and fingerprint.differing is not None:
            overwritten = tuple(find_overwritten(fingerprint.differing, listed_paths(volume)))
        report = FilesReport(
            count=len(files),
            largest=max(files, key=lambda entry: entry.size, default=None),
            networks=list_networks(volume),
            fingerprint=fingerprint,
            overwritten=overwritten,
        )
    except ImageError as error:
        warnings.append(str(error))
        return None
    warnings += warn_of_low_space(volume)
    return report


def _report_bmap(image: Path | None, source: Source, *, check: bool) -> BmapReport | None:
    path = find_beside(image) if image else None
    if path is None:
        return None
    try:
        bmap = read_bmap(path)
        if check and source.size is None:
            source.measure()
        if source.size is not None:
            require_same_size(bmap, source)
    except ImageError as error:
        return BmapReport(path, None, str(error), None)
    return BmapReport(path, bmap, None, differing_ranges(bmap, source) if check else None)


def _report_carried(
    image: BalenaImage,
    certificate: CertificateFile | None,
    scope: Scope,
    limit: int,
    warnings: list[str],
) -> CarriedReport | None:
    """The image that the flasher ``image`` carries; ``None`` if it is not a flasher.

    Anything wrong with it is added to ``warnings``; ``limit`` is that of `follow_logical`.
    """
    if image.facts.kind is ImageKind.RAW:
        return None
    try:
        flasher = read_flasher(image)
    except ImageError as error:
        warnings.append(str(error))
        return None
    if flasher is None:
        return None
    warnings += flasher.warnings
    disk = _report_inner(flasher, warnings, show_secrets=scope.show_secrets)
    devices, steps = flasher.settings.internal_devices, None
    if disk is not None:
        try:
            unwrapping = Unwrapping(image, flasher)
            about_inner = (*unwrapping.warnings, *disk.files.problems())
        except (ImageError, ConfigError) as error:
            warnings.append(f"What this flasher does on its board is unknown: {error}")
        else:
            devices, steps = unwrapping.devices, unwrapping.steps
            warnings += about_inner
    signature = _report_signature(flasher, certificate, check=scope.check_signature)
    if disk is not None:
        disk = _follow_inner(flasher, disk, warnings, limit)
    return CarriedReport(flasher, disk, signature, devices, steps)


def _report_inner(
    flasher: Flasher, warnings: list[str], *, show_secrets: bool
) -> DiskReport | None:
    try:
        disk = report_disk(flasher.image, show_secrets=show_secrets)
    except ImageError as error:
        warnings.append(str(error))
        return None
    warnings += (f"{flasher.image_name}: {warning}" for warning in disk.warnings)
    return disk


def _follow_inner(
    flasher: Flasher, disk: DiskReport, warnings: list[str], limit: int
) -> DiskReport:
    try:
        followed = follow_logical(flasher.image, disk, limit=limit)
    except ImageError as error:
        warnings.append(str(error))
        return disk
    new = (each for each in followed.warnings if each not in disk.warnings)
    warnings += (f"{flasher.image_name}: {warning}" for warning in new)
    return followed


def _report_signature(
    flasher: Flasher, certificate: CertificateFile | None, *, check: bool
) -> SignatureReport:
    if flasher.signature is None:
        return SignatureReport(SignatureState.NOT_SIGNED, None, certificate)
    path = flasher.image_path + SIGNATURE_SUFFIX
    report = SignatureReport(SignatureState.NOT_CHECKED, path, certificate)
    if not check:
        return report
    return check_signature(report, flasher.image.source, flasher.signature)


def find_failed_checks(report: ImageReport, scope: Scope) -> Iterator[ImageError]:
    """An error for each check of ``scope`` that could not be made or did not pass."""
    if scope.check_files:
        yield from _failed_files(report)
    if scope.check_bmap:
        yield from _failed_bmap(report)
    if scope.check_signature:
        yield from _failed_signatures(report)


def _failed_files(report: ImageReport) -> Iterator[ImageError]:
    fingerprint = None if report.files is None else report.files.fingerprint
    if fingerprint is None:
        yield ImageError(
            f"{report.location}: has no readable fingerprint of its boot files, so they were not "
            "compared",
            code="fingerprint-missing",
        )
    elif not fingerprint.matches:
        count = sum(map(len, (fingerprint.differing or (), fingerprint.missing, fingerprint.new)))
        yield ImageError(
            f"{report.location}: {count} of its boot files differ from the fingerprint",
            code="fingerprint-differs",
        )


def _failed_bmap(report: ImageReport) -> Iterator[ImageError]:
    bmap = report.bmap
    if bmap is None:
        yield ImageError(
            f"{report.location}: has no block map beside it",
            code="bmap-missing",
            hint="Make one: balenaflash bmap create IMAGE",
        )
    elif bmap.fault is not None or bmap.differing is None:
        yield ImageError(
            bmap.fault or f"{bmap.path}: was not compared with the image", code="bmap-invalid"
        )
    elif bmap.differing:
        yield ImageError(
            f"{bmap.path}: the image differs from it in {len(bmap.differing)} ranges, "
            f"the first from byte {bmap.differing[0].start} on",
            code="bmap-differs",
        )


def _failed_signatures(report: ImageReport) -> Iterator[ImageError]:
    """The signatures of the image and of the one it carries; if only one is there, that one."""
    image, carried = str(report.location), report.carried
    signatures = {image: report.signature}
    if carried is not None:
        signatures[f"{image} ({carried.flasher.image_name})"] = carried.signature
    found = {name: each for name, each in signatures.items() if each.path is not None}
    for name, signature in (found or {image: report.signature}).items():
        if signature.state is not SignatureState.VERIFIED:
            yield _not_verified(name, signature)


def _not_verified(name: str, signature: SignatureReport) -> ImageError:
    match signature.state:
        case SignatureState.SELF_SIGNED:
            return ImageError(
                f"{name}: is signed by the certificate in the image itself, which can be changed "
                "together with the image",
                code="signature-self-signed",
                hint="Check it against yours: --certificate FILE",
            )
        case SignatureState.WRONG:
            return ImageError(
                f"{name}: its signature {signature.path} does not verify: {signature.reason}",
                code="signature-wrong",
                hint="Do not use it. Fetch it again from where it was published.",
            )
        case SignatureState.NOT_SIGNED:
            return ImageError(f"{name}: has no signature", code="signature-missing")
        case _:
            reason = f": {signature.reason}" if signature.reason else ""
            return ImageError(
                f"{name}: its signature could not be checked{reason}", code="signature-not-checked"
            )
