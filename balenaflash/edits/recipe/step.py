"""One step of a recipe: its values checked, its variables, the local files it names."""

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from balenaflash.edits.given_text import given_text, without_mark
from balenaflash.edits.paths import volume_path
from balenaflash.edits.recipe.schema import STEPS, Field, Holds, Use
from balenaflash.errors import ConfigError, EditError, InvalidConfigError, Problem, closest
from balenaflash.units import MIB, format_size

Place: TypeAlias = tuple[str | int, ...]
"""The keys, and positions in arrays, that lead from the top of a document to a value."""

_TOKEN = re.compile(
    r'''
      (?P<string> """ (?: [^\\] | \\. )*? "{3,5} | \'\'\' .*? '{3,5}
                | " (?: [^"\\] | \\. )* " | ' [^']* ' )
    | (?P<blank> [ \t]+ | \#[^\n]* )
    | (?P<mark> [\n\[\]{}=,.] )
    | (?P<bare> [^\s\[\]{}=,."'#]+ )
    ''',
    re.VERBOSE | re.DOTALL,
)
"""A token of a text that is valid: it needs to be told apart, not to be checked."""


def find_lines(text: str) -> dict[Place, int]:
    """The line of each key, table and item of an array in ``text``, which must be valid TOML.

    Lines count from 1. A table or array that is made piece by piece is where its first piece is.
    """
    return dict(_Scan(text).statements())


class _Scan:
    """One pass over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text.replace("\r\n", "\n")))
        self._position = 0
        self._lines: dict[Place, int] = {}
        self._counts: dict[Place, int] = {}
        """Tables that each array of tables has so far."""

    def statements(self) -> dict[Place, int]:
        table: Place = ()
        while self._position < len(self._tokens):
            if self._skip("\n"):
                continue
            if self._skip("["):
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _header(self) -> Place:
        """The table that a line such as ``[a.b]`` or ``[[a.b]]`` begins."""
        line = self._line
        is_array = self._skip("[")
        *above, name = self._key()
        self._skip("]")
        table: Place = ()
        for key in above:
            table = self._latest((*table, key), line)
        table = (*table, name)
        if is_array:
            self._skip("]")
            self._lines.setdefault(table, line)
            self._counts[table] = self._counts.get(table, 0) + 1
        table = self._latest(table, line)
        self._lines.setdefault(table, line)
        return table

    def _latest(self, place: Place, line: int) -> Place:
        """``place``, or where it is an array of tables the last of them."""
        self._lines.setdefault(place, line)
        count = self._counts.get(place, 0)
        return (*place, count - 1) if count else place

    def _pair(self, table: Place) -> None:
        line = self._line
        place = table
        for key in self._key():
            place = (*place, key)
            self._lines.setdefault(place, line)
        self._skip("=")
        self._value(place)

    def _key(self) -> list[str]:
        names = [self._name()]
        while self._skip("."):
            names.append(self._name())
        return names

    def _name(self) -> str:
        token, _ = self._tokens[self._position]
        self._position += 1
        if token[0] not in "\"'":
            return token
        return str(tomllib.loads(f"name = {token}")["name"])

    def _value(self, place: Place) -> None:
        if self._skip("["):
            self._array(place)
        elif self._skip("{"):
            while not self._skip("}"):
                if not self._skip(","):
                    self._pair(place)
        else:
            # A number or a date may be several tokens.
            while self._position < len(self._tokens) and self._token not in {",", "]", "}", "\n"}:
                self._position += 1

    def _array(self, place: Place) -> None:
        count = 0
        while not self._skip("]"):
            if self._skip("\n") or self._skip(","):
                continue
            item = (*place, count)
            self._lines.setdefault(item, self._line)
            self._value(item)
            count += 1

    @property
    def _token(self) -> str:
        return self._tokens[self._position][0]

    @property
    def _line(self) -> int:
        return self._tokens[self._position][1]

    def _skip(self, token: str) -> bool:
        """Whether the next token is ``token``, which is then left behind."""
        if self._position == len(self._tokens) or self._token != token:
            return False
        self._position += 1
        return True


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Each token that is not blank, and its line."""
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "blank":
            yield match[0], line
        line += match[0].count("\n")


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


_MAX_SIZE = MIB
"""Bytes of a text; a key, a passphrase or a list has a few KiB."""


