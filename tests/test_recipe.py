"""Recipes as data: their form, what is wrong with them and where, what their variables do."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tomltexts import line_of, toml_texts

from balenaflash.edits.recipe import schema
from balenaflash.edits.recipe.reading import Recipe, read_recipe
from balenaflash.edits.recipe.schema import STEPS
from balenaflash.edits.recipe.step import Place, Variables, find_lines
from balenaflash.errors import ConfigError

SECRET = "correct horse"  # noqa: S105 -- of no network


def read(
    folder: Path,
    text: str,
    given: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Recipe:
    path = folder / "lab.toml"
    path.write_text(text)
    return read_recipe(path, Variables(given or {}, environment or {}))


def problems(folder: Path, text: str) -> list[tuple[str, str]]:
    """Code and message, without the directory, of all that is wrong with a recipe."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return [(each.code, each.message.removeprefix(f"{folder}/")) for each in caught.value.problems]


# Lines.


def places(value: object, above: Place = ()) -> Iterator[tuple[Place, object]]:
    """Every place in a parsed document, and what is there."""
    inside: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inside += value.items()
    elif isinstance(value, list):
        inside += enumerate(value)
    for key, each in inside:
        yield (*above, key), each
        yield from places(each, (*above, key))


def expected_line(text: str, place: Place, value: object) -> int:
    """Found by looking for the one name or mark in ``text`` that says it."""
    last = place[-1]
    if isinstance(last, str):
        return line_of(text, last)
    name = next(part for part in reversed(place) if isinstance(part, str))
    # A header of an array of tables, and not a closing bracket behind a name in a string.
    header = rf"(?m)^\[\[.*{name}['\"]?\]\]"
    if len(place) > 1 and isinstance(place[-2], str) and re.search(header, text):
        return line_of(text, header, last)
    first = next(each for _, each in places([value]) if not isinstance(each, dict | list))
    mark = re.search(r"\d{7}", str(first))
    assert mark is not None
    return line_of(text, mark[0])


@given(text=toml_texts())
def test_the_line_of_every_key_table_and_item_is_known(text: str) -> None:
    found = find_lines(text)
    expected = {
        place: expected_line(text, place, value) for place, value in places(tomllib.loads(text))
    }
    assert found == expected


def test_the_lines_of_a_recipe_are_those_an_editor_shows() -> None:
    text = (
        'name = """\n[[step]]\n"""\n\n# [[step]]\n[[step]]\nput = [\n  "a",\n  "b",\n]\n[[step]]\n'
    )
    assert find_lines(text) == {
        ("name",): 1,
        ("step",): 6,
        ("step", 0): 6,
        ("step", 0, "put"): 7,
        ("step", 0, "put", 0): 8,
        ("step", 0, "put", 1): 9,
        ("step", 1): 11,
    }


# What is wrong, and where.

