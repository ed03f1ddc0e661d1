import subprocess
from pathlib import Path

import pytest
from boot_tree import UNLISTED
from boot_volume import edited, extract, file_tree
from builders import BuiltImage, Layout, run
from imagecopies import MakeImage

from balenaflash.edits.files import Remove
from balenaflash.edits.fingerprint import FingerprintReport, check, listed_paths, update
from balenaflash.errors import ImageError
from balenaflash.formats.fat.volume import FatVolume

FINGERPRINT = "/balenaos.fingerprint"
CLEAN = FingerprintReport(FINGERPRINT, (), (), (), ())


def by_md5sum(built: BuiltImage, folder: Path) -> bytes:
    """What the image build makes: md5sum of all files but two, sorted by path."""
    tree = extract(built, folder)
    names = sorted(path[1:] for path in file_tree(tree) if path not in UNLISTED)
    return subprocess.run(
        ["md5sum", "--", *names], cwd=tree, check=True, capture_output=True
    ).stdout


def replace_fingerprint(volume: FatVolume, old: bytes, new: bytes) -> None:
    content = volume.read_file(FINGERPRINT)
    assert old in content
    volume.write_file(FINGERPRINT, content.replace(old, new))


@pytest.mark.parametrize("layout", list(Layout))
def test_an_image_as_built_matches(image: MakeImage, layout: Layout) -> None:
    with edited(image(layout)) as volume:
        assert check(volume) == CLEAN


