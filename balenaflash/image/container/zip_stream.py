"""The image in a zip file that comes as a stream, found by the headers in front of its members.

The rule is that of a zip file read by its directory, `balenaflash.image.container.zip_choice`,
with the one difference that a stream does not tell what follows: the first member that may be
the image is the image, and whatever comes after it is passed over. A warning names what may be the
image as well, since the directory at the end lists it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from balenaflash.errors import CodedText, ImageError
from balenaflash.extent import GIB, KIB, MIB, format_size
from balenaflash.image.container.decoder import Decoder, Input, corrupt, cut_short
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin
from balenaflash.image.container.zip_choice import (
    LARGEST_OTHER,
    Standing,
    choose_member,
    is_called,
    standing_of,
)
from balenaflash.image.container.zip_directory import read_directory
from balenaflash.image.container.zip_header import (
    FIXED_SIZE,
    LocalHeader,
    lengths_behind,
    marks_its_end,
    parse_header,
    usable_method,
)
from balenaflash.image.container.zip_member import MemberDecoder, MemberSizes

_AFTER_MEMBERS = frozenset({b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x08"})
"""APPNOTE 6.3.10: the directory (section 4.3.12), its end (4.3.16, 4.3.14), extra data (4.3.11)."""

END_MAGIC = b"PK\x05\x06"
_DESCRIPTOR_MAGIC = b"PK\x07\x08"  # section 4.3.9
_DESCRIPTOR_LAYOUTS = (struct.Struct("<IQQ"), struct.Struct("<III"))
_MAX_PASSED = GIB  # bytes decoded of a member that is not the image
_MAX_END = MIB  # bytes kept of the end: the directory, and its end record with its comment
_PIECE_SIZE = 256 * KIB

_HINT = "Download the file first, or pipe the image unpacked: unzip -p"


@dataclass(frozen=True, slots=True)
class StreamedZip:
    """An image in a zip file of which the beginning was read."""

    source: Input
    header: LocalHeader
    decoder: Decoder

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
        return self.decoder


def find_streamed(origin: Origin, wanted: str | None, warn: Callable[[str], None]) -> StreamedZip:
    """The image in a zip file read from its start.

    Small members that are the image only where no other is one are kept until the end. Unless
    ``wanted`` names the image, ``warn`` is called at the end if another member may be it.

    Raises:
        ImageError: there is none, or it cannot be told where it ends.
    """
    source = Input(origin)
    passed: dict[str, LocalHeader] = {}
    content = b""
    while (header := _read_header(source)) is not None:
        standing = standing_of(header.name)
        if _is_image(header.name, standing, wanted):
            decoder = _ImageDecoder(source, header, None if wanted else warn)
            return StreamedZip(source, header, decoder)
        if standing is Standing.PERHAPS and wanted is None and _can_be_decoded(source, header):
            reader = _MemberReader(source, header)
            head = _read_up_to(reader, LARGEST_OTHER + 1)
            if len(head) > LARGEST_OTHER:
                decoder = _ImageDecoder(source, header, warn, reader, head)
                return StreamedZip(source, header, decoder)
            # The last one is enough: of two neither is the image.
            content = content if header.name in passed else head
        else:
            _pass_over(source, header)
        passed.setdefault(header.name, header)
    _read_to_end(source, 0)
    files = {name: 0 for name in passed if not name.endswith("/")}
    header = passed[choose_member(origin.name, files, wanted)]
    usable_method(origin.name, header)
    return StreamedZip(source, header, _KeptDecoder(content))


class _MemberReader:
    """A member, and the sizes that follow it."""

    def __init__(self, source: Input, header: LocalHeader) -> None:
        self._input = source
        self._header = header
        method = usable_method(source.name, header)
        self._decoder = MemberDecoder(source, method, header.sizes)
        self._ended = False

    @property
    def done(self) -> int:
        """Bytes of the member that were decoded."""
        return self._decoder.seen.content

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = self._decoder.readinto(buffer)
        if filled < len(buffer) and not self._ended:
            self._ended = True
            if self._header.sizes is None:
                self._check_descriptor(self._decoder.seen)
        return filled

    def close(self) -> None:
        """Give memory back."""
        self._decoder.close()

    def _check_descriptor(self, seen: MemberSizes) -> None:
        """Compare the member with the CRC and sizes that follow it (section 4.3.9).

        Sizes have 8 bytes where the header has a zip64 field. Go and Java, which cannot know
        beforehand, write such a field never and 8 bytes of what is larger than 4 GiB; others
        write 8 always. So it is told by what agrees. The magic in front may be left out.
        """
        wanted = (seen.crc, seen.stored, seen.content)
        data = self._input.read(4 + _DESCRIPTOR_LAYOUTS[0].size)
        for start in (4, 0) if data[:4] == _DESCRIPTOR_MAGIC else (0,):
            for layout in _DESCRIPTOR_LAYOUTS:
                end = start + layout.size
                if len(data) >= end and layout.unpack_from(data, start) == wanted:
                    self._input.put_back(data[end:])
                    return
        if len(data) < 4 + _DESCRIPTOR_LAYOUTS[1].size:
            raise cut_short(self._input.name, Container.ZIP, self._input.position, seen.content)
        why = "does not have the size and CRC-32 that it should"
        raise corrupt(self._input.name, Container.ZIP, self._input.position, seen.content, why)


class _ImageDecoder:
    """The member that is the image, and everything after it up to the end of the zip file.

    ``head`` is what was already decoded of it. ``warn`` is told of other images at the end.
    """

    def __init__(
        self,
        source: Input,
        header: LocalHeader,
        warn: Callable[[str], None] | None,
        reader: _MemberReader | None = None,
        head: bytes = b"",
    ) -> None:
        _require_end(source.name, header)
        self._input = source
        self._member = header.name
        self._warn = warn
        self._reader = reader or _MemberReader(source, header)
        self._head = _KeptDecoder(head)
        self._ended = False

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = self._head.readinto(buffer)
        if filled < len(buffer):
            filled += self._reader.readinto(buffer[filled:])
        if filled < len(buffer) and not self._ended:
            self._ended = True
            tail = _read_to_end(self._input, self._reader.done)
            if self._warn is not None:
                _warn_of_others(_Tail(self._input, tail), self._member, self._warn)
        return filled

    def close(self) -> None:
        """Give memory back."""
        self._reader.close()


class _KeptDecoder:
    """A member that was decoded before."""

    def __init__(self, content: bytes) -> None:
        self._rest = memoryview(content)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Hold nothing."""


