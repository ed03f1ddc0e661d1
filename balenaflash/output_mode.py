"""Who may read a file that is made of an image: nobody who may not read the image."""

import stat

from balenaflash.image.container.location import ImageLocation
from balenaflash.image_use import find_image_path

_ALL = 0o666
_OWNER = 0o600


def output_mode(image: ImageLocation, *, adds_secrets: bool = False) -> int:
    """The mode, before the umask, of a file that is made of ``image``.

    It is that of the image; ``adds_secrets`` leaves it to its owner alone.
    """
    if adds_secrets:
        return _OWNER
    path = find_image_path(image)
    if path is None:
        return _ALL
    return stat.S_IMODE(path.stat().st_mode) & _ALL | _OWNER