HEAD = 'name = "lab"\n\n[[step]]\n'


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (HEAD + 'putt = "a"', "recipe-step-unknown", "line 3: 'putt' is not a known step"),
        (HEAD + 'to = "/a"', "recipe-step", "line 3: the step does not say what to do"),
        (HEAD + 'put = "a"\nrm = "b"', "recipe-step", "line 3: put and rm are steps of their own"),
        (HEAD + 'put = "a"\nTo = "b"', "recipe-key-unknown", "line 5: To: 'To' is not a known key"),
        (HEAD + "put = 1", "recipe-type", "line 4: put: must be a string or an array of strings, "),
        (HEAD + "put = []", "recipe-type", "line 4: put: must be .* not an empty array"),
        (HEAD + 'put = [\n"a",\n2]', "recipe-type", "line 6: put: must be a string, not a number"),
        (HEAD + 'rm = "/a"\nrecursive = 1', "recipe-type", "line 5: recursive: must be true or fa"),
        (HEAD + "use-internal = false", "recipe-type", "line 4: use-internal: must be true, not f"),
        (HEAD + "splash = 1979-05-27", "recipe-type", "line 4: .* a string, not a date or time"),
        (HEAD + "ethernet = true\npriority = true", "recipe-type", "line 5: priority: must be a w"),
        (HEAD + 'mv = "/a"', "recipe-key-missing", "line 3: to is missing"),
        (HEAD + 'rm = ["/a",\n"/b/../c"]', "path-invalid", r"line 5: rm: '/b/\.\./c': holds"),
        (HEAD + 'put = "a"\nto = "../b"', "path-invalid", r"line 5: to: '\.\./b': holds"),
        (HEAD + 'put = "a\\u0000"', "recipe-path", r"line 4: put: 'a\\x00' is not the path of a f"),
        (HEAD + 'splash = "no.png"', "source-unreadable", r"line 4: splash: .*no\.png: cannot be"),
        (HEAD + 'rm = "/${a}"', "recipe-variable", r"line 4: rm: \$\{a\} is not defined"),
        (
            HEAD + 'rm = "/$a"',
            "recipe-variable",
            r"line 4: rm: a \$ stands for itself only as \$\$",
        ),
        (HEAD + 'rm = "/${a b}"', "recipe-variable", r"line 4: rm: \$\{a b\} is not a variable"),
        (HEAD + 'rm = "${env:HOME}"', "recipe-variable", r"line 4: rm: .* only where a secret"),
        (HEAD + 'wifi = "a"\npsk = "${p}"', "recipe-variable", "line 5: psk: .* would be a secret"),
        (HEAD + 'wifi = "a"', "recipe-network", "line 4: wifi: psk is missing"),
        (
            HEAD + 'wifi = "a"\npsk = "12"',
            "network-invalid",
            "line 4: wifi: the passphrase has 2 b",
        ),
        (HEAD + 'wifi = "a"\nopen = true\npsk = "b"', "recipe-network", "line 4: .* exclude each"),
        (HEAD + "ethernet = true\npriority = 1000", "recipe-network", "line 4: .*priority is 1000"),
        (HEAD + 'ethernet = true\ndns = "x"', "network-invalid", "line 4: .*'x': is not an IP a"),
        (
            HEAD + 'config-set = ["a=1",\n"b"]',
            "config-assignment",
            "line 5: config-set: b: a value",
        ),
        (HEAD + 'config-set = "a=-"', "recipe-source", "line 4: config-set: a: .* standard input"),
        (HEAD + 'config-set = "apiKey=${k}"', "recipe-variable", "line 4: .* would be a secret"),
        (HEAD + 'config-set = "a=${env:K}"', "recipe-variable", "line 4: .* only where a secret"),
        (
            HEAD + 'config-set = "apiKey=${env:K}"',
            "recipe-variable",
            "line 4: .* has no variable K",
        ),
        (HEAD + 'config-unset = "=b"', "config-key-invalid", "line 4: config-unset: ''"),
        (HEAD + 'put = "."', "recipe-source", "line 4: put: a recipe does not put the directory"),
        ('name = "lab"', "recipe-step", "lab.toml: there is no step"),
        ('name = "lab"\nstep = 5', "recipe-step", "line 2: there is no step"),
        ('name = "lab"\n[step]\nrm = "/a"', "recipe-step", "line 2: there is no step"),
        ('name = "lab"\nstep = [5]', "recipe-type", "line 2: must be a table, written below "),
        ('[[step]]\nrm = "/a"', "recipe-key-missing", "lab.toml: name is missing"),
        ('nam = "lab"\n' + HEAD + 'rm = "/a"', "recipe-key-unknown", "line 1: nam: 'nam' is not a"),
        ("name = lab", "recipe-toml", r"lab.toml: is not valid TOML: .*line 1, column 8"),
        ("a = " + "[" * 5000 + "]" * 5000, "recipe-toml", "nested too deeply"),
        ("a = " + "1" * 5000, "recipe-toml", "lab.toml: is not valid TOML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_key(
    tmp_path: Path, text: str, code: str, message: str
) -> None:
    [(found, said)] = problems(tmp_path, text)
    assert found == code
    assert said.startswith("lab.toml")
    assert re.search(message, said), said
    assert "\n" not in said


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = 'nam = "lab"\n[[step]]\nrm = "/.."\n[[step]]\nputt = 1\n[[step]]\nconfig-unset = ""\n'
    said = [message for _, message in problems(tmp_path, text)]
    assert [message.partition(":")[0] for message in said] == [
        *("lab.toml, line 1", "lab.toml"),
        *("lab.toml, line 3", "lab.toml, line 4", "lab.toml, line 7"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"\xff", "is not UTF-8"), (b" " * 2_000_000, "more than 1.0 MiB")],
)
def test_a_recipe_that_cannot_be_read_is_an_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "lab.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(path, Variables())
    assert caught.value.code == "recipe-unreadable"


