"""Keys, certificates and signatures as openssl makes and judges them."""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEYS = {
    "rsa-2048": ["-newkey", "rsa:2048"],
    "rsa-4096": ["-newkey", "rsa:4096"],
    "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
}


def openssl(*words: str | Path, accept_failure: bool = False) -> str:
    done = subprocess.run(
        ["openssl", *map(str, words)], capture_output=True, text=True, check=not accept_failure
    )
    return done.stdout


@dataclass(frozen=True)
class Signer:
    """A key, its certificate, and what openssl does with them; files lie in ``folder``."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "kmod.crt"

    def sign(self, content: bytes, name: str = "image") -> bytes:
        """A signature in the way that the flasher checks."""
        digest = self.folder / f"{name}.digest"
        digest.write_bytes(hashlib.sha256(content).digest())
        path = self.folder / f"{name}.sig"
        openssl("pkeyutl", "-sign", "-in", digest, "-inkey", self.folder / "key", "-out", path)
        return path.read_bytes()

    def verifies(self, content: bytes, signature: bytes) -> bool:
        """What the command of ``resin-init-flasher`` says."""
        digest, path = self.folder / "judged.digest", self.folder / "judged.sig"
        digest.write_bytes(hashlib.sha256(content).digest())
        path.write_bytes(signature)
        words = ("-in", digest, "-certin", "-inkey", self.certificate, "-sigfile", path)
        said = openssl("pkeyutl", "-verify", *words, accept_failure=True)
        return "Signature Verified Successfully" in said


def make_signer(folder: Path, key: str = "rsa-2048", subject: str = "/CN=balenaOS test") -> Signer:
    folder.mkdir()
    words: list[str | Path] = [
        "-x509",
        *KEYS[key],
        "-nodes",
        "-keyout",
        folder / "key",
        "-subj",
        subject,
    ]
    openssl("req", *words, "-days", "2", "-out", folder / "kmod.crt")
    return Signer(folder)
