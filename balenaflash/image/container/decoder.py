"""What a container holds, and how its bytes are had: the interface of every decoder."""

from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin

DOWNLOAD_AGAIN = "The file is probably an incomplete download or copy."
"""The hint for a container that ends early."""


class Decoder(Protocol):
    """The bytes of an image in order, decoded and checked on the way. For one thread at a time."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with the next bytes of the image and return how many there were.

        Fewer than fit only where the image ends. 0 means that the image is whole: everything that
        the container has to check it by, its trailer too, was read and agrees.

        Raises:
            ImageError: the container is damaged (``image-corrupt``), ends early
                (``image-cut-short``), is followed by what does not belong to it
                (``image-trailing-garbage``), or cannot be read.
        """

    def close(self) -> None:
        """Give memory and threads back; the decoder is of no more use. May be called again."""


class Compressed(Protocol):
    """An image in a container that was recognised."""

    @property
    def container(self) -> Container:
        """What it is compressed or packed with; the outermost where there are two."""

    @property
    def size(self) -> int | None:
        """Bytes of the image, where the container says so truly."""

    @property
    def member(self) -> str | None:
        """Its name among the container's members; ``None`` where a container has none."""

    @property
    def seekable(self) -> bool:
        """Whether a decoder may start elsewhere than at the start, without decoding all before."""

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder whose first byte is the image's byte ``at``.

        ``at`` is 0 unless ``seekable``. An origin that is not seekable gives one decoder only.

        Raises:
            ImageError: the container cannot be read.
        """


class Input:
    """The bytes of an origin from an offset on, in order."""

    CHUNK_SIZE = 256 * 1024
    """Bytes read at a time: few enough to stay in the processor's cache while they are decoded."""

    def __init__(self, origin: Origin, offset: int = 0) -> None:
        self._origin = origin
        self.position = offset
        """Offset of the next byte to be read."""
        self._put_back = b""

    @property
    def name(self) -> str:
        """The origin's name."""
        return self._origin.name

    def read(self, length: int = CHUNK_SIZE) -> bytes:
        """The next ``length`` bytes; fewer, or none, only at the origin's end."""
        data, self._put_back = self._put_back[:length], self._put_back[length:]
        missing = length - len(data)
        if missing:
            # Most often nothing was put back, and nothing is copied.
            more = self._origin.read_at(self.position + len(data), missing)
            data = data + more if data else more
        self.position += len(data)
        return data

    def put_back(self, data: bytes) -> None:
        """Have ``data``, the last bytes that were read, read again."""
        self._put_back = data + self._put_back
        self.position -= len(data)


def corrupt(name: str, container: Container, place: int, image_place: int, why: str) -> ImageError:
    """The error for a container that is damaged near byte ``place`` of it."""
    return ImageError(
        f"{name}: is damaged: the {container} data near byte {place} (byte {image_place} of the "
        f"image) {why}",
        code="image-corrupt",
        hint="Compare the file's checksum with the one published, and download or copy it again.",
    )


def cut_short(name: str, container: Container, place: int, image_place: int) -> ImageError:
    """The error for a container that ends at byte ``place``, before it should."""
    return ImageError(
        f"{name}: is cut short: the {container} data goes on behind byte {place}, where the file "
        f"ends (byte {image_place} of the image)",
        code="image-cut-short",
        hint=DOWNLOAD_AGAIN,
    )


def trailing_garbage(name: str, container: Container, place: int, image_place: int) -> ImageError:
    """The error for bytes that follow a container from byte ``place`` on."""
    return ImageError(
        f"{name}: the {container} data ends at byte {place} (byte {image_place} of the image), but "
        "something else follows",
        code="image-trailing-garbage",
        hint="Part of the image may be missing: download or copy the file again.",
    )
