"""The signature of an image: found beside it or in a flasher, and verified."""

import hashlib
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from balenaflash.durable import open_regular_file
from balenaflash.errors import ImageError, ToolMissingError
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.source.base import Source
from balenaflash.source.location import ImageLocation
from balenaflash.units import KIB, MIB

if TYPE_CHECKING:
    from balenaflash.balena.certificate import Certificate

SIGNATURE_SUFFIX = ".sig"
KEYS_FOLDER = "/balena-keys"
"""Folder in the boot partition of a signed build (meta-balena, ``balena-keys.bb``)."""

CERTIFICATE_PATH = f"{KEYS_FOLDER}/kmod.crt"
"""The certificate that the flasher uses (``resin-init-flasher``, ``verify_image_signature``)."""

_COMPRESSED_SUFFIXES = frozenset({".bz2", ".gz", ".xz", ".zip", ".zst"})
_MAX_SIGNATURE_SIZE = 64 * KIB  # one by an RSA key of 16384 bits has 2048 bytes
MAX_CERTIFICATE_SIZE = MIB  # a certificate has two or three KiB; others may be appended
_PIECE = 4 * MIB  # read and hashed at a time


class SignatureState(StrEnum):
    """State of the signature of an image."""

    NOT_SIGNED = "not-signed"
    NOT_CHECKED = "not-checked"
    """It is there; the image was not read to check it."""

    VERIFIED = "verified"
    """It is by the key of the certificate that the user gave."""

    SELF_SIGNED = "self-signed"
    """It is by the key of a certificate in the image, which can be changed with the image."""

    WRONG = "wrong"
    UNKNOWN = "unknown"
    """It could not be checked."""


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """The file of a certificate, found or given."""

    name: str
    """Path as it is shown."""

    content: bytes

    of_image: bool
    """True if it comes from the image itself, and can be changed with the image."""


@dataclass(frozen=True, slots=True)
class SignatureReport:
    """The signature of an image."""

    state: SignatureState
    path: str | None
    """The file of the signature; ``None`` if there is none."""

    certificate: CertificateFile | None
    """The certificate to check against; ``None`` if there is none."""

    reason: str | None = None
    """Clause: why it is wrong or unknown."""

    subject: str | None = None
    """Subject of the certificate, in the form of RFC 4514; ``None`` if it was not read."""

    sha256: str | None = None
    """Fingerprint of the certificate in lower-case hexadecimal, as ``openssl x509`` has it."""

    odd_time: str | None = None
    """Clause: why the certificate is not valid now."""


def find_signature_beside(image: Path) -> Path | None:
    """The file of the signature of ``image``, if there is one.

    The raw image is signed, so the signature of ``balena.img.gz`` may be ``balena.img.sig``.
    """
    names = [image.name]
    if image.suffix in _COMPRESSED_SUFFIXES:
        names.append(image.stem)
    paths = (image.with_name(name + SIGNATURE_SUFFIX) for name in names)
    # Not Path.is_file(), which raises for a name that is too long.
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113


def find_certificate(volume: FatVolume) -> CertificateFile | None:
    """The certificate in the boot partition of a signed build.

    Raises:
        ImageError: the volume is damaged there.
    """
    entry = volume.find(CERTIFICATE_PATH)
    if entry is None or entry.is_directory or entry.size > MAX_CERTIFICATE_SIZE:
        return None
    content = volume.read_file(CERTIFICATE_PATH)
    return CertificateFile(f"{CERTIFICATE_PATH} of the image", content, of_image=True)


def report_beside(
    image: Path | None, source: Source, certificate: CertificateFile | None, *, check: bool
) -> SignatureReport:
    """The signature in a file beside ``image``, whose raw bytes are ``source``.

    ``image`` is ``None`` if it is not a file. ``check`` reads all of it.

    Raises:
        ImageError: the image cannot be read.
    """
    if image is None:
        reason = "only a file can have one beside it"
        return SignatureReport(SignatureState.UNKNOWN, None, certificate, reason)
    path = find_signature_beside(image)
    if path is None:
        return SignatureReport(SignatureState.NOT_SIGNED, None, certificate)
    report = SignatureReport(SignatureState.NOT_CHECKED, str(path), certificate)
    if not check:
        return report
    try:
        signature = _read_signature(path)
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
        return replace(report, state=SignatureState.UNKNOWN, reason=reason)
    return check_signature(report, source, signature)


