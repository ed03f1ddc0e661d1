"""Edits of config.json in a boot partition."""

import json
import subprocess
from pathlib import Path

import pytest
from boot_volume import edited, extract, file_tree
from builders import BuiltImage, Layout, run
from hypothesis import given
from hypothesis import strategies as st
from imagecopies import MakeImage

from balenaflash.balena.json_text import Json
from balenaflash.edits.config.edit import (
    AppendItem,
    ConfigChange,
    EditConfig,
    MergeObject,
    SetKey,
    UnsetKey,
    change_config,
)
from balenaflash.edits.config.keys import format_key
from balenaflash.edits.files import PutFile, Remove
from balenaflash.errors import ConfigError

needs_jq = pytest.mark.needs("jq")


def config_of(built: BuiltImage) -> bytes:
    """The file as mtools reads it."""
    place = f"{built.path}@@{built.boot_extent.start}"
    return run("mtype", "-i", place, "::/config.json").encode()


def apply(built: BuiltImage, *steps: ConfigChange) -> tuple[str, ...]:
    """The warnings."""
    with edited(built) as volume:
        [change] = EditConfig(steps).apply(volume)
    return change.warnings


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@needs_jq
@pytest.mark.parametrize(
    ("step", "program"),
    [
        (SetKey(("hostname",), "lab-1"), '.hostname = "lab-1"'),
        (SetKey(("os", "fan", "profile"), "quiet"), '.os.fan.profile = "quiet"'),
        (SetKey(("deviceApiKeys", "a.b"), "k"), '.deviceApiKeys["a.b"] = "k"'),
        (AppendItem(("os", "sshKeys"), "k"), '.os.sshKeys += ["k"]'),
        (AppendItem(("lab", "racks"), 5), ".lab.racks += [5]"),
        (UnsetKey(("os", "sshKeys")), "del(.os.sshKeys)"),
        (UnsetKey(("x-lab-note",)), 'del(.["x-lab-note"])'),
        (
            MergeObject({"os": {"fan": {"profile": "cool"}}, "uuid": "ab" * 16}),
            f'. + {{"os": {{"fan": {{"profile": "cool"}}}}, "uuid": "{"ab" * 16}"}}',
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_an_edit_does_what_jq_does(built: BuiltImage, step: ConfigChange, program: str) -> None:
    before = built.boot_files["/config.json"]
    jq = subprocess.run(["jq", "-c", program], input=before, capture_output=True, check=True)
    apply(built, step)
    after = config_of(built)
    expected = json.loads(jq.stdout)
    assert json.loads(after) == expected
    assert list(json.loads(after)) == list(expected)


def test_only_the_value_changes_in_the_text(built: BuiltImage) -> None:
    before = built.boot_files["/config.json"].decode()
    apply(built, SetKey(("listenPort",), 1234))
    assert config_of(built).decode() == before.replace("48484", "1234")


def test_no_other_file_changes(built: BuiltImage, tmp_path: Path) -> None:
    apply(built, SetKey(("hostname",), "lab-1"))
    after = file_tree(extract(built, tmp_path / "after"))
    changed = {path for path in after if after[path] != built.boot_files.get(path)}
    assert changed == {"/config.json"}
    assert after.keys() == built.boot_files.keys()


@given(data=st.data())
def test_an_edit_that_changes_no_value_keeps_the_bytes(data: st.DataObject) -> None:
    indent = data.draw(st.integers(0, 3))
    text = json.dumps({"hostname": "a", "n": [1, {"b": 2.50}]}, indent=indent or None)
    odd = text.replace("[", "[ ").encode()
    after, _ = change_config(FakeVolume({"/config.json": odd}), [SetKey(("hostname",), "a")])
    assert after == odd


class FakeVolume:
    """A boot partition in memory, as far as changes of config.json read it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def find(self, path: str) -> str | None:
        return path if path in self._files else None

    def read_file(self, path: str) -> bytes:
        return self._files[path]


def changed(config: dict[str, Json], *steps: ConfigChange, slug: str = "lab") -> dict[str, Json]:
    files = {
        "/config.json": json.dumps(config).encode(),
        "/device-type.json": json.dumps({"slug": slug}).encode(),
    }
    after: dict[str, Json] = json.loads(change_config(FakeVolume(files), steps)[0])
    return after


def test_a_missing_config_is_made(built: BuiltImage) -> None:
    with edited(built) as volume:
        Remove("/config.json").apply(volume)
    warnings = apply(built, SetKey(("hostname",), "lab-1"))
    assert warnings == ("/config.json was missing from the boot partition; it is created.",)
    assert config_of(built) == b'{\n  "hostname": "lab-1"\n}\n'


@pytest.mark.parametrize(
    ("steps", "code", "words"),
    [
        ([SetKey(("developmentMode",), "yes")], "config-type", 'not the string "yes"'),
        ([SetKey(("hostname", "x"), 1)], "config-type", "hostname is a string"),
        ([SetKey(("deviceApiKeys", "api", "x"), "k")], "config-type", "an object of strings"),
        ([AppendItem(("hostname",), "x")], "config-type", "+= needs an array"),
        ([UnsetKey(("nope",))], "config-key-missing", "no key nope"),
        ([UnsetKey(("os", "nope"))], "config-key-missing", "no key os.nope"),
        ([SetKey(("deviceType",), "raspberrypi3")], "config-device-type", "generic-amd64"),
        ([MergeObject({"deviceType": "x"})], "config-device-type", "generic-amd64"),
        ([SetKey(("uuid",), "x"), SetKey(("uuid",), "ab")], "config-value", "32 to 62"),
    ],
)
def test_an_edit_that_would_not_be_valid_changes_nothing(
    built: BuiltImage, steps: list[ConfigChange], code: str, words: str
) -> None:
    with edited(built) as volume:
        with pytest.raises(ConfigError) as refusal:
            EditConfig((SetKey(("listenPort",), 1), *steps)).apply(volume)
        assert volume.changes() == ()
    assert refusal.value.problems[0].code == code
    assert words in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{,}", b"\xff", b'{"a":1,"a":2}', b"[]"])
def test_a_config_that_is_not_valid_is_not_edited(built: BuiltImage, content: bytes) -> None:
    with edited(built) as volume:
        PutFile("/config.json", content).apply(volume)
        with pytest.raises(ConfigError):
            EditConfig((SetKey(("hostname",), "x"),)).apply(volume)
        assert volume.read_file("/config.json") == content


def test_what_was_wrong_before_is_a_warning_and_stays() -> None:
    files = {"/config.json": b'{"listenPort": "no", "lab": 1, "deviceType": "y"}'}
    after, warnings = change_config(FakeVolume(files), [SetKey(("hostname",), "a")])
    assert warnings == ('/config.json: listenPort must be a number, not the string "no".',)
    assert json.loads(after)["listenPort"] == "no"


def test_what_a_merge_loses_is_a_warning() -> None:
    files = {"/config.json": b'{"os": {"sshKeys": [], "fan": {}, "power": {"mode": "low"}}}'}
    _, warnings = change_config(FakeVolume(files), [MergeObject({"os": {"fan": {}}})])
    assert warnings == (
        "/config.json: os is replaced as a whole, which removes os.sshKeys, os.power.",
    )


def test_an_item_is_added_once() -> None:
    twice = AppendItem(("lab",), "x")
    assert changed({}, twice, twice) == {"lab": ["x"]}


def test_a_new_key_comes_last_and_a_known_one_keeps_its_place() -> None:
    after = changed({"b": 1, "a": 2}, SetKey(("c",), 3), SetKey(("b",), 4))
    assert list(after.items()) == [("b", 4), ("a", 2), ("c", 3)]


def test_the_value_of_an_edit_is_not_shared_with_the_file() -> None:
    value: Json = ["x"]
    step = SetKey(("lab",), value)
    assert changed({}, step, AppendItem(("lab",), "y")) == {"lab": ["x", "y"]}
    assert value == ["x"]


def test_descriptions_and_differences_have_no_secrets() -> None:
    secret = "hunter2-hunter2-hunter2"  # noqa: S105 -- it is one
    steps: list[ConfigChange] = [
        SetKey(("apiKey",), secret),
        SetKey(("deviceApiKeys", "a.b"), secret),
        MergeObject({"wifiKey": secret}),
        SetKey(("hostname",), "lab"),
    ]
    assert EditConfig(tuple(steps)).describe() == (
        '/config.json: set apiKey; set deviceApiKeys["a.b"]; merge wifiKey; set hostname to "lab"'
    )
    files = {"/config.json": b'{"apiKey": "other"}'}
    assert secret not in "\n".join(change_config(FakeVolume(files), steps)[1])


def test_a_device_type_file_that_is_not_valid_decides_nothing() -> None:
    files = {"/config.json": b"{}", "/device-type.json": b"{"}
    after, _ = change_config(FakeVolume(files), [SetKey(("deviceType",), "x")])
    assert format_key(("deviceType",)) in json.loads(after)
