import ssl
import subprocess
from pathlib import Path

import pytest
from imageserver import Behaviour, ImageServer, direct_and_tidy, serve, unused_port

from balenaflash import __version__
from balenaflash.errors import ImageError
from balenaflash.source.http import HttpOrigin
from balenaflash.source.location import parse_url

__all__ = ["direct_and_tidy"]

pytestmark = pytest.mark.usefixtures("direct_and_tidy")

CONTENT = bytes(range(256)) * 1000
QUICK = (0.01, 0.01, 0.02, 0.02, 0.03)


def connect(url: str, *, timeout: float = 10) -> HttpOrigin:
    return HttpOrigin(parse_url(url), timeout=timeout, pauses=QUICK)


def read_image(server: ImageServer) -> bytes:
    with connect(server.url) as origin:
        return origin.read_at(0, 2 * len(CONTENT))


def refusal(url: str, *, timeout: float = 10) -> ImageError:
    with pytest.raises(ImageError) as failure:
        connect(url, timeout=timeout)
    assert failure.value.hint
    assert "\n" not in str(failure.value)
    return failure.value


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "asks for a login (HTTP 401 Unauthorized)"),
        (403, "refuses access (HTTP 403 Forbidden)"),
        (404, "has no such image (HTTP 404 Not Found)"),
        (410, "no longer has the image (HTTP 410 Gone)"),
        (418, "does not send the image (HTTP 418 I'm a Teapot)"),
        (204, "does not send the image (HTTP 204 No Content)"),
        (799, "does not send the image (HTTP 799)"),
    ],
)
def test_a_refusal_is_told_in_our_words_and_not_tried_again(status: int, words: str) -> None:
    with serve(Behaviour(status=status)) as server:
        error = refusal(server.url)
        assert str(error) == f"{server.url}: the server {words}"
        assert error.code == "image-unreachable"
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    busy = Behaviour(status=status)
    with serve(busy, busy, Behaviour(CONTENT)) as server:
        assert read_image(server) == CONTENT
        assert len(server.requests) == 3


def test_a_server_that_stays_busy_is_given_up() -> None:
    with serve(Behaviour(status=503)) as server:
        assert "cannot answer now (503 Service Unavailable)" in str(refusal(server.url))
        assert len(server.requests) == 6


def test_a_port_without_a_server_is_refused() -> None:
    error = refusal(f"http://127.0.0.1:{unused_port()}/a.img")
    assert str(error).endswith("the server cannot be reached: Connection refused")
    assert error.code == "image-unreachable"


def test_an_unknown_host_is_refused() -> None:
    # RFC 6761, section 6.4: no name below .invalid exists.
    error = refusal("http://balena.invalid/a.img")
    assert "http://balena.invalid/a.img: the host is not known: " in str(error)
    assert error.code == "image-unreachable"


def test_a_server_that_says_nothing_is_refused() -> None:
    with serve(Behaviour(garbage=b"")) as server:
        assert "cut short or not HTTP" in str(refusal(server.url))


def test_what_does_not_speak_http_is_refused() -> None:
    with serve(Behaviour(garbage=b"SSH-2.0-OpenSSH_9.2\r\n")) as server:
        assert "cut short or not HTTP" in str(refusal(server.url))


def test_an_empty_image_is_refused() -> None:
    for ranges in (True, False):
        with serve(Behaviour(b"", ranges=ranges)) as server:
            assert refusal(server.url).code == "image-empty"


@pytest.mark.parametrize(("encoding", "shown"), [("gzip", "gzip"), ("\x1b[2J", "something")])
def test_a_body_encoded_on_its_way_is_refused(encoding: str, shown: str) -> None:
    with serve(Behaviour(CONTENT, encoding=encoding)) as server:
        error = refusal(server.url)
        assert f"encoded as {shown}, although" in str(error)
        assert error.code == "image-encoded"
        assert server.requests[0].headers["accept-encoding"] == "identity"


def test_a_server_that_gives_other_bytes_than_the_start_is_asked_for_everything() -> None:
    capped = Behaviour(CONTENT, at_most=1000)
    shifted = Behaviour(CONTENT, shifted=10)
    for odd in (capped, shifted):
        with serve(odd, Behaviour(CONTENT)) as server:
            assert read_image(server) == CONTENT
            assert server.ranges == ["bytes=0-1048575", None]


