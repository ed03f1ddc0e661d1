"""Sizes as people write them."""

import subprocess
from pathlib import Path

import pytest

from balenaflash.units import parse_size


@pytest.mark.parametrize(
    "text", ["0", "1", "512", "3K", "3KiB", "3KB", "7M", "7MiB", "7MB", "2G", "2GiB", "2GB", "1T"]
)
def test_a_size_means_what_it_means_to_truncate(text: str, tmp_path: Path) -> None:
    # truncate(1) of coreutils, whose units are those of util-linux.
    path = tmp_path / "file"
    subprocess.run(["truncate", "--size", text, path], check=True)
    assert parse_size(text) == path.stat().st_size


@pytest.mark.parametrize(
    ("text", "same"), [("256g", "256G"), (" 256 GiB ", "256G"), ("5 mb", "5MB"), ("12B", "12")]
)
def test_case_and_white_space_do_not_matter(text: str, same: str) -> None:
    assert parse_size(text) == parse_size(same)


@pytest.mark.parametrize(
    "text", ["", " ", "G", "-1", "+1", "1.5G", "1e9", "0x10", "1Gi", "1 2", "\u0661"]
)
def test_what_is_no_size_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
