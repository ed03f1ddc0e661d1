"""One step of a recipe: what it says, checked, and where."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from balenaflash.errors import ConfigError, EditError, InvalidConfigError, Problem
from balenaflash.recipe.places import Place
from balenaflash.recipe.variables import Variables

Value: TypeAlias = str | tuple[str, ...] | bool | int
"""Of a key of a step; ``Holds.TEXTS`` always gives a tuple."""


COMMAND_LINE = Path("--step")
"""What steps given one by one have in place of a recipe's path."""


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a recipe was read from."""

    path: Path
    lines: Mapping[Place, int] = field(repr=False)
    """Of its keys, as `places.find_lines` gives them."""

    def words(self, place: Place) -> str:
        """Where ``place`` is, such as ``lab.toml, line 7: step.put``; as near as is known."""
        known = place
        while known and known not in self.lines:
            known = known[:-1]
        key = next((str(part) for part in reversed(place) if isinstance(part, str)), "")
        at = f"{self.path}, line {self.lines[known]}" if known else str(self.path)
        return f"{at}: {key}" if key and key != "step" else at

    def refuse_shown_secret(self, written: str) -> None:
        """Return if a secret that is ``written`` so is not for every user to see.

        Raises:
            ConfigError: it stands on a command line.
        """
        if self.path == COMMAND_LINE and "${env:" not in written:
            raise ConfigError(
                "it is a secret, and every user of this machine can see a command line",
                code="config-secret",
                hint="Take it from the environment, ${env:NAME}, or from a file.",
            )

    @contextmanager
    def blamed(self, place: Place) -> Iterator[None]:
        """Let what the block finds wrong begin with where ``place`` is."""
        try:
            yield
        except EditError as error:
            raise type(error)(
                f"{self.words(place)}: {error}", code=error.code, hint=error.hint
            ) from error
        except ConfigError as error:
            raise InvalidConfigError(
                [
                    Problem(each.code, f"{self.words(place)}: {each.message}", each.hint)
                    for each in error.problems
                ]
            ) from error


@dataclass(frozen=True, slots=True)
class Step:
    """A ``[[step]]`` whose keys are those of its kind and hold what they should."""

    kind: str
    """Such as ``put``; a key of `schema.STEPS`."""

    values: Mapping[str, Value] = field(repr=False)
    """With variables filled in, but for ``Use.RAW``; of optional keys those that are there."""

    source: Source
    place: Place
    variables: Variables

    def key(self, name: str) -> Place:
        """Where the key ``name`` is."""
        return (*self.place, name)

    def text(self, name: str) -> str | None:
        """The string of ``name``; ``None`` where it is not there."""
        value = self.values.get(name)
        return value if isinstance(value, str) else None

    def texts(self, name: str) -> tuple[str, ...]:
        """The string or strings of ``name``; none where it is not there."""
        value = self.values.get(name)
        return value if isinstance(value, tuple) else ()

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Whether ``name`` is ``true``."""
        value = self.values.get(name, default)
        return value is True

    def number(self, name: str) -> int:
        """The number of ``name``; 0 where it is not there."""
        value = self.values.get(name)
        return value if isinstance(value, int) else 0

    def path(self, name: str) -> Path:
        """The local path of ``name``, which is there."""
        return self.local(str(self.values[name]))

    def local(self, text: str) -> Path:
        """``text`` as a path relative to the directory of the recipe."""
        return self.source.path.parent / text
