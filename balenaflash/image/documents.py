"""Small files of a boot partition, parsed without trust in them."""

import json
import shlex
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeVar

from balenaflash.errors import EditError, ImageError
from balenaflash.extent import MIB, format_size
from balenaflash.image.fat.volume import FatVolume

_MAX_FILE_SIZE = MIB  # of a file that is parsed; config.json has a few KiB
_MAX_DEPTH = 64  # of nested JSON; config.json has four levels

_T = TypeVar("_T")


class Documents:
    """Small files of the boot partition, with a warning for each that cannot be used."""

    def __init__(self, volume: FatVolume) -> None:
        self._volume = volume
        self.warnings: list[str] = []

    def text(self, path: str) -> str | None:
        """The UTF-8 content of a file; ``None`` if it is missing or not to be used."""
        return self._parsed(path, lambda data: data.decode("utf-8"))

    def json_object(self, path: str) -> dict[str, object] | None:
        """The JSON object in a file; ``None`` if it is missing or not to be used."""
        return self._parsed(path, _parse_json_object)

    def assignments(self, path: str) -> dict[str, str]:
        """The ``NAME=value`` lines of a file; none if it is missing or not to be used."""
        return self._parsed(path, _parse_assignments) or {}

    def _parsed(self, path: str, parse: Callable[[bytes], _T]) -> _T | None:
        entry = self._volume.find(path)
        if entry is None:
            return None
        if entry.size > _MAX_FILE_SIZE:
            self.warnings.append(f"{path} is not read: it has {format_size(entry.size)}.")
            return None
        try:
            return parse(self._volume.read_file(path))
        except (ImageError, EditError) as error:
            self.warnings.append(f"{path} cannot be read: {error}")
        except UnicodeDecodeError as error:
            self.warnings.append(f"{path} is not UTF-8 text, at byte {error.start}.")
        except (ValueError, RecursionError) as error:
            self.warnings.append(f"{path} is not valid: {error}")
        return None


def _parse_json_object(data: bytes) -> dict[str, object]:
    """A JSON object that can be walked, printed and written again.

    Raises:
        ValueError: it is something else, or holds what cannot be stored as UTF-8.
        RecursionError: it is nested too deeply.
    """
    content: object = json.loads(
        data.decode("utf-8"),
        parse_constant=_refuse_constant,
        object_pairs_hook=_refuse_doubled,
    )
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 -- the content is at fault
    level: list[object] = [content]
    for _ in range(_MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            break
    else:
        raise RecursionError(f"it is nested more than {_MAX_DEPTH} levels deep")
    # "\ud800" alone is allowed by the grammar of JSON, and is no text.
    json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def _children(value: object) -> Iterable[object]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()


def _refuse_doubled(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; its readers disagree on which of two equal keys counts."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {doubled!r} occurs twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_assignments(data: bytes) -> dict[str, str]:
    """``NAME=value`` lines as in os-release(5); lines that are none are left out."""
    values = {}
    for line in data.decode("utf-8").splitlines():
        name, equals, value = line.partition("=")
        try:
            words = shlex.split(value)
        except ValueError:  # a quote without its end
            continue
        if equals and len(words) == 1:
            values[name.strip()] = words[0]
    return values
