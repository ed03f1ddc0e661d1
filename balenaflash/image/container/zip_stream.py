"""The image in a zip file that comes as a stream, found by the headers in front of its members."""

import struct
from dataclasses import dataclass

from balenaflash.errors import ImageError
from balenaflash.extent import KIB, MIB
from balenaflash.image.container.decoder import Decoder, Input, corrupt, cut_short
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin
from balenaflash.image.container.zip_choice import is_companion_name
from balenaflash.image.container.zip_header import (
    FIXED_SIZE,
    LOCAL_MAGIC,
    LocalHeader,
    lengths_behind,
    parse_header,
    usable_method,
)
from balenaflash.image.container.zip_member import MemberDecoder, MemberSizes
from balenaflash.image.container.zip_methods import STORED

_DIRECTORY_MAGIC = b"PK\x01\x02"  # APPNOTE 6.3.10, section 4.3.12
END_MAGIC = b"PK\x05\x06"  # section 4.3.16: alone in a zip file without members
_DESCRIPTOR_MAGIC = b"PK\x07\x08"  # section 4.3.9
_DEFLATE64 = 9
_MAX_COMPANION = 16 * MIB  # bytes of what may be passed over in front of the image
_MAX_END = 64 * KIB + 22  # bytes of the end record with its comment

_HINT = "Download the file first, or pipe the image unpacked: unzip -p"


@dataclass(frozen=True, slots=True)
class StreamedZip:
    """An image in a zip file of which the beginning was read."""

    source: Input
    header: LocalHeader

    @property
    def container(self) -> Container:
        """What it is packed with."""
        return Container.ZIP

    @property
    def size(self) -> int | None:
        """Bytes of the image, where the member's header says so."""
        return None if self.header.sizes is None else self.header.sizes.content

    @property
    def member(self) -> str:
        """Its name in the zip file."""
        return self.header.name

    @property
    def seekable(self) -> bool:
        """Never: the bytes come once."""
        return False

    def open_decoder(self, at: int = 0) -> Decoder:
        """The only decoder, from the start; see ``Compressed``."""
        if at:
            raise ValueError(at)
        return _StreamedMember(self.source, self.header)


def find_streamed(origin: Origin, wanted: str | None) -> StreamedZip:
    """The image in a zip file read from its start: the first file in it that is no companion.

    Raises:
        ImageError: there is none, or it cannot be told where it ends.
    """
    source = Input(origin)
    header = _read_header(source)
    while not _may_be_image(header, wanted):
        _pass_over(source, header)
        header = _read_header(source)
    usable_method(origin.name, header.name, header.flags, header.method)
    if header.sizes is None and header.method in {STORED, _DEFLATE64}:
        raise ImageError(
            f"{origin.name}: does not say in front of {header.name!r} how long it is",
            code="image-unsupported",
            hint=_HINT,
        )
    return StreamedZip(source, header)


class _StreamedMember:
    """A member of a zip file that comes as a stream, and what follows it."""

    def __init__(self, source: Input, header: LocalHeader) -> None:
        self._input = source
        self._header = header
        method = usable_method(source.name, header.name, header.flags, header.method)
        self._decoder = MemberDecoder(source, method, header.sizes)
        self._ended = False

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = self._decoder.readinto(buffer)
        if filled < len(buffer) and not self._ended:
            self._ended = True
            seen = self._decoder.seen
            if self._header.sizes is None:
                self._check_descriptor(seen)
            self._check_rest(seen)
        return filled

    def close(self) -> None:
        """Give memory back."""
        self._decoder.close()

    def _check_descriptor(self, seen: MemberSizes) -> None:
        """Compare the member with the sizes and CRC that follow it (section 4.3.9)."""
        number = "Q" if self._header.is_zip64 else "I"
        layout = struct.Struct(f"<I{number}{number}")
        data = self._input.read(4)
        data = (b"" if data == _DESCRIPTOR_MAGIC else data) + self._input.read(layout.size)
        data, behind = data[: layout.size], data[layout.size :]
        self._input.put_back(behind)
        if len(data) < layout.size:
            raise self._cut_short(seen)
        crc, stored, content = layout.unpack(data)
        if MemberSizes(stored, content, crc) != seen:
            raise self._corrupt(seen, "does not have the size and CRC-32 that it should")

    def _check_rest(self, seen: MemberSizes) -> None:
        """Read what is behind the image, which must hold no other, to the end."""
        while (magic := _peek(self._input)) == LOCAL_MAGIC:
            header = _read_header(self._input)
            if not header.name.endswith("/") and not is_companion_name(header.name):
                raise ImageError(
                    f"{self._input.name}: holds {header.name!r} behind {self._header.name!r}, and "
                    "either may be the image",
                    code="zip-member-ambiguous",
                    hint=_HINT,
                )
            _pass_over(self._input, header)
        if not magic:
            raise self._cut_short(seen)
        if magic != _DIRECTORY_MAGIC:
            raise self._corrupt(seen, "is followed by no central directory")
        tail = b""
        while data := self._input.read():
            tail = (tail + data)[-_MAX_END:]
        end = tail.rfind(END_MAGIC)
        comment = int.from_bytes(tail[end + 20 : end + 22], "little")
        if end < 0 or end + 22 + comment > len(tail) or len(tail) < end + 22:
            raise self._cut_short(seen)

    def _cut_short(self, seen: MemberSizes) -> ImageError:
        return cut_short(self._input.name, Container.ZIP, self._input.position, seen.content)

    def _corrupt(self, seen: MemberSizes, why: str) -> ImageError:
        return corrupt(self._input.name, Container.ZIP, self._input.position, seen.content, why)


def _may_be_image(header: LocalHeader, wanted: str | None) -> bool:
    if wanted is not None:
        return wanted in {header.name, header.name.rpartition("/")[2]}
    return not header.name.endswith("/") and not is_companion_name(header.name)


def _read_header(source: Input) -> LocalHeader:
    place = source.position
    fixed = source.read(FIXED_SIZE)
    if fixed[:4] in {_DIRECTORY_MAGIC, END_MAGIC}:
        raise ImageError(
            f"{source.name}: holds no image, or not the one asked for",
            code="zip-member-missing",
            hint="List what it holds: unzip -l",
        )
    rest = source.read(lengths_behind(fixed)) if len(fixed) == FIXED_SIZE else b""
    return parse_header(source.name, fixed + rest, place)


def _pass_over(source: Input, header: LocalHeader) -> None:
    if header.sizes is None or header.sizes.stored > _MAX_COMPANION:
        raise ImageError(
            f"{source.name}: {header.name!r} in it cannot be passed over to find the image",
            code="image-unsupported",
            hint=_HINT,
        )
    left = header.sizes.stored
    while left and (data := source.read(min(left, Input.CHUNK_SIZE))):
        left -= len(data)


def _peek(source: Input) -> bytes:
    magic = source.read(4)
    source.put_back(magic)
    return magic
