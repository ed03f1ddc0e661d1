"""A certificate, and whether a signature is by its key; the only home of cryptography.

A signed build of balenaOS signs the SHA-256 digest of the raw image (meta-balena v8,
``image_types_balena.bbclass``, ``IMAGE_CMD:balenaos-img.sig``). A flasher with secure boot checks
the signature of the image it carries by ``openssl pkeyutl -verify -certin -inkey kmod.crt`` over
the digest (``resin-init-flasher``, ``verify_image_signature``): for RSA that is PKCS #1 v1.5
padding around the bare digest, without the DigestInfo of RFC 8017, section 9.2, which
``openssl dgst -sign`` adds. A signature that this check refuses is refused here too, for the
board would not install the image.

The library is optional, so this module is imported only where a signature is checked.
"""

import hmac
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate

from balenaflash.errors import ImageError

_PEM_START = b"-----BEGIN "  # RFC 7468, section 2
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""Prefix of a SHA-256 digest in a signature (RFC 8017, section 9.2, note 1)."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that signatures are checked against."""

    subject: str
    """Subject in the form of RFC 4514, such as ``CN=balenaOS``."""

    sha256: str
    """Fingerprint: the SHA-256 digest of its DER form, in lower-case hexadecimal."""

    not_before: datetime
    not_after: datetime
    """Start and end of its validity, in UTC."""

    _key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = field(repr=False)

    @classmethod
    def read(cls, content: bytes, name: str) -> "Certificate":
        """The first certificate in ``content``, in PEM or DER form; ``name`` is its file.

        The flasher uses the first one too, if others are appended. Neither the issuer is checked
        nor, as on the flasher, the time.

        Raises:
            ImageError: it is not one, or its key is neither RSA nor EC (``certificate-invalid``).
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
        """Clause: why it is not valid at ``now``; ``None`` if it is."""
        if now > self.not_after:
            return f"it expired on {self.not_after:%Y-%m-%d}"
        if now < self.not_before:
            return f"it is valid from {self.not_before:%Y-%m-%d} on only"
        return None

    def find_fault(self, digest: bytes, signature: bytes) -> str | None:
        """Clause: why ``signature`` does not verify for the SHA-256 ``digest``, if so."""
        try:
            match self._key:
                case rsa.RSAPublicKey() as key:
                    return _compare(digest, _recover(key, signature))
                case key:
                    key.verify(signature, digest, ec.ECDSA(Prehashed(SHA256())))
        except InvalidSignature:
            return "it is that of another image, or by another key"
        return None


def _recover(key: rsa.RSAPublicKey, signature: bytes) -> bytes:
    """The signed bytes.

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
            "it has the form of openssl dgst; the flasher accepts only one of the bare digest, "
            "as openssl pkeyutl makes it"
        )
    return "it is that of another image, by this key"
