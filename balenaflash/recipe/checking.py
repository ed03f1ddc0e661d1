"""Tables of a recipe compared with what they may hold."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from balenaflash.boot.paths import volume_path
from balenaflash.errors import ConfigError, EditError, Problem
from balenaflash.recipe.places import Place
from balenaflash.recipe.schema import STEPS, Field, Holds, Use
from balenaflash.recipe.step import Source, Step, Value
from balenaflash.recipe.variables import Variables
from balenaflash.spelling import closest

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
