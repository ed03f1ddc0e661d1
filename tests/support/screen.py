"""A small terminal: what a person sees of what a program wrote to it."""

import re

_TOKEN = re.compile(
    r"\x1b\[(?P<count>\d*)(?P<order>[A-Za-z])|\x1b.?|[\r\n]|[^\x1b\r\n]+", re.DOTALL
)


class Screen:
    """Lines of ``columns`` that wrap and scroll; it knows only the orders that are expected."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._lines = [""]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """What stands on it now, from top to bottom."""
        return [line.rstrip() for line in self._lines[-self.rows :]]

    @property
    def history(self) -> list[str]:
        """All of it, also what has scrolled away."""
        return [line.rstrip() for line in self._lines]

    def feed(self, text: str) -> None:
        """Show ``text``, which ends in no order that is cut in two."""
        for token in _TOKEN.finditer(text):
            if token["order"]:
                self._obey(token["order"], int(token["count"] or 1))
            elif token[0] == "\r":
                self._column = 0
            elif token[0] == "\n":
                self._move_down()
            else:
                self._write(token[0])

    def _obey(self, order: str, count: int) -> None:
        top = max(len(self._lines) - self.rows, 0)
        if order == "A":
            self._row = max(self._row - count, top)
        elif order == "J":
            self._lines[self._row] = self._lines[self._row][: self._column]
            del self._lines[self._row + 1 :]
        else:
            raise AssertionError(f"an order that is not known: {order}")

    def _write(self, text: str) -> None:
        for char in text:
            assert char.isprintable(), repr(char)
            if self._column == self.columns:
                self._column = 0
                self._move_down()
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + char + line[self._column + 1 :]
            self._column += 1

    def _move_down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append("")
