"""GET requests over http and https: connections, redirects, and their failures."""

import base64
import re
import select
import socket
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Lock, Timer
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import balenaflash
from balenaflash.errors import ImageError
from balenaflash.source.location import Url, parse_url

_DEFAULT_PROXY_PORT = 80


class Connections:
    """The connections of one client, used again when idle; proxies come from the environment."""

    def __init__(self, *, timeout: float) -> None:
        """``timeout`` is in seconds: without a byte; a whole header may take twice that."""
        self.timeout = timeout
        self._context: ssl.SSLContext | None = None
        self._idle: dict[str, list[HTTPConnection]] = {}
        self._asking: set[HTTPConnection] = set()
        self._stopped = False
        self._lock = Lock()

    def ask(self, parts: SplitResult, headers: Mapping[str, str]) -> "Reply":
        """The answer to a GET of the address ``parts``, which has no user and password.

        Raises:
            OSError: there was no answer.
            HTTPException: the answer is not HTTP.
        """
        server = f"{parts.scheme}://{parts.netloc}"
        while (idle := self._take(server)) is not None:
            try:
                return self._ask_over(idle, server, parts, headers)
            except (OSError, HTTPException):
                # The server may end an idle connection at any time.
                idle.close()
                if self._stopped:
                    raise
        fresh = self._connect(parts)
        try:
            return self._ask_over(fresh, server, parts, headers)
        except BaseException:
            fresh.close()
            raise

    def keep(self, server: str, connection: HTTPConnection) -> None:
        """Keep ``connection``, whose answer was read to its end, for the next request."""
        with self._lock:
            self._idle.setdefault(server, []).append(connection)

    def stop(self) -> None:
        """Make the requests that wait for an answer, and all later ones, fail at once."""
        with self._lock:
            self._stopped = True
            for connection in self._asking:
                _shut(connection)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _take(self, server: str) -> HTTPConnection | None:
        """An idle connection that the server has not ended."""
        with self._lock:
            waiting = self._idle.get(server, [])
            while waiting:
                connection = waiting.pop()
                if connection.sock is not None and not _has_input(connection):
                    return connection
                connection.close()
        return None

    def _connect(self, parts: SplitResult) -> HTTPConnection:
        proxy = _proxy_for(parts)
        place = proxy or parts
        is_tls = parts.scheme == "https"
        default = _DEFAULT_PROXY_PORT if proxy else (443 if is_tls else 80)
        host, port = place.hostname or "", place.port or default
        connection: HTTPConnection
        if is_tls:
            if self._context is None:
                # The system's authorities, host names checked; SSL_CERT_FILE and SSL_CERT_DIR hold.
                self._context = ssl.create_default_context()
            connection = HTTPSConnection(host, port, timeout=self.timeout, context=self._context)
        else:
            connection = HTTPConnection(host, port, timeout=self.timeout)
        if proxy and is_tls:
            headers = _proxy_headers(proxy)
            connection.set_tunnel(parts.hostname or "", parts.port or 443, headers)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def _ask_over(
        self,
        connection: HTTPConnection,
        server: str,
        parts: SplitResult,
        headers: Mapping[str, str],
    ) -> "Reply":
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        proxy = _proxy_for(parts)
        if proxy and parts.scheme == "http":
            target = parts.geturl()
            headers = {**headers, **_proxy_headers(proxy)}
        late: list[bool] = []

        def give_up() -> None:
            late.append(True)
            _shut(connection)

        # Each byte of a header may come just in time for the timeout.
        deadline = Timer(2 * self.timeout, give_up)
        deadline.daemon = True
        deadline.start()
        try:
            with self._lock:
                if self._stopped:
                    raise ConnectionAbortedError
                self._asking.add(connection)
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
        except (OSError, HTTPException, ValueError) as error:
            if late:
                raise TimeoutError("a header without an end") from error
            raise
        finally:
            deadline.cancel()
            with self._lock:
                self._asking.discard(connection)
        if late:
            response.close()  # what came of a header looks like one that has ended
            raise TimeoutError("a header without an end")
        return Reply(response, connection, server, self)


