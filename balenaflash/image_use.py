"""Who else uses an image that is to be read."""

from pathlib import Path

from balenaflash.image.container.location import ImageLocation, StandardInput
from balenaflash.target.writers import require_no_writer

_STANDARD_INPUT = Path("/proc/self/fd/0")


def find_image_path(image: ImageLocation) -> Path | None:
    """The file or device that ``image`` is read from, be it as standard input; else ``None``."""
    if isinstance(image, Path):
        return image
    if isinstance(image, StandardInput):
        path = _STANDARD_INPUT.resolve()
        return path if path.is_file() or path.is_block_device() else None
    return None


def require_unused(image: ImageLocation) -> None:
    """Return unless ``image``, which is there, is mounted or open for writing elsewhere.

    Raises:
        ImageError: as `require_no_writer`.
    """
    path = find_image_path(image)
    if path is not None:
        require_no_writer(path)
