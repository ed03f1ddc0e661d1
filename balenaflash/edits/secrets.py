"""Masking of secrets in config.json and in any other text.

A secret is recognised by the name before it, in every common format of settings, or by its own
form: a private key, the password in an address, the hash of a password. A text in doubt is masked:
everything after the name of a secret, to the end of the line.
"""

import base64
import re
from collections.abc import Mapping, Sequence

from balenaflash.balena.json_text import Json, format_lines, parse_value
from balenaflash.errors import ConfigError

MASK = "***"

_ENDINGS = (
    *("key", "keys", "keyraw", "token", "tokens", "secret", "secrets", "psk", "cak", "psks"),
    *("password", "passwords", "passwordraw", "passwd", "passphrase", "passphrases", "pwd"),
    *("credential", "credentials", "authorization"),
)
_WHOLE_NAMES = frozenset({"auth", "pass", "pin", "pw", "simpin", "wpspin"})
_PUBLIC_ENDINGS = ("sshkeys", "authorizedkeys", "publickey", "publickeys", "pubkey", "pubkeys")
"""Names of public values that end like those of secrets, such as ``os.sshKeys``."""

_LAST_WORD = re.compile(r"[_.\s-](?:pass|pw)$", re.IGNORECASE)

_NAME = re.compile(
    r"(?P<name>[\w.$-]+(?: +(?:password|secret|key|psk))?(?:\[\w*\])?)"
    r"(?P<separator>\\?[\"']?\s*(?:[:+?]?=>?|:(?!//))\s*)(?=\S)",
    re.IGNORECASE,
)
"""A name and the separator before its value: ``psk=``, ``"apiKey": ``, ``key := ``."""

_WORD = re.compile(
    r"(?:^|[\s;{])(?P<name>[\w-]*(?:password|passwd|passphrase|psk|secret))(?P<separator>[ \t]+)"
    r"(?=[^\s=:])",
    re.IGNORECASE,
)
"""A name and blanks before its value, as in ``login lab password hunter2``."""

_ELEMENT = re.compile(r"(<(?P<name>[\w:.-]+)(?:\s[^<>]*)?>)[^<>]+(?=</)")
_SECTION = re.compile(r"\s*\[+\s*\"?([^\[\]\"]+)\"?\s*\]+\s*")
_COMMENT = re.compile(r"\s*(?:#|;|//)")
_BLOCK_VALUE = re.compile(r"[|>][+-]?\d?\s*(?:#.*)?|\\?")
"""A value on the following lines, which are indented further, as in YAML."""

_PRIVATE = re.compile(r"-----BEGIN [\w ]*(?:PRIVATE KEY|Static key)[\w ]*-----")
_PRIVATE_END = re.compile(r"-----END [\w ]*(?:PRIVATE KEY|Static key)[\w ]*-----")
_BASE64_PEM = re.compile(r"LS0tLS1CRUdJTi[\w+/=-]*")
_FORMS = (
    re.compile(r"(?<=://)[^\s/@\"'<>]*:[^\s/\"'<>]*(?=@)"),  # user:password@ of an address
    re.compile(r"(?:(?<=https://)|(?<=http://))[^\s/@\"'<>]+(?=@)"),  # such a user is a token
    re.compile(r"\$(?:1|2[abxy]?|5|6|7|y|gy|argon2id?)\$[\w./$,=+-]{12,}"),  # crypt(5)
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*"),  # JSON Web Token, RFC 7519
    re.compile(r"\bgh[pousr]_\w{20,}|\bAGE-SECRET-KEY-1\w+"),
)

_SHOWN_FROM = 16  # characters; four characters of a shorter secret would reveal too much
_SHOWN = 4


def is_secret_name(name: str) -> bool:
    """True if ``name`` is the name of a secret, however its words are joined."""
    plain = re.sub(r"[\W_]", "", name.casefold()).rstrip("0123456789")
    if plain.endswith(_PUBLIC_ENDINGS):
        return False
    return (
        plain.endswith(_ENDINGS)
        or plain in _WHOLE_NAMES
        or _LAST_WORD.search(name.rstrip("0123456789")) is not None
    )


def masked(config: Mapping[str, object]) -> dict[str, object]:
    """A copy of config.json with masked secrets, in the same order.

    Every value below the name of a secret is masked; names are not. Other texts are masked as in
    `mask_lines`. A long secret keeps its last four characters, so that two can be told apart.
    """
    return {
        name: _mask_all(value) if is_secret_name(name) else _mask_inside(value)
        for name, value in config.items()
    }


