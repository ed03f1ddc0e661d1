"""``network`` and ``boot splash`` as their users meet them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_volume import extract, file_tree
from builders import BuiltImage, Layout, build_image
from commandline import RunBalenaflash
from imagecopies import MakeImage
from networkmanager import Libnm, needs_libnm
from pictures import SMALL

PASSPHRASE = "correct; horse\\battery"  # noqa: S105 -- of no network


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltImage]:
    """An image that no test may change; looked at when all have run."""
    path = tmp_path_factory.mktemp("untouched") / "image.img"
    built = build_image(path, Layout.GPT_FAT16)
    before = hashlib.sha256(path.read_bytes()).digest()
    yield built
    assert hashlib.sha256(path.read_bytes()).digest() == before


def new_files(built: BuiltImage, folder: Path) -> dict[str, bytes]:
    """The boot files, as mtools reads them, that are not as they were built."""
    files = file_tree(extract(built, folder / "extracted"))
    changed = {path: data for path, data in files.items() if built.boot_files.get(path) != data}
    changed.pop("/balenaos.fingerprint", None)  # brought up to date with every edit
    return changed


@needs_libnm
def test_a_wifi_network_arrives_as_networkmanager_needs_it(
    built: BuiltImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    done = balenaflash(
        *("network", "add", "wifi", built.path, "--ssid", "Lab; 2", "--psk-file", "-"),
        *("--hidden", "--interface", "wlan0", "--country", "de", "--priority", "7"),
        *("--address", "192.168.1.111/24", "--gateway", "192.168.1.1", "--dns", "8.8.8.8"),
        input=f"{PASSPHRASE}\n",
    )
    assert done.returncode == 0, done.stderr
    files = new_files(built, tmp_path)
    assert files.keys() == {"/system-connections/wifi-lab-2", "/config.json"}
    assert json.loads(files["/config.json"])["country"] == "DE"
    with Libnm() as libnm:
        seen = libnm.read(files["/system-connections/wifi-lab-2"])
    assert bytes.fromhex(str(seen["ssid"])) == b"Lab; 2"
    assert (seen["psk"], seen["key-mgmt"]) == (PASSPHRASE, "wpa-psk")
    assert (seen["hidden"], seen["interface"], seen["priority"]) == (True, "wlan0", 7)
    assert seen["ipv4"] == {
        "method": "manual",
        "addresses": ["192.168.1.111/24"],
        "gateway": "192.168.1.1",
        "dns": ["8.8.8.8"],
    }


def test_bytes_that_are_no_text_can_be_an_ssid(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    ssid = b"caf\xe9".decode("utf-8", "surrogateescape")
    done = balenaflash("network", "add", "wifi", built.path, "--ssid", ssid, "--open")
    assert done.returncode == 0, done.stderr
    listed = json.loads(balenaflash("network", "ls", "--json", built.path).stdout)["result"]
    network = next(each for each in listed["networks"] if each["state"] == "used")
    assert (network["ssid"], network["ssid_hex"]) == (r"caf\xe9", b"caf\xe9".hex())
    assert (network["name"], network["security"]) == ("wifi-caf", None)


def test_no_output_shows_the_passphrase(built: BuiltImage, balenaflash: RunBalenaflash) -> None:
    add = ("network", "add", "wifi", built.path, "--ssid", "Lab", "--psk-file", "-")
    runs = [
        balenaflash(*add, "--dry-run", input=PASSPHRASE),
        balenaflash(*add, "--dry-run", "--json", input=PASSPHRASE),
        balenaflash(*add, "--wpa3", input=PASSPHRASE),
        balenaflash("network", "ls", built.path),
        balenaflash("network", "ls", "--json", built.path),
        balenaflash(*add, "--overwrite", "-n", input="another passphrase"),
        balenaflash("network", "rm", "-n", built.path, "wifi-lab"),
    ]
    assert [done.returncode for done in runs] == [0] * len(runs)
    text = "".join(done.stdout + done.stderr for done in runs)
    assert "horse" not in text
    assert "another" not in text
    assert "+psk=***" in runs[0].stdout
    assert "-key-mgmt=sae" in runs[5].stdout


def test_a_wired_network_is_added_listed_and_removed(
    built: BuiltImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    add = ("network", "add", "ethernet", built.path, "--interface", "eth0")
    assert balenaflash(*add, "--address", "10.0.0.7/24", "--gateway", "10.0.0.1").returncode == 0
    listed = balenaflash("network", "ls", built.path).stdout
    lines = {line.split()[0]: line.split()[1:] for line in listed.splitlines()}
    assert lines["ethernet-eth0"] == ["used", "ethernet", "eth0", "10.0.0.7/24"]
    assert lines["balena-sample.ignore"] == ["sample"]
    assert balenaflash("network", "rm", built.path, "ethernet-eth0").returncode == 0
    assert new_files(built, tmp_path) == {}


def test_a_keyfile_is_put_as_it_is(
    built: BuiltImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    keyfile = tmp_path / "corp.nmconnection"
    keyfile.write_bytes(
        b"# corp\n[connection]\nid=corp\ntype=wifi\n\n[wifi]\nssid=Corp\n\n[wifi-security]\n"
        b"key-mgmt=wpa-eap\n\n[802-1x]\neap=peap;\nidentity=joe\npassword=hunter2\n"
        b"ca-cert=/etc/ssl/corp.pem\nphase2-auth=mschapv2\n"
    )
    done = balenaflash("network", "add", "wifi", built.path, "--keyfile", keyfile)
    assert done.returncode == 0, done.stderr
    assert "/etc/ssl/corp.pem must exist on the board" in done.stderr
    path = "/system-connections/corp.nmconnection"
    assert new_files(built, tmp_path) == {path: keyfile.read_bytes()}
    again = balenaflash("network", "add", "ethernet", built.path, "--keyfile", keyfile)
    assert again.returncode == 3
    assert "of type wifi, not ethernet" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["wifi", "--ssid", "x" * 33, "--open"], 2, "the SSID has 33 bytes"),
        (["wifi", "--ssid", "Lab", "--psk-file", "/dev/null"], 3, "the passphrase has 0 bytes"),
        (["wifi", "--ssid", "Lab", "--psk-file", "/nonexistent"], 3, "cannot be read"),
        (
            ["wifi", "--ssid", "Lab", "--open", "--country", "UK"],
            3,
            "must be a country code",
        ),
        (
            ["wifi", "--ssid", "Lab", "--open", "--name", "lab.office"],
            2,
            "a temporary file",
        ),
        (["wifi", "--keyfile", "/etc/hostname"], 3, "is not a NetworkManager keyfile: line 1"),
        (["ethernet", "--gateway", "10.0.0.1"], 2, "the gateway needs an IPv4 address"),
    ],
)
def test_what_is_no_network_is_one_line_and_leaves_the_image(
    untouched: BuiltImage,
    balenaflash: RunBalenaflash,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    before = untouched.path.stat()
    kind, *options = arguments
    done = balenaflash("network", "add", kind, untouched.path, *options)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr.splitlines()[0]
    assert untouched.path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "arguments",
    [
        ["wifi", "--ssid", "Lab"],
        ["wifi", "--ssid", "Lab", "--open", "--wpa3"],
        ["wifi", "--keyfile", "x", "--ssid", "Lab"],
        ["ethernet", "--keyfile", "x", "--dns", "1.1.1.1"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    untouched: BuiltImage, balenaflash: RunBalenaflash, arguments: list[str]
) -> None:
    kind, *options = arguments
    done = balenaflash("network", "add", kind, untouched.path, *options)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_network_that_is_there_needs_overwrite(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    add = ("network", "add", "wifi", built.path, "--open", "--name", "lab", "--ssid")
    assert balenaflash(*add, "one").returncode == 0
    assert "nothing to change" in balenaflash(*add, "one").stdout
    refused = balenaflash(*add, "two")
    assert refused.returncode == 4
    assert "--overwrite" in refused.stderr
    assert balenaflash(*add, "two", "--overwrite").returncode == 0


def test_a_picture_is_put_in_its_place(
    built: BuiltImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    logo = tmp_path / "logo.png"
    logo.write_bytes(SMALL)
    assert balenaflash("boot", "splash", built.path, logo).returncode == 0
    assert new_files(built, tmp_path) == {"/splash/balena-logo.png": SMALL}
    logo.write_bytes(SMALL[:20])
    done = balenaflash("boot", "splash", built.path, logo)
    assert (done.returncode, done.stdout) == (3, "")
    assert "logo.png: ends at byte" in done.stderr