NAMES = sorted({name for fields in STEPS.values() for name in fields})
STRINGS = st.text(alphabet=st.sampled_from("a/.$@={}[]+-:;,\"'\\\0\n \u00e9"), max_size=12)
VALUES = st.one_of(
    *(STRINGS, st.lists(STRINGS, max_size=3), st.booleans(), st.integers(), st.just("${a}")),
    st.sampled_from(["10.0.0.7/24", "10.0.0.1", "passphrase", "hostname=a", "x=[1", "a=@lab.toml"]),
)


@given(steps=st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), max_size=4))
def test_whatever_a_recipe_says_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    lines = ['name = "any"']
    for step in steps:
        # What JSON says of such values, TOML reads the same.
        lines += ["[[step]]", *(f"{name} = {json.dumps(step[name])}" for name in step)]
    with suppress(ConfigError):
        recipe = read(folder, "\n".join(lines), {"a": "../b"})
        assert steps
        assert all(edit.describe() for edit in recipe.edits)


def test_the_right_word_is_suggested(tmp_path: Path) -> None:
    for text, hint in (
        (HEAD + 'putt = "a"', "Did you mean put?"),
        (HEAD + 'mkdir = "a"\nparent = true', "Did you mean parents?"),
        ('name = "a"\n[[steps]]\nrm = "/a"', "Did you mean step?"),
        (HEAD + 'rm = "/${x}"', "Define it: --var x=VALUE"),
        (HEAD + 'rm = "/${bord}"', "Did you mean ${board}? Define it: --var bord=VALUE"),
    ):
        with pytest.raises(ConfigError) as caught:
            read(tmp_path, text, {"board": "a"})
        assert hint in [each.hint for each in caught.value.problems]


def test_every_step_and_key_is_documented() -> None:
    text = schema.__doc__ or ""
    for kind, fields in STEPS.items():
        assert next(iter(fields)) == kind, "the step's own key comes first"
        for name in fields:
            assert f"``{name}``" in text


# Variables.

_MARKED = st.text().map("\ufeff".__add__)


@given(text=st.text() | _MARKED, value=st.text() | _MARKED)
def test_what_is_filled_in_is_not_looked_at_again(text: str, value: str) -> None:
    written = text.replace("$", "$$")
    variables = Variables({"a": value}, {"A": value})
    # A byte order mark before the text, or before a value, is not part of it.
    begin, filled = text.removeprefix("\ufeff"), value.removeprefix("\ufeff")
    assert variables.fill_in(f"{written}${{a}}{written}") == f"{begin}{filled}{text}"
    assert variables.fill_in(f"{written}${{env:A}}", secret=True) == f"{begin}{filled}"


def test_no_variable_can_name_a_file_or_another_key(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("content of a file")
    text = HEAD + 'config-set = ["hostname=${h}", "x-lab=a${h}"]'
    recipe = read(tmp_path, text, {"h": "@other"})
    [edit] = recipe.edits
    assert edit.describe() == '/config.json: set hostname to "@other"; set x-lab to "a@other"'


def test_a_secret_from_the_environment_is_nowhere_in_what_can_be_shown(tmp_path: Path) -> None:
    text = HEAD + 'wifi = "a"\npsk = "${env:P}"\n[[step]]\nconfig-set = "apiKey=${env:P}"'
    recipe = read(tmp_path, text, environment={"P": SECRET})
    assert len(recipe.edits) == 2
    shown = [*map(repr, recipe.edits), *(edit.describe() for edit in recipe.edits), repr(recipe)]
    assert SECRET not in "".join(shown)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text.replace("psk", "psk-file"), environment={"P": SECRET})
    assert SECRET not in str(caught.value)
