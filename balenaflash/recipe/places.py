"""Where the keys of a TOML text are, which ``tomllib`` does not tell."""

import re
import tomllib
from collections.abc import Iterator
from typing import TypeAlias

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
