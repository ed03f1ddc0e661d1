import hashlib
import json
from pathlib import Path

import pytest
from boot_volume import extract, file_tree
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    folder = tmp_path / "deploy"
    folder.mkdir()
    (folder / "grub.cfg_internal").write_bytes(b"internal")
    (folder / "uEnv.txt").write_bytes(b"uEnv")
    return folder


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.MSDOS_FAT16)


LIST = "grub.cfg_internal:/EFI/BOOT/grub.cfg uEnv.txt:/"
EXPECTED = {"/EFI/BOOT/grub.cfg": b"internal", "/uEnv.txt": b"uEnv"}


def changed_files(built: BuiltImage, folder: Path) -> dict[str, bytes]:
    """Without the fingerprint, which an edit may bring up to date."""
    return {
        path: content
        for path, content in file_tree(extract(built, folder)).items()
        if content != built.boot_files.get(path) and path != "/balenaos.fingerprint"
    }


@pytest.mark.parametrize("form", ["inline", "file", "stdin"])
def test_a_list_is_applied_in_every_form_it_can_be_given(
    balenaflash: RunBalenaflash, built: BuiltImage, deploy: Path, tmp_path: Path, form: str
) -> None:
    (tmp_path / "list").write_text(f"# of the lab\n{LIST}\n")
    given = {"inline": LIST, "file": str(tmp_path / "list"), "stdin": "-"}[form]
    run = balenaflash(
        *("boot", "apply", built.path, "--files", given, "--deploy-dir", deploy), input=LIST
    )
    assert run.returncode == 0, run.stderr
    assert "replaced /EFI/BOOT/grub.cfg (8 bytes)" in run.stdout
    assert changed_files(built, tmp_path / "tree") == EXPECTED


def test_a_dry_run_tells_and_writes_nothing(
    balenaflash: RunBalenaflash, built: BuiltImage, deploy: Path
) -> None:
    before = hashlib.sha256(built.path.read_bytes()).digest()
    run = balenaflash(
        *("boot", "apply", "-n", "--json", built.path),
        *("--files", LIST, "--deploy-dir", deploy),
    )
    assert run.returncode == 0, run.stderr
    envelope = json.loads(run.stdout)
    assert envelope["command"] == "boot apply"
    assert envelope["result"]["dry_run"] is True
    changes = {
        change["path"]: change["action"]
        for change in envelope["result"]["changes"]
        if change["path"] != "/balenaos.fingerprint"
    }
    assert changes == {"/EFI/BOOT/grub.cfg": "replaced", "/uEnv.txt": "created"}
    assert hashlib.sha256(built.path.read_bytes()).digest() == before


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ("uEnv.txt:/ nowhere:/", "source-missing"),
        ("no-such-list", "file-list-unreadable"),
    ],
)
def test_a_list_that_cannot_be_applied_leaves_the_image_alone(
    balenaflash: RunBalenaflash, built: BuiltImage, deploy: Path, files: str, code: str
) -> None:
    before = hashlib.sha256(built.path.read_bytes()).digest()
    arguments = ("boot", "apply", built.path, "--files", files, "--deploy-dir", deploy)
    run = balenaflash(*arguments)
    assert run.returncode == 3
    assert run.stdout == ""
    assert run.stderr.startswith("balenaflash: ")
    envelope = json.loads(balenaflash(*arguments, "--json").stdout)
    assert envelope["errors"][0]["code"] == code
    assert hashlib.sha256(built.path.read_bytes()).digest() == before


def test_standard_input_without_end_is_refused(
    balenaflash: RunBalenaflash, built: BuiltImage, deploy: Path
) -> None:
    arguments = ("boot", "apply", built.path, "--files", "-", "--deploy-dir", deploy)
    run = balenaflash(*arguments, input="a" * 1024 * 1024 + ":/")
    assert run.returncode == 3
    assert "-: has more than 1.0 MiB" in run.stderr
