"""Networks in the boot partition of an image."""

from pathlib import Path

import pytest
from boot_volume import edited, extract, file_tree
from builders import BuiltImage, Layout
from imagecopies import MakeImage

from balenaflash.edits.files import PutFile, Remove
from balenaflash.edits.network import (
    AddNetwork,
    Common,
    EthernetConnection,
    NetworkState,
    RemoveNetwork,
    WifiConnection,
    check_network_name,
    list_networks,
    parse_ip,
)
from balenaflash.errors import EditError


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.MSDOS_FAT32)


@pytest.mark.parametrize(
    "name", ["lab", "lab.nmconnection", "resin-wifi", "my.net", "größe", "a.1234567"]
)
def test_names_that_networkmanager_reads_are_accepted(name: str) -> None:
    check_network_name(name)


@pytest.mark.parametrize(
    "name",
    # The rules are those of nm-keyfile.c, function nm_keyfile_utils_ignore_filename.
    [
        ".lab",
        "lab~",
        "lab.ignore",
        "lab.office",
        "lab.A1b2C3",
        "ca.pem",
        "key.DER",
        "a/b",
        "a:b",
        "",
    ],
)
def test_names_that_networkmanager_passes_over_are_refused(name: str) -> None:
    with pytest.raises(EditError):
        check_network_name(name)


def test_a_network_is_added_and_removed_and_the_samples_stay(
    built: BuiltImage, tmp_path: Path
) -> None:
    keyfile = WifiConnection(Common("lab"), b"Lab", passphrase="x" * 8).keyfile()
    with edited(built) as volume:
        AddNetwork("lab", keyfile).apply(volume)
    files = file_tree(extract(built, tmp_path / "added"))
    assert files == built.boot_files | {"/system-connections/lab": keyfile}
    with edited(built) as volume:
        RemoveNetwork("LAB").apply(volume)
    assert file_tree(extract(built, tmp_path / "removed")) == built.boot_files


def test_networks_are_listed_with_their_state(built: BuiltImage) -> None:
    common = Common("lab", interface="wlan0", ip=parse_ip(["10.0.0.5/8"], ["10.0.0.1"], []))
    keyfile = WifiConnection(common, b"a;b\xff", passphrase="x" * 8).keyfile()
    with edited(built) as volume:
        AddNetwork("lab", keyfile).apply(volume)
        for name, content in (("lab~", keyfile), ("notes", b"hello"), ("empty", b"")):
            PutFile(f"/system-connections/{name}", content).apply(volume)
        networks = {each.name: each for each in list_networks(volume)}
    samples = {
        path.rpartition("/")[2]
        for path in built.boot_files
        if path.startswith("/system-connections/")
    }
    assert samples
    states = {name: each.state for name, each in networks.items() if name not in samples}
    assert states == {
        "lab": NetworkState.USED,
        "lab~": NetworkState.IGNORED,
        "notes": NetworkState.INVALID,
        "empty": NetworkState.INVALID,
    }
    assert {networks[name].state for name in samples} == {NetworkState.SAMPLE}
    lab = networks["lab"]
    assert (lab.id, lab.type, lab.ssid) == ("lab", "wifi", b"a;b\xff")
    assert (lab.security, lab.interface, lab.addresses) == ("wpa-psk", "wlan0", ("10.0.0.5/8",))
    assert "line 1" in (networks["notes"].fault or "")


def test_another_network_of_the_same_name_is_not_replaced_by_accident(built: BuiltImage) -> None:
    first, second = (
        WifiConnection(Common("lab"), ssid, passphrase="x" * 8).keyfile() for ssid in (b"1", b"2")
    )
    with edited(built) as volume:
        AddNetwork("lab", first).apply(volume)
        AddNetwork("lab", first).apply(volume)
        with pytest.raises(EditError) as refusal:
            AddNetwork("Lab", second).apply(volume)
        assert refusal.value.code == "network-exists"
        AddNetwork("lab", second, overwrite=True).apply(volume)
        assert volume.read_file("/system-connections/lab") == second


def test_the_directory_is_made_where_it_is_missing(built: BuiltImage, tmp_path: Path) -> None:
    keyfile = EthernetConnection(Common("lab")).keyfile()
    with edited(built) as volume:
        Remove("/system-connections", recursive=True).apply(volume)
        assert list_networks(volume) == ()
        AddNetwork("lab", keyfile).apply(volume)
    assert file_tree(extract(built, tmp_path / "after"))["/system-connections/lab"] == keyfile


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nope", "network-missing"),
        ("balena-sample.ignore", "network-sample"),
        ("../config.json", "name-invalid"),
    ],
)
def test_what_is_no_network_is_not_removed(built: BuiltImage, name: str, code: str) -> None:
    with edited(built) as volume, pytest.raises(EditError) as refusal:
        RemoveNetwork(name).apply(volume)
    assert refusal.value.code == code


def test_certificates_that_a_keyfile_names_are_a_warning(built: BuiltImage) -> None:
    keyfile = b"[connection]\ntype=wifi\n[802-1x]\neap=peap;\nca-cert=/etc/ssl/lab.pem\n"
    with edited(built) as volume:
        warnings = AddNetwork("lab", keyfile).apply(volume)[-1].warnings
    assert len(warnings) == 1
    assert "/etc/ssl/lab.pem" in warnings[0]
