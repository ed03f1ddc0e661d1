"""Images whose edit was cut off, and whose undo record is elsewhere."""

from balenaflash.errors import CodedText, ImageError
from balenaflash.image.commit.mark import is_edit_marked

_FACT = "an edit of the boot partition is under way or was cut off: the image is half-edited"
_CODE = "image-half-edited"


def require_whole(state: int, name: str) -> None:
    """Return if the image ``name`` is not half-edited, by the state byte of its boot partition.

    Raises:
        ImageError: it is.
    """
    if is_edit_marked(state):
        raise ImageError(
            f"{name}: {_FACT}",
            code=_CODE,
            hint="Use a good copy, or write the card anew. The undo record lies where the edit was "
            "made: that of a file beside it, as .NAME.balenaflash-undo, that of a card with the "
            "user who edited it.",
        )


def warn_of_half_edited(state: int) -> tuple[str, ...]:
    """A sentence if an image is half-edited, by the state byte of its boot partition."""
    sentence = CodedText(f"{_FACT[0].upper()}{_FACT[1:]}.", code=_CODE)
    return (sentence,) if is_edit_marked(state) else ()