class _Tail:
    """The end of a zip file that was passed over, with its directory."""

    def __init__(self, source: Input, content: bytes) -> None:
        self.name = source.name
        self.size = source.position
        self._content = content
        self._start = self.size - len(content)

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on; none of those that were not kept."""
        start = offset - self._start
        return self._content[start : start + length] if start >= 0 else b""


def _warn_of_others(tail: _Tail, used: str, warn: Callable[[str], None]) -> None:
    """Warn if, by its directory, the zip file would be refused when read as a file."""
    try:
        files = read_directory(tail, tail.size)
    except ImageError:
        return  # it is longer than what was kept of the end
    sizes = {file.filename: file.file_size for file in files if not file.filename.endswith("/")}
    try:
        choose_member(tail.name, sizes, None)
    except ImageError as error:
        (problem,) = error.problems
        text = f"{problem.message}; {used!r}, the first, was used. {problem.hint}"
        warn(CodedText(text, code=problem.code))


def _is_image(member: str, standing: Standing, wanted: str | None) -> bool:
    if wanted is None:
        return standing is Standing.IMAGE
    return not member.endswith("/") and is_called(member, wanted)


def _require_end(zip_name: str, header: LocalHeader) -> None:
    """Refuse a member of which nothing tells where it ends."""
    if header.sizes is None and not marks_its_end(header):
        raise ImageError(
            f"{zip_name}: does not say in front of {header.name!r} how long it is",
            code="image-unsupported",
            hint=_HINT,
        )


def _can_be_decoded(source: Input, header: LocalHeader) -> bool:
    """Whether it is worth looking at a member that was not asked for."""
    try:
        usable_method(source.name, header)
    except ImageError:
        return False
    return header.sizes is not None or marks_its_end(header)


def _read_header(source: Input) -> LocalHeader | None:
    """The header of the next member; ``None`` where the directory comes."""
    place = source.position
    fixed = source.read(FIXED_SIZE)
    if fixed[:4] in _AFTER_MEMBERS:
        source.put_back(fixed)
        return None
    rest = source.read(lengths_behind(fixed)) if len(fixed) == FIXED_SIZE else b""
    return parse_header(source.name, fixed + rest, place)


def _pass_over(source: Input, header: LocalHeader) -> None:
    """Read on to behind a member that is not the image."""
    if header.sizes is not None:
        left = header.sizes.stored
        while left and (data := source.read(min(left, Input.CHUNK_SIZE))):
            left -= len(data)
        return
    _require_end(source.name, header)
    reader = _MemberReader(source, header)
    buffer = memoryview(bytearray(_PIECE_SIZE))
    while reader.readinto(buffer) == len(buffer):
        if reader.done > _MAX_PASSED:
            raise ImageError(
                f"{source.name}: {header.name!r} in it is not the image and unpacks to more than "
                f"{format_size(_MAX_PASSED)}",
                code="image-unsupported",
                hint=_HINT,
            )


def _read_up_to(reader: _MemberReader, length: int) -> bytes:
    content = bytearray()
    buffer = memoryview(bytearray(_PIECE_SIZE))
    while len(content) < length:
        count = reader.readinto(buffer[: length - len(content)])
        if not count:
            break
        content += buffer[:count]
    return bytes(content)


def _read_to_end(source: Input, done: int) -> bytes:
    """Pass over what is left, and give the last of it.

    Raises:
        ImageError: it does not end with an end record, as a zip file that is whole does.
    """
    tail = b""
    while data := source.read():
        tail = (tail + data)[-_MAX_END:]
    end = tail.rfind(END_MAGIC)
    comment = int.from_bytes(tail[end + 20 : end + 22], "little")
    if end < 0 or len(tail) < end + 22 + comment:
        raise cut_short(source.name, Container.ZIP, source.position, done)
    return tail
