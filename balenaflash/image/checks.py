"""What is known of an image before it is read, and is compared with what was read."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.image.container.decoder import Decoder


class Check(Protocol):
    """Something that the SHA-256 of an image decides."""

    def is_met_by_stored(self, stored: bytes) -> bool:
        """Whether the SHA-256 of the file or container says enough, whatever is in it."""

    def require(self, name: str, image: bytes, stored: bytes) -> None:
        """Return if the SHA-256 of the image, and of what it is stored in, are right.

        Raises:
            ImageError: they are not; the image is called ``name``.
        """


@dataclass(frozen=True, slots=True)
class Sha256Check:
    """A SHA-256 that was published."""

    expected: bytes
    """Of the image, or of the file that it was downloaded as."""

    def is_met_by_stored(self, stored: bytes) -> bool:
        """Whether it is that of the file."""
        return stored == self.expected

    def require(self, name: str, image: bytes, stored: bytes) -> None:
        """Return if it is one of the two.

        Raises:
            ImageError: it is not (``sha256-differs``).
        """
        if self.expected in {image, stored}:
            return
        of_file = "" if image == stored else f" (of the file: {stored.hex()})"
        raise ImageError(
            f"{name}: its SHA-256 is {image.hex()}{of_file}, not {self.expected.hex()}",
            code="sha256-differs",
            hint="Fetch it again; the sum may be of the file as downloaded or of the image in it.",
        )


class CheckedDecoder:
    """A decoder from the start of an image that hashes what it gives, and checks it at the end."""

    def __init__(
        self, name: str, decoder: Decoder, checks: Sequence[Check], stored: Callable[[], bytes]
    ) -> None:
        """``stored`` gives the SHA-256 of the container when all of it was decoded."""
        self._name = name
        self._decoder = decoder
        self._checks = checks
        self._stored = stored
        self._digest = hashlib.sha256()

    def readinto(self, buffer: memoryview) -> int:
        """As the decoder below; at the end a check that fails is an error."""
        count = self._decoder.readinto(buffer)
        if count:
            self._digest.update(buffer[:count])
        else:
            image, stored = self._digest.digest(), self._stored()
            for check in self._checks:
                check.require(self._name, image, stored)
        return count

    def close(self) -> None:
        """As the decoder below."""
        self._decoder.close()
