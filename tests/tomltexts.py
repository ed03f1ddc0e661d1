"""TOML texts whose every key, and every value, can be found by looking for it in the text."""

import re
from dataclasses import dataclass, field

from hypothesis import strategies as st

FILLER = st.text(alphabet="a #=,.[]{}'\"\\\n", max_size=8)
"""What would lead a careless reader astray."""


@dataclass(slots=True)
class _Writer:
    """Writes one document; ``draw`` is that of the strategy."""

    draw: st.DrawFn
    count: int = 1_000_000
    pieces: list[str] = field(default_factory=list)

    def key(self) -> str:
        """A name that is nowhere else in the text."""
        self.count += 1
        return f"key{self.count}x"

    def quoted(self, name: str) -> str:
        return self.draw(st.sampled_from([name, f'"{name}"', f"'{name}'", f'"{name}"']))

    def mark(self) -> str:
        """Seven digits that are nowhere else in the text."""
        self.count += 1
        return str(self.count)

    def blank(self) -> str:
        return self.draw(st.sampled_from(["", "\n", '  # ]] """ it\'s = {\n', "\n\n# [[no]]\n"]))

    def scalar(self) -> str:
        mark, filler = self.mark(), self.draw(FILLER)
        escaped = filler.replace("\\", "\\\\").replace('"', '\\"')
        literal = filler.replace("'", "")
        return self.draw(
            st.sampled_from(
                [
                    mark,
                    f"{mark}.25",
                    f"[{mark}]",
                    '"' + mark + escaped.replace("\n", "\\n") + '"',
                    "'" + mark + literal.replace("\n", "") + "'",
                    f'"""{mark}{escaped}"""',
                    f'"""{mark} "" {escaped}"""""',
                    f'"""{mark} {escaped}""""',
                    f"'''{mark}{literal}'''",
                    f"'''{mark} '' {literal}'''''",
                ]
            )
        )

    def value(self, depth: int) -> str:
        kind = self.draw(st.integers(0, 3 if depth else 1))
        if kind == 2:
            items = [self.value(depth - 1) for _ in range(self.draw(st.integers(1, 3)))]
            gaps = [self.blank() for _ in items]
            inside = ",".join(
                # The first item on the line of its bracket, so that both have one line.
                item if number == 0 else gap + item
                for number, (item, gap) in enumerate(zip(items, gaps, strict=True))
            )
            return f"[{inside}{self.draw(st.sampled_from(['', ',', ' ,']))}{self.blank()}]"
        if kind == 3:
            pairs = [f"{self.path()} = {self.mark()}" for _ in range(self.draw(st.integers(1, 3)))]
            return "{ " + ", ".join(pairs) + " }"
        return self.scalar()

    def path(self) -> str:
        return ".".join(self.quoted(self.key()) for _ in range(self.draw(st.integers(1, 2))))

    def pairs(self) -> None:
        for _ in range(self.draw(st.integers(0, 3))):
            self.pieces += [self.blank(), "\n", f"{self.path()} = {self.value(2)}", "\n"]

    def table(self, above: str, depth: int) -> None:
        name = f"{above}{self.quoted(self.key())}"
        is_array = self.draw(st.booleans())
        for _ in range(self.draw(st.integers(1, 3)) if is_array else 1):
            header = f"[[{name}]]" if is_array else f"[ {name} ]"
            self.pieces += [self.blank(), "\n", header, "\n"]
            self.pairs()
            for _ in range(self.draw(st.integers(0, 2)) if depth else 0):
                self.table(f"{name}.", depth - 1)


@st.composite
def toml_texts(draw: st.DrawFn) -> str:
    """A valid document."""
    writer = _Writer(draw)
    writer.pairs()
    for _ in range(draw(st.integers(0, 3))):
        writer.table("", 2)
    text = "".join(writer.pieces)
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


def line_of(text: str, pattern: str, number: int = 0) -> int:
    """The line, from 1, of the match ``number``, from 0, of ``pattern``."""
    match = list(re.finditer(pattern, text))[number]
    return text.count("\n", 0, match.start()) + 1
