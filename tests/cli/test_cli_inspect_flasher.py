"""What ``inspect`` tells of the image that a flasher carries, and of signatures."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from boot_tree import OS_VERSION
from boot_volume import edited
from builders import BuiltImage, Layout, run
from commandline import RunBalenaflash
from imagecopies import MakeImage
from signing import Signer, make_signer

import balenaflash as package

SECRET = "0123456789abcdef" * 2


def result_of(
    balenaflash: RunBalenaflash, *words: str | Path, fails: str | None = None
) -> dict[str, Any]:
    """The result of ``inspect``; ``fails`` is the code of a check that does not pass."""
    done = balenaflash("inspect", "--json", *words)
    told = json.loads(done.stdout)
    codes = [] if fails is None else [fails]
    assert done.returncode == (0 if fails is None else 3), done.stderr
    assert [error["code"] for error in told["errors"]] == codes
    result: dict[str, Any] = told["result"]
    return result


def root_of(built: BuiltImage) -> str:
    """The flasher's root filesystem, as e2fsprogs take it."""
    root = next(each for each in built.partitions if each.label == "flash-rootA")
    return f"{built.path}?offset={root.extent.start}"


def inner_of(built: BuiltImage, folder: Path) -> BuiltImage:
    """The image that a flasher carries, taken out by debugfs."""
    assert built.inner is not None
    path = folder / built.inner.path.name
    run("debugfs", "-R", f"dump /opt/{path.name} {path}", root_of(built))
    return replace(built.inner, path=path)


@pytest.mark.parametrize("layout", [Layout.MSDOS_FAT16, Layout.GPT_BOARD])
def test_the_image_that_a_flasher_carries_is_told_as_if_it_lay_there_alone(
    layout: Layout, image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(layout, flasher=True)
    inner = inner_of(built, tmp_path)
    told = result_of(balenaflash, built.path)["flasher"]
    carried = told["image"]
    assert told["partition"] == built.boot_number + 1
    assert carried["path"] == f"/opt/{inner.path.name}"
    assert carried["size"] == inner.path.stat().st_size
    parted = run("parted", "-sm", inner.path, "unit", "B", "print").splitlines()[2:]
    assert [
        (item["number"], item["start"], item["size"]) for item in carried["layout"]["partitions"]
    ] == [
        tuple(int(field.rstrip("B")) for field in (words[0], words[1], words[3]))
        for words in (line.split(":") for line in parted)
    ]
    board = json.loads(inner.boot_files["/device-type.json"])
    facts = carried["layout"]["balena"]
    assert (facts["kind"], facts["slug"], facts["os_version"]) == ("raw", board["slug"], OS_VERSION)
    alone = result_of(balenaflash, inner.path)
    assert {name: alone[name] for name in carried["layout"]} == carried["layout"]
    assert alone["flasher"] is None


def test_settings_and_steps_of_a_flasher_are_told(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.GPT_FAT16, flasher=True)
    told = result_of(balenaflash, built.path)["flasher"]
    conf = run("debugfs", "-R", "cat /etc/resin-init-flasher.conf", root_of(built))
    given = dict(line.split("=", 1) for line in conf.splitlines() if "=" in line)
    settings = told["settings"]
    assert settings["image"] == given["BALENA_IMAGE"]
    assert settings["internal_devices"] == given["INTERNAL_DEVICE_KERNEL"].strip('"').split()
    assert settings["bootloader_config"] == given["INTERNAL_DEVICE_BOOTLOADER_CONFIG"]
    assert settings["bootloader_config_path"] == given["INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH"]
    assert settings["bootloaders"] == []
    assert told["devices"] == settings["internal_devices"]
    states = {step["code"]: step["state"] for step in told["steps"]}
    assert states["image"] == states["bootloader-config"] == "done-by-unwrap"
    assert states["secure-boot"] == "not-needed"
    text = balenaflash("inspect", built.path).stdout
    assert "Goes to:    the first present of nvme0n1 sda" in text
    marks = {"done-by-unwrap": "done by unwrap ", "not-needed": "not needed     "}
    for step in told["steps"]:
        assert f"  {marks[step['state']]}  {step['action'][:20]}" in text
    assert all(len(line) <= 80 for line in text.split("What it does on the board")[1].splitlines())


def test_a_step_that_needs_the_board_says_what_is_missing_without_it(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.GPT_FAT16, flasher=True)
    with edited(built) as volume:
        config = {"deviceType": "generic-amd64", "installer": {"secureboot": True}}
        volume.write_file("/config.json", json.dumps(config).encode())
    told = result_of(balenaflash, built.path)["flasher"]
    steps = {step["code"]: step for step in told["steps"]}
    assert steps["secure-boot"]["state"] == "needs-board"
    assert steps["secure-boot"]["meaning"] is not None
    text = balenaflash("inspect", built.path).stdout
    assert f"  needs the board  {steps['secure-boot']['action'][:20]}" in text


def test_secrets_of_the_carried_image_are_masked_unless_asked_for(
    image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.GPT_FAT16, flasher=True)
    inner = inner_of(built, tmp_path)
    with edited(inner) as volume:
        volume.write_file("/config.json", json.dumps({"deviceApiKey": SECRET}).encode())
    name = f"/opt/{inner.path.name}"
    for command in (f"rm {name}", f"write {inner.path} {name}"):
        run("debugfs", "-w", "-R", command, root_of(built))
    plain, text = balenaflash("inspect", "--json", built.path), balenaflash("inspect", built.path)
    assert SECRET not in plain.stdout + plain.stderr + text.stdout + text.stderr
    assert f"***{SECRET[-4:]}" in text.stdout
    shown = result_of(balenaflash, "--show-secrets", built.path)
    assert shown["flasher"]["image"]["layout"]["config"] == {"deviceApiKey": SECRET}


@pytest.mark.parametrize(
    ("commands", "warning"),
    [
        (["rm /etc/resin-init-flasher.conf"], "/etc/resin-init-flasher.conf"),
        (["rm {image}"], "has no file"),
        (["rm {image}", "write {text} {image}"], "contains no partition table"),
    ],
    ids=["no settings", "no image", "no image of ours"],
)
def test_of_a_damaged_flasher_all_else_is_told(
    commands: list[str],
    warning: str,
    image: MakeImage,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
) -> None:
    built = image(Layout.GPT_FAT16, flasher=True)
    assert built.inner is not None
    text = tmp_path / "text"
    text.write_text("no image\n" * 3)
    for command in commands:
        filled = command.format(image=f"/opt/{built.inner.path.name}", text=text)
        run("debugfs", "-w", "-R", filled, root_of(built))
    done = balenaflash("inspect", built.path)
    assert done.returncode == 0, done.stderr
    assert warning in done.stderr
    assert "Board:      Generic x86_64 (GPT) (generic-amd64, amd64)" in done.stdout
    flasher = result_of(balenaflash, built.path)["flasher"]
    assert flasher is None or flasher["image"]["layout"] is None


# Signatures: openssl makes the keys and signs, and its command in the flasher is the judge.


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("signer") / "own", subject="/O=lab/CN=balenaOS test")