def test_what_differs_is_missing_or_is_new_is_told_apart(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        volume.write_file("/EFI/BOOT/grub.cfg", b"changed")
        volume.remove_file("/grub.cfg_internal")
        volume.write_file("/system-connections/lab", b"[connection]\n")
        volume.write_file("/config.json", b"{}")
        volume.make_directory("/empty")
        report = check(volume)
    assert report == FingerprintReport(
        FINGERPRINT,
        differing=("/EFI/BOOT/grub.cfg",),
        missing=("/grub.cfg_internal",),
        new=("/system-connections/lab",),
        malformed=(),
    )
    assert report is not None
    assert not report.matches


def test_lines_that_are_none_of_md5sum_count_for_nothing(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        content = volume.read_file(FINGERPRINT)
        digest = b"0" * 32
        bad = [
            b"",
            b"no digest at all",
            digest + b" one blank",
            digest + b"  ../../etc/passwd",
            digest + b"  \xff\xfe",
            digest + b"  " + b"x" * 5000,
            b"0" * 31 + b"g  grub.cfg",
        ]
        volume.write_file(FINGERPRINT, b"\n".join(bad) + b"\n" + content)
        report = check(volume)
        assert report is not None
        assert report.malformed == (1, 2, 3, 4, 5, 6, 7)
        assert report.matches


def test_a_volume_without_a_fingerprint_has_no_report_and_needs_no_update(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        volume.remove_file(FINGERPRINT)
        assert check(volume) is None
        assert listed_paths(volume) is None
        assert update(volume, ["/EFI/BOOT/grub.cfg"]) is None
        assert volume.find(FINGERPRINT) is None


def test_a_fingerprint_of_absurd_size_is_refused(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        volume.write_file(FINGERPRINT, bytes(1024 * 1024 + 1))
        for use in (check, listed_paths):
            with pytest.raises(ImageError, match=r"larger than 1\.0 MiB") as refused:
                use(volume)
            assert refused.value.code == "fingerprint-too-large"


@pytest.mark.parametrize("layout", [Layout.MSDOS_FAT16, Layout.MSDOS_FAT32])
def test_an_updated_fingerprint_is_the_one_that_md5sum_makes(
    image: MakeImage, layout: Layout, tmp_path: Path
) -> None:
    built = image(layout)
    with edited(built) as volume:
        volume.write_file("/EFI/BOOT/grub.cfg", b"changed")
        volume.write_file("/AAA first of all", b"")
        volume.write_file("/system-connections/lab", b"[connection]\n")
        volume.write_file("/zz-last", b"z")
        volume.write_file("/config.json", b"{}")
        volume.make_directory("/new")
        volume.write_file("/new/config.json", b"{}")
        volume.remove_file("/grub.cfg_internal")
        touched = [
            *("/EFI/BOOT/grub.cfg", "/AAA first of all", "/system-connections/lab", "/zz-last"),
            *("/config.json", "/new", "/new/config.json", "/grub.cfg_internal", FINGERPRINT),
        ]
        assert update(volume, touched) == FINGERPRINT
        assert check(volume) == CLEAN
        content = volume.read_file(FINGERPRINT)
    expected = by_md5sum(built, tmp_path / "tree")
    # A config.json is left out in any directory (`find ! -name config.json`).
    added = (b"AAA first of all\n", b"system-connections/lab\n", b"zz-last\n")
    assert content == b"".join(
        line.replace(b"  ", b" *") if line.endswith(added) else line
        for line in expected.splitlines(keepends=True)
        if b"config.json" not in line
    )
    (tmp_path / "sums").write_bytes(content)
    run("sh", "-c", f"cd {tmp_path}/tree && md5sum --strict --quiet -c ../sums")


def test_a_directory_stands_for_all_that_is_or_was_below_it(
    image: MakeImage, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT16)
    with edited(built) as volume:
        Remove("/overlays", recursive=True).apply(volume)
        volume.make_directory("/drivers")
        volume.write_file("/drivers/a.efi", b"a")
        volume.write_file("/drivers/b.efi", b"b")
        assert update(volume, ["/overlays", "/drivers"]) == FINGERPRINT
        content = volume.read_file(FINGERPRINT)
    assert content.replace(b" *drivers/", b"  drivers/") == by_md5sum(built, tmp_path / "tree")


def test_only_lines_of_touched_files_change(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        volume.write_file("/EFI/BOOT/grub.cfg", b"changed")
        volume.write_file("/EFI/BOOT/grubenv", b"changed by somebody else")
        replace_fingerprint(volume, b"  device-type.json\n", b" *device-type.json\r\nnonsense\n")
        before = volume.read_file(FINGERPRINT).splitlines()
        update(volume, ["/EFI/BOOT/grub.cfg"])
        after = volume.read_file(FINGERPRINT).splitlines()
        report = check(volume)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    expected = subprocess.run(["md5sum"], input=b"changed", capture_output=True, check=True).stdout
    assert changed == [expected[:32] + b"  EFI/BOOT/grub.cfg"]
    bad = after.index(b"nonsense") + 1
    assert report == FingerprintReport(FINGERPRINT, ("/EFI/BOOT/grubenv",), (), (), (bad,))


def test_a_touched_file_that_is_as_listed_changes_nothing(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        replace_fingerprint(volume, b"  EFI/BOOT/grub.cfg\n", b" *EFI/BOOT/grub.cfg\n")
        assert update(volume, ["/EFI/BOOT/grub.cfg", "/not/there"]) is None


def test_names_are_compared_as_fat_does(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        volume.write_file("/efi/boot/GRUB.CFG", b"changed")
        update(volume, ["/efi/BOOT/Grub.cfg"])
        assert check(volume) == CLEAN
        assert volume.read_file(FINGERPRINT).count(b"grub.cfg\n") == 1


def test_the_fingerprint_of_resinos_keeps_its_name_and_its_slashes(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        content = volume.read_file(FINGERPRINT).replace(b"  ", b"  /")
        volume.remove_file(FINGERPRINT)
        volume.write_file("/resinos.fingerprint", content)
        volume.write_file("/new", b"new")
        assert update(volume, ["/new"]) == "/resinos.fingerprint"
        assert b" */new\n" in volume.read_file("/resinos.fingerprint")
        assert volume.find(FINGERPRINT) is None
        report = check(volume)
        assert report is not None
        assert report.path == "/resinos.fingerprint"
        assert report.matches


def test_a_last_line_without_an_end_gets_one_before_a_line_is_added(image: MakeImage) -> None:
    with edited(image(Layout.MSDOS_FAT16)) as volume:
        content = volume.read_file(FINGERPRINT)
        volume.write_file(FINGERPRINT, content.removesuffix(b"\n"))
        volume.write_file("/zz-last", b"z")
        update(volume, ["/zz-last"])
        assert check(volume) == CLEAN
        assert volume.read_file(FINGERPRINT).startswith(content)
