"""Settings in a file that a shell reads: ``NAME=value`` lines, and nothing else."""

import re

from balenaflash.errors import ImageError

_LINE = re.compile(
    r"[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)", re.DOTALL
)
_PART = re.compile(
    r"""
    '(?P<single>[^']*)'
    | "(?P<double>(?:[^"\\$`]|\\.)*)"
    | \\(?P<escaped>.)
    | (?P<plain>(?!~)[^\s'"\\$`;&|<>()]+)
    | (?P<end>[ \t]+(?:\#.*)?)$
    """,
    re.VERBOSE | re.DOTALL,
)
"""A part of a value (POSIX.1-2017, Shell Command Language, 2.2), without any expansion."""

_ESCAPED = re.compile(r"\\([\\$`\"])")  # 2.2.3: within double quotes a backslash escapes these


def parse_settings(data: bytes, name: str) -> dict[str, str]:
    """What the variables in ``data`` are set to; of the same variable the last assignment counts.

    Nothing is run and nothing expanded: a line that would need a shell is refused. ``name`` is
    what messages call the file.

    Raises:
        ImageError: it is not UTF-8, or a line is not a plain assignment (``settings-invalid``).
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(name, f"is not UTF-8 at byte {error.start}") from error
    settings: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        value = None if match is None else _parse_value(match["value"])
        if match is None or value is None:
            raise _invalid(name, f"line {number} is not a plain NAME=value")
        settings[match["name"]] = value
    return settings


def _parse_value(text: str) -> str | None:
    """The one word that ``text`` is, without its quotes; ``None`` if a shell sees more in it."""
    parts: list[str] = []
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            return None
        position = match.end()
        match match.lastgroup:
            case "double":
                parts.append(_ESCAPED.sub(r"\1", match["double"]))
            case "end":
                break
            case group:
                parts.append(match[group or 0])
    return "".join(parts) if position == len(text) else None


def _invalid(name: str, fact: str) -> ImageError:
    return ImageError(f"{name}: {fact}", code="settings-invalid")