def shown_lines(content: bytes) -> list[tuple[str, str]] | None:
    """The lines of a file, each with its masked form; ``None`` for a file that is not text.

    JSON is formatted anew, so that a secret in it is found wherever its line ends.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    document = _json_in(text)
    if document is None:
        lines = text.splitlines()
        return list(zip(lines, mask_lines(lines), strict=True))
    return list(zip(format_lines(document), format_lines(_mask_inside(document)), strict=True))


def mask_lines(lines: Sequence[str]) -> list[str]:
    """``lines`` with masked secrets."""
    return list(map(_Masking().mask, lines))


def _json_in(text: str) -> Json:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return parse_value(text, "")
    except ConfigError:
        return None  # a section of settings, or invalid JSON: masked as plain lines


class _Masking:
    """The state between the lines of a text: a secret may continue on the next line."""

    def __init__(self) -> None:
        self._in_private_key = False
        self._in_section = False
        """Every value is a secret, as in NetworkManager's ``[vpn-secrets]``."""

        self._indent: int | None = None
        """Lines with a larger indentation belong to a secret."""

        self._quote: str | None = None
        """The quotation mark that ends the secret."""

        self._continues = False
        """The secret continues on the next line, after a backslash."""

    def mask(self, line: str) -> str:
        """The next line, masked."""
        if self._in_private_key:
            return self._end_private_key(line)
        if self._belongs_to_secret(line):
            blanks = line[: len(line) - len(line.lstrip())]
            return f"{blanks}{MASK}" if line.strip() else line
        if section := _SECTION.fullmatch(line):
            self._in_section = is_secret_name(section[1])
            return line
        if begin := _PRIVATE.search(line):
            return self._begin_private_key(line, begin.end())
        start = self._start_of_secret(line)
        if start is None:
            return _mask_forms(line)
        self._note_continuation(line, line[start:])
        return f"{_mask_forms(line[:start])}{MASK}"

    def _begin_private_key(self, line: str, start: int) -> str:
        end = _PRIVATE_END.search(line, start)
        self._in_private_key = end is None
        rest = line[start : end.start() if end else None]
        return f"{line[:start]}{MASK if rest.strip() else ''}{end[0] if end else ''}"

    def _end_private_key(self, line: str) -> str:
        end = _PRIVATE_END.search(line)
        if end is None:
            return MASK
        self._in_private_key = False
        return f"{MASK if line[: end.start()].strip() else ''}{end[0]}"

    def _belongs_to_secret(self, line: str) -> bool:
        if self._quote is not None:
            if self._quote in line:
                self._quote = None
            return True
        if self._continues:
            self._continues = line.endswith("\\")
            return True
        if self._indent is not None:
            if not line.strip() or _indent_of(line) > self._indent:
                return True
            self._indent = None
        return False

    def _start_of_secret(self, line: str) -> int | None:
        """The position of the first secret with a name."""
        found = [
            match.end()
            for match in _NAME.finditer(line)
            if self._in_section or is_secret_name(match["name"])
        ]
        if not _COMMENT.match(line):
            found += [match.end() for match in _WORD.finditer(line)]
        if block := re.match(r"\s*(?:- )?[\"']?(?P<name>[\w.-]+)[\"']?:\s*$", line):
            # A mapping or list of YAML follows.
            self._indent = _indent_of(line) if is_secret_name(block["name"]) else None
        return min(found, default=None)

    def _note_continuation(self, line: str, value: str) -> None:
        if _BLOCK_VALUE.fullmatch(value):
            self._indent = _indent_of(line)
        quote = value[:1]
        if quote in {'"', "'"} and quote not in value[1:]:
            self._quote = quote
        self._continues = value.endswith("\\")


def _indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _mask_forms(text: str) -> str:
    for form in _FORMS:
        text = form.sub(MASK, text)
    text = _ELEMENT.sub(
        lambda found: f"{found[1]}{MASK}" if is_secret_name(found["name"]) else found[0], text
    )
    return _BASE64_PEM.sub(lambda found: MASK if _is_private_pem(found[0]) else found[0], text)


def _is_private_pem(text: str) -> bool:
    whole = text.rstrip("=")
    content = base64.b64decode(whole[: len(whole) // 4 * 4])
    return b"PRIVATE KEY" in content


def _mask_inside(value: object) -> object:
    match value:
        case dict():
            return masked(value)
        case list():
            return [_mask_inside(each) for each in value]
        case str():
            return "\n".join(mask_lines(value.split("\n")))
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
        return MASK
    return f"{MASK}{secret[-_SHOWN:]}"
