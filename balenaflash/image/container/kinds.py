"""What the bytes of an image can lie in."""

from enum import StrEnum


class Container(StrEnum):
    """What an image is stored in."""

    RAW = "raw"
    BLOCK_DEVICE = "block-device"
    GZIP = "gzip"
    XZ = "xz"
    BZIP2 = "bzip2"
    ZSTD = "zstd"
    ZIP = "zip"

    @property
    def is_compressed(self) -> bool:
        """Whether the image has to be got out of it."""
        return self not in {Container.RAW, Container.BLOCK_DEVICE}
