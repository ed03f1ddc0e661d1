"""GET requests over http and https, with bounded redirects."""

import base64
import re
import ssl
from collections.abc import Mapping
from http.client import HTTPResponse
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

import balenaflash
from balenaflash.errors import ImageError
from balenaflash.image.container.location import Url, parse_url

_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})  # RFC 9110, section 15.4
_EXPIRED = frozenset({400, 401, 403, 404, 410})
"""What servers answer to a signed link whose time is over."""


class Client:
    """Asks for one address.

    Where it was redirected to is asked first the next time, so that all bytes come from the
    same server, and the address itself again when that link has expired. Proxies come from
    the environment. User and password of the address go to its own host only.
    """

    def __init__(self, url: Url, *, timeout: float) -> None:
        self._url = url
        self._located = url
        self._timeout = timeout
        self._opener = OpenerDirector()
        # No handler for errors: an answer is returned whatever its status.
        handlers = ProxyHandler(), HTTPHandler(), HTTPSHandler(context=_tls_context())
        for handler in handlers:
            self._opener.add_handler(handler)
        self._opener.addheaders = []

    def ask(self, headers: Mapping[str, str]) -> HTTPResponse:
        """The answer to a GET with ``headers``, of any status but a redirect's; the caller closes.

        Raises:
            ImageError: redirects do not end, lead from https to http or elsewhere.
            OSError: nobody answered.
            HTTPException: what answered does not speak HTTP.
        """
        response = self._follow(self._located, headers)
        if response.status in _EXPIRED and self._located is not self._url:
            response.close()
            response = self._follow(self._url, headers)
        return response

    def _follow(self, url: Url, headers: Mapping[str, str]) -> HTTPResponse:
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._open(url, headers)
            if response.status not in _REDIRECTS:
                self._located = url
                return response
            # Its body is left unread: nothing bounds it.
            response.close()
            url = self._redirected(url, response.getheader("Location"))
        raise self._refused(f"the server redirects more than {_MAX_REDIRECTS} times")

    def _open(self, url: Url, headers: Mapping[str, str]) -> HTTPResponse:
        parts = urlsplit(url.address)
        host = parts.netloc.rpartition("@")[2]
        address = parts._replace(netloc=host).geturl()
        # parse_url has let through http and https alone.
        request = Request(address, headers=dict(headers))  # noqa: S310  # see above
        request.add_header("User-Agent", f"balenaflash/{balenaflash.__version__}")
        request.add_header("Accept-Encoding", "identity")
        login = self._login_for(parts)
        if login is not None:
            request.add_header("Authorization", login)
        response = self._opener.open(request, timeout=self._timeout)
        if not isinstance(response, HTTPResponse):
            raise TypeError(f"{type(response)} for an http request")
        return response

    def _login_for(self, parts: SplitResult) -> str | None:
        """The Authorization header (RFC 7617), for the scheme, host and port of the address."""
        own = urlsplit(self._url.address)
        user, separator, place = own.netloc.rpartition("@")
        if not separator or parts.scheme != own.scheme or _host(parts.netloc) != place:
            return None
        return "Basic " + base64.b64encode(unquote(user).encode()).decode("ascii")

    def _redirected(self, url: Url, location: str | None) -> Url:
        if not location or re.search(r"[\x00-\x20\x7f]", location.strip()):
            raise self._refused("the server redirects to no address")
        try:
            target = parse_url(urljoin(url.address, location.strip()))
        except (ImageError, ValueError) as error:
            raise self._refused("the server redirects to what is not on the web") from error
        if url.address.startswith("https:") and not target.address.startswith("https:"):
            raise self._refused("the server redirects from https to http, which nothing protects")
        return target

    def _refused(self, fact: str) -> ImageError:
        return ImageError(
            f"{self._url}: {fact}",
            code="image-unreachable",
            hint="Give the address of the image itself, or download it first.",
        )


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def _tls_context() -> ssl.SSLContext:
    """The system's authorities, host names checked; SSL_CERT_FILE and SSL_CERT_DIR hold."""
    return ssl.create_default_context()
