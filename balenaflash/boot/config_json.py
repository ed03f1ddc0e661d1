"""config.json: what of it may be shown."""

import re
from collections.abc import Mapping

_SECRET_ENDINGS = ("key", "keys", "password", "passphrase", "psk", "secret", "secrets", "token")
_PUBLIC_NAMES = frozenset({"sshkeys"})
"""Names with such an ending that hold nothing secret: ``os.sshKeys`` has public keys."""

_ASSIGNMENT = re.compile(
    r"^(\s*(?:passphrase|password|psk)\s*=\s*)(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE
)
"""A secret in a text of settings, such as resinOS 1.x keeps in ``files``."""

_SHOWN_FROM = 16  # characters; of shorter secrets even four would tell too much
_SHOWN = 4


def masked(config: Mapping[str, object]) -> dict[str, object]:
    """A copy of config.json with its secrets replaced, in the same order.

    A secret is the value of any name that ends as ``apiKey``, ``deviceApiKeys``, ``wifiKey``,
    ``pubnubSubscribeKey`` or ``mixpanelToken`` do, at any depth and in any case, so that keys
    not known here are masked too. Below such a name every value is masked, and names stay.
    So are passphrases in lines of settings inside a text.
    Of a long secret the last four characters are kept, enough to tell two apart.
    """
    return {
        name: _mask_all(value) if _is_secret(name) else _mask_inside(value)
        for name, value in config.items()
    }


def _is_secret(name: str) -> bool:
    plain = name.casefold().replace("_", "").replace("-", "")
    return plain.endswith(_SECRET_ENDINGS) and plain not in _PUBLIC_NAMES


def _mask_inside(value: object) -> object:
    match value:
        case dict():
            return masked(value)
        case list():
            return [_mask_inside(each) for each in value]
        case str():
            return _ASSIGNMENT.sub(lambda line: line[1] + _mask(line[2]), value)
        case _:
            return value


def _mask_all(value: object) -> object:
    match value:
        case dict():
            return {name: _mask_all(each) for name, each in value.items()}
        case list():
            return [_mask_all(each) for each in value]
        case None | bool():
            return value
        case _:
            return _mask(str(value))


def _mask(secret: str) -> str:
    if not secret:
        return secret
    if len(secret) < _SHOWN_FROM:
        return "***"
    return f"***{secret[-_SHOWN:]}"
