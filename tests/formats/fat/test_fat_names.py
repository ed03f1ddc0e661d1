from pathlib import Path

import fat_reader
import pytest
import vfat
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.errors import EditError
from balenaflash.formats.fat import names
from balenaflash.formats.fat.names import (
    check_name,
    decode_short,
    fold,
    join_long,
    short_name,
    split_long,
    split_path,
)

ANY_NAMES = st.text(max_size=300) | st.text(alphabet="aA1.~ +é日\x00/:", max_size=20)


def is_valid(name: str) -> bool:
    try:
        check_name(name)
    except EditError:
        return False
    return True


VALID_NAMES = ANY_NAMES.filter(is_valid)


@given(name=VALID_NAMES)
def test_a_long_name_comes_back_from_its_slots(name: str) -> None:
    parts = split_long(name)
    assert all(len(part) == 26 for part in parts)
    assert len(parts) <= 20
    assert join_long(parts) == name


@given(names=st.lists(VALID_NAMES, max_size=40))
def test_no_two_names_of_a_directory_ever_answer_to_one_name(names: list[str]) -> None:
    taken: set[str] = set()
    for name in names:
        if fold(name) in taken:
            continue
        short = short_name(name, taken)
        shown = decode_short(short.stored, short.case_bits)
        assert len(short.stored) == 11
        if not short.needs_long_name:
            assert shown == name
        assert fold(shown) not in taken
        taken |= {fold(name), fold(shown)}


@given(name=VALID_NAMES)
def test_an_8_3_name_has_only_characters_that_fat_allows(name: str) -> None:
    stored = short_name(name, frozenset()).stored
    # fatgen103, "Short Directory Entry": what may not be in DIR_Name
    assert not set(stored) & set(b'"*+,./:;<=>?[\\]|')
    assert all(0x20 <= byte < 0x80 and not 0x61 <= byte <= 0x7A for byte in stored)
    assert stored[0] != 0x20


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "a\\b", "a:b", "a*b", "a?b", 'a"b', "a<b", "a>b", "a|b", "a\x00b"),
        *("a\nb", "a\x7fb", "dot.", "...", "space ", " ", "n" * 256, "\U0001f600" * 128, "\udc80"),
    ],
)
def test_a_name_that_fat_cannot_hold_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(EditError, match="a FAT volume cannot store a name") as refused:
        check_name(name)
    assert refused.value.code == "name-invalid"
    str(refused.value).encode()  # can be shown


@pytest.mark.parametrize(
    "name", ["n" * 255, "\U0001f600" * 127, ".hidden", "a..b", "CON", "~", "x y"]
)
def test_a_name_that_fat_can_hold_is_not_refused(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("path", ["/..", "/a/../b", "./a", "/a/."])
def test_a_path_may_not_climb(path: str) -> None:
    with pytest.raises(EditError) as refused:
        split_path(path)
    assert refused.value.code == "path-invalid"


def test_a_path_may_not_be_endless() -> None:
    assert len(split_path("/a" * 512)) == 512
    with pytest.raises(EditError) as refused:
        split_path("/a" * 513)
    assert refused.value.code == "path-invalid"


@pytest.mark.parametrize("path", ["EFI/BOOT", "/EFI/BOOT", "/EFI//BOOT/"])
def test_a_path_may_be_written_in_any_usual_way(path: str) -> None:
    assert split_path(path) == ("EFI", "BOOT")


def test_case_is_folded_letter_by_letter() -> None:
    assert fold("Straße") == fold("STRAßE") != fold("STRASSE")
    assert fold("файл") == fold("ФАЙЛ")


@given(stored=st.binary(min_size=11, max_size=11), case_bits=st.integers(0, 255))
def test_no_stored_8_3_name_can_change_a_path_or_a_terminal(stored: bytes, case_bits: int) -> None:
    shown = decode_short(stored, case_bits)
    assert names.is_safe(shown)


NAMES_OF_MTOOLS = (
    *("grub.cfg", "README", "config.json", "Mixed.Txt", "a b.txt", ".hidden", "+x.cfg", "a.b.c"),
    *("x.tar.gz", "12345678.123", "123456789.txt", "noext", "~t~1.txt", "foo .txt", " lead"),
    *("collide-1.dtbo", "collide-2.dtbo", "collide-3.dtbo", "UPPER.low", "low2.UPP", "_u-$.%"),
    *("[brackets];=,.x", "balena-wifi", "balena-w", "thirteenchars", "fourteen-chars"),
)


@pytest.mark.needs("dosfstools", "mtools")
def test_names_are_stored_slot_for_slot_as_mtools_stores_them(tmp_path: Path) -> None:
    by_mtools = vfat.make(tmp_path / "by-mtools", vfat.KINDS["fat16-16m"])
    volume = vfat.open_bytes(by_mtools.read_bytes())
    (tmp_path / "content").write_bytes(b"same")
    for name in NAMES_OF_MTOOLS:
        vfat.mtools("mcopy", by_mtools, str(tmp_path / "content"), f"::{name}")
        volume.write_file(f"/{name}", b"same")
    ours = vfat.patched(vfat.empty("fat16-16m"), volume.changes())
    expected = fat_reader.read_volume(by_mtools.read_bytes()).entries
    stored = fat_reader.read_volume(ours).entries
    assert stored.keys() == expected.keys() == {f"/{name}" for name in NAMES_OF_MTOOLS}
    for path, entry in expected.items():
        mine = stored[path]
        # All but the times: the slots of the long name, the 8.3 name, attributes, NT bits.
        assert mine.slots[:-32] == entry.slots[:-32], path
        assert mine.slots[-32:-19] == entry.slots[-32:-19], path
