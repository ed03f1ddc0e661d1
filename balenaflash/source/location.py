"""The location of an image: a file or block device, standard input, or a web server."""

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from balenaflash.errors import ImageError

STANDARD_INPUT = "-"
"""Name of standard input on a command line; a file of that name is ``./-``."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)  # RFC 3986, section 3.1

# Characters that a path or query contains as they are (RFC 3986, section 3.3), and the percent
# sign of those that are encoded already.
_KEPT = "/%:@!$&'()*+,;=~-._"

_STANDARD_INPUT = Path("/proc/self/fd/0")
_ALL, _OWNER = 0o666, 0o600  # modes of files


@dataclass(frozen=True, slots=True)
class StandardInput:
    """Standard input of this process."""

    def __str__(self) -> str:
        return STANDARD_INPUT


@dataclass(frozen=True, slots=True)
class Url:
    """The address of an image on a web server; as text it is fit to show."""

    address: str = field(repr=False)
    """Address for requests, percent-encoded. It may contain a password or be a signed link."""

    shown: str
    """Scheme, host, port and path: without user, password, query and fragment."""

    def __str__(self) -> str:
        return self.shown


ImageLocation = Path | Url | StandardInput
"""A location as the user can give it."""


def parse_location(text: str) -> ImageLocation:
    """The location that the image argument ``text`` names. Nothing is opened.

    Raises:
        ImageError: it is an address, with whatever scheme, that cannot be read from.
    """
    if text == STANDARD_INPUT:
        return StandardInput()
    return parse_url(text) if _SCHEME.match(text) else Path(text)


def parse_url(text: str) -> Url:
    """The ``http`` or ``https`` address ``text``. No message repeats more of it than the host.

    Raises:
        ImageError: the scheme is another one, the host is missing, or the port is not a number.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _not_an_address("the address is not well formed") from error
    if parts.scheme not in {"http", "https"}:
        raise _not_an_address(f"addresses with {parts.scheme}:// cannot be read")
    if not host:
        raise _not_an_address(f"{parts.scheme}:// without a host")
    host = _ascii_host(host)
    place = host if port is None else f"{host}:{port}"
    user = parts.netloc.rpartition("@")[0]
    path = quote(parts.path, safe=_KEPT) or "/"
    address = parts._replace(
        netloc=f"{quote(user, safe=_KEPT)}@{place}" if user else place,
        path=path,
        query=quote(parts.query, safe=_KEPT + "?"),
        fragment="",
    )
    return Url(address.geturl(), f"{parts.scheme}://{place}{path}")


def _ascii_host(host: str) -> str:
    try:
        ascii_host = host if ":" in host else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise _not_an_address("the host in the address is not a host name") from error
    if re.fullmatch(r"[a-z0-9._:%-]+", ascii_host, re.IGNORECASE) is None:
        raise _not_an_address("the host in the address is not a host name")
    return f"[{ascii_host}]" if ":" in ascii_host else ascii_host


def _not_an_address(fact: str) -> ImageError:
    return ImageError(
        f"image: {fact}",
        code="image-address-invalid",
        hint="Give a path, - for standard input, or http(s)://HOST/PATH; for a file with such a "
        "name, ./NAME.",
    )


def find_image_path(image: ImageLocation) -> Path | None:
    """The file or device of ``image``, also as standard input; ``None`` if it has none."""
    if isinstance(image, Path):
        return image
    if isinstance(image, StandardInput):
        path = _STANDARD_INPUT.resolve()
        return path if path.is_file() or path.is_block_device() else None
    return None


def output_mode(image: ImageLocation, *, adds_secrets: bool = False) -> int:
    """The mode, before the umask, of a file that is made from ``image``.

    It is that of the image; with ``adds_secrets`` only the owner may read the file.
    """
    if adds_secrets:
        return _OWNER
    path = find_image_path(image)
    if path is None:
        return _ALL
    return stat.S_IMODE(path.stat().st_mode) & _ALL | _OWNER