def test_redirects_are_followed_and_remembered() -> None:
    behaviours = (
        Behaviour(status=302, location="/mirror/one.img?signature=1"),
        Behaviour(status=308, location="two.img"),
        Behaviour(CONTENT, break_after=100_000),
        Behaviour(CONTENT),
    )
    with serve(*behaviours) as server:
        assert read_image(server) == CONTENT
        assert [request.path for request in server.requests] == [
            "/lab/balena.img",
            "/mirror/one.img?signature=1",
            "/mirror/two.img",
            "/mirror/two.img",
        ]


def test_a_link_that_expires_meanwhile_is_asked_for_anew() -> None:
    behaviours = (
        Behaviour(status=307, location="/signed?until=noon"),
        Behaviour(CONTENT, break_after=100_000),
        Behaviour(status=403),
        Behaviour(status=307, location="/signed?until=evening"),
        Behaviour(CONTENT),
    )
    with serve(*behaviours) as server:
        assert read_image(server) == CONTENT
        assert [request.path for request in server.requests][2:] == [
            "/signed?until=noon",
            "/lab/balena.img",
            "/signed?until=evening",
        ]


def test_redirects_without_end_are_refused() -> None:
    with serve(Behaviour(status=302, location="/again")) as server:
        assert "redirects more than 10 times" in str(refusal(server.url))
        assert len(server.requests) == 11


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://[", "", "/a b", None]
)
def test_a_redirect_to_what_is_not_on_the_web_is_refused(location: str | None) -> None:
    with serve(Behaviour(status=302, location=location)) as server:
        assert "the server redirects to" in str(refusal(server.url))
        assert len(server.requests) == 1


def test_user_and_password_go_to_their_own_host_only_and_into_no_message() -> None:
    with (
        serve(Behaviour(status=404)) as other,
        serve(Behaviour(status=302, location=other.url + "?key=sesame")) as server,
    ):
        url = server.url.replace("http://", "http://anna:b%40r@") + "?token=hush#part"
        message = str(refusal(url))
        # The example's encoding by coreutils: printf 'anna:b@r' | base64
        assert server.requests[0].headers["authorization"] == "Basic YW5uYTpiQHI="
        assert server.requests[0].path == "/lab/balena.img?token=hush"
        assert server.requests[0].headers["user-agent"] == f"balenaflash/{__version__}"
        assert "authorization" not in other.requests[0].headers
        assert message.startswith(f"{server.url}: ")
        assert not any(secret in message for secret in ("anna", "b%40r", "b@r", "hush", "sesame"))


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Behaviour(CONTENT)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        with connect("http://balena.invalid/a.img") as origin:
            assert origin.read_at(0, 1000) == CONTENT[:1000]
        assert proxy.requests[0].path == "http://balena.invalid/a.img"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 signed by itself, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=lab", "-keyout", str(path)]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", f"{path}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


def tls_of(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.needs("openssl")
def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with serve(Behaviour(CONTENT), tls=tls_of(certificate)) as server:
        error = refusal(server.url)
        assert "the server's certificate is not trusted: self" in str(error)
        assert error.code == "image-unreachable"
        assert server.requests == []


@pytest.mark.needs("openssl")
def test_a_trusted_server_is_read_over_tls_and_resumed(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    behaviours = Behaviour(CONTENT, break_after=100_000), Behaviour(CONTENT)
    with serve(*behaviours, tls=tls_of(certificate)) as server:
        assert read_image(server) == CONTENT
        assert len(server.requests) == 2


@pytest.mark.needs("openssl")
def test_a_redirect_out_of_tls_is_refused(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    with (
        serve(Behaviour(CONTENT)) as plain,
        serve(Behaviour(status=302, location=plain.url), tls=tls_of(certificate)) as server,
    ):
        assert "redirects from https to http" in str(refusal(server.url))
        assert plain.requests == []


def test_tls_to_a_server_without_it_is_refused() -> None:
    with serve(Behaviour(CONTENT)) as server:
        error = refusal(server.url.replace("http:", "https:"))
        assert "TLS failed" in str(error)


def test_a_server_that_does_not_answer_in_time_is_refused() -> None:
    with serve(Behaviour(silent=True)) as server:
        assert "does not answer in time" in str(refusal(server.url, timeout=0.2))
