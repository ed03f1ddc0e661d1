"""Why something takes longer, told while it does: the user is not left alone with a silence."""

from collections.abc import Callable

_listeners: list[Callable[[str], None]] = []


def listen(listener: Callable[[str], None]) -> None:
    """Have ``listener`` told from now on, in place of whoever was; from any thread."""
    _listeners[:] = [listener]


def tell(text: str) -> None:
    """Tell ``text``, one sentence, to who listens."""
    for listener in _listeners:
        listener(text)
