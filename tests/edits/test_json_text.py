"""JSON text: what is not asked for stays as it was, and what others refuse is refused."""

import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.balena.json_text import (
    Json,
    JsonDocument,
    JsonStyle,
    format_document,
    parse_document,
    parse_value,
)
from balenaflash.errors import ConfigError

needs_node = pytest.mark.needs("node")
needs_jq = pytest.mark.needs("jq")

_numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_text = st.text(st.characters(codec="utf-8"))
_values = st.recursive(
    st.none() | st.booleans() | _numbers | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=15,
)
_objects: st.SearchStrategy[dict[str, Json]] = st.dictionaries(_text, _values, min_size=1)


@given(
    content=_objects,
    indent=st.sampled_from([None, "", " ", "  ", "    ", "\t"]),
    end=st.sampled_from(["", "\n", "\n\n", " \n"]),
    spaced=st.booleans(),
)
def test_a_document_comes_back_byte_for_byte(
    content: dict[str, Json],
    indent: str | None,
    end: str,
    spaced: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    comma, colon = (", ", ": ") if spaced else (",", ":")
    separators = (comma if indent is None else ",", colon)
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False) + end
    data = text.encode()
    assert format_document(parse_document(data, "config.json")) == data


@given(data=st.binary(max_size=60) | _text.map(str.encode))
def test_any_bytes_are_a_document_or_an_error_of_ours(data: bytes) -> None:
    try:
        document = parse_document(data, "config.json")
    except ConfigError:
        return
    assert json.loads(data) == document.content


@needs_node
@pytest.mark.parametrize("indent", ["", "null, 2", "null, '\\t'"])
def test_the_layout_of_javascript_is_kept(indent: str) -> None:
    content = '{"a":{"b":[1,2,{"c":[]},[]],"d":{}},"e":"\\u00fc\\u2028\\"","f":1.5}'
    script = f"process.stdout.write(JSON.stringify({content}, {indent or 'null'}))"
    data = subprocess.run(["node", "-e", script], capture_output=True, check=True).stdout
    assert format_document(parse_document(data, "config.json")) == data


@needs_jq
def test_a_document_without_a_layout_is_written_as_the_image_build_writes_it() -> None:
    content: dict[str, Json] = {"b": {"c": ["x", 1]}, "a": True}
    # init_config_json() of meta-balena's image-balena.bbclass writes with jq.
    written = subprocess.run(
        ["jq", "."], input=json.dumps(content).encode(), capture_output=True, check=True
    ).stdout
    assert format_document(JsonDocument(content)) == written


@pytest.mark.parametrize(
    "digits", ["1.50", "1e3", "-0.0", "1E-7", "0.10000000000000000001", "9" * 30]
)
def test_numbers_keep_their_digits(digits: str) -> None:
    data = f'{{"n": {digits}}}'.encode()
    document = parse_document(data, "config.json")
    assert format_document(document) == data
    assert float(str(document.content["n"])) == float(digits)


def test_line_ends_of_windows_are_kept() -> None:
    data = b'{\r\n  "a": [\r\n    1\r\n  ]\r\n}\r\n'
    assert parse_document(data, "config.json").style == JsonStyle("  ", "\r\n", "\r\n", ": ")
    assert format_document(parse_document(data, "config.json")) == data


def test_an_escape_of_half_a_character_is_kept() -> None:
    data = b'{"a": "\\ud800"}'
    assert format_document(parse_document(data, "config.json")) == data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1 2}', "line 1, column 9"),
        (b'{\n"a" 1}', "line 2, column 5"),
        (b"\xef\xbb\xbf{}", "byte order mark (line 1, column 1)"),
        (b'{\n"a": "\xff"}', "not UTF-8 at line 2, byte 7"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' occurs twice"),
        (b'{"a": NaN}', "NaN is not valid JSON"),
        (b'{"a": -Infinity}', "-Infinity is not valid JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too long"),
        (b"[]", "is an array"),
        (b"", "line 1, column 1"),
        (b'{"a": "\n"}', "line 1"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 levels"),
        (b"[" * 200_000, "more than 64 levels"),
        (b" " * (1 << 20) + b"{}", "too large"),
    ],
)
def test_what_readers_disagree_on_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_document(data, "config.json")
    assert words in str(refusal.value)
    assert str(refusal.value).startswith("config.json: ")


def test_64_levels_are_read() -> None:
    assert parse_value("[" * 64 + "]" * 64, "x")
