"""A flasher's settings are read as its own shell would, and nothing of them is run."""

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.balena.settings import BootloaderImage, parse_flasher_settings, parse_settings
from balenaflash.errors import ImageError

PLAIN = r"""# what a shell reads
A=
B=plain
C="first" # a comment
C="in \"double\" \$quotes\\ \q"
D='in $single `quotes` \'
E=joined'of 'several" parts"\ here
F=a*b?[c]{d,e}~f#g=h
  G=indented
export H=exported
I="nvme0n1 sda"
I=later
J=x  #  a comment
"""

REFUSED = [
    "A=$(reboot)",
    "A=`reboot`",
    'A="$(reboot)"',
    'A="$HOME"',
    "A=$HOME",
    "A=~root",
    "A=b reboot",
    "A=b; reboot",
    "A=b & reboot",
    "A=b|reboot",
    "A=b>file",
    "A=(b c)",
    "A+=b",
    "A[1]=b",
    "A='open",
    'A="open',
    "A=b\\",
    "A=b\r",
    "source other",
    "reboot",
    "if true",
    "A =b",
    "1A=b",
]


def shell_values(settings: str, tmp_path: Path) -> dict[str, str]:
    """What bash has each variable set to after reading the file."""
    path = tmp_path / "settings"
    path.write_text(settings)
    script = (
        f'. {path}; for name in A B C D E F G H I J; do printf "%s=%s\\0" $name "${{!name}}"; done'
    )
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return dict(each.split("=", 1) for each in told.stdout.split("\0") if each)


def test_values_are_what_a_shell_reads(tmp_path: Path) -> None:
    assert parse_settings(PLAIN.encode(), "settings") == shell_values(PLAIN, tmp_path)


@given(value=st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"])))
def test_a_value_that_is_quoted_for_a_shell_comes_back(value: str) -> None:
    assert parse_settings(f"A={shlex.quote(value)}\n".encode(), "settings") == {"A": value}


@given(data=st.binary(max_size=60))
def test_any_bytes_are_settings_or_refused(data: bytes) -> None:
    try:
        parse_settings(data, "settings")
    except ImageError as error:
        assert error.code == "settings-invalid"  # noqa: PT017 -- both outcomes are right


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_needs_a_shell_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(ImageError, match=r"settings: line 2 is not a plain NAME=value") as caught:
        parse_settings(f"B=c\n{line}\n".encode(), "settings")
    assert (caught.value.code, caught.value.exit_status) == ("settings-invalid", 3)


def test_settings_that_are_no_text_are_refused() -> None:
    with pytest.raises(ImageError, match="not UTF-8 at byte 2"):
        parse_settings(b"A=\xff\n", "settings")


def test_bootloaders_have_their_offset_in_bytes_as_dd_counts() -> None:
    text = (
        "BALENA_IMAGE=x\n"
        "BOOTLOADER_FLASH_DEVICE=mmcblk2\nBOOTLOADER_IMAGE=spl.bin\n"
        "BOOTLOADER_BLOCK_SIZE_OFFSET=1k\nBOOTLOADER_SKIP_OUTPUT_BLOCKS=8\n"
        "BOOTLOADER_FLASH_DEVICE_1=mtdblock0\nBOOTLOADER_IMAGE_1=u-boot.img\n"
        "BOOTLOADER_BLOCK_SIZE_OFFSET_1=512\nBOOTLOADER_SKIP_OUTPUT_BLOCKS_1=2\n"
    )
    assert parse_flasher_settings(text.encode(), "conf").bootloaders == (
        BootloaderImage("mmcblk2", "spl.bin", 8192),
        BootloaderImage("mtdblock0", "u-boot.img", 1024),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A=b\n", "BALENA_IMAGE is not set"),
        ("BALENA_IMAGE=\n", "BALENA_IMAGE is not set"),
        (
            "BALENA_IMAGE=x\nINTERNAL_DEVICE_BOOTLOADER_CONFIG=y\n",
            "without INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH",
        ),
        ("BALENA_IMAGE=x\nBOOTLOADER_FLASH_DEVICE=sda\n", "without BOOTLOADER_IMAGE"),
        (
            "BALENA_IMAGE=x\nBOOTLOADER_FLASH_DEVICE_1=sda\nBOOTLOADER_IMAGE_1=y\n",
            "BOOTLOADER_BLOCK_SIZE_OFFSET_1 is ''",
        ),
        (
            (
                "BALENA_IMAGE=x\nBOOTLOADER_FLASH_DEVICE=sda\nBOOTLOADER_IMAGE=y\n"
                "BOOTLOADER_BLOCK_SIZE_OFFSET=512\nBOOTLOADER_SKIP_OUTPUT_BLOCKS=-1\n"
            ),
            "BOOTLOADER_SKIP_OUTPUT_BLOCKS is '-1'",
        ),
    ],
)
def test_settings_that_the_flasher_could_not_work_with_are_refused(text: str, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        parse_flasher_settings(text.encode(), "conf")
    assert caught.value.code == "flasher-settings-invalid"


def test_old_names_and_unknown_ones_are_understood_and_kept() -> None:
    settings = parse_flasher_settings(b"RESIN_IMAGE=resin.img\nBOARD_REV=3\n", "conf")
    assert (settings.image, settings.others) == ("resin.img", {"BOARD_REV": "3"})
    assert (settings.splash, settings.connections) == ("splash", "system-connections")
