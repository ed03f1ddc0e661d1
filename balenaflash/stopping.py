"""Whether work is to end before it is done."""

from collections.abc import Callable

Stop = Callable[[], bool]
"""Asked between two chunks: whether the user wants to stop."""