@pytest.fixture
def signed(image: MakeImage, signer: Signer) -> BuiltImage:
    """A raw image that carries the certificate, its signature beside it."""
    built = image(Layout.GPT_FAT16)
    with edited(built) as volume:
        volume.make_directory("/balena-keys")
        volume.write_file("/balena-keys/kmod.crt", signer.certificate.read_bytes())
    beside(built).write_bytes(signer.sign(built.path.read_bytes()))
    return built


def beside(built: BuiltImage) -> Path:
    return built.path.with_name(f"{built.path.name}.sig")


def test_an_image_without_signature_is_told_so(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.MSDOS_FAT16, flasher=True)
    told = result_of(balenaflash, "--check-signature", built.path, fails="signature-missing")
    for signature in (told["signature"], told["flasher"]["image"]["signature"]):
        assert (signature["signed"], signature["state"]) == (False, "not-signed")
    assert "Signature:  none\n" in balenaflash("inspect", built.path).stdout


@pytest.mark.needs("openssl")
class TestSigned:
    def test_a_signature_is_told_and_not_believed_until_it_is_checked(
        self, signed: BuiltImage, signer: Signer, balenaflash: RunBalenaflash
    ) -> None:
        quick = result_of(balenaflash, signed.path)["signature"]
        assert (quick["signed"], quick["state"]) == (True, "not-checked")
        assert quick["certificate"]["of_image"] is True
        pytest.importorskip("cryptography")
        words = ("--check-signature", signed.path)
        told = result_of(balenaflash, *words, fails="signature-self-signed")["signature"]
        assert signer.verifies(signed.path.read_bytes(), beside(signed).read_bytes())
        assert (told["state"], told["path"]) == ("self-signed", str(beside(signed)))
        assert told["certificate"]["subject"] == "CN=balenaOS test,O=lab"
        text = balenaflash("inspect", *words).stderr
        assert "self-signed, by /balena-keys/kmod.crt of the image, which anyone" in text

    def test_one_changed_byte_is_found(
        self, signed: BuiltImage, signer: Signer, balenaflash: RunBalenaflash
    ) -> None:
        pytest.importorskip("cryptography")
        with signed.path.open("r+b") as file:
            file.seek(-50_000_000, 2)
            file.write(b"x")
        assert not signer.verifies(signed.path.read_bytes(), beside(signed).read_bytes())
        words = ("--check-signature", signed.path)
        told = result_of(balenaflash, *words, fails="signature-wrong")["signature"]
        assert told["state"] == "wrong"
        text = balenaflash("inspect", *words).stderr
        assert "does not verify: it is that of another image" in text

    def test_a_given_certificate_counts_instead_of_the_images_own(
        self, signed: BuiltImage, signer: Signer, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        pytest.importorskip("cryptography")
        other = make_signer(tmp_path / "other")
        check = "--certificate"
        words = (check, other.certificate, signed.path)
        told = result_of(balenaflash, *words, fails="signature-wrong")["signature"]
        assert (told["state"], told["certificate"]["of_image"]) == ("wrong", False)
        told = result_of(balenaflash, check, signer.certificate, signed.path)["signature"]
        assert (told["state"], told["certificate"]["of_image"]) == ("verified", False)

    def test_what_cannot_be_checked_is_never_called_verified(
        self, signed: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        library = tmp_path / "cryptography"
        library.mkdir()
        (library / "__init__.py").write_text(
            "raise ModuleNotFoundError('No module named cryptography', name='cryptography')\n"
        )
        home = Path(package.__file__).parents[1]
        without = {"PYTHONPATH": f"{tmp_path}:{home}"}
        done = balenaflash(
            "inspect", "--json", "--check-signature", signed.path, environment=without
        )
        told = json.loads(done.stdout)["result"]["signature"]
        assert (told["signed"], told["state"]) == (True, "unknown")
        assert "cryptography is not installed" in told["reason"]
        pytest.importorskip("cryptography")
        certificate = tmp_path / "no.crt"
        certificate.write_text("no certificate")
        words = ("--check-signature", "--certificate", certificate)
        fails = "signature-not-checked"
        told = result_of(balenaflash, *words, signed.path, fails=fails)["signature"]
        assert (told["state"], told["reason"]) == (
            "unknown",
            f"{certificate}: is not a certificate that can be read",
        )
        with edited(signed) as volume:
            volume.remove_file("/balena-keys/kmod.crt")
        told = result_of(balenaflash, "--check-signature", signed.path, fails=fails)["signature"]
        assert told["state"] == "unknown"
        assert "there is no certificate" in told["reason"]

    def test_a_certificate_that_is_not_there_is_an_error(
        self, signed: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
    ) -> None:
        done = balenaflash("inspect", "--certificate", tmp_path / "none", signed.path)
        assert (done.returncode, done.stdout) == (3, "")
        assert (
            done.stderr
            == f"balenaflash: {tmp_path}/none: cannot be read: {os.strerror(errno.ENOENT)}\n"
        )

    @pytest.mark.parametrize("spoiled", [False, True])
    def test_the_signature_of_the_carried_image_is_checked_against_the_flashers_certificate(
        self,
        spoiled: bool,  # noqa: FBT001 - a parameter of the test
        image: MakeImage,
        signer: Signer,
        balenaflash: RunBalenaflash,
        tmp_path: Path,
    ) -> None:
        pytest.importorskip("cryptography")
        built = image(Layout.GPT_FAT16, flasher=True)
        inner = inner_of(built, tmp_path)
        content = inner.path.read_bytes()
        signature = tmp_path / "inner.sig"
        signature.write_bytes(signer.sign(content[:-1] if spoiled else content))
        assert signer.verifies(content, signature.read_bytes()) is not spoiled
        run("debugfs", "-w", "-R", f"write {signature} /opt/{inner.path.name}.sig", root_of(built))
        with edited(built) as volume:
            volume.make_directory("/balena-keys")
            volume.write_file("/balena-keys/kmod.crt", signer.certificate.read_bytes())
        carried = result_of(balenaflash, built.path)["flasher"]["image"]["signature"]
        assert (carried["signed"], carried["state"]) == (True, "not-checked")
        fails = "signature-wrong" if spoiled else "signature-self-signed"
        told = result_of(balenaflash, "--check-signature", built.path, fails=fails)
        assert told["signature"]["state"] == "not-signed"
        carried = told["flasher"]["image"]["signature"]
        assert carried["state"] == ("wrong" if spoiled else "self-signed")
        assert carried["path"] == f"/opt/{inner.path.name}.sig"