class Reply:
    """An answer, and the connection that it comes over."""

    def __init__(
        self,
        response: HTTPResponse,
        connection: HTTPConnection,
        server: str,
        connections: Connections,
    ) -> None:
        self.response = response
        self._connection = connection
        self._server = server
        self._connections = connections

    @property
    def timeout(self) -> float:
        """Seconds that may pass without a byte."""
        return self._connections.timeout

    def give_back(self) -> bool:
        """Keep the connection for the next request; False if it cannot be used again."""
        if self.response.length == 0:
            self.response.read()  # http.client closes the response then
        if self._connection.sock is None or not self.response.isclosed():
            return False
        self._connections.keep(self._server, self._connection)
        return True

    def close(self) -> None:
        """Close the connection."""
        self.response.close()
        self._connection.close()


def _shut(connection: HTTPConnection) -> None:
    """Make all reads and writes of ``connection`` end at once; from any thread."""
    sock = connection.sock
    if sock is None:
        return
    try:
        # Not the method of SSLSocket, which another thread is using.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # ENOTCONN, EBADF: it has ended


def _has_input(connection: HTTPConnection) -> bool:
    """True if input came without a request: most likely the end of the connection."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    address = getproxies().get(parts.scheme)
    if not address or proxy_bypass(parts.netloc):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    login = _login_in(proxy.netloc)
    return {} if login is None else {"Proxy-Authorization": login}


def _login_in(netloc: str) -> str | None:
    """The user and password in ``netloc`` as a header has them (RFC 7617); ``None`` if none."""
    user, separator, _host = netloc.rpartition("@")
    if not separator:
        return None
    return "Basic " + base64.b64encode(unquote(user).encode()).decode("ascii")


_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})  # RFC 9110, section 15.4
_EXPIRED = frozenset({400, 401, 403, 404, 410})
"""Answers of servers to a signed link that has expired."""


class Client:
    """Requests of one address.

    The target of a redirect is used for the next requests, so that all bytes come from the same
    server; after that link has expired, the address itself again. User and password of the
    address are sent to its own host only.
    """

    def __init__(self, url: Url, *, timeout: float) -> None:
        self._url = url
        self._located = url
        self._connections = Connections(timeout=timeout)

    def ask(self, headers: Mapping[str, str]) -> Reply:
        """The answer to a GET with ``headers``, which is not a redirect; the caller closes it.

        Raises:
            ImageError: redirects do not end, lead from https to http, or to no web address.
            OSError: there was no answer.
            HTTPException: the answer is not HTTP.
        """
        reply = self._follow(self._located, headers)
        if reply.response.status in _EXPIRED and self._located is not self._url:
            reply.close()
            reply = self._follow(self._url, headers)
        return reply

    def stop(self) -> None:
        """Make a request that waits for its answer fail at once; from any thread."""
        self._connections.stop()

    def close(self) -> None:
        """Close the idle connections."""
        self._connections.close()

    def _follow(self, url: Url, headers: Mapping[str, str]) -> Reply:
        for _ in range(_MAX_REDIRECTS + 1):
            reply = self._open(url, headers)
            if reply.response.status not in _REDIRECTS:
                self._located = url
                return reply
            # Its body is not read: nothing limits its size.
            reply.close()
            url = self._redirected(url, reply.response.getheader("Location"))
        raise self._refused(f"the server redirects more than {_MAX_REDIRECTS} times")

    def _open(self, url: Url, headers: Mapping[str, str]) -> Reply:
        parts = urlsplit(url.address)
        sent = {
            **headers,
            "User-Agent": f"balenaflash/{balenaflash.__version__}",
            "Accept-Encoding": "identity",
        }
        own = urlsplit(self._url.address)
        host = _host(parts.netloc)
        login = _login_in(own.netloc)
        if login is not None and (parts.scheme, host) == (own.scheme, _host(own.netloc)):
            sent["Authorization"] = login
        return self._connections.ask(parts._replace(netloc=host), sent)

    def _redirected(self, url: Url, location: str | None) -> Url:
        if not location or re.search(r"[\x00-\x20\x7f]", location.strip()):
            raise self._refused("the server redirects to an empty or invalid address")
        try:
            target = parse_url(urljoin(url.address, location.strip()))
        except (ImageError, ValueError) as error:
            raise self._refused(
                "the server redirects to an address that is not http or https"
            ) from error
        if url.address.startswith("https:") and not target.address.startswith("https:"):
            raise self._refused("the server redirects from https to http, which is not protected")
        return target

    def _refused(self, fact: str) -> ImageError:
        return ImageError(
            f"{self._url}: {fact}",
            code="image-unreachable",
            hint="Give the address of the image itself, or download it first.",
        )


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]


BROKEN = (OSError, HTTPException)
"""Failures of a request and of reading its answer: the network, TLS, a broken answer."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes of failures that may have passed at a later try."""


