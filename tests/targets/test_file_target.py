"""A regular file as target: created whole or not at all, sparse, read back from its disk."""

import fcntl
import mmap
import os
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faultdev import MakeFaultDevice, flush_error, read_error
from hypothesis import given, settings
from hypothesis import strategies as st
from loopdev import AttachLoop

from balenaflash.errors import TargetRefusedError, WriteError
from balenaflash.targets.file import FileMedium, create_file, make_file, open_file, require_place
from balenaflash.targets.medium import DirectReader, Medium

MIB = 1 << 20


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(TargetRefusedError) as caught:
        yield
    assert [problem.code for problem in caught.value.problems] == [code]


writes = st.lists(
    st.tuples(
        st.integers(0, 20000),
        st.binary(max_size=9000) | st.integers(0, 9000).map(bytes),
    ),
    max_size=6,
)


@given(chunks=writes)
@settings(max_examples=60, deadline=None)
def test_what_is_written_in_any_order_is_what_the_file_holds(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[int, bytes]]
) -> None:
    # Zeros over earlier data must replace it; zeros over a hole may leave the hole.
    path = tmp_path_factory.mktemp("file") / "copy.img"
    model = bytearray(30001)
    with create_file(path, size=len(model)) as medium:
        for offset, content in chunks:
            medium.write(offset, memoryview(content))
            model[offset : offset + len(content)] = content
        medium.begin_read_back()
        found = memoryview(bytearray(len(model)))
        medium.readinto(0, found)
        assert found == model
    assert path.read_bytes() == model


@given(offset=st.integers(0, 5 * MIB), length=st.integers(0, 5 * MIB))
@settings(max_examples=40, deadline=None)
def test_any_range_is_read_directly_or_not(
    tmp_path_factory: pytest.TempPathFactory, offset: int, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.img"
    if not path.exists():
        path.write_bytes(os.urandom(5 * MIB + 123))
    with path.open("rb") as file, open_file(path) as medium:
        expected = os.pread(file.fileno(), length, offset)
        found = memoryview(bytearray(len(expected)))
        medium.readinto(offset, found)
        assert found == expected


def test_zeros_take_no_room_and_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "copy.img"
    chunk = memoryview(mmap.mmap(-1, MIB))
    with create_file(path, size=64 * MIB) as medium:
        for offset in range(0, 64 * MIB, MIB):
            medium.write(offset, chunk)
        medium.write(5 * MIB, memoryview(b"x" * 4096))
        medium.flush()
    status = path.stat()
    assert status.st_size == 64 * MIB
    assert status.st_blocks * 512 <= MIB
    assert (
        subprocess.run(["cmp", "-n", str(5 * MIB), path, "/dev/zero"], check=False).returncode == 0
    )


def test_zeros_over_a_hole_and_data_replace_the_data(tmp_path: Path) -> None:
    path = tmp_path / "copy.img"
    with create_file(path, size=4 * MIB) as medium:
        medium.write(2 * MIB, memoryview(b"\xff" * MIB))
        medium.write(0, memoryview(bytes(4 * MIB)))
    assert path.read_bytes() == bytes(4 * MIB)


def test_zeros_replace_what_was_written_before(tmp_path: Path) -> None:
    path = tmp_path / "copy.img"
    with create_file(path, size=MIB) as medium:
        medium.write(8192, memoryview(b"\xff" * 8192))
        medium.begin_read_back()
        medium.write(8192, memoryview(bytes(8192)))
    assert path.read_bytes() == bytes(MIB)


@pytest.mark.needs("root", "e2fsprogs")
def test_reading_back_does_not_come_from_the_page_cache(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    # A filesystem on a loop device, whose backing file is changed behind its back.
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(16 * MIB))
    subprocess.run(["mkfs.ext4", "-q", backing], check=True)
    node, point = attach_loop(backing), tmp_path / "point"
    point.mkdir()
    subprocess.run(["mount", node, point], check=True)
    try:
        marker = b"here it is, once in the whole disk" * 241
        with create_file(point / "copy.img", size=MIB) as medium:
            medium.write(4096, memoryview(marker))
            medium.flush()
            place = backing.read_bytes().index(marker)
            with backing.open("r+b") as file:
                file.seek(place)
                file.write(b"H")
            # Pages that somebody has mapped stay cached, whatever the kernel is advised.
            with (
                (point / "copy.img").open("rb") as other,
                mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ) as mapped,
            ):
                assert mapped[4096 : 4096 + len(marker)] == marker
                medium.begin_read_back()
                found = memoryview(bytearray(len(marker)))
                medium.readinto(4096, found)
            assert found == b"H" + marker[1:]
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


def test_a_filesystem_without_direct_reads_is_read_all_the_same() -> None:
    descriptor = os.open("/proc/self/status", os.O_RDONLY)
    try:
        assert DirectReader.open(descriptor) is None
    finally:
        os.close(descriptor)


# Refusals


