"""What a mistyped name was meant to be."""

from collections.abc import Iterable

_LIKENESS = 0.7
"""Of two names, as `difflib` measures it from 0 to 1."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``name`` was most likely meant to be; ``None`` if none is near."""
    from difflib import get_close_matches  # noqa: PLC0415 - seldom needed

    by_fold = {each.casefold(): each for each in known}
    near = get_close_matches(name.casefold(), by_fold, n=1, cutoff=_LIKENESS)
    return by_fold[near[0]] if near else None