class BusyError(OSError):
    """The server cannot answer now; ``status`` is its HTTP status code."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {_phrase(status)}")
        self.status = status


def raise_for_status(name: str, status: int) -> NoReturn:
    """Refuse an answer with the HTTP status code ``status``.

    Raises:
        BusyError: a later try may succeed.
        ImageError: a later try would fail as well.
    """
    if status in _BUSY:
        raise BusyError(status)
    fact, hint = _REFUSALS.get(status, ("does not send the image", _CHECK_ADDRESS))
    raise ImageError(
        f"{name}: the server {fact} (HTTP {_phrase(status)})", code="image-unreachable", hint=hint
    )


def unreachable(name: str, error: OSError | HTTPException) -> ImageError:
    """The error for an image whose server did not answer at all."""
    fact, hint = _fact(error)
    return ImageError(f"{name}: {fact}", code="image-unreachable", hint=hint)


def interrupted(
    name: str, position: int, total: int | None, error: Exception | None, hint: str
) -> ImageError:
    """The error for a transfer that ended at byte ``position`` and cannot be resumed."""
    length = "" if total is None else f" of {total}"
    return ImageError(
        f"{name}: the transfer broke off at byte {position}{length}: {describe(error)}",
        code="image-interrupted",
        hint=hint,
    )


def describe(error: Exception | None) -> str:
    """The failure in a few words; without an error the server has closed the connection."""
    return "the connection was closed" if error is None else _fact(error)[0]


_CHECK_ADDRESS = "Check the address."
_CHECK_NETWORK = "Check the address, the network, and http_proxy, https_proxy and no_proxy."
_GET_ACCESS = "It may need a login, or the link has expired: get a new link."

_REFUSALS = {
    401: ("asks for a login", _GET_ACCESS),
    403: ("refuses access", _GET_ACCESS),
    404: ("has no such image", _CHECK_ADDRESS),
    407: (
        "is behind a proxy that asks for a login",
        "Set http_proxy or https_proxy to http://USER:PASSWORD@PROXY.",
    ),
    410: ("no longer has the image", _CHECK_ADDRESS),
}
"""Status code to its meaning here and the next step."""


def _phrase(status: int) -> str:
    """Number and standard name of a status; the server's own words are not shown."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


_FACTS: tuple[tuple[type[Exception], str, str], ...] = (
    (BusyError, "the server cannot answer now ({})", "Try again later."),
    (
        ssl.SSLCertVerificationError,
        "the server's certificate is not trusted: {}",
        "If it is your own, set SSL_CERT_FILE to the file of its authority.",
    ),
    (ssl.SSLError, "TLS failed: {}", _CHECK_ADDRESS),
    (socket.gaierror, "the host is not known: {}", _CHECK_NETWORK),
    (TimeoutError, "the server does not answer in time", _CHECK_NETWORK),
    (HTTPException, "the server's answer is cut short or not HTTP", _CHECK_ADDRESS),
    (OSError, "the server cannot be reached: {}", _CHECK_NETWORK),
)
"""Kind of error, the narrower before the wider, with the fact and the next step."""


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
