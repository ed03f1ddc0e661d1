"""``bmap``: block maps, for bmaptool and for whoever wants to know an image unchanged."""

from balenaflash.cli.lazy import lazy_group


@lazy_group({"create": "bmap_create:create", "check": "bmap_check:check"})
def bmap() -> None:
    """Make a block map of an image, or compare the image with one.

    A block map (.bmap) lists the blocks of an image that must be written, and checksums of
    them; `bmaptool copy` writes these blocks only.

    \b
    Examples:
      balenaflash bmap create balena.img
      balenaflash bmap check balena.img
    """
