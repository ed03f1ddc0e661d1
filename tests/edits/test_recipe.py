"""Recipes as data: their form, their problems and the steps at fault, their variables."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.edits.recipe import step as recipe_step
from balenaflash.edits.recipe.reading import Recipe, read_recipe
from balenaflash.edits.recipe.step import STEPS, Variables
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


# What is wrong, and where.

HEAD = 'name = "lab"\n\n[[step]]\n'


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('putt = "a"', "recipe-step-unknown", "step 1: 'putt' is not a known step"),
        ('to = "/a"', "recipe-step", "step 1: the step has no action"),
        ('put = "a"\nrm = "b"', "recipe-step", "step 1: put and rm are separate steps"),
        ('put = "a"\nTo = "b"', "recipe-key-unknown", "step 1 (put): 'To' is not a known key"),
        (
            "put = 1",
            "recipe-type",
            "step 1 (put): must be a string or an array of strings, not a n",
        ),
        ("put = []", "recipe-type", "step 1 (put): must be a string .*, not an empty array"),
        ('put = ["a", 2]', "recipe-type", "step 1 (put): item 2: must be a string, not a number"),
        ('rm = "/a"\nrecursive = 1', "recipe-type", "step 1 (rm): recursive: must be true or fals"),
        ("use-internal = false", "recipe-type", "step 1 (use-internal): must be true, not false"),
        ("splash = 1979-05-27", "recipe-type", "step 1 (splash): .* a string, not a date or time"),
        ("ethernet = true\npriority = true", "recipe-type", "step 1 (ethernet): priority: must be"),
        ('mv = "/a"', "recipe-key-missing", "step 1 (mv): to is missing"),
        ('rm = ["/a", "/b/../c"]', "path-invalid", r"step 1 (rm): item 2: '/b/\.\./c': contains"),
        ('put = "a"\nto = "../b"', "path-invalid", r"step 1 (put): to: '\.\./b': contains"),
        ('put = "a\\u0000"', "recipe-path", r"step 1 (put): 'a\\x00' is not the path of a file"),
        ('splash = "no.png"', "source-unreadable", r"step 1 (splash): .*no\.png: cannot be read"),
        ('rm = "/${a}"', "recipe-variable", r"step 1 (rm): \$\{a\} is not defined"),
        ('rm = "/$a"', "recipe-variable", r"step 1 (rm): a single \$ is not allowed"),
        ('rm = "/${a b}"', "recipe-variable", r"step 1 (rm): \$\{a b\} is not a variable"),
        ('rm = "${env:HOME}"', "recipe-variable", "step 1 (rm): .* is allowed only in a secret"),
        ('wifi = "a"\npsk = "${p}"', "recipe-variable", "step 1 (wifi): psk: .* would be a secret"),
        ('wifi = "a"', "recipe-network", "step 1 (wifi): psk is missing"),
        ('wifi = "a"\npsk = "12"', "network-invalid", "step 1 (wifi): the passphrase has 2 bytes"),
        ('wifi = "a"\nopen = true\npsk = "b"', "recipe-network", "step 1 (wifi): .* exclude each"),
        (
            "ethernet = true\npriority = 1000",
            "recipe-network",
            "step 1 (ethernet): priority is 1000",
        ),
        ('ethernet = true\ndns = "x"', "network-invalid", "step 1 (ethernet): 'x': is not an IP a"),
        ('config-set = ["a=1", "b"]', "config-assignment", "step 1 (config-set): b: a value is mi"),
        ('config-set = "a=-"', "recipe-source", "step 1 (config-set): a: .* standard input"),
        ('config-set = "apiKey=${k}"', "recipe-variable", "step 1 (config-set): .* would be a sec"),
        (
            'config-set = "a=${env:K}"',
            "recipe-variable",
            "step 1 (config-set): .* only in a secret",
        ),
        ('config-set = "apiKey=${env:K}"', "recipe-variable", "step 1 (config-set): .* variable K"),
        ('config-unset = "=b"', "config-key-invalid", "step 1 (config-unset): '': is not a key"),
        ('put = "."', "recipe-source", "step 1 (put): a recipe cannot put its own directory"),
    ],
)
def test_what_is_wrong_with_a_step_is_told_with_its_number_and_key(
    tmp_path: Path, text: str, code: str, message: str
) -> None:
    place, _, fact = message.partition("): ")
    pattern = f"{re.escape(place + '): ')}{fact}" if fact else message
    [(found, said)] = problems(tmp_path, HEAD + text)
    assert found == code
    assert re.match(f"lab.toml: {pattern}", said), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('name = "lab"', "recipe-step", "there is no step"),
        ('name = "lab"\nstep = 5', "recipe-step", "there is no step"),
        ('name = "lab"\n[step]\nrm = "/a"', "recipe-step", "there is no step"),
        ('name = "lab"\nstep = [5]', "recipe-type", "step 1: must be a table, written below "),
        ('[[step]]\nrm = "/a"', "recipe-key-missing", "name is missing"),
        ('nam = "lab"\n' + HEAD + 'rm = "/a"', "recipe-key-unknown", "'nam' is not a known key"),
        ("for = 1\n" + HEAD + 'rm = "/a"', "recipe-type", "for: must be a string or an array"),
        ("name = lab", "recipe-toml", "is not valid TOML: .*line 1, column 8"),
        ("a = " + "[" * 5000 + "]" * 5000, "recipe-toml", "is not valid TOML: .*nested too deeply"),
        ("a = " + "1" * 5000, "recipe-toml", "is not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_told_with_its_key(
    tmp_path: Path, text: str, code: str, message: str
) -> None:
    [(found, said)] = problems(tmp_path, text)
    assert found == code
    assert re.match(f"lab.toml: {message}", said), said
    assert "\n" not in said


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = 'nam = "lab"\n[[step]]\nrm = "/.."\n[[step]]\nputt = 1\n[[step]]\nconfig-unset = ""\n'
    said = [message for _, message in problems(tmp_path, text)]
    assert [message.split(": ")[1] for message in said] == [
        *("'nam' is not a known key", "name is missing"),
        *("step 1 (rm)", "step 2", "step 3 (config-unset)"),
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
    text = recipe_step.__doc__ or ""
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
