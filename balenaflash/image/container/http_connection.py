"""Connections to web servers, used again for the next request where a server lets them."""

import base64
import select
import socket
import ssl
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Lock, Timer
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

_DEFAULT_PROXY_PORT = 80


class Connections:
    """The idle connections of one client; proxies come from the environment."""

    def __init__(self, *, timeout: float) -> None:
        """``timeout`` is in seconds: without a byte, and twice that for a whole header."""
        self.timeout = timeout
        self._context: ssl.SSLContext | None = None
        self._idle: dict[str, list[HTTPConnection]] = {}
        self._asking: set[HTTPConnection] = set()
        self._stopped = False
        self._lock = Lock()

    def ask(self, parts: SplitResult, headers: Mapping[str, str]) -> "Reply":
        """The answer to a GET of the address ``parts``, which has no user and password.

        Raises:
            OSError: nobody answered.
            HTTPException: what answered does not speak HTTP.
        """
        server = f"{parts.scheme}://{parts.netloc}"
        while (idle := self._take(server)) is not None:
            try:
                return self._ask_over(idle, server, parts, headers)
            except (OSError, HTTPException):
                # The server has ended it meanwhile, which is its right.
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
        """Have ``connection``, whose answer was read to its end, used again."""
        with self._lock:
            self._idle.setdefault(server, []).append(connection)

    def stop(self) -> None:
        """Have a question that waits for its answer fail at once, and all after it."""
        with self._lock:
            self._stopped = True
            for connection in self._asking:
                _shut(connection)

    def close(self) -> None:
        """End those that are idle."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _take(self, server: str) -> HTTPConnection | None:
        """One that is idle and was not ended by the server."""
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
            connection.set_tunnel(parts.hostname or "", parts.port or 443, _proxy_login(proxy))
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
            headers = {**headers, **_proxy_login(proxy)}
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
        """Seconds that it may bring nothing."""
        return self._connections.timeout

    def give_back(self) -> bool:
        """Have the connection used again; False where the answer is not at its end, or the last."""
        if self.response.length == 0:
            self.response.read()  # lets http.client know
        if self._connection.sock is None or not self.response.isclosed():
            return False
        self._connections.keep(self._server, self._connection)
        return True

    def close(self) -> None:
        """End the connection."""
        self.response.close()
        self._connection.close()


def _shut(connection: HTTPConnection) -> None:
    """Make whoever reads from ``connection`` or writes to it end that; from any thread."""
    sock = connection.sock
    if sock is None:
        return
    try:
        # Not that of an SSLSocket, which another thread is using.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # ENOTCONN, EBADF: it has ended


def _has_input(connection: HTTPConnection) -> bool:
    """Whether something comes unasked: the end of the connection, most likely."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    address = getproxies().get(parts.scheme)
    if not address or proxy_bypass(parts.netloc):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    user, separator, _place = proxy.netloc.rpartition("@")
    if not separator:
        return {}
    login = base64.b64encode(unquote(user).encode()).decode("ascii")
    return {"Proxy-Authorization": f"Basic {login}"}