def read_content(path: Path, *, limit: int) -> bytes:
    """The content of the file at ``path``, of up to ``limit`` bytes.

    Raises:
        EditError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise EditError(f"{path}: cannot be read: {reason}", code="source-unreadable") from error
    if len(content) > limit:
        raise EditError(f"{path}: has more than {format_size(limit)}", code="source-too-large")
    return content


def read_text(path: Path) -> str:
    """The text in the file at ``path``, without the line end that editors put after the last line.

    Raises:
        EditError: it cannot be read, or is not UTF-8.
    """
    text = given_text(read_content(path, limit=_MAX_SIZE), str(path))
    return text.removesuffix("\n").removesuffix("\r")


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


_TYPES: Mapping[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    list: "an array",
    dict: "a table",
}


@dataclass(frozen=True, slots=True)
class Checker:
    """Looks at one recipe, and collects all that is wrong with it."""

    source: Source
    variables: Variables
    problems: list[Problem] = field(default_factory=list)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep what the block finds wrong, and go on behind it."""
        try:
            yield
        except (ConfigError, EditError) as error:
            self.problems.extend(error.problems)

    @contextmanager
    def noted(self, place: Place) -> Iterator[None]:
        """Keep what the block finds wrong, said to be at ``place``, and go on behind it."""
        with self.gathered(), self.source.blamed(place):
            yield

    def check_table(
        self, table: Mapping[str, object], fields: Mapping[str, Field], place: Place
    ) -> dict[str, Value]:
        """The values in ``table`` that are as ``fields`` want them."""
        values: dict[str, Value] = {}
        for name, raw in table.items():
            with self.noted((*place, name)):
                if name not in fields:
                    raise _unknown("key", name, fields if place else [*fields, "step"])
                values[name] = self._value(fields[name], raw, (*place, name))
        for name, each in fields.items():
            if each.is_required and name not in table:
                with self.noted(place):
                    raise ConfigError(f"{name} is missing", code="recipe-key-missing")
        return values

    def check_step(self, table: object, place: Place) -> Step | None:
        """The step that ``table`` is; ``None`` if something is wrong with it."""
        known = len(self.problems)
        with self.noted(place):
            if not isinstance(table, dict):
                raise _wrong_type(table, "a table, written below [[step]]")
            kind = _kind_of(table)
            values = self.check_table(table, STEPS[kind], place)
            if len(self.problems) == known:
                return Step(kind, values, self.source, place, self.variables)
        return None

    def _value(self, wanted: Field, raw: object, place: Place) -> Value:
        match wanted.holds, raw:
            case (Holds.TEXT, str()):
                return self._text(wanted, raw)
            case (Holds.TEXTS, str()):
                return (self._text(wanted, raw),)
            case (Holds.TEXTS, list()) if raw:
                return tuple(self._texts(wanted, raw, place))
            case (Holds.FLAG | Holds.TRUE, bool()) if raw or wanted.holds is Holds.FLAG:
                return raw
            case (Holds.NUMBER, int()) if not isinstance(raw, bool):
                return raw
        raise _wrong_type(raw, wanted.holds.value)

    def _texts(self, wanted: Field, raw: list[object], place: Place) -> Iterator[str]:
        for number, item in enumerate(raw):
            with self.noted((*place, number)):
                if not isinstance(item, str):
                    raise _wrong_type(item, "a string")
                yield self._text(wanted, item)

    def _text(self, wanted: Field, raw: str) -> str:
        if wanted.use is Use.RAW:
            return raw
        if wanted.use is Use.SECRET:
            self.source.refuse_shown_secret(raw)
        text = self.variables.fill_in(raw, secret=wanted.use is Use.SECRET)
        if wanted.use is Use.BOOT:
            volume_path(text)
        if wanted.use is Use.LOCAL and (not text or "\0" in text):
            raise ConfigError(f"{text!r} is not the path of a file", code="recipe-path")
        return text


def _kind_of(table: Mapping[str, object]) -> str:
    """The kind of step that ``table`` is."""
    kinds = [name for name in table if name in STEPS]
    if len(kinds) > 1:
        raise ConfigError(
            f"{' and '.join(kinds)} are steps of their own",
            code="recipe-step",
            hint="Begin each with a line [[step]].",
        )
    if kinds:
        return kinds[0]
    options = {name for fields in STEPS.values() for name in fields}
    named = next((name for name in table if name not in options), None)
    if named is None:
        raise ConfigError(
            "the step does not say what to do",
            code="recipe-step",
            hint=f"Give it one of {', '.join(STEPS)}.",
        )
    raise _unknown("step", named, STEPS)


def _unknown(what: str, name: str, known: Collection[str]) -> ConfigError:
    near = closest(name, known)
    shown = f"Did you mean {near}?" if near else f"There are {', '.join(known)}."
    return ConfigError(f"{name!r} is not a known {what}", code=f"recipe-{what}-unknown", hint=shown)


def _wrong_type(raw: object, wanted: str) -> ConfigError:
    return ConfigError(f"must be {wanted}, not {_type_of(raw)}", code="recipe-type")


def _type_of(raw: object) -> str:
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if raw == []:
        return "an empty array"
    return next((word for kind, word in _TYPES.items() if isinstance(raw, kind)), "a date or time")
