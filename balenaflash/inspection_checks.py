"""Whether the checks that were asked of ``inspect`` were made and passed."""

from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.inspection import ImageReport, Scope
from balenaflash.signatures import SignatureReport, SignatureState


def find_failed_checks(report: ImageReport, scope: Scope) -> Iterator[ImageError]:
    """An error for each check of ``scope`` that could not be made, or did not pass."""
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
            f"{report.location}: has no fingerprint of its boot files that can be read, so they "
            "were not compared",
            code="fingerprint-missing",
        )
    elif not fingerprint.matches:
        count = sum(map(len, (fingerprint.differing or (), fingerprint.missing, fingerprint.new)))
        yield ImageError(
            f"{report.location}: {count} of its boot files are not as in the fingerprint",
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
    """That of the image and that of the one it carries; one of them is enough if it is alone."""
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
                f"{name}: is signed by the certificate that it carries itself, which whoever "
                "changes the image can change too",
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
