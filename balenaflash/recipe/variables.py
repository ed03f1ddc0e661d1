"""Variables in the strings of a recipe: ``${name}``, ``${env:NAME}``, and ``$$`` for a dollar."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from balenaflash.boot.given_text import without_mark
from balenaflash.errors import ConfigError
from balenaflash.spelling import closest

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""What a variable can be called."""

_REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>[^{}]*)\})?")
_ENVIRONMENT = "env:"


@dataclass(frozen=True, slots=True)
class Variables:
    """What the variables of a recipe stand for."""

    given: Mapping[str, str] = field(default_factory=dict)
    """By the user, in the open."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def fill_in(self, text: str, *, secret: bool = False) -> str:
        """``text`` with each variable replaced by its value, which is not looked at again.

        A byte order mark before the text, or before a value, is left out.

        ``secret`` tells that ``text`` is never shown: only there the environment may be asked,
        and nothing given in the open is let in.

        Raises:
            ConfigError: a variable is not defined or cannot stand there. No value is shown.
        """

        def value(reference: re.Match[str]) -> str:
            if reference["dollar"]:
                return "$"
            return without_mark(self._value(reference["name"], secret=secret))

        return _REFERENCE.sub(value, without_mark(text))

    def _value(self, name: str | None, *, secret: bool) -> str:
        if name is None:
            raise _invalid("a $ stands for itself only as $$", "A variable is written as ${name}.")
        if name.startswith(_ENVIRONMENT):
            return self._from_environment(name.removeprefix(_ENVIRONMENT), secret=secret)
        if not NAME.fullmatch(name):
            raise _invalid(f"${{{name}}} is not a variable", "Write it as ${name} or ${env:NAME}.")
        if secret:
            raise _invalid(
                f"${{{name}}} would be a secret, and every user of this machine can see a "
                "command line",
                "Take it from a file, or from the environment with ${env:NAME}.",
            )
        if name not in self.given:
            near = closest(name, self.given)
            meant = "" if near is None else f"Did you mean ${{{near}}}? "
            raise _invalid(f"${{{name}}} is not defined", f"{meant}Define it: --var {name}=VALUE")
        return self.given[name]

    def _from_environment(self, name: str, *, secret: bool) -> str:
        if not secret:
            raise _invalid(
                f"${{env:{name}}} can stand only where a secret does, which is never shown",
                "Use ${name}, and define it with --var name=VALUE.",
            )
        if name not in self.environment:
            raise _invalid(f"${{env:{name}}}: the environment has no variable {name}")
        return self.environment[name]


def _invalid(message: str, hint: str | None = None) -> ConfigError:
    return ConfigError(message, code="recipe-variable", hint=hint)