def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "copy.img"
    path.write_bytes(b"precious" * 1000)
    path.chmod(0o600)
    with refused("target-exists"), create_file(path, size=4096):
        pass
    assert path.read_bytes() == b"precious" * 1000
    with create_file(path, size=4096, overwrite=True) as medium:
        medium.write(0, memoryview(b"new"))
    assert path.read_bytes() == b"new".ljust(4096, b"\0")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_to_nothing_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for overwrite in (False, True):
        with refused("target-is-link"), create_file(tmp_path / "link", size=1, overwrite=overwrite):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_link_to_a_file_is_not_followed_and_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "real.img").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("real.img")
    with refused("target-is-link"), create_file(tmp_path / "link", size=1, overwrite=True):
        pass
    with pytest.raises(TargetRefusedError) as caught:
        require_place(tmp_path / "link", overwrite=True)
    assert str(tmp_path / "real.img") in (caught.value.problems[0].hint or "")
    assert (tmp_path / "real.img").read_bytes() == b"precious"


def test_a_file_that_somebody_has_locked_is_not_emptied(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(b"precious")
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_SH)  # what a running `write x.img` holds
        with refused("target-locked"), create_file(path, size=1, overwrite=True):
            pass
        with refused("target-locked"), make_file(path, size=1, overwrite=True):
            pass
    assert path.read_bytes() == b"precious"
    with make_file(path, size=1, overwrite=True):
        pass
    assert path.read_bytes() == b"\0"


def test_what_cannot_become_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, code in (
        (tmp_path, "target-not-a-file"),
        (tmp_path / "fifo", "target-not-a-file"),
        (Path("/dev/null"), "target-not-a-file"),
        (tmp_path / "none/copy.img", "target-missing"),
        (tmp_path / "fifo/copy.img", "target-missing"),
        (tmp_path / ("x" * 300), "target-refused"),
        (Path("/proc/copy.img"), "target-missing"),
    ):
        for overwrite in (False, True):
            with refused(code), create_file(path, size=1, overwrite=overwrite):
                pass


@pytest.mark.needs("root")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        with refused("target-no-permission"), create_file(tmp_path / "copy.img", size=1):
            pass
    finally:
        os.seteuid(0)


def test_a_file_larger_than_the_filesystem_allows_is_refused_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    path = tmp_path / "copy.img"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))  # Python ignores SIGXFSZ
    try:
        with refused("target-too-small"), create_file(path, size=2 * MIB):
            pass
        assert not path.exists()
        path.write_bytes(b"precious")
        with refused("target-too-small"), create_file(path, size=2 * MIB, overwrite=True):
            pass
        assert path.read_bytes() == b"precious"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Failures


@pytest.mark.parametrize("failure", [WriteError("x"), KeyboardInterrupt()])
def test_a_new_file_is_removed_when_the_work_fails(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "copy.img"

    def work(medium: Medium) -> None:
        medium.write(0, memoryview(b"half"))
        raise failure

    with pytest.raises(type(failure)), create_file(path, size=MIB, overwrite=True) as medium:
        work(medium)
    assert not path.exists()


def test_a_file_that_somebody_put_in_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "copy.img"

    def work() -> None:
        path.unlink()
        path.write_bytes(b"somebody else's")
        raise WriteError("x")

    with pytest.raises(WriteError), create_file(path, size=MIB):
        work()
    assert path.read_bytes() == b"somebody else's"


@pytest.mark.needs("root")
def test_a_full_filesystem_is_named_with_the_place(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", tmp_path], check=True)
    try:
        path = tmp_path / "copy.img"
        with (
            pytest.raises(
                WriteError, match=r"byte 1048576 failed: there is no room left"
            ) as caught,
            create_file(path, size=4 * MIB) as medium,
        ):
            medium.write(0, memoryview(b"\xff" * (4 * MIB)))
        assert caught.value.code == "write-failed"
        assert not path.exists()
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_lost_flush_stays_lost(fault_device: MakeFaultDevice) -> None:
    # As a file on a failing disk; a filesystem in between would add failures of its own.
    device = fault_device(size=MIB)
    medium = FileMedium(device.node, os.open(device.node, os.O_RDWR), MIB)
    try:
        device.set(faults=[flush_error(count=1)])
        medium.write(0, memoryview(b"\xff" * 4096))
        steps: list[Callable[[], None]] = [medium.flush, medium.flush, medium.begin_read_back]
        for step in steps:
            with pytest.raises(WriteError, match="flushing failed: the medium reports"):
                step()
    finally:
        medium.close()


def test_an_unreadable_place_is_an_error_of_the_read_back(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=8 * MIB)
    medium = FileMedium(device.node, os.open(device.node, os.O_RDWR), 8 * MIB)
    try:
        medium.begin_read_back()
        device.set(faults=[read_error(5 * MIB, 6 * MIB)])
        with pytest.raises(WriteError, match="failed: the medium reports") as caught:
            medium.readinto(100, memoryview(bytearray(6 * MIB)))
        assert caught.value.code == "read-back-failed"
    finally:
        medium.close()


# Reading


def test_a_file_is_opened_for_comparing_and_its_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "copy.img"
    path.write_bytes(b"x" * 5000)
    with open_file(path) as medium:
        assert (medium.name, medium.size, medium.alignment) == (str(path), 5000, 1)
        with pytest.raises(WriteError, match="byte 5000 failed: the file ends there") as caught:
            medium.readinto(4990, memoryview(bytearray(20)))
    assert caught.value.code == "read-back-failed"


def test_what_is_no_file_is_not_opened_for_comparing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, code in (
        (tmp_path / "none", "target-missing"),
        (tmp_path, "target-not-a-file"),
        (tmp_path / "fifo", "target-not-a-file"),
    ):
        with refused(code), open_file(path):
            pass
