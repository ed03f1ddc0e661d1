"""GET requests over http and https, with bounded redirects."""

import base64
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import balenaflash
from balenaflash.errors import ImageError
from balenaflash.image.container.http_connection import Connections, Reply
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
        self._connections = Connections(timeout=timeout)

    def ask(self, headers: Mapping[str, str]) -> Reply:
        """The answer to a GET with ``headers``, of any status but a redirect's; the caller closes.

        Raises:
            ImageError: redirects do not end, lead from https to http or elsewhere.
            OSError: nobody answered.
            HTTPException: what answered does not speak HTTP.
        """
        reply = self._follow(self._located, headers)
        if reply.response.status in _EXPIRED and self._located is not self._url:
            reply.close()
            reply = self._follow(self._url, headers)
        return reply

    def stop(self) -> None:
        """Have a question that waits for its answer fail at once; from any thread."""
        self._connections.stop()

    def close(self) -> None:
        """End the connections that are idle."""
        self._connections.close()

    def _follow(self, url: Url, headers: Mapping[str, str]) -> Reply:
        for _ in range(_MAX_REDIRECTS + 1):
            reply = self._open(url, headers)
            if reply.response.status not in _REDIRECTS:
                self._located = url
                return reply
            # Its body is left unread: nothing bounds it.
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
        login = self._login_for(parts)
        if login is not None:
            sent["Authorization"] = login
        return self._connections.ask(parts._replace(netloc=_host(parts.netloc)), sent)

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
