"""Text that a user gives, in a file or otherwise: UTF-8, without a byte order mark."""

import codecs

from balenaflash.errors import EditError

BYTE_ORDER_MARK = "\ufeff"
"""The character that some editors put before a text; Windows PowerShell 5 does."""

_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""How text in UTF-16 or UTF-32 begins; little-endian UTF-32 begins as UTF-16 does."""


def without_mark(text: str) -> str:
    """``text`` without a byte order mark before it."""
    return text.removeprefix(BYTE_ORDER_MARK)


def given_bytes(data: bytes, name: str, *, code: str = "source-encoding") -> bytes:
    """The bytes of a text file without the byte order mark; ``name`` is what messages call it.

    Raises:
        EditError: it is UTF-16 or UTF-32.
    """
    if data.startswith(_WIDE_MARKS) or _is_wide(data):
        raise EditError(
            f"{name}: is UTF-16 text, not UTF-8",
            code=code,
            hint="Save it as UTF-8; in Windows PowerShell with: | Out-File -Encoding utf8 FILE",
        )
    return data.removeprefix(codecs.BOM_UTF8)


def given_text(data: bytes, name: str, *, code: str = "source-encoding") -> str:
    """The text in ``data``.

    Raises:
        EditError: it is not UTF-8.
    """
    content = given_bytes(data, name, code=code)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = len(data) - len(content) + error.start
        raise EditError(
            f"{name}: is not UTF-8 text, at byte {at}", code=code, hint="Save it as UTF-8."
        ) from error


def _is_wide(data: bytes) -> bool:
    """Whether it is UTF-16 without a mark: every other byte of its first characters is zero."""
    start = data[:16]
    return len(data) % 2 == 0 and any(start[0::2]) != any(start[1::2])
