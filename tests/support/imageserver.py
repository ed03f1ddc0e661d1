"""A web server on this machine that serves one image, well or as badly as a test says."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Behaviour:
    """How one request is answered."""

    content: bytes = b""
    ranges: bool = True
    etag: str | None = '"v1"'
    modified: str | None = None
    status: int = 0
    """Sent without a body of use, in place of the image."""

    location: str | None = None
    break_after: int | None = None
    """Bytes of the body after which the connection is closed."""

    stall_after: int | None = None
    """Bytes of the body after which nothing comes any more."""

    at_most: int | None = None
    """Longest range given, where more was asked for."""

    ignores_end: bool = False
    """Whether a range goes to the end, wherever it was asked to end."""

    total_told: int | None = None
    """A false total in Content-Range."""

    shifted: int = 0
    """Bytes by which a range begins elsewhere than asked."""

    drips: float = 0.0
    """Seconds before each byte of the body, one by one."""

    drips_header: bool = False
    """Whether the header comes so, and has no end."""

    ends_connection: bool = False
    """Whether the connection is ended after the answer, without a word of that."""

    silent: bool = False
    """Whether the connection is taken and no answer comes."""

    encoding: str | None = None
    chunked: bool = False
    lengthless: bool = False
    garbage: bytes | None = None
    """Sent in place of an HTTP answer."""


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class ImageServer:
    """Answers request n as ``behaviours[n]`` says, the last one for all that follow."""

    behaviours: list[Behaviour]
    port: int = 0
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    sent: int = 0
    """Bytes of bodies handed to the kernel."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/lab/balena.img"

    @property
    def ranges(self) -> list[str | None]:
        return [request.range for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    image_server: ImageServer

    def setup(self) -> None:
        super().setup()
        self.image_server.connections += 1

    def do_GET(self) -> None:
        server = self.image_server
        number = len(server.requests)
        headers = {key.lower(): value for key, value in self.headers.items()}
        server.requests.append(Request(self.path, headers))
        behaviour = server.behaviours[min(number, len(server.behaviours) - 1)]
        if behaviour.silent:
            server.released.wait(30)
        elif behaviour.drips_header:
            self._drip(behaviour, b"HTTP/1.1 200 OK\r\nX: " + bytes(1000))
        elif behaviour.garbage is not None:
            self.wfile.write(behaviour.garbage)
        elif behaviour.status:
            self._refuse(behaviour)
        else:
            self._serve(behaviour)
        self.close_connection |= self._is_last(behaviour)

    def _is_last(self, behaviour: Behaviour) -> bool:
        """Whether nobody can tell where this answer ends, or it is to be the last."""
        odd = (behaviour.silent, behaviour.garbage is not None, behaviour.lengthless)
        stops = (behaviour.break_after, behaviour.stall_after)
        is_cut = any(stop is not None for stop in stops)
        return any(odd) or is_cut or behaviour.ends_connection

    def _drip(self, behaviour: Behaviour, content: bytes | memoryview) -> None:
        for byte in content:
            if self.image_server.released.wait(behaviour.drips):
                return
            self._write(bytes([byte]))

    def _refuse(self, behaviour: Behaviour) -> None:
        self.send_response(behaviour.status, "\x1b[31mwords of the server")
        if behaviour.location is not None:
            self.send_header("Location", behaviour.location)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"<html")

    def _serve(self, behaviour: Behaviour) -> None:
        start, end, partial = self._asked(behaviour)
        total = len(behaviour.content)
        if partial and start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        self.send_response(206 if partial else 200)
        start += behaviour.shifted if partial else 0
        if partial:
            told = behaviour.total_told or total
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{told}")
        self._describe(behaviour, end - start)
        self._send(behaviour, memoryview(behaviour.content)[start:end])

    def _asked(self, behaviour: Behaviour) -> tuple[int, int, bool]:
        asked = self.headers.get("Range")
        total = len(behaviour.content)
        condition = self.headers.get("If-Range")
        same = condition in {None, behaviour.etag, behaviour.modified}
        if not asked or not behaviour.ranges or not same:
            return 0, total, False
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first)
        end = min(int(last) + 1, total) if last and not behaviour.ignores_end else total
        if behaviour.at_most is not None:
            end = min(end, start + behaviour.at_most)
        return start, end, True

    def _describe(self, behaviour: Behaviour, length: int) -> None:
        told = {
            "ETag": behaviour.etag,
            "Last-Modified": behaviour.modified,
            "Content-Encoding": behaviour.encoding,
            "Accept-Ranges": "bytes" if behaviour.ranges else None,
            "Transfer-Encoding": "chunked" if behaviour.chunked else None,
        }
        if not behaviour.chunked and not behaviour.lengthless:
            told["Content-Length"] = str(length)
        for name, value in told.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _send(self, behaviour: Behaviour, body: memoryview) -> None:
        stops = [
            stop for stop in (behaviour.break_after, behaviour.stall_after) if stop is not None
        ]
        body = body[: min(stops, default=len(body))]
        if behaviour.drips:
            self._drip(behaviour, body)
            return
        for offset in range(0, len(body), 1 << 20):
            piece = body[offset : offset + (1 << 20)]
            self._write(b"%x\r\n" % len(piece) if behaviour.chunked else b"")
            self._write(piece)
            self._write(b"\r\n" if behaviour.chunked else b"")
            self.image_server.sent += len(piece)
        if behaviour.chunked and not stops:
            self._write(b"0\r\n\r\n")
        if behaviour.stall_after is not None:
            self.image_server.released.wait(30)

    def _write(self, data: bytes | memoryview) -> None:
        if data:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that all are waited for at the end

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is nothing of note."""


@contextmanager
def serve(*behaviours: Behaviour, tls: ssl.SSLContext | None = None) -> Iterator[ImageServer]:
    """An image server on a free port, until the block ends."""
    image_server = ImageServer(list(behaviours))
    handler = type("Handler", (_Handler,), {"image_server": image_server})
    with _Server(("127.0.0.1", 0), handler) as server:
        image_server.port = server.server_address[1]
        if tls is not None:
            image_server.scheme = "https"
            server.socket = tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield image_server
        finally:
            image_server.released.set()
            server.shutdown()
            thread.join()


def unused_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def direct_and_tidy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy of this machine between, and no thread left behind."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield
    assert "http-read-ahead" not in {thread.name for thread in threading.enumerate()}
