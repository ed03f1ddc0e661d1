"""What a config.json may hold."""

import subprocess
from pathlib import Path

import pytest

from balenaflash.balena.json_text import Json
from balenaflash.edits.config.check import (
    COUNTRIES,
    KEYS,
    Severity,
    check_config,
    is_secret,
    type_of,
)
from balenaflash.edits.config.keys import format_key, nested, parse_key

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDe2q8x0 lab"


def found(config: dict[str, Json], slug: str | None = None) -> list[tuple[str, str, str]]:
    return [(each.severity.value, each.code, each.key) for each in check_config(config, slug)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("apiEndpoint", "https://api.balena-cloud.com"),
        ("apiTimeout", 900000),
        ("apiTimeout", "900000"),
        ("appUpdatePollInterval", 9e5),
        ("country", "DE"),
        ("debug", {"any": ["thing"]}),
        ("deviceApiKey", "0123456789abcdef0123456789abcdef"),
        ("deviceApiKey", "tGoBWmSl0123456789XYZabcdefUDWAk"),  # of the API, made beforehand
        ("deviceApiKeys", {"api.balena-cloud.com": "x"}),
        ("developmentMode", False),
        ("developmentMode", "true"),
        ("dnsServers", "1.1.1.1 2606:4700::1111 10.0.0.1#5353"),
        ("dnsServers", "null"),
        ("hostname", "bench-7.lab"),
        ("installer.secureboot", True),
        ("installer.target_devices", "nvme0n1 mmcblk*"),
        ("listenPort", "48484"),
        ("os.fan.profile", "quiet"),
        ("os.network.connectivity.interval", "300"),
        ("os.network.connectivity.interval", 300),
        ("os.power.mode", "high"),
        ("os.sshKeys", []),
        ("os.sshKeys", [_KEY, f"no-pty {_KEY}"]),
        ("os.udevRules", {"56-usb": 'ACTION=="add", RUN+="/bin/true"\n'}),
        ("registered_at", 1700000000000),
        ("uuid", "ab" * 16),
        ("uuid", "ab" * 31),
    ],
)
def test_a_right_value_is_found_right(key: str, value: Json) -> None:
    config = nested(parse_key(key), value)
    assert [each for each in found(config) if each[1] != "config-registration"] == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("apiEndpoint", "api.balena-cloud.com", "http:// or https:// URL"),
        ("apiEndpoint", "https://", "http:// or https:// URL"),
        ("apiTimeout", True, "a number, not true"),
        ("apiTimeout", "15 min", 'a number, not the string "15 min"'),
        ("applicationId", None, "a number, not null"),
        ("balenaRootCA", "-----BEGIN CERTIFICATE-----\n", "base64 -w0"),
        ("balenaRootCA", "bm90IGEgY2VydGlmaWNhdGU=", "PEM certificate"),
        ("balenaRootCA", "ü", "base64"),
        ("country", "UK", "alpha-2"),
        ("country", "de", "alpha-2"),
        ("deviceApiKeys", {"host": 5}, "an object of strings"),
        ("developmentMode", "yes", 'true or false, not the string "yes"'),
        ("developmentMode", 1, "true or false, not the number 1"),
        ("hostname", 12, "a string, not the number 12"),
        # jq -e '.installer.secureboot' takes every string for true (initrdscripts, migrate).
        ("installer.secureboot", "false", "true or false, not a string"),
        ("listenPort", 70000, "1 to 65535"),
        ("listenPort", 1.5, "1 to 65535"),
        ("network", {"wifiSsid": "x"}, "an array of objects"),
        ("os", "x", "an object, not the string"),
        ("os.fan", [], "an object, not an array"),
        ("os.fan.profile", "loud", "quiet, cool"),
        ("os.sshKeys", _KEY, "an array of strings, not the string"),
        ("os.sshKeys", [f"{_KEY}\n{_KEY}"], "one key in each string"),
        ("os.sshKeys", ["-----BEGIN OPENSSH PRIVATE KEY-----"], "private key"),
        ("os.udevRules", {"../x": ""}, "file names"),
        ("uuid", "ab" * 15, "32 to 62"),
        ("uuid", "ab" * 16 + "a", "even count"),
        ("uuid", "AB" * 16, "small letters"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_key_expectation_and_value(
    key: str, value: Json, words: str
) -> None:
    errors = [
        each
        for each in check_config(nested(parse_key(key), value), None)
        if each.severity is Severity.ERROR
    ]
    assert [each.key for each in errors] == [key]
    assert errors[0].message.startswith(f"{key} must")
    assert words in errors[0].message


def test_no_secret_is_in_a_finding() -> None:
    secrets: dict[str, Json] = {
        "apiKey": 1234567890123456789,
        "deviceApiKey": "hunter2",
        "deviceApiKeys": "hunter2",
        "wifiKey": ["hunter2"],
    }
    messages = " ".join(each.message for each in check_config(secrets, None))
    assert "1234567890123456789" not in messages
    assert "hunter2" not in messages


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("labNote", "x", "config-key-unknown"),
        ("os.lab.note", "x", "config-key-unknown"),
        ("deviceApiKey", "short", "config-value-odd"),
        ("dnsServers", "dns.lab", "config-value-odd"),
        ("hostname", "bench_7", "config-value-odd"),
        ("hostname", "a" * 65, "config-value-odd"),
        ("os.sshKeys", ["lab"], "config-value-odd"),
        ("wifiSsid", "Lab", "config-value-odd"),
        ("network", [], "config-value-odd"),
    ],
)
def test_an_odd_value_is_a_warning(key: str, value: Json, code: str) -> None:
    findings = found(nested(parse_key(key), value))
    assert ("warning", code) in [each[:2] for each in findings]
    assert not [each for each in findings if each[0] == "error"]


