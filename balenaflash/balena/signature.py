"""Whether an image is signed, and whether its signature verifies; the only home of cryptography.

A signed build of balenaOS signs the SHA-256 digest of the raw image (meta-balena v8,
``image_types_balena.bbclass``, ``IMAGE_CMD:balenaos-img.sig``). A flasher with secure boot checks
the signature of the image it carries by ``openssl pkeyutl -verify -certin -inkey kmod.crt`` over
the digest (``resin-init-flasher``, ``verify_image_signature``): for RSA that is PKCS #1 v1.5
padding around the bare digest, without the DigestInfo of RFC 8017, section 9.2, which
``openssl dgst -sign`` puts in. What that check refuses is no signature here either, for the
board would not install the image.

The library is optional, so this module is imported only where a signature is checked.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate

from balenaflash.durable import open_regular_file
from balenaflash.errors import ImageError, ToolMissingError
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.source.base import Source
from balenaflash.source.location import ImageLocation
from balenaflash.units import KIB, MIB

_PEM_START = b"-----BEGIN "  # RFC 7468, section 2
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""What stands before a SHA-256 digest in a signature (RFC 8017, section 9.2, note 1)."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate that a signature is checked against."""

    subject: str
    """In the form of RFC 4514, such as ``CN=balenaOS``."""

    sha256: str
    """Fingerprint: the SHA-256 digest of its DER form, in lower-case hexadecimal."""

    not_before: datetime
    not_after: datetime
    """The time within which its issuer vouches for it, in UTC."""

    _key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = field(repr=False)

    @classmethod
    def read(cls, content: bytes, name: str) -> "Certificate":
        """The first certificate in ``content``, in PEM or DER form; ``name`` is its file.

        The first one counts for the flasher too, where others are appended. Who issued it is not
        looked at, nor does the flasher look at the time.

        Raises:
            ImageError: there is none, or its key is neither RSA nor EC (``certificate-invalid``).
        """
        load = load_pem_x509_certificate if _PEM_START in content else load_der_x509_certificate
        try:
            loaded = load(content)
            key = loaded.public_key()
            subject = loaded.subject.rfc4514_string()
        except (ValueError, KeyError, UnsupportedAlgorithm) as error:
            # KeyError: a name with a string type that cryptography (42 to 48) does not know.
            raise ImageError(
                f"{name}: is not a certificate that can be read", code="certificate-invalid"
            ) from error
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise ImageError(
                f"{name}: the key of the certificate is neither RSA nor EC",
                code="certificate-invalid",
            )
        validity = loaded.not_valid_before_utc, loaded.not_valid_after_utc
        return cls(subject, loaded.fingerprint(SHA256()).hex(), *validity, key)

    def find_odd_time(self, now: datetime) -> str | None:
        """A clause that says that it is not valid at ``now``; ``None`` where it is."""
        if now > self.not_after:
            return f"it expired on {self.not_after:%Y-%m-%d}"
        if now < self.not_before:
            return f"it is valid from {self.not_before:%Y-%m-%d} on only"
        return None

    def find_fault(self, digest: bytes, signature: bytes) -> str | None:
        """Why ``signature`` is not that of a SHA-256 ``digest``; ``None`` when it verifies."""
        try:
            match self._key:
                case rsa.RSAPublicKey() as key:
                    return _compare(digest, _recover(key, signature))
                case key:
                    key.verify(signature, digest, ec.ECDSA(Prehashed(SHA256())))
        except InvalidSignature:
            return "it is of another image, or by another key"
        return None


def _recover(key: rsa.RSAPublicKey, signature: bytes) -> bytes:
    """What was signed.

    Raises:
        InvalidSignature: it is not by this key.
    """
    try:
        return key.recover_data_from_signature(signature, padding.PKCS1v15(), None)
    except ValueError as error:  # longer than the key, or a number larger than its modulus
        raise InvalidSignature from error


def _compare(digest: bytes, signed: bytes) -> str | None:
    if hmac.compare_digest(signed, digest):
        return None
    if signed == _DIGEST_INFO + digest:
        return (
            "it is made by openssl dgst, or in its way; the flasher takes one of the bare digest, "
            "as openssl pkeyutl makes it"
        )
    return "it is of another image, though by this key"


SIGNATURE_SUFFIX = ".sig"
KEYS_FOLDER = "/balena-keys"
"""Of the boot partition of a signed build (meta-balena, ``balena-keys.bb``)."""

