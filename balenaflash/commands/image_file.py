"""The file an image is read from: whether it is in use, and the mode of a file made from it."""

import stat
from pathlib import Path

from balenaflash.source.location import ImageLocation, StandardInput
from balenaflash.targets.unmount import require_no_writer

_STANDARD_INPUT = Path("/proc/self/fd/0")


def find_image_path(image: ImageLocation) -> Path | None:
    """The file or device of ``image``, also as standard input; ``None`` if it has none."""
    if isinstance(image, Path):
        return image
    if isinstance(image, StandardInput):
        path = _STANDARD_INPUT.resolve()
        return path if path.is_file() or path.is_block_device() else None
    return None


def require_unused(image: ImageLocation) -> None:
    """Raise if ``image``, which exists, is mounted or open for writing elsewhere.

    Raises:
        ImageError: as `require_no_writer`.
    """
    path = find_image_path(image)
    if path is not None:
        require_no_writer(path)


_ALL = 0o666
_OWNER = 0o600


def output_mode(image: ImageLocation, *, adds_secrets: bool = False) -> int:
    """The mode, before the umask, of a file that is made from ``image``.

    It is that of the image; with ``adds_secrets`` only the owner may read the file.
    """
    if adds_secrets:
        return _OWNER
    path = find_image_path(image)
    if path is None:
        return _ALL
    return stat.S_IMODE(path.stat().st_mode) & _ALL | _OWNER
