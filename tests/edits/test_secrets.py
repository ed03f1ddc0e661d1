"""Secrets of config.json and of any other text never show, and everything else does."""

import base64
import json
import subprocess
from pathlib import Path

import pytest
from boot_tree import CONFIG
from builders import Layout
from commandline import RunBalenaflash
from hypothesis import given
from hypothesis import strategies as st
from imagecopies import MakeImage

from balenaflash.edits.secrets import mask_lines, masked, shown_lines

LONG = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "name",
    [
        *("apiKey", "deviceApiKey", "wifiKey", "mixpanelToken", "pubnubSubscribeKey"),
        *("pubnubPublishKey", "somePassword", "CLIENT_SECRET", "refresh-token", "APIKEY"),
    ],
)
def test_a_secret_shows_its_last_four_characters_only(name: str) -> None:
    assert masked({name: LONG}) == {name: "***cdef"}


@pytest.mark.parametrize("secret", ["hunter2", "x", "0123456789abcde", 12345])
def test_a_short_secret_shows_nothing(secret: object) -> None:
    assert masked({"wifiKey": secret}) == {"wifiKey": "***"}


def test_secrets_are_found_at_any_depth() -> None:
    config = {
        "deviceApiKeys": {"api.balena-cloud.com": LONG, "deep": {"er": [LONG]}},
        "network": [{"wifiSsid": "lab", "wifiKey": "hunter2"}],
    }
    assert masked(config) == {
        "deviceApiKeys": {"api.balena-cloud.com": "***cdef", "deep": {"er": ["***cdef"]}},
        "network": [{"wifiSsid": "lab", "wifiKey": "***"}],
    }


def test_a_passphrase_inside_a_text_of_settings_is_found() -> None:
    text = "[service_home_wifi]\nType = wifi\nPassphrase = correct horse\nName = lab\n"
    shown = masked({"files": {"network/network.config": text}})
    assert shown == {"files": {"network/network.config": text.replace("correct horse", "***")}}


def test_what_is_public_stays_as_it_is() -> None:
    shown = masked(CONFIG)
    assert list(shown) == list(CONFIG)
    assert shown == {**CONFIG, "apiKey": "***face"}


def test_the_original_is_not_changed() -> None:
    config = {"network": [{"wifiKey": "hunter2"}], "apiKey": LONG}
    before = json.dumps(config)
    masked(config)
    assert json.dumps(config) == before