def test_the_device_type_is_that_of_the_image() -> None:
    config: dict[str, Json] = {"deviceType": "raspberrypi4-64"}
    assert found(config, "raspberrypi4-64") == []
    assert found(config, None) == []
    assert found(config, "raspberrypi3") == [("error", "config-device-type", "deviceType")]


_REGISTERED: dict[str, Json] = {
    "apiEndpoint": "https://api.balena-cloud.com",
    "uuid": "ab" * 16,
    "deviceApiKey": "ab" * 16,
    "registered_at": 1700000000,
    "deviceId": "5",
}


def test_a_board_registered_beforehand_is_whole() -> None:
    assert found(_REGISTERED) == []


@pytest.mark.parametrize(
    ("changes", "missing", "key"),
    [
        ({}, "uuid", "registered_at"),
        ({}, "deviceApiKey", "registered_at"),
        ({}, "deviceId", "registered_at"),
        ({}, "registered_at", "deviceApiKey"),
        ({}, "apiEndpoint", "deviceApiKey"),
        ({"apiKey": "x"}, None, "apiKey"),
    ],
)
def test_what_does_not_fit_together_is_a_warning(
    changes: dict[str, Json], missing: str | None, key: str
) -> None:
    config = _REGISTERED | changes
    config = {name: value for name, value in config.items() if name != missing}
    assert ("warning", "config-registration", key) in found(config)


def test_the_sentence_says_what_is_missing() -> None:
    """Shown by `config check`, `set`, `unset` and `merge`."""
    board: dict[str, Json] = {
        "deviceApiKey": "0" * 32,
        "uuid": "0" * 32,
        "apiEndpoint": "https://a.b",
    }
    assert [each.message for each in check_config(board, None)] == [
        "deviceApiKey is set, but apiKey and registered_at are both missing"
    ]
    assert [each.message for each in check_config({"apiEndpoint": "https://a.b"}, None)] == [
        "apiEndpoint is set, but deviceApiKey and apiKey are both missing"
    ]


def test_an_endpoint_needs_a_key() -> None:
    config: dict[str, Json] = {"apiEndpoint": "https://api.balena-cloud.com"}
    assert found(config) == [("warning", "config-registration", "apiEndpoint")]
    assert found(config | {"apiKey": "x"}) == []


def test_every_known_key_has_a_type_and_every_secret_is_one() -> None:
    secret = {format_key(key) for key in KEYS if is_secret(key)}
    # facts: balena-config-vars, os-config; the last three are of balena's own services
    assert secret == {
        *("apiKey", "deviceApiKey", "wifiKey"),
        *("mixpanelToken", "pubnubPublishKey", "pubnubSubscribeKey"),
        "deviceApiKeys",
    }
    assert all(type_of(key) is not None for key in KEYS)
    assert not is_secret(("os", "sshKeys"), [_KEY])


def test_a_certificate_in_base64_is_found_right(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subject = ["-nodes", "-subj", "/CN=lab", "-keyout", "/dev/null", "-out", str(pem)]
    subprocess.run([*request, *subject], check=True, capture_output=True)
    encoded = subprocess.run(["base64", "-w0", pem], check=True, capture_output=True, text=True)
    assert found({"balenaRootCA": encoded.stdout}) == []


def test_countries_are_those_of_the_time_zone_database() -> None:
    table = Path("/usr/share/zoneinfo/iso3166.tab")
    if not table.exists():
        pytest.skip("no /usr/share/zoneinfo/iso3166.tab")
    lines = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    codes = {line.partition("\t")[0] for line in lines}
    assert codes == COUNTRIES
