"""Keys of config.json as they are written, and assignments to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.balena.json_text import Json
from balenaflash.edits.config.edit import Assignment, parse_assignment, refuse_secret
from balenaflash.edits.config.keys import (
    KeyPath,
    format_key,
    nested,
    parse_key,
    split_key,
    value_at,
)
from balenaflash.errors import ConfigError

_keys = st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4).map(tuple)


@given(key=_keys, rest=st.sampled_from(["", "=x", "+=x", "=a.b", '=["x"]']))
def test_a_key_is_read_as_it_was_written(key: KeyPath, rest: str) -> None:
    assert split_key(format_key(key) + rest) == (key, rest)


@given(key=_keys)
def test_what_is_nested_is_found(key: KeyPath) -> None:
    assert value_at(nested(key, 5), key) == 5


@given(text=st.text(max_size=20) | st.text(st.sampled_from('ab.[]"=+\\'), max_size=12))
def test_any_text_is_an_assignment_or_an_error_of_ours(text: str) -> None:
    try:
        parsed = parse_assignment(text)
    except ConfigError:
        return
    assert parsed.key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("os.sshKeys", ("os", "sshKeys")),
        ('deviceApiKeys["api.balena-cloud.com"]', ("deviceApiKeys", "api.balena-cloud.com")),
        ('["a b"].c', ("a b", "c")),
        (r'["a\"]"]', ('a"]',)),
        ('a["b"]["c"].d', ("a", "b", "c", "d")),
        ("registered_at", ("registered_at",)),
        ("x-lab-note", ("x-lab-note",)),
    ],
)
def test_a_key_is_a_path(text: str, key: KeyPath) -> None:
    assert parse_key(text) == key


@pytest.mark.parametrize(
    "text",
    ["", ".", ".a", "a.", "a..b", "a[", "a[0]", 'a["b', "a b", "a]", 'a["\\x"]', "=x", "a.[b]"],
)
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_key(text)
    assert refusal.value.code == "config-key-invalid"


def test_a_key_that_is_not_one_is_told_without_the_value() -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_assignment("api Key=hunter2")
    assert "hunter2" not in str(refusal.value)


def test_a_value_is_needed() -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_assignment("hostname")
    assert refusal.value.hint == "Write it as hostname=VALUE"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hostname=12", "12"),
        ("hostname=true", "true"),
        ("hostname=", ""),
        ('hostname="@home"', "@home"),
        ("hostname=a=b", "a=b"),
        ('initialDeviceName="a" and "b"', '"a" and "b"'),
        ("os.network.connectivity.interval=0", "0"),
        ("developmentMode=true", True),
        ('developmentMode="true"', "true"),
        ("developmentMode=yes", "yes"),
        ("listenPort=48484", 48484),
        ("os.sshKeys=[]", []),
        ("os.sshKeys+=5", "5"),
        ('deviceApiKeys["a.b"]=12', "12"),
        ("os.udevRules.usb=5", "5"),
        ("lab.rack=7", 7),
        ("lab.rack=seven", "seven"),
        ("lab.rack=NaN", "NaN"),
        ('lab={"a":[1]}', {"a": [1]}),
        ("lab+=1", 1),
    ],
)
def test_a_value_has_the_type_of_its_key(text: str, value: Json) -> None:
    assignment = parse_assignment(text)
    assert assignment.source is None
    given = assignment.value_in(assignment.text or "", "x")
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize("text", ["os.sshKeys=[1", 'lab={"a":1,"a":2}', "network=[NaN]"])
def test_a_value_that_begins_as_json_must_be_json(text: str) -> None:
    assignment = parse_assignment(text)
    with pytest.raises(ConfigError):
        assignment.value_in(assignment.text or "", "x")


def test_at_names_a_file_and_a_hyphen_standard_input() -> None:
    sources = [parse_assignment(text).source for text in ("apiKey=@key", "apiKey=-", "a=--")]
    assert sources == ["key", "-", None]
    assert parse_assignment("os.sshKeys+=@id.pub") == Assignment(
        ("os", "sshKeys"), append=True, text=None, source="id.pub"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("apiKey",), "hunter2"),
        (("deviceApiKeys", "a.b"), "hunter2"),
        (("deviceApiKeys",), {"a.b": "hunter2"}),
        (("network",), [{"wifiSsid": "Lab", "wifiKey": "hunter2"}]),
        (("wifiKey",), "hunter2"),
    ],
)
def test_a_secret_may_not_stand_on_a_command_line(key: KeyPath, value: Json) -> None:
    with pytest.raises(ConfigError) as refusal:
        refuse_secret(key, value)
    assert refusal.value.code == "config-secret"
    assert "hunter2" not in f"{refusal.value} {refusal.value.hint}"


def test_a_public_key_may() -> None:
    refuse_secret(("os", "sshKeys"), "ssh-ed25519 AAAA lab")
