"""Keyfiles, with NetworkManager's own library as the judge."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networkmanager import Libnm, needs_libnm, needs_nmcli, nmcli_keyfile

from balenaflash.edits.keyfile_syntax import format_keyfile, format_ssid, parse_keyfile, parse_ssid
from balenaflash.edits.network import (
    Common,
    EthernetConnection,
    Security,
    WifiConnection,
    check_interface_name,
    check_keyfile,
    check_passphrase,
    check_ssid,
    parse_ip,
)
from balenaflash.errors import EditError

_values = st.text(st.characters(codec="utf-8", exclude_characters="\0\v\f"))
_ssids = st.binary(min_size=1, max_size=32) | st.text(
    st.sampled_from(" ;\\1a\t=#"), min_size=1, max_size=32
).map(str.encode)
_passphrases = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=8, max_size=63)


@pytest.fixture(scope="module")
def libnm() -> Iterator[Libnm]:
    with Libnm() as library:
        yield library


@given(values=st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]*", fullmatch=True), _values))
def test_a_keyfile_is_read_as_it_was_written(values: dict[str, str]) -> None:
    keyfile = parse_keyfile(format_keyfile({"connection": values, "ipv4": {}}), "lab")
    assert {key: keyfile.value("connection", key) for key in values} == values
    assert keyfile.value("ipv4", "method") is None


@given(ssid=_ssids)
def test_an_ssid_is_read_as_it_was_written(ssid: bytes) -> None:
    assert parse_ssid(format_ssid(ssid)) == ssid


@given(
    data=st.binary(max_size=80)
    | st.text(st.sampled_from("[]a=\\ \n#;"), max_size=40).map(str.encode)
)
def test_any_bytes_are_a_keyfile_or_an_error_of_ours(data: bytes) -> None:
    try:
        keyfile = parse_keyfile(data, "lab")
        for group, pairs in keyfile.groups.items():
            for key in pairs:
                keyfile.value(group, key)
    except EditError:
        return


@needs_libnm
@given(ssid=_ssids, passphrase=_passphrases, hidden=st.booleans())
def test_networkmanager_reads_the_wifi_network_that_was_meant(
    libnm: Libnm,
    ssid: bytes,
    passphrase: str,
    hidden: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    common = Common("lab", interface="wlan0", autoconnect=not hidden, priority=5 * hidden)
    connection = WifiConnection(common, ssid, passphrase=passphrase, hidden=hidden)
    seen = libnm.read(connection.keyfile())
    assert "error" not in seen
    assert seen["ssid"] == ssid.hex()
    assert seen["psk"] == passphrase
    assert (seen["type"], seen["key-mgmt"]) == ("802-11-wireless", "wpa-psk")
    assert (seen["hidden"], seen["autoconnect"]) == (hidden, not hidden)
    assert (seen["id"], seen["interface"], seen["priority"]) == ("lab", "wlan0", 5 * hidden)


@needs_libnm
@pytest.mark.parametrize("passphrase", ["é" * 8, "a" * 64, "0123456789ABCDEFabcdef" * 2 + "0" * 20])
def test_networkmanager_accepts_the_passphrases_that_are_accepted(
    libnm: Libnm, passphrase: str
) -> None:
    connection = WifiConnection(Common("lab"), b"Lab", passphrase=passphrase)
    assert libnm.read(connection.keyfile())["psk"] == passphrase


@needs_libnm
def test_networkmanager_reads_wpa3_and_open_networks(libnm: Libnm) -> None:
    sae = WifiConnection(Common("lab"), b"Lab", Security.SAE, passphrase="short")  # noqa: S106 -- of no network
    seen = libnm.read(sae.keyfile())
    assert (seen["key-mgmt"], seen["psk"]) == ("sae", "short")
    seen = libnm.read(WifiConnection(Common("lab"), b"Lab", Security.OPEN).keyfile())
    assert seen["ssid"] == b"Lab".hex()
    assert seen["key-mgmt"] is None


@needs_libnm
def test_networkmanager_reads_static_addresses(libnm: Libnm) -> None:
    ip = parse_ip(
        ["192.168.1.111/24", "10.0.0.5/8", "fd00::5/64"],
        ["192.168.1.1", "fd00::1"],
        ["8.8.8.8", "1.1.1.1", "fd00::53"],
    )
    seen = libnm.read(EthernetConnection(Common("lab", interface="eth0", ip=ip)).keyfile())
    assert seen["type"] == "802-3-ethernet"
    assert seen["ipv4"] == {
        "method": "manual",
        "addresses": ["192.168.1.111/24", "10.0.0.5/8"],
        "gateway": "192.168.1.1",
        "dns": ["8.8.8.8", "1.1.1.1"],
    }
    assert seen["ipv6"] == {
        "method": "manual",
        "addresses": ["fd00::5/64"],
        "gateway": "fd00::1",
        "dns": ["fd00::53"],
    }


@needs_libnm
def test_networkmanager_asks_the_network_where_nothing_is_static(libnm: Libnm) -> None:
    ip = parse_ip([], [], ["9.9.9.9"])
    seen = libnm.read(EthernetConnection(Common("lab", ip=ip)).keyfile())
    assert seen["ipv4"] == {"method": "auto", "addresses": [], "gateway": None, "dns": ["9.9.9.9"]}
    assert seen["ipv6"] == {"method": "auto", "addresses": [], "gateway": None, "dns": []}


@needs_libnm
@needs_nmcli
@pytest.mark.parametrize("ssid", ["Lab", " a;b", "1;2;", "x\\y", "größe", "tab\there", "a "])
def test_nmcli_writes_what_networkmanager_sees_as_the_same(libnm: Libnm, ssid: str) -> None:
    passphrase = " p;s\\k#1 "  # noqa: S105 -- of no network
    ip = parse_ip(["192.168.1.111/24"], ["192.168.1.1"], ["8.8.8.8", "1.1.1.1"])
    ours = WifiConnection(
        Common("lab", interface="wlan0", ip=ip), ssid.encode(), passphrase=passphrase, hidden=True
    ).keyfile()
    theirs = nmcli_keyfile(
        *("type", "wifi", "con-name", "lab", "ifname", "wlan0", "ssid", ssid),
        *("wifi.hidden", "yes", "wifi-sec.key-mgmt", "wpa-psk", "wifi-sec.psk", passphrase),
        *("ipv4.method", "manual", "ipv4.addresses", "192.168.1.111/24"),
        *("ipv4.gateway", "192.168.1.1", "ipv4.dns", "8.8.8.8 1.1.1.1"),
    )
    seen_ours, seen_theirs = libnm.read(ours), libnm.read(theirs)
    assert seen_ours.pop("uuid") != seen_theirs.pop("uuid")
    assert seen_ours == seen_theirs
    check_keyfile(theirs, "lab", "wifi")


_WIFI = b"[connection]\nid=lab\nuuid=3f2b7d3e-9c83-4ac8-9d3b-5d9b8f2f9c11\ntype=wifi\n[wifi]\n"


@needs_libnm
@pytest.mark.parametrize(
    ("keyfile", "valid"),
    [
        (_WIFI + b"ssid=Lab\n", True),
        (_WIFI.replace(b"wifi", b"802-11-wireless") + b"ssid=Lab\n", True),
        (_WIFI + b"ssid=76;97;98;\n", True),
        (_WIFI + b"ssid=Lab\n[wifi-security]\nkey-mgmt=wpa-psk\npsk=12345678\n", True),
        (b"# comment\r\n" + _WIFI.replace(b"\n", b"\r\n") + b"  ssid = Lab\r\n", True),
        (_WIFI + b"ssid=Lab\n[wifi]\nmode=infrastructure\n", True),
        (_WIFI + b"ssid=a\\\\;b\n", True),
        (_WIFI, False),
        (_WIFI + b"ssid=" + b"x" * 33 + b"\n", False),
        (_WIFI + b"ssid=Lab\n[wifi-security]\nkey-mgmt=wpa-psk\npsk=short\n", False),
        (_WIFI + b"ssid=Lab\nnonsense\n", False),
        (_WIFI + b"ssid=Lab\n; comment\n", False),
        (b"type=wifi\n" + _WIFI + b"ssid=Lab\n", False),
        (b"\xef\xbb\xbf" + _WIFI + b"ssid=Lab\n", False),
        (_WIFI + b"ssid=Lab\n[ipv4\n", False),
        (_WIFI + b"ssid=Lab\n[ipv4]\nmethod=au\0to\n", False),
        (_WIFI.replace(b"type=wifi\n", b"") + b"ssid=Lab\n", False),
    ],
)
def test_a_given_keyfile_is_accepted_where_networkmanager_accepts_it(
    libnm: Libnm,
    keyfile: bytes,
    valid: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    if valid:
        check_keyfile(keyfile, "lab", "wifi")
    else:
        with pytest.raises(EditError):
            check_keyfile(keyfile, "lab", "wifi")
    assert ("error" not in libnm.read(keyfile)) == valid


@needs_libnm
@given(
    pieces=st.lists(st.sampled_from(["\\\\", "\\s", "\\t", *";s1 2t0x9"]), min_size=1, max_size=12)
)
def test_any_ssid_is_read_as_networkmanager_reads_it(libnm: Libnm, pieces: list[str]) -> None:
    keyfile = _WIFI + f"ssid={''.join(pieces)}\n".encode()
    ssid = parse_keyfile(keyfile, "lab").ssid()
    seen = libnm.read(keyfile)
    assert seen.get("ssid", "") == (ssid or b"").hex()


@pytest.mark.parametrize("ssid", [b"a\\;b", b"a\\xb", b"0\\"])
def test_an_ssid_that_newer_networkmanagers_do_not_find_is_refused(ssid: bytes) -> None:
    # libnm 1.52 with GLib 2.84: "802-11-wireless.ssid: property is missing"; with 2.74 it is read.
    with pytest.raises(EditError, match="unknown escape"):
        check_keyfile(_WIFI + b"ssid=" + ssid + b"\n", "lab", "wifi")


@needs_libnm
def test_a_passphrase_that_networkmanager_would_drop_is_refused(libnm: Libnm) -> None:
    keyfile = _WIFI + b"ssid=Lab\n[wifi-security]\nkey-mgmt=wpa-psk\npsk=1234567\\q89\n"
    assert libnm.read(keyfile)["psk"] is None
    with pytest.raises(EditError) as refusal:
        check_keyfile(keyfile, "lab", "wifi")
    assert "1234567" not in str(refusal.value)


def test_a_keyfile_of_absurd_size_is_refused() -> None:
    with pytest.raises(EditError):
        parse_keyfile(b"#" * (1 << 20), "lab")


def test_a_keyfile_of_another_kind_is_refused() -> None:
    keyfile = EthernetConnection(Common("lab")).keyfile()
    check_keyfile(keyfile, "lab", "ethernet")
    with pytest.raises(EditError) as refusal:
        check_keyfile(keyfile, "lab", "wifi")
    assert "of type ethernet, not wifi" in str(refusal.value)


@pytest.mark.parametrize(
    ("addresses", "gateways", "dns", "words"),
    [
        (["192.168.1.5"], [], [], "with a prefix"),
        (["192.168.1.5/33"], [], [], "with a prefix"),
        (["lab/24"], [], [], "with a prefix"),
        ([], ["192.168.1.1"], [], "needs an IPv4 address"),
        (["fd00::1/64"], ["192.168.1.1"], [], "needs an IPv4 address"),
        (["10.0.0.1/8"], ["10.0.0.1"], [], "both an address of the board and its gateway"),
        (["10.0.0.1/8"], ["10.0.0.2", "10.0.0.3"], [], "several IPv4 gateways"),
        (["10.0.0.1/8"], ["gateway"], [], "not an IP address"),
        ([], [], ["dns.google"], "not an IP address"),
    ],
)
def test_addresses_that_are_none_are_refused(
    addresses: list[str], gateways: list[str], dns: list[str], words: str
) -> None:
    with pytest.raises(EditError) as refusal:
        parse_ip(addresses, gateways, dns)
    assert words in str(refusal.value)


@pytest.mark.parametrize("passphrase", ["", "seven77", "x" * 65, "g" * 64, "line\nend1", "ü" * 32])
def test_a_passphrase_that_is_none_is_refused_and_not_shown(passphrase: str) -> None:
    with pytest.raises(EditError) as refusal:
        check_passphrase(passphrase, Security.WPA_PSK)
    assert not passphrase or passphrase not in str(refusal.value)


def test_ssids_and_interfaces_that_are_none_are_refused() -> None:
    for ssid in (b"", b"x" * 33):
        with pytest.raises(EditError):
            check_ssid(ssid)
    for name in ("", ".", "a b", "a/b", "x" * 16, "wlan%d"):
        with pytest.raises(EditError):
            check_interface_name(name)
    with pytest.raises(EditError):
        check_passphrase("", Security.SAE)


def test_the_same_network_is_always_the_same_bytes() -> None:
    first, second = (WifiConnection(Common("lab"), b"L", passphrase="x" * 8) for _ in range(2))
    assert first.keyfile() == second.keyfile()
    assert EthernetConnection(Common("a")).keyfile() != EthernetConnection(Common("b")).keyfile()
