"""``--certificate``: what is written, compared or unwrapped are the bytes that were signed."""

import json
import mmap
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from fakes import MemoryMedium
from imagecopies import MakeImage
from signing import Signer, make_signer, openssl
from write_judges import compress

from balenaflash.balena.image import BalenaImage
from balenaflash.balena.signature import CertificateFile, require_signature
from balenaflash.commands.write import plan_image
from balenaflash.errors import BalenaflashError
from balenaflash.flashing.flash import FlashOptions, Target, flash
from balenaflash.progress import NO_PROGRESS
from balenaflash.source.opening import open_for_reading
from balenaflash.units import MIB

pytest.importorskip("cryptography")
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

pytestmark = pytest.mark.needs("openssl")


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("keys") / "vendor")


@pytest.fixture
def signed(image: MakeImage, signer: Signer) -> BuiltImage:
    built = image(Layout.GPT_FAT16)
    content = built.path.read_bytes()
    signature = signer.sign(content)
    assert signer.verifies(content, signature)
    Path(f"{built.path}.sig").write_bytes(signature)
    return built


def spoil(path: Path) -> None:
    """Change a byte in the code of the boot sector, which nothing else would tell."""
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\1")


def codes_of(run: subprocess.CompletedProcess[str]) -> tuple[int, list[str]]:
    return run.returncode, [error["code"] for error in json.loads(run.stdout)["errors"]]


@pytest.mark.parametrize("form", ["raw", "gz"])
def test_only_what_was_signed_is_written_and_compared(
    form: str, signed: BuiltImage, signer: Signer, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    given = ("--certificate", signer.certificate, "--json")
    path = compress(signed.path) if form == "gz" else signed.path
    copy = tmp_path / "copy.img"
    assert balenaflash("write", path, copy, *given).returncode == 0
    assert balenaflash("verify", path, copy, *given).returncode == 0
    assert subprocess.run(["cmp", signed.path, copy], check=False).returncode == 0
    spoil(signed.path)
    path = compress(signed.path) if form == "gz" else signed.path
    run = balenaflash("write", path, tmp_path / "bad.img", *given)
    # The end of a compressed one is reached when most of it was written.
    expected = (7, ["image-failed"]) if form == "gz" else (3, ["signature-wrong"])
    assert codes_of(run) == expected
    assert not (tmp_path / "bad.img").exists()
    run = balenaflash("verify", path, copy, *given)
    assert codes_of(run) == (3, ["signature-wrong"])


def test_nothing_is_written_where_nothing_can_be_checked(
    signed: BuiltImage, signer: Signer, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.img"
    other = make_signer(tmp_path / "other")
    run = balenaflash("write", signed.path, copy, "--certificate", other.certificate, "--json")
    assert codes_of(run) == (3, ["signature-wrong"])
    Path(f"{signed.path}.sig").unlink()
    given = ("--certificate", signer.certificate, "--json")
    run = balenaflash("write", signed.path, copy, *given)
    assert codes_of(run) == (3, ["signature-missing"])
    run = balenaflash("write", "-", copy, *given)
    assert codes_of(run) == (3, ["signature-missing"])
    assert not copy.exists()


def test_an_image_changed_after_its_signature_was_checked_is_not_written(
    signed: BuiltImage, signer: Signer
) -> None:
    """By a page that is mapped, which on a tmpfs leaves no trace in the times of the file."""
    given = CertificateFile("vendor", signer.certificate.read_bytes(), of_image=False)
    check = require_signature(signed.path, given)
    with open_for_reading(signed.path, checks=[check]) as opened:
        plan = plan_image(BalenaImage(opened.source), write_all=True)
        with signed.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[20 * MIB] ^= 1
        medium = MemoryMedium(plan.least_size)
        (outcome,) = flash(
            opened.source,
            plan,
            [Target(medium, NO_PROGRESS)],
            options=FlashOptions(),
            stop=lambda: False,
        )
    assert isinstance(outcome, BalenaflashError)
    assert outcome.exit_status == 7
    assert not any(medium.content[:MIB])


def test_a_flasher_is_unwrapped_only_if_it_was_signed(
    image: MakeImage, signer: Signer, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    flasher = image(Layout.GPT_FAT16, flasher=True).path
    given = ("--certificate", signer.certificate, "--json")
    Path(f"{flasher}.sig").write_bytes(signer.sign(flasher.read_bytes()))
    run = balenaflash("unwrap", flasher, tmp_path / "raw.img", *given)
    assert run.returncode == 0, run.stderr
    spoil(flasher)
    for options in ((), ("--dry-run",)):
        run = balenaflash("unwrap", flasher, tmp_path / "bad.img", *given, *options)
        assert codes_of(run) == (3, ["signature-wrong"])
    assert not (tmp_path / "bad.img").exists()


def test_an_expired_certificate_is_said(
    signed: BuiltImage, signer: Signer, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    key = load_pem_private_key((signer.folder / "key").read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2021, 2, 3, tzinfo=UTC))
        .sign(key, SHA256())
    )
    expired = tmp_path / "expired.crt"
    expired.write_bytes(certificate.public_bytes(Encoding.PEM))
    said = openssl("x509", "-in", expired, "-noout", "-checkend", "0", accept_failure=True)
    assert "will expire" in said
    run = balenaflash("inspect", "--certificate", expired, signed.path)
    assert run.returncode == 0, run.stderr
    assert "the certificate is not valid today: it expired on 2021-02-03" in run.stdout
    run = balenaflash("write", "--certificate", expired, signed.path, tmp_path / "copy.img")
    assert run.returncode == 0, run.stderr
    assert "it expired on 2021-02-03" in run.stderr
