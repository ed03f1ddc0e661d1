"""Secrets of config.json never show, and everything else does."""

import json

import pytest
from boot_tree import CONFIG
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.boot.config_json import masked

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
