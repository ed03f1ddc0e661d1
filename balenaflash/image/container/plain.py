"""An image that is not in a container, from where only an origin can read it."""

from balenaflash.errors import ImageError
from balenaflash.image.container.origin import Origin
from balenaflash.image.source import RandomAccess


class OriginSource(RandomAccess):
    """A raw image at an origin that gives any bytes, such as a web server that knows ranges."""

    def __init__(self, origin: Origin) -> None:
        if origin.size is None:
            raise ValueError("an origin of unknown size gives no random access")
        self._origin = origin
        self._size = origin.size

    @property
    def name(self) -> str:
        """The origin's."""
        return self._origin.name

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._size

    @property
    def seekable(self) -> bool:
        """False: a far place costs a request of its own."""
        return False

    def fork(self) -> None:
        """None: an origin serves one reader at a time."""
        return

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them."""
        content = self._origin.read_at(offset, length)
        if len(content) < length or offset < 0:
            raise ImageError(
                f"{self.name}: ends at byte {offset + len(content)}, but bytes up to "
                f"{offset + length} are needed",
                code="image-truncated",
                hint="The file is probably an incomplete download or copy.",
            )
        return content

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on."""
        buffer[:] = self.read(offset, len(buffer))


class PlainDecoder:
    """The bytes of an origin as they are."""

    def __init__(self, origin: Origin, position: int) -> None:
        self._origin = origin
        self._position = position

    def readinto(self, buffer: memoryview) -> int:
        """The next bytes; 0 at the end."""
        content = self._origin.read_at(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        """Nothing to do: the origin is closed by who opened it."""
