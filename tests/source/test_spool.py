"""What was decoded once is kept, and holes stay holes."""

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.source.stream import Spool
from balenaflash.units import KIB, MIB


@given(
    pieces=st.lists(
        st.tuples(
            st.integers(0, 300_000),
            st.one_of(
                st.binary(min_size=1, max_size=500),
                st.sampled_from(
                    [bytes(70_000), bytes(65_536) + b"x" + bytes(65_536), b"y" * 65_537]
                ),
            ),
        ),
        max_size=20,
    ),
    asked=st.lists(st.integers(0, 500_000), max_size=10),
)
def test_what_is_kept_is_given_and_nothing_else(
    pieces: list[tuple[int, bytes]], asked: list[int]
) -> None:
    image, known = bytearray(600_000), bytearray(600_000)
    spool = Spool("fake")
    for offset, content in pieces:
        # The same bytes each time, as of an image: what is known does not change.
        for index, byte in enumerate(content):
            if not known[offset + index]:
                image[offset + index], known[offset + index] = byte, 1
        spool.keep(offset, memoryview(image[offset : offset + len(content)]))
    for offset in [*asked, *(offset for offset, _content in pieces)]:
        held = spool.held_from(offset)
        unknown = known.find(0, offset)
        assert held == unknown - offset
        found = bytearray(held)
        if held:
            spool.readinto(offset, memoryview(found))
        assert found == image[offset : offset + held]
    spool.close()
    assert spool.held_from(0) == 0


def open_below(folder: Path) -> list[Path]:
    """What this process has open in ``folder``."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = link.readlink()
        except FileNotFoundError:
            continue  # the listing itself
        if target.is_relative_to(folder):
            found.append(link)
    return found


def test_zeros_take_no_room_and_the_file_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    spool = Spool("fake")
    spool.keep(0, memoryview(bytes(64 * MIB)))
    spool.keep(64 * MIB, memoryview(b"x" * KIB))
    (link,) = open_below(tmp_path)
    status = link.stat()
    assert status.st_blocks * 512 <= 64 * KIB
    assert status.st_nlink == 0
    assert list(tmp_path.iterdir()) == []
    spool.close()
    assert open_below(tmp_path) == []


def test_a_full_filesystem_is_a_failure_with_a_way_out() -> None:
    # RLIMIT_FSIZE is what `ulimit -f` sets: the kernel then answers EFBIG, and sends SIGXFSZ,
    # which Python ignores.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        spool = Spool("fake")
        with pytest.raises(ImageError, match="cannot be kept in /var/tmp: File too") as failure:
            spool.keep(0, memoryview(b"x" * 2 * MIB))
        assert failure.value.code == "no-temporary-space"
        assert "TMPDIR" in str(failure.value.hint)
        spool.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_bound_holds_for_bytes_that_are_not_zero() -> None:
    spool = Spool("fake", limit=2 * MIB)
    spool.keep(0, memoryview(bytes(9 * MIB)))
    spool.keep(9 * MIB, memoryview(b"x" * 2 * MIB))
    spool.keep(9 * MIB, memoryview(b"x" * 2 * MIB))  # it is kept already
    with pytest.raises(ImageError, match=r"more than 2\.0 MiB of it") as failure:
        spool.keep(11 * MIB, memoryview(b"x"))
    assert failure.value.code == "spool-full"
    assert spool.held_from(0) == 11 * MIB
    spool.close()


def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(ImageError, match=f"{folder}: No such file or directory") as failure:
        Spool("fake").keep(0, memoryview(b"x"))
    assert failure.value.code == "no-temporary-space"
