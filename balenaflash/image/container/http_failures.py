"""What goes wrong between here and a web server, as errors fit to show."""

import socket
import ssl
from http import HTTPStatus
from http.client import HTTPException
from typing import NoReturn

from balenaflash.errors import ImageError

BROKEN = (OSError, HTTPException)
"""What asking and reading can raise: the network, TLS, a broken answer."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes that a later try may not meet again."""


class BusyError(OSError):
    """The server cannot answer now; ``status`` is its HTTP status code."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {_phrase(status)}")
        self.status = status


def raise_for_status(name: str, status: int) -> NoReturn:
    """Refuse an answer with the HTTP status code ``status``.

    Raises:
        BusyError: a later try may go better.
        ImageError: it will not.
    """
    if status in _BUSY:
        raise BusyError(status)
    fact, hint = _REFUSALS.get(status, ("does not give the image", _CHECK_ADDRESS))
    raise ImageError(
        f"{name}: the server {fact} (HTTP {_phrase(status)})", code="image-unreachable", hint=hint
    )


def unreachable(name: str, error: OSError | HTTPException) -> ImageError:
    """The error for an image whose server could not be asked at all."""
    fact, hint = _fact(error)
    return ImageError(f"{name}: {fact}", code="image-unreachable", hint=hint)


def interrupted(
    name: str, position: int, total: int | None, error: Exception | None, hint: str
) -> ImageError:
    """The error for a transfer that ended at byte ``position`` and cannot go on."""
    length = "" if total is None else f" of {total}"
    return ImageError(
        f"{name}: the transfer broke off at byte {position}{length}: {describe(error)}",
        code="image-interrupted",
        hint=hint,
    )


def describe(error: Exception | None) -> str:
    """What went wrong, in a few words; without an error the server has ended the connection."""
    return "the connection was closed" if error is None else _fact(error)[0]


def is_lasting(error: Exception) -> bool:
    """Whether trying again is of no use, even if it went well before."""
    return isinstance(error, ssl.SSLCertVerificationError)


_CHECK_ADDRESS = "Check the address."
_CHECK_NETWORK = "Check the address, the network, and http_proxy, https_proxy and no_proxy."
_GET_ACCESS = "It may need a login, or the link has expired: get a fresh one."

_REFUSALS = {
    401: ("asks for a login", _GET_ACCESS),
    403: ("refuses access", _GET_ACCESS),
    404: ("has no such image", _CHECK_ADDRESS),
    407: ("is behind a proxy that asks for a login", "Give it as http://USER:PASSWORD@PROXY."),
    410: ("no longer has the image", _CHECK_ADDRESS),
}
"""Status code to what it means here and what to do."""


def _phrase(status: int) -> str:
    """Number and standard name: the server's own words are not shown."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


_FACTS: tuple[tuple[type[Exception], str, str], ...] = (
    (BusyError, "the server cannot answer now ({})", "Try again later."),
    (
        ssl.SSLCertVerificationError,
        "the server's certificate is not trusted: {}",
        "If it is your own, name its authority's file in SSL_CERT_FILE.",
    ),
    (ssl.SSLError, "TLS failed: {}", _CHECK_ADDRESS),
    (socket.gaierror, "the host is not known: {}", _CHECK_NETWORK),
    (TimeoutError, "the server does not answer in time", _CHECK_NETWORK),
    (HTTPException, "the server's answer is broken off or not HTTP", _CHECK_ADDRESS),
    (OSError, "the server cannot be reached: {}", _CHECK_NETWORK),
)
"""Kind of error, the narrower before the wider, to the fact and what to do."""


def _fact(error: Exception) -> tuple[str, str]:
    for kind, fact, hint in _FACTS:
        if isinstance(error, kind):
            return fact.format(_detail(error)), hint
    return "the transfer failed", _CHECK_NETWORK


def _detail(error: Exception) -> str:
    match error:
        case BusyError():
            return _phrase(error.status)
        case ssl.SSLCertVerificationError():
            return error.verify_message
        case ssl.SSLError():
            return error.reason or "no reason given"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            # http.client has no number for a CONNECT that was refused.
            return "no connection through the proxy"
