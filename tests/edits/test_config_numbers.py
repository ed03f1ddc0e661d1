"""Values of config.json that Python and JSON see differently, and values that are too deep."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from builders import Layout
from commandline import RunBalenaflash
from hypothesis import given
from hypothesis import strategies as st
from imagecopies import MakeImage

from balenaflash.balena.json_text import (
    MAX_DEPTH,
    format_document,
    is_same,
    parse_document,
    parse_value,
)
from balenaflash.edits.config.check import KEYS
from balenaflash.edits.config.edit import AppendItem
from balenaflash.edits.config.keys import format_key, parse_key
from balenaflash.errors import ConfigError

VALUES = ["true", "false", "null", "0", "-0", "1", "1.0", "1e2", "100", "1E+2", '"1"', '""']
VALUES += ["[]", "{}", "[1]", "[true]", '{"a": 1}', '{"a": true}', '{"a": 1, "b": 2}']
VALUES += ['{"b": 2, "a": 1}', "12345678901234567890123", "0.1", "2"]


@pytest.mark.needs("jq")
def test_values_are_the_same_where_jq_says_so() -> None:
    text = f"[{','.join(VALUES)}]"
    program = "[.[] as $a | [.[] as $b | $a == $b]]"
    run = subprocess.run(
        ["jq", "-c", program], input=text, capture_output=True, text=True, check=True
    )
    values = [parse_value(each, "") for each in VALUES]
    assert json.loads(run.stdout) == [[is_same(a, b) for b in values] for a in values]


@pytest.mark.parametrize(
    ("items", "item", "added"),
    [
        ("[true, 0]", "1", True),
        ("[true, 0]", "false", True),
        ("[1]", "true", True),
        ('[{"a": 1}]', '{"a": true}', True),
        ("[0.1]", "0.1000000000000000000001", True),
        ("[1]", "1.0", False),
        ("[true]", "true", False),
        ('["a"]', '"a"', False),
    ],
)
def test_an_item_is_added_unless_the_same_is_there(items: str, item: str, added: bool) -> None:  # noqa: FBT001
    config = {"list": parse_value(items, "")}
    before = str(config)
    AppendItem(("list",), parse_value(item, "")).apply(config)
    assert (str(config) != before) == added


@pytest.mark.parametrize("number", ["-0", "0", "1.0", "1e2", "-0.0", "1E-7", "9" * 400, "0.10"])
def test_a_number_keeps_its_digits(number: str) -> None:
    data = f'{{"a": {number}, "b": [{number}]}}'.encode()
    assert format_document(parse_document(data, "")) == data


@given(st.integers(), st.integers())
def test_integers_are_the_same_as_in_python(one: int, other: int) -> None:
    assert is_same(one, other) == (one == other)
    assert is_same(one, one)


@pytest.mark.parametrize("value", ["[]", "{}", '[{"a": 1}]', "null", "1", "-0", "1e400000", '"x"'])
def test_no_value_of_a_known_key_is_a_bug(value: str) -> None:
    from balenaflash.edits.config.check import check_config  # noqa: PLC0415
    from balenaflash.edits.config.keys import nested  # noqa: PLC0415

    for key in KEYS:
        try:
            config = nested(key, parse_value(value, ""))
        except ConfigError:
            assert "e400000" in value
            continue
        check_config(config, "raspberrypi4-64")


def test_a_key_of_too_many_levels_is_refused(
    image: MakeImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    key = parse_key(".".join(["a"] * MAX_DEPTH))
    assert parse_key(format_key(key)) == key
    for levels in (MAX_DEPTH + 1, 500, 20000):
        with pytest.raises(ConfigError, match="more than 64 levels"):
            parse_key(".".join(["a"] * levels))
    # A key and a value that are each deep enough to be read, and together are not.
    path = image(Layout.GPT_FAT16).path
    (tmp_path / "value").write_text('{"a":' * 60 + "1" + "}" * 60)
    run = balenaflash("config", "set", path, f"{'.'.join(['a'] * 50)}=@{tmp_path}/value")
    assert run.returncode == 3
    assert "is nested more than 64 levels deep" in run.stderr
    assert balenaflash("config", "get", path, "deviceType").returncode == 0


@pytest.mark.parametrize("length", [237, 244, 255])
def test_an_image_may_have_the_longest_name(
    length: int, image: MakeImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    path = tmp_path / f"{'n' * (length - 4)}.img"
    shutil.move(image(Layout.GPT_FAT16).path, path)
    commands: list[list[str | Path]] = [
        ["config", "set", "--quiet", path, "hostname=bench"],
        ["inspect", "--quiet", path],
        ["verify", "--quiet", path, path],
    ]
    for command in commands:
        run = balenaflash(*command)
        assert (run.returncode, run.stderr) == (0, ""), command
    assert balenaflash("config", "get", path, "hostname").stdout == "bench\n"
    run = balenaflash("bmap", "create", path)
    assert run.returncode == (0 if length <= 250 else 4)
    assert "Traceback" not in run.stderr
