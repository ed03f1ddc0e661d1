"""What is wrong with the words of the command line themselves: exit status 2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from balenaflash.errors import BalenaflashError, ConfigError, EditError, Problem

if TYPE_CHECKING:
    _ParamType = click.ParamType[str]
else:
    _ParamType = click.ParamType  # generic since click 8.4


class WrongUsageError(BalenaflashError):
    """The command line is wrong in a way that click does not know of. Nothing was touched."""

    exit_status = 2

    def __init__(self, error: BalenaflashError) -> None:
        super().__init__(str(error), code=error.code, hint=error.hint)
        self._problems = error.problems

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Those of the error that told of it."""
        return self._problems


@contextmanager
def words_of_command_line() -> Iterator[None]:
    """What the block finds wrong is wrong with words of the command line.

    Raises:
        WrongUsageError: in place of the `EditError` or `ConfigError`, and with its codes.
    """
    try:
        yield
    except (ConfigError, EditError) as error:
        raise WrongUsageError(error) from error


class BootPath(_ParamType):
    """A path in the boot partition, or a pattern of some."""

    name = "path"

    def convert(
        self,
        value: str,
        param: click.Parameter | None,  # noqa: ARG002 - click's interface
        ctx: click.Context | None,  # noqa: ARG002 - click's interface
    ) -> str:
        """``value`` as it is.

        Raises:
            WrongUsageError: no image can hold such a path.
        """
        from balenaflash.edits.paths import volume_path

        with words_of_command_line():
            volume_path(value)
        return value


BOOT_PATH = BootPath()
"""The type to give to ``click.argument("path", ...)``."""