CERTIFICATE_PATH = f"{KEYS_FOLDER}/kmod.crt"
"""The certificate that the flasher uses (``resin-init-flasher``, ``verify_image_signature``)."""

_COMPRESSED_SUFFIXES = frozenset({".bz2", ".gz", ".xz", ".zip", ".zst"})
MAX_SIGNATURE_SIZE = 64 * KIB  # that of an RSA key of 16384 bits has 2048 bytes
MAX_CERTIFICATE_SIZE = MIB  # a certificate has two or three KiB, and others may be appended
_PIECE = 4 * MIB  # read and hashed at a time


class SignatureState(StrEnum):
    """What is known of the signature of an image."""

    NOT_SIGNED = "not-signed"
    NOT_CHECKED = "not-checked"
    """There is one; the image was not read to compare it."""

    VERIFIED = "verified"
    """It is by the key of a certificate that the user gave."""

    SELF_SIGNED = "self-signed"
    """It is by the key of a certificate that the image carries: whoever changes the image can
    change that too."""

    WRONG = "wrong"
    UNKNOWN = "unknown"
    """It could not be checked."""


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """The file of a certificate, as it was found or given."""

    name: str
    """Its path, to be shown."""

    content: bytes

    of_image: bool
    """Whether it comes from the image itself: whoever changes the image can change it too."""


@dataclass(frozen=True, slots=True)
class SignatureReport:
    """The signature of an image."""

    state: SignatureState
    path: str | None
    """The file of the signature; ``None`` where there is none."""

    certificate: CertificateFile | None
    """The one to check against; ``None`` where there is none."""

    reason: str | None = None
    """Why it is wrong or unknown: a clause."""

    subject: str | None = None
    """Of the certificate, in the form of RFC 4514; ``None`` where it was not read."""

    sha256: str | None = None
    """Fingerprint of the certificate in lower-case hexadecimal, as ``openssl x509`` tells it."""

    odd_time: str | None = None
    """Why the certificate is not valid now: a clause."""


def find_signature_beside(image: Path) -> Path | None:
    """The file of the signature of ``image``, if there is one.

    What is signed is the raw image, so that of ``balena.img.gz`` may be ``balena.img.sig``.
    """
    names = [image.name]
    if image.suffix in _COMPRESSED_SUFFIXES:
        names.append(image.stem)
    paths = (image.with_name(name + SIGNATURE_SUFFIX) for name in names)
    # Not Path.is_file(), to which a name that is too long is an error.
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113


def find_certificate(volume: FatVolume) -> CertificateFile | None:
    """The certificate that the boot partition of a signed build carries.

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

    Nothing lies beside ``None``, an image that comes from elsewhere. ``check`` reads all of it.

    Raises:
        ImageError: the image cannot be read.
    """
    if image is None:
        reason = "one is looked for beside a file only"
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
        return file.read(MAX_SIGNATURE_SIZE)


def check_signature(report: SignatureReport, source: Source, signature: bytes) -> SignatureReport:
    """``report`` with the verdict on ``signature``, after reading all of ``source``.

    Raises:
        ImageError: the image cannot be read.
    """
    if report.certificate is None:
        reason = f"there is no certificate: {CERTIFICATE_PATH} is missing, and none was given"
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
    """That the bytes that are used of an image are those that were signed."""

    path: Path
    """The file of the signature."""

    signature: bytes = field(repr=False)
    certificate: "Certificate"
    warnings: tuple[str, ...]

    def is_met_by_stored(self, _stored: bytes) -> bool:
        """Never: the image is signed, not what it is compressed to."""
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
        beside = "has none beside it" if isinstance(image, Path) else "one is only beside a file"
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
            "The Python library cryptography is not installed, which checks signatures",
            hint="Install it: pip install 'balenaflash[signatures]'",
        )
    odd = certificate.find_odd_time(datetime.now(UTC))
    warnings = () if odd is None else (f"{given.name}: the certificate is not valid now: {odd}",)
    return SignatureCheck(path, signature, certificate, warnings)


def _load(file: CertificateFile) -> "Certificate | None":
    """The certificate; ``None`` without the library that reads it.

    Raises:
        ImageError: it is none that can be used.
    """
    try:
        # The library is optional, and takes longer to load than all the rest of the work.
        pass
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
