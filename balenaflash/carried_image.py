"""What a flasher carries, and what it would do with it on its board."""

from dataclasses import dataclass

from balenaflash.disk_layout import LayoutReport, follow_logical, report_layout
from balenaflash.errors import ConfigError, ImageError
from balenaflash.image.flasher import Flasher, read_flasher
from balenaflash.image.source import Source
from balenaflash.image.table.model import PartitionTable
from balenaflash.installation_steps import Step
from balenaflash.signatures import (
    SIGNATURE_SUFFIX,
    CertificateFile,
    SignatureReport,
    SignatureState,
    check_signature,
)
from balenaflash.unwrapping import plan_unwrap


@dataclass(frozen=True, slots=True)
class CarriedReport:
    """The image that a flasher carries, and what the flasher does with it."""

    flasher: Flasher
    layout: LayoutReport | None
    """``None`` where it is no image of balenaOS layout."""

    signature: SignatureReport
    devices: tuple[str, ...]
    """Names, by the board's kernel, of the disks it may write; the first one there is taken."""

    steps: tuple[Step, ...] | None
    """What the flasher does, in its order; ``None`` where that is not known."""

    warnings: tuple[str, ...]


def report_carried(
    source: Source,
    table: PartitionTable,
    certificate: CertificateFile | None,
    *,
    show_secrets: bool,
    check: bool,
    limit: int,
) -> tuple[CarriedReport | None, tuple[str, ...]]:
    """What the flasher in ``source`` carries, and what to warn of.

    Nothing is reported of an image that is no flasher; what is wrong with one is a warning.
    ``check`` reads all of the inner image to check its signature; ``limit`` is that of
    `follow_logical`.
    """
    try:
        flasher = read_flasher(source, table)
    except ImageError as error:
        return None, (str(error),)
    if flasher is None:
        return None, ()
    warnings = list(flasher.warnings)
    layout = _report_layout(flasher, warnings, show_secrets=show_secrets)
    devices, steps = flasher.settings.internal_devices, None
    if layout is not None:
        try:
            plan = plan_unwrap(source, table)
        except (ImageError, ConfigError) as error:
            warnings.append(f"What this flasher does on its board is not known: {error}")
        else:
            devices, steps = plan.expected_devices, plan.steps
            warnings += (*plan.warnings, *plan.inner.files.problems())
    signature = _report_signature(flasher, certificate, check=check)
    if layout is not None:
        layout = _follow_logical(flasher, layout, warnings, limit)
    report = CarriedReport(flasher, layout, signature, devices, steps, tuple(warnings))
    return report, report.warnings


def _report_layout(
    flasher: Flasher, warnings: list[str], *, show_secrets: bool
) -> LayoutReport | None:
    try:
        layout = report_layout(flasher.image, show_secrets=show_secrets)
    except ImageError as error:
        warnings.append(str(error))
        return None
    warnings += (f"{flasher.image_name}: {warning}" for warning in layout.warnings)
    return layout


def _follow_logical(
    flasher: Flasher, layout: LayoutReport, warnings: list[str], limit: int
) -> LayoutReport:
    try:
        followed = follow_logical(flasher.image, layout, limit=limit)
    except ImageError as error:
        warnings.append(str(error))
        return layout
    new = (each for each in followed.warnings if each not in layout.warnings)
    warnings += (f"{flasher.image_name}: {warning}" for warning in new)
    return followed


def _report_signature(
    flasher: Flasher, certificate: CertificateFile | None, *, check: bool
) -> SignatureReport:
    if flasher.signature is None:
        return SignatureReport(SignatureState.NOT_SIGNED, None, certificate)
    path = flasher.image_path + SIGNATURE_SUFFIX
    report = SignatureReport(SignatureState.NOT_CHECKED, path, certificate)
    return check_signature(report, flasher.image, flasher.signature) if check else report
