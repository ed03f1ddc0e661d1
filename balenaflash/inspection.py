"""Everything there is to know about an image, without changing it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from balenaflash.boot.fingerprint import FingerprintReport, listed_paths
from balenaflash.boot.fingerprint import check as check_fingerprint
from balenaflash.boot.invalidation import find_overwritten, warn_of_low_space
from balenaflash.boot.network import Network, list_networks
from balenaflash.card_records import warn_of_cut_off
from balenaflash.disk_layout import LayoutReport, follow_logical, report_layout
from balenaflash.errors import ImageError
from balenaflash.extent import GIB, MIB, Extent
from balenaflash.image.balenaos import ImageKind
from balenaflash.image.bmap.beside import find_beside, read_bmap
from balenaflash.image.bmap.block_map import Bmap, differing_ranges, require_same_size
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.location import ImageLocation
from balenaflash.image.fat.volume import FatEntry, FatVolume
from balenaflash.image.half_edited import warn_of_half_edited
from balenaflash.image.opening import open_for_reading
from balenaflash.image.source import Source
from balenaflash.signatures import (
    CertificateFile,
    SignatureReport,
    find_certificate,
    report_beside,
)

if TYPE_CHECKING:
    from balenaflash.carried_image import CarriedReport


_MOST_DECODED = GIB
"""Bytes of a compressed file to decode only for its logical partitions: a second or two."""

_MOST_DECODED_ELSEWHERE = 64 * MIB
"""The same for a slow decoder, and for what comes over a network or a pipe."""

_FAST = frozenset({Container.GZIP, Container.ZIP, Container.ZSTD})
"""Containers that are decoded at hundreds of MB a second."""


@dataclass(frozen=True, slots=True)
class FilesReport:
    """The files of the boot partition."""

    count: int
    largest: FatEntry | None
    """A host OS update needs room for twice its size; ``None`` where there are no files."""

    networks: tuple[Network, ...]
    fingerprint: FingerprintReport | None
    overwritten: tuple[str, ...] | None
    """Those that differ from the fingerprint and that the next host OS update replaces; ``None``
    where they were not read."""


@dataclass(frozen=True, slots=True)
class BmapReport:
    """The block map that bmaptool would take for the image."""

    path: Path
    bmap: Bmap | None
    """What it says; ``None`` where it is of no use."""

    fault: str | None
    """Why it is of no use."""

    differing: tuple[Extent, ...] | None
    """Mapped ranges of the image that have another checksum; ``None`` where none was read."""


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What ``inspect`` tells."""

    location: ImageLocation
    container: Container
    member: str | None
    """Its name in a container that has members."""

    layout: LayoutReport
    files: FilesReport | None
    """``None`` where the boot partition is too damaged to tell."""

    signature: SignatureReport
    carried: "CarriedReport | None"
    """``None`` of an image that is no flasher, and of a flasher too damaged to tell."""

    bmap: BmapReport | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at, beyond what is quickly read."""

    member: str | None = None
    """Which image is meant, in a container that holds several."""

    sha256: str | None = None
    """What the image, or the file it comes in, must have as its sum."""

    show_secrets: bool = False
    check_files: bool = False
    """Read all files of the boot partition, a matter of a tenth of a second or two for a file
    and of seconds for a card."""

    check_bmap: bool = False
    """Read all that the block map lists."""

    check_signature: bool = False
    """Read all of what is signed: the image, the one that a flasher carries, or both."""

    certificate: CertificateFile | None = None
    """To check against instead of the image's own."""

    @property
    def reads_all(self) -> bool:
        """Whether something is to be known that the image tells at its end only."""
        return self.sha256 is not None or self.check_bmap or self.check_signature


QUICK = Scope()


def inspect(location: ImageLocation, scope: Scope = QUICK) -> ImageReport:
    """Look into the image at ``location``; beside a file also for its block map and signature.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
    """
    path = location if isinstance(location, Path) else None
    with open_for_reading(location, member=scope.member, sha256=scope.sha256) as image:
        source = image.source
        layout = report_layout(source, show_secrets=scope.show_secrets)
        files, about_files = _report_files(layout.files, check=scope.check_files)
        certificate, about_certificate = _choose_certificate(layout.files, scope)
        limit = _most_decoded(location, image.container)
        carried, about_carried = _report_carried(source, layout, certificate, scope, limit)
        signature = report_beside(path, source, certificate, check=scope.check_signature)
        bmap = _report_bmap(path, source, check=scope.check_bmap)
        # Last, since they lie behind all else that was read.
        layout = follow_logical(source, layout, limit=limit)
        warnings = (
            *image.warnings,
            *(warn_of_cut_off(path) if path else ()),
            *layout.warnings,
            *about_files,
            *warn_of_half_edited(layout.files.edit_mark.before),
            *layout.files.problems(),
            *about_certificate,
            *about_carried,
        )
        if scope.reads_all:
            source.finish()
        image.require_unchanged()
        return ImageReport(
            location=location,
            container=image.container,
            member=image.member,
            layout=layout,
            files=files,
            signature=signature,
            carried=carried,
            bmap=bmap,
            warnings=tuple(dict.fromkeys((*warnings, *image.reading_warnings))),
        )


def _most_decoded(location: ImageLocation, container: Container) -> int:
    """Bytes to decode only for logical partitions."""
    is_fast = isinstance(location, Path) and container in _FAST
    return _MOST_DECODED if is_fast else _MOST_DECODED_ELSEWHERE


def _choose_certificate(
    volume: FatVolume, scope: Scope
) -> tuple[CertificateFile | None, tuple[str, ...]]:
    if scope.certificate is not None:
        return scope.certificate, ()
    try:
        return find_certificate(volume), ()
    except ImageError as error:
        return None, (str(error),)


def _report_carried(
    source: Source,
    layout: LayoutReport,
    certificate: CertificateFile | None,
    scope: Scope,
    limit: int,
) -> "tuple[CarriedReport | None, tuple[str, ...]]":
    if layout.facts.kind is ImageKind.RAW:
        return None, ()
    # It takes as long to load as a raw image takes to be looked into.
    from balenaflash.carried_image import report_carried  # noqa: PLC0415 - see above

    return report_carried(
        source,
        layout.table,
        certificate,
        show_secrets=scope.show_secrets,
        check=scope.check_signature,
        limit=limit,
    )


def _report_files(volume: FatVolume, *, check: bool) -> tuple[FilesReport | None, tuple[str, ...]]:
    """What there is to tell of the files, and to warn of."""
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
        return None, (str(error),)
    return report, tuple(warn_of_low_space(volume))


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