names = st.sampled_from(["apiKey", "wifiKey", "deviceApiKeys", "os", "hostname", "token"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(LONG),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=20,
)


@given(inside=values)
def test_nothing_below_a_secret_name_shows(inside: object) -> None:
    assert LONG not in json.dumps(masked({"outer": {"deviceApiKeys": inside}}))


@given(st.dictionaries(names, values))
def test_the_shape_stays(config: dict[str, object]) -> None:
    def shape(value: object) -> object:
        match value:
            case dict():
                return {name: shape(each) for name, each in value.items()}
            case list():
                return [shape(each) for each in value]
            case _:
                return None

    assert shape(masked(config)) == shape(config)


SECRET = "hunter2hunter2"  # noqa: S105 - of nobody


@pytest.mark.parametrize(
    "text",
    [
        # redsocks, system-proxy/redsocks.conf
        'redsocks {{ login = "u"; password = "{0}"; }}',
        'redsocks {{\n  login = "u";\n\tpassword = "{0}";\n}}',
        # NetworkManager
        "[wifi-security]\nkey-mgmt=wpa-psk\npsk={0}\n",
        " psk = two words {0}",
        'psk="a"{0}',
        "wep-key0={0}",
        "leap-password={0}",
        "[802-1x]\nidentity=me\npassword={0}\nprivate-key-password={0}",
        "password-raw=104;117;{0}",
        "private-key=data:;base64,{0}",
        "[gsm]\npin={0}",
        "[macsec]\nmka-cak={0}",
        "[vpn-secrets]\nXauth password={0}\nIPSec secret={0}\ncert-pass={0}\notp={0}",
        # WireGuard
        "[Interface]\nPrivateKey = {0}\n[Peer]\nPresharedKey={0}",
        "[wireguard]\nprivate-key={0}\n[wireguard-peer.AbC=]\npreshared-key={0}",
        # wpa_supplicant, whose wpa_passphrase leaves the passphrase in a comment
        'network={{\n\tssid="lab"\n\t#psk="{0}"\n\tpsk={0}\n}}',
        # pre-shared keys, PPP and others that use blanks
        ': PSK "{0}"',
        "machine api login lab password {0}",
        "auth-user-pass\npassword {0}",
        # shell, YAML, XML, HTTP, INI
        "export WIFI_PASSWORD='{0}'",
        "DB_PASS={0}",
        "wifi:\n  password: {0}\n",
        "api_key: >-\n  {0}\n  {0}\nname: lab",
        "tokens:\n  - {0}\n  - {0}\nname: lab",
        "PASSWORD=a\\\n{0}",
        'secret = "two lines\n{0}"',
        "<password>{0}</password>",
        "Authorization: Bearer {0}",
        "X-Auth-Token: {0}",
        "//registry/:_authToken={0}",
        "passphrase := {0}",
        "'client_secret' => '{0}'",
        # JSON that is not valid, JSON on one line, a copy of config.json
        '{{"apiKey": "{0}",}}',
        '{{"a": [{{"deviceApiKeys": {{"api": "{0}"}}}}]}}',
        '{{"apiKey":\n\n"{0}"}}',
        '[{{"auth": "{0}"}}]',
        '{{"files": {{"network.config": "Passphrase = {0}"}}}}',
        # known by their own form
        "proxy=http://lab:{0}@10.0.0.1:3128/x",
        "https://{0}:@api.example",
        "url https://lab:{0}@host",
        "url https://{0}@host/x",
        "root:$6$saltsalt${0}/abcdefghijk:19000:0:99999:7:::",
        "-----BEGIN OpenVPN Static key V1-----\n{0}\n{0}\n-----END OpenVPN Static key V1-----",
        "<key>\n-----BEGIN RSA PRIVATE KEY-----\n{0}\n-----END RSA PRIVATE KEY-----\n</key>",
        "-----BEGIN OPENSSH PRIVATE KEY-----\r\n{0}\r\n",
        "x = -----BEGIN PRIVATE KEY-----{0}-----END PRIVATE KEY-----",
    ],
)
def test_a_secret_in_any_text_is_masked(text: str) -> None:
    shown = shown_lines(text.format(SECRET).encode())
    assert shown is not None
    assert any(SECRET in line for line, _ in shown), "the test is wrong"
    masked_text = "\n".join(line for _, line in shown)
    assert SECRET not in masked_text
    assert "***" in masked_text


@pytest.mark.parametrize(
    "line",
    [
        "key-mgmt=wpa-psk",
        "psk-flags=1",
        "PublicKey = Zm9vYmFy",
        "os.sshKeys=ssh-ed25519 AAAA me",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@host",
        "dtoverlay=vc4-kms-v3d,gpiopin=4",
        "console=ttyS0,115200 root=UUID=ba1eba11",
        "https://api.balena-cloud.com:443/x?y=1",
        "git@github.com:a/b.git",
        "mail: lab@example.com",
        "d41d8cd98f00b204e9800998ecf8427e  /config.txt",
        "set default=0 timeout=3",
        "menuentry 'boot' { linux /bzImage }",
        "-----BEGIN CERTIFICATE-----",
        "token",
        "password=",
        "# a comment, with passwords explained",
    ],
)
def test_what_is_no_secret_shows_as_it_is(line: str) -> None:
    assert mask_lines([line]) == [line]


def test_masking_ends_where_the_secret_does() -> None:
    text = (
        "wifi:\n  password: |\n    x\n    y\n  ssid: lab\n[vpn-secrets]\nuser=a\n[vpn]\nuser=b\n"
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\nname=lab"
    )
    assert mask_lines(text.split("\n")) == [
        *("wifi:", "  password: ***", "    ***", "    ***", "  ssid: lab"),
        *("[vpn-secrets]", "user=***", "[vpn]", "user=b"),
        *("-----BEGIN PRIVATE KEY-----", "***", "-----END PRIVATE KEY-----", "name=lab"),
    ]


@pytest.mark.parametrize("kind", ["genrsa", "genpkey -algorithm ed25519"])
def test_a_private_key_in_base64_is_masked_and_a_certificate_is_not(
    kind: str, tmp_path: Path
) -> None:
    key = subprocess.run(["openssl", *kind.split()], capture_output=True, check=True).stdout
    text = base64.b64encode(key).decode()
    assert masked({"lab": text, "file": f"cert={text}\n"}) == {"lab": "***", "file": "cert=***\n"}
    (tmp_path / "key").write_bytes(key)
    command = ["openssl", "req", "-x509", "-new", "-key", f"{tmp_path}/key", "-subj", "/CN=lab"]
    certificate = subprocess.run(command, capture_output=True, check=True).stdout
    public = {"balenaRootCA": base64.b64encode(certificate).decode(), "pem": certificate.decode()}
    assert masked(public) == public


@given(st.text())
def test_masking_keeps_the_number_of_lines(text: str) -> None:
    assert len(mask_lines(text.split("\n"))) == len(text.split("\n"))
    shown = shown_lines(text.encode("utf-8", "replace"))
    assert shown is None or mask_lines([line for line, _ in shown]) is not None


def test_a_dry_run_shows_secrets_of_no_file_unless_asked_to(
    image: MakeImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    target = image(Layout.GPT_FAT16).path
    files = {
        "redsocks.conf": f'redsocks {{ login = "u"; password = "{SECRET}"; }}\n',
        "config.json.bak": f'{{"apiKey":"{SECRET}"}}',
        "lab.key": f"{SECRET}\n",
        "plain.txt": "what = shown\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    put = ["boot", "put", "--dry-run", str(target), *(str(tmp_path / name) for name in files), "/"]
    masked_run = balenaflash(*put, "--json")
    assert masked_run.returncode == 0, masked_run.stderr
    assert SECRET not in masked_run.stdout
    assert "+what = shown" in masked_run.stdout
    assert "lab.key: nothing becomes 15 B, a secret by its name" in masked_run.stdout
    shown = balenaflash(*put, "--show-secrets").stdout
    assert shown.count(SECRET) == len(files) - 1
    # A secret that changes into another one is a line that changes.
    (tmp_path / "one").write_text("psk=first-secret\nname=a\n")
    put = ["boot", "put", str(target), str(tmp_path / "one"), "/one"]
    assert balenaflash(*put).returncode == 0
    (tmp_path / "one").write_text("psk=other-secret\nname=a\n")
    assert "\n-psk=***\n+psk=***\n" in balenaflash(*put, "--dry-run").stdout
