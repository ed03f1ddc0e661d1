"""What is no disk image is called by its name, and the next step is told."""

import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from capabilities import SEVEN_ZIP
from commandline import RunBalenaflash
from containers import noise, run
from imageserver import Behaviour, direct_and_tidy, serve

from balenaflash.errors import ImageError
from balenaflash.formats.partitions.table import read_table
from balenaflash.source.opening import open_for_reading

__all__ = ["direct_and_tidy"]

PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in to the network</title></head></html>\n"
S3_ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)

# Heads as the descriptions of the formats have them, and padding.
HEADS = {
    "a QEMU disk (qcow2)": b"QFI\xfb\0\0\0\3",  # QEMU, docs/interop/qcow2.txt
    "a VMware disk (VMDK)": b"KDMV\1\0\0\0",  # VMware, Virtual Disk Format 1.1
    "a Hyper-V disk (VHDX)": b"vhdxfile",  # [MS-VHDX], section 2.2
    "a Virtual PC disk (VHD)": b"conectix",  # Microsoft, Virtual Hard Disk Format 1.0
    "a RAR archive": b"Rar!\x1a\x07\x01\0",  # RAR 5.0 archive format
    "compressed with lzip": b"LZIP\1\x0c",  # draft-diaz-lzip
    "a sparse image of Android": b"\x3a\xff\x26\xed\1\0\0\0",  # libsparse/sparse_format.h
    # QEMU, block/vdi.c: a text of 64 bytes, then 0xbeda107f
    "a VirtualBox disk (VDI)": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0")
    + b"\x7f\x10\xda\xbe\1\0\1\0",
}


def refusal(path: Path) -> ImageError:
    with open_for_reading(path) as image, pytest.raises(ImageError) as caught:
        read_table(image.source)
    assert caught.value.code == "image-foreign", caught.value
    assert caught.value.exit_status == 3
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("what", HEADS)
def test_a_disk_of_a_virtual_machine_or_an_archive_is_called_so(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x y.img"
    path.write_bytes(HEADS[what].ljust(100_000, b"\0"))
    error = refusal(path)
    assert str(error) == f"{path}: is {what}, not a disk image"
    if "disk (" in what:
        assert error.hint == f"Convert it first: qemu-img convert -O raw '{path}' image.img"


MADE = {
    "a tar archive": ("tar", "-cf", "out", "a.img"),
    "a 7z archive": (SEVEN_ZIP, "a", "-t7z", "out", "a.img"),
    "compressed with lz4": ("lz4", "-q", "a.img", "out"),
    "compressed with lzop": ("lzop", "-q", "-o", "out", "a.img"),
    "compressed with lzma": ("xz", "-q", "--format=lzma", "-c", "a.img"),
    "compressed twice, with xz inside": ("sh", "-c", "xz -c a.img | gzip -c"),
    "a cpio archive": ("bsdtar", "--format", "newc", "-cf", "out", "a.img"),
    "the image of a CD (ISO 9660)": ("bsdtar", "--format", "iso9660", "-cf", "out", "a.img"),
}


@pytest.mark.parametrize("what", MADE)
def test_what_a_tool_made_is_called_so(what: str, tmp_path: Path) -> None:
    command = MADE[what]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no program {command[0]}")
    (tmp_path / "a.img").write_bytes(noise(1, 100_000))
    printed = run(*command, cwd=tmp_path)
    made = next((each for each in tmp_path.iterdir() if each.name.startswith("out")), None)
    content = made.read_bytes() if made else printed
    path = tmp_path / "given.img"
    path.write_bytes(content)
    assert f"is {what}, not a disk image" in str(refusal(path))


def test_a_tar_gz_is_refused_with_a_command_that_works(
    balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    (tmp_path / "a.img").write_bytes(noise(1, 100_000))
    run("tar", "-czf", "it's.tar.gz", "a.img", cwd=tmp_path)
    done = balenaflash("write", tmp_path / "it's.tar.gz", tmp_path / "out.img")
    assert (done.returncode, done.stdout) == (3, "")
    assert "it's.tar.gz: is a tar archive, not a disk image\n" in done.stderr
    command = done.stderr.rpartition(": ")[2].strip()
    assert command.startswith("tar -xf ")
    (tmp_path / "a.img").unlink()
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)  # noqa: S602 - as a user would
    assert (tmp_path / "a.img").read_bytes() == noise(1, 100_000)


@pytest.mark.parametrize("form", ["raw", "gz"])
def test_a_file_is_named_in_the_next_step_only_if_a_program_takes_it_so(
    form: str, tmp_path: Path
) -> None:
    path = tmp_path / f"disk.{form}"
    content = b"QFI\xfb\0\0\0\3" + bytes(4096)
    path.write_bytes(gzip.compress(content) if form == "gz" else content)
    named = "FILE" if form == "gz" else path
    assert refusal(path).hint == f"Convert it first: qemu-img convert -O raw {named} image.img"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (PAGE, "a web page"),
        (b"\xef\xbb\xbf\n" + PAGE, "a web page"),
        (S3_ERROR, "an XML document"),
        (b'{"error": "not found"}', "a JSON document"),
        (POINTER, "a pointer of Git LFS, in place of the file"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["as it is", "gz"])
def test_a_few_bytes_of_text_are_called_what_they_are(
    content: bytes, what: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "balena.img"
    path.write_bytes(pack(content))
    assert str(refusal(path)) == f"{path}: is {what}, not a disk image"


@pytest.mark.usefixtures("direct_and_tidy")
def test_the_page_of_a_captive_portal_is_called_so(balenaflash: RunBalenaflash) -> None:
    for ranges in (True, False):
        with serve(Behaviour(PAGE, ranges=ranges)) as server:
            done = balenaflash("inspect", server.url)
        assert (done.returncode, done.stdout) == (3, "")
        assert "is a web page, not a disk image" in done.stderr


@pytest.mark.needs("fdisk")
@pytest.mark.parametrize("marked", [False, True])
def test_an_iso_with_a_partition_table_is_still_one_of_a_cd(
    tmp_path: Path, *, marked: bool
) -> None:
    path = tmp_path / "hybrid.iso"
    with path.open("wb") as file:
        file.truncate(8 << 20)
        if marked:
            file.seek(32 << 10)
            file.write(b"\1CD001\1")
    run("sfdisk", "-q", path, content=b"label: dos\n2048,4096,0xc\n")
    if marked:
        assert "the image of a CD" in str(refusal(path))
    else:
        with open_for_reading(path) as image:
            assert len(read_table(image.source).partitions) == 1
