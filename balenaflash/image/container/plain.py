"""An image that is not in a container, from where only an origin can read it."""

from balenaflash.image.container.origin import Origin


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