def _read_signature(path: Path) -> bytes:
    with os.fdopen(open_regular_file(path), "rb") as file:
        return file.read(_MAX_SIGNATURE_SIZE)


def check_signature(report: SignatureReport, source: Source, signature: bytes) -> SignatureReport:
    """``report`` with the result for ``signature``, after reading all of ``source``.

    Raises:
        ImageError: the image cannot be read.
    """
    if report.certificate is None:
        reason = f"there is no certificate: {CERTIFICATE_PATH} is missing, and no other was given"
        return replace(report, state=SignatureState.UNKNOWN, reason=reason)
    try:
        certificate = _load(report.certificate)
    except ImageError as error:
        return replace(report, state=SignatureState.UNKNOWN, reason=str(error))
    if certificate is None:
        reason = "the Python library cryptography is not installed"
        return replace(report, state=SignatureState.UNKNOWN, reason=reason)
    fault = certificate.find_fault(_sha256(source), signature)
    right = SignatureState.SELF_SIGNED if report.certificate.of_image else SignatureState.VERIFIED
    return replace(
        report,
        state=right if fault is None else SignatureState.WRONG,
        reason=fault,
        subject=certificate.subject,
        sha256=certificate.sha256,
        odd_time=certificate.find_odd_time(datetime.now(UTC)),
    )


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """A check that the bytes of an image are those that were signed."""

    path: Path
    """The file of the signature."""

    signature: bytes = field(repr=False)
    certificate: "Certificate"
    warnings: tuple[str, ...]

    def is_met_by_stored(self, _stored: bytes) -> bool:
        """False: the image is signed, not the file it is compressed to."""
        return False

    def require(self, name: str, image: bytes, _stored: bytes) -> None:
        """Return if the signature is that of an image with the SHA-256 ``image``.

        Raises:
            ImageError: it is not (``signature-wrong``).
        """
        fault = self.certificate.find_fault(image, self.signature)
        if fault is not None:
            raise ImageError(
                f"{name}: its signature {self.path} does not verify: {fault}",
                code="signature-wrong",
                hint="Do not use it. Fetch it again from where it was published.",
            )


def require_signature(image: ImageLocation, given: CertificateFile) -> SignatureCheck:
    """The check of ``image`` by the signature beside it and the certificate ``given``.

    Raises:
        ImageError: there is no signature, or one of the two cannot be read.
        ToolMissingError: the library that checks signatures is not installed.
    """
    path = find_signature_beside(image) if isinstance(image, Path) else None
    if path is None:
        beside = "none is beside it" if isinstance(image, Path) else "only a file can have one"
        raise ImageError(
            f"{image}: no signature to check: {beside}",
            code="signature-missing",
            hint="Put it beside the image, as IMAGE.sig; or leave --certificate out.",
        )
    try:
        signature = _read_signature(path)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read: {error.strerror}", code="signature-not-checked"
        ) from error
    certificate = _load(given)
    if certificate is None:
        raise ToolMissingError(
            "The Python library cryptography, which checks signatures, is not installed",
            hint="Install it: pip install 'balenaflash[signatures]'",
        )
    odd = certificate.find_odd_time(datetime.now(UTC))
    warnings = () if odd is None else (f"{given.name}: the certificate is not valid now: {odd}",)
    return SignatureCheck(path, signature, certificate, warnings)


def _load(file: CertificateFile) -> "Certificate | None":
    """The certificate; ``None`` without the library that reads it.

    Raises:
        ImageError: it cannot be used.
    """
    try:
        # The library is optional, and takes longer to load than all the rest of the work.
        from balenaflash.balena.certificate import Certificate  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "cryptography":
            raise
        return None
    return Certificate.read(file.content, file.name)


def _sha256(source: Source) -> bytes:
    size = source.measure() if source.size is None else source.size
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_PIECE, size)))
    with source.sequential():
        for offset in range(0, size, _PIECE):
            piece = buffer[: size - offset]
            source.readinto(offset, piece)
            digest.update(piece)
    return digest.digest()
