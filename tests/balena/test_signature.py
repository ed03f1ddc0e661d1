"""Signatures: what openssl calls verified is, and nothing else."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signing import KEYS, Signer, make_signer, openssl

from balenaflash.errors import ImageError

pytest.importorskip("cryptography")
pytestmark = pytest.mark.needs("openssl")

from balenaflash.balena.certificate import Certificate  # noqa: E402 - not without the library

IMAGE = b"an image" * 1000


@pytest.fixture(params=KEYS, scope="module")
def signer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("signer") / "own", request.param)


@pytest.fixture(scope="module")
def signature(signer: Signer) -> bytes:
    """That of ``IMAGE``: an EC key makes another one each time."""
    return signer.sign(IMAGE)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("signer") / "other", subject="/CN=other")


def find_fault(signer: Signer, content: bytes, signature: bytes) -> str | None:
    certificate = Certificate.read(signer.certificate.read_bytes(), "kmod.crt")
    return certificate.find_fault(hashlib.sha256(content).digest(), signature)


def test_the_signature_of_the_image_verifies(signer: Signer) -> None:
    signature = signer.sign(IMAGE)
    assert signer.verifies(IMAGE, signature)
    assert find_fault(signer, IMAGE, signature) is None


def test_another_image_or_another_key_does_not_verify(signer: Signer, other: Signer) -> None:
    signature = signer.sign(IMAGE)
    assert not signer.verifies(IMAGE + b"x", signature)
    assert "another image" in (find_fault(signer, IMAGE + b"x", signature) or "")
    assert not other.verifies(IMAGE, signature)
    assert "another image" in (find_fault(other, IMAGE, signature) or "")


def test_what_openssl_dgst_signs_is_refused_as_the_flasher_refuses_it(other: Signer) -> None:
    image, path = other.folder / "image", other.folder / "dgst.sig"
    image.write_bytes(IMAGE)
    openssl("dgst", "-sha256", "-sign", other.folder / "key", "-out", path, image)
    assert not other.verifies(IMAGE, path.read_bytes())
    assert "openssl dgst" in (find_fault(other, IMAGE, path.read_bytes()) or "")


@settings(max_examples=40)
@given(data=st.data())
def test_a_spoiled_signature_never_verifies(
    signer: Signer, signature: bytes, data: st.DataObject
) -> None:
    spoiled = bytearray(signature)
    match data.draw(st.sampled_from(["flip", "cut", "longer", "anything"])):
        case "flip":
            place = data.draw(st.integers(0, len(spoiled) * 8 - 1))
            spoiled[place // 8] ^= 1 << place % 8
        case "cut":
            del spoiled[data.draw(st.integers(0, len(spoiled) - 1)) :]
        case "longer":
            spoiled += data.draw(st.binary(min_size=1, max_size=600))
        case _:
            spoiled[:] = data.draw(st.binary(max_size=600))
    assert find_fault(signer, IMAGE, bytes(spoiled)) is not None


def test_the_certificate_is_told_as_openssl_tells_it(signer: Signer) -> None:
    words = ("-noout", "-subject", "-nameopt", "RFC2253", "-fingerprint", "-sha256")
    subject, fingerprint = openssl("x509", "-in", signer.certificate, *words).splitlines()
    certificate = Certificate.read(signer.certificate.read_bytes(), "kmod.crt")
    assert certificate.subject == subject.removeprefix("subject=")
    assert certificate.sha256 == fingerprint.partition("=")[2].replace(":", "").lower()


def test_of_several_certificates_the_first_one_counts(signer: Signer, other: Signer) -> None:
    """``SIGN_KMOD_KEY_APPEND`` appends others, and ``openssl pkeyutl -certin`` takes the first."""
    both = signer.certificate.read_bytes() + other.certificate.read_bytes()
    certificate = Certificate.read(both, "kmod.crt")
    digest = hashlib.sha256(IMAGE).digest()
    assert certificate.find_fault(digest, signer.sign(IMAGE)) is None
    assert certificate.find_fault(digest, other.sign(IMAGE)) is not None


def test_a_certificate_may_be_der(other: Signer) -> None:
    path = other.folder / "kmod.der"
    openssl("x509", "-in", other.certificate, "-outform", "DER", "-out", path)
    read = Certificate.read(path.read_bytes(), "kmod.der")
    assert read.sha256 == Certificate.read(other.certificate.read_bytes(), "kmod.crt").sha256


@given(content=st.binary(max_size=300) | st.binary(max_size=300).map(b"-----BEGIN CERT".__add__))
def test_what_is_no_certificate_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"^kmod\.crt: is not a certificate"):
        Certificate.read(content, "kmod.crt")


def test_a_certificate_with_bytes_changed_is_refused_or_read(signer: Signer) -> None:
    content = signer.certificate.read_bytes()
    for place in range(0, len(content), 7):
        spoiled = bytearray(content)
        spoiled[place] ^= 5
        try:
            certificate = Certificate.read(bytes(spoiled), "kmod.crt")
        except ImageError:
            continue
        assert certificate.find_fault(bytes(32), bytes(256)) is not None


def test_a_key_that_signs_no_digests_is_refused(tmp_path: Path) -> None:
    words: list[str | Path] = ["-x509", "-newkey", "ed25519", "-nodes", "-keyout", tmp_path / "key"]
    openssl("req", *words, "-subj", "/CN=x", "-days", "2", "-out", tmp_path / "crt")
    with pytest.raises(ImageError, match="neither RSA nor EC"):
        Certificate.read((tmp_path / "crt").read_bytes(), "kmod.crt")
