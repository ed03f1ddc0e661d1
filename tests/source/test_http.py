import itertools
import random
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imageserver import Behaviour, ImageServer, direct_and_tidy, serve

from balenaflash.errors import ImageError
from balenaflash.source.http import HttpOrigin
from balenaflash.source.location import parse_url
from balenaflash.units import MIB

__all__ = ["direct_and_tidy"]

CONTENT = random.Random(4).randbytes(5 * MIB + 123)  # noqa: S311 -- content, not a key
"""Bytes in which no two ranges are alike."""

FIRST, SECOND, THIRD = f"0-{MIB - 1}", f"{MIB}-{3 * MIB - 1}", f"{3 * MIB}-{len(CONTENT) - 1}"
WINDOWS = [f"bytes={window}" for window in (FIRST, SECOND, THIRD)]
"""What is asked for of it by who reads it from start to end."""

QUICK = (0.01, 0.01, 0.02, 0.02, 0.03)
"""Pauses before five more tries."""


pytestmark = pytest.mark.usefixtures("direct_and_tidy")


def connect(server: ImageServer, *, timeout: float = 10) -> HttpOrigin:
    return HttpOrigin(parse_url(server.url), timeout=timeout, pauses=QUICK)


def read_through(origin: HttpOrigin, *, step: int = 100_000) -> bytes:
    pieces = []
    offset = 0
    while piece := origin.read_at(offset, step):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("step", [4096, 100_000, 3 * MIB, 100 * MIB])
def test_reading_in_order_is_a_few_requests_over_one_connection(step: int) -> None:
    with serve(Behaviour(CONTENT)) as server, connect(server) as origin:
        assert (origin.size, origin.seekable) == (len(CONTENT), True)
        assert read_through(origin, step=step) == CONTENT
        assert server.ranges == WINDOWS
        assert server.connections == 1


def test_the_head_is_read_again_without_a_request() -> None:
    with serve(Behaviour(CONTENT)) as server, connect(server) as origin:
        assert origin.read_at(0, 65536) == CONTENT[:65536]
        assert origin.read_at(0, 8) == CONTENT[:8]
        assert origin.read_at(257, 1000) == CONTENT[257:1257]
        assert server.ranges == WINDOWS[:1]
        assert read_through(origin) == CONTENT
        assert server.ranges == WINDOWS
        assert server.sent == len(CONTENT)


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(CONTENT, ranges=False),
        Behaviour(CONTENT, ranges=False, chunked=True),
        Behaviour(CONTENT, ranges=False, lengthless=True),
        Behaviour(CONTENT, etag=None),
        Behaviour(CONTENT, etag='W/"v1"'),
    ],
    ids=["no ranges", "in chunks", "without length", "no version", "weak version"],
)
def test_what_cannot_be_sought_is_read_from_the_start(behaviour: Behaviour) -> None:
    with serve(behaviour) as server, connect(server) as origin:
        told = behaviour.chunked or behaviour.lengthless
        assert (origin.size, origin.seekable) == (None if told else len(CONTENT), False)
        assert origin.read_at(0, 65536) == CONTENT[:65536]
        assert origin.read_at(0, 100_000) == CONTENT[:100_000]
        assert origin.read_at(4, 5) == CONTENT[4:9]
        assert CONTENT[:100_000] + origin.read_at(100_000, 100 * MIB) == CONTENT
        assert origin.read_at(len(CONTENT), 1) == b""
        # The first of two brought a part, to which others need not belong.
        assert server.ranges == WINDOWS[:1] + [None] * behaviour.ranges


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    reads=st.lists(
        st.tuples(
            st.integers(0, len(CONTENT) + 10),
            st.sampled_from([0, 1, 4096, 300_000, 2 * MIB, 6 * MIB]),
        ),
        max_size=12,
    )
)
def test_any_order_of_reads_gives_the_bytes_at_their_places(reads: list[tuple[int, int]]) -> None:
    with serve(Behaviour(CONTENT)) as server, connect(server) as origin:
        for offset, length in reads:
            assert origin.read_at(offset, length) == CONTENT[offset : offset + length]


def test_a_look_elsewhere_does_not_end_the_reading_in_order() -> None:
    with serve(Behaviour(CONTENT)) as server, connect(server) as origin:
        assert origin.read_at(0, 70_000) == CONTENT[:70_000]
        assert origin.read_at(len(CONTENT) - 22, 22) == CONTENT[-22:]
        assert origin.read_at(4 * MIB, 46) == CONTENT[4 * MIB : 4 * MIB + 46]
        assert origin.read_at(4 * MIB + 46, 46) == CONTENT[4 * MIB + 46 : 4 * MIB + 92]
        assert origin.read_at(70_000, 5 * MIB) == CONTENT[70_000 : 70_000 + 5 * MIB]
        last = f"bytes={len(CONTENT) - 65536}-{len(CONTENT) - 1}"
        middle = f"bytes={4 * MIB}-{4 * MIB + 65535}"
        assert server.ranges == [WINDOWS[0], last, middle, *WINDOWS[1:]]


def test_reading_on_elsewhere_becomes_one_stream() -> None:
    with serve(Behaviour(CONTENT)) as server, connect(server) as origin:
        for offset in range(2 * MIB, len(CONTENT), 4096):
            assert origin.read_at(offset, 4096) == CONTENT[offset : offset + 4096]
        starts = [2 * MIB, 2 * MIB + 65536, 2 * MIB + 65536 + 262144]
        assert server.ranges[0] == WINDOWS[0]
        assert server.ranges[1:3] == [
            f"bytes={start}-{end - 1}" for start, end in itertools.pairwise(starts)
        ]
        assert len(server.ranges) <= 7
        assert server.sent <= MIB + len(CONTENT) - 2 * MIB


@pytest.mark.parametrize(
    "version", [("etag", '"v1"'), ("modified", "Mon, 02 Jan 2023 00:00:00 GMT")]
)
def test_a_broken_connection_is_resumed_where_it_broke(version: tuple[str, str]) -> None:
    broken = Behaviour(CONTENT, etag=None, break_after=500_000)
    setattr(broken, *version)
    with serve(broken) as server, connect(server) as origin:
        assert read_through(origin) == CONTENT
        starts = range(0, len(CONTENT), 500_000)
        assert server.ranges == [
            f"bytes={start}-{min(start + MIB, len(CONTENT)) - 1}" for start in starts
        ]
        assert server.sent == len(CONTENT)
        conditions = {request.headers.get("if-range") for request in server.requests[1:]}
        assert conditions == {version[1]}


def test_a_stalled_connection_is_resumed() -> None:
    behaviours = Behaviour(CONTENT, stall_after=200_000), Behaviour(CONTENT)
    with serve(*behaviours) as server, connect(server, timeout=0.3) as origin:
        assert read_through(origin) == CONTENT
        assert server.ranges[:2] == [WINDOWS[0], f"bytes=200000-{200_000 + MIB - 1}"]


def test_a_server_that_is_gone_for_a_while_is_waited_for() -> None:
    behaviours = (
        Behaviour(CONTENT, break_after=500_000),
        Behaviour(status=503),
        Behaviour(garbage=b""),
        Behaviour(garbage=b"SSH-2.0-OpenSSH_9.2\r\n"),
        Behaviour(CONTENT),
    )
    with serve(*behaviours) as server, connect(server) as origin:
        assert read_through(origin) == CONTENT
        again = [f"bytes=500000-{500_000 + MIB - 1}"] * 4
        assert server.ranges[:5] == [WINDOWS[0], *again]


def test_a_connection_that_brings_nothing_any_more_is_given_up_after_five_tries() -> None:
    behaviours = Behaviour(CONTENT, break_after=500_000), Behaviour(CONTENT, break_after=10)
    with serve(*behaviours) as server, connect(server) as origin:
        with pytest.raises(ImageError, match="broke off at byte 500050 of") as failure:
            read_through(origin)
        assert failure.value.code == "image-interrupted"
        assert len(server.requests) == 6


def test_a_server_that_gives_less_than_asked_is_asked_on_without_a_pause() -> None:
    capped = Behaviour(CONTENT, at_most=50_000)
    with serve(Behaviour(CONTENT, break_after=500_000), capped) as server:
        patient = HttpOrigin(parse_url(server.url), timeout=10, pauses=(0.0,))
        with patient as origin:
            assert read_through(origin) == CONTENT


@pytest.mark.parametrize(
    "after",
    [
        Behaviour(CONTENT, etag='"v2"'),
        Behaviour(CONTENT[:-1]),
        Behaviour(CONTENT + b"x"),
        Behaviour(CONTENT[:1000]),
        Behaviour(CONTENT, total_told=len(CONTENT) + 7),
    ],
    ids=["version", "shorter", "longer", "much shorter", "total"],
)
def test_an_image_that_changes_meanwhile_is_refused(after: Behaviour) -> None:
    with serve(Behaviour(CONTENT, break_after=MIB), after) as server, connect(server) as origin:
        with pytest.raises(ImageError) as failure:
            read_through(origin)
        assert failure.value.code == "image-changed"


def test_a_server_that_gives_more_than_asked_is_not_read_further() -> None:
    behaviours = Behaviour(CONTENT), Behaviour(CONTENT, ignores_end=True)
    with serve(*behaviours) as server, connect(server) as origin:
        assert origin.read_at(3 * MIB, 10) == CONTENT[3 * MIB : 3 * MIB + 10]
        assert origin.read_at(3 * MIB + 65_532, 8) == CONTENT[3 * MIB + 65_532 :][:8]
        # Had all been kept, the second read would not have asked.
        assert len(server.requests) == 3


def test_bytes_of_another_place_are_refused() -> None:
    after = Behaviour(CONTENT, shifted=3)
    with serve(Behaviour(CONTENT, break_after=MIB), after) as server, connect(server) as origin:
        with pytest.raises(ImageError, match=f"does not send the bytes from {MIB} on") as failure:
            read_through(origin)
        assert failure.value.code == "image-interrupted"


def test_without_ranges_a_break_tells_how_far_it_came() -> None:
    broken = Behaviour(CONTENT, ranges=False, break_after=2_000_000)
    with serve(broken) as server, connect(server) as origin:
        with pytest.raises(ImageError, match=f"at byte 2000000 of {len(CONTENT)}") as failure:
            origin.read_at(0, len(CONTENT))
        assert failure.value.code == "image-interrupted"
        assert len(server.requests) == 1


def test_a_chunked_body_that_breaks_is_not_taken_for_the_end() -> None:
    broken = Behaviour(CONTENT, ranges=False, chunked=True, break_after=2_000_000)
    with serve(broken) as server, connect(server) as origin:
        assert origin.read_at(0, MIB) == CONTENT[:MIB]
        with pytest.raises(ImageError, match="at byte 2000000: "):
            origin.read_at(MIB, len(CONTENT))


def test_no_more_is_read_ahead_than_the_buffer_holds() -> None:
    content = bytes(200 * MIB)
    with serve(Behaviour(content)) as server, connect(server) as origin:
        origin.read_at(0, 1)
        sent = -1
        while sent != server.sent:
            sent = server.sent
            time.sleep(0.2)
        # The rest is in the buffers of the two sockets.
        assert sent < 40 * MIB


def test_closing_ends_a_read_that_waits_in_another_thread() -> None:
    failures: list[ImageError] = []
    with serve(Behaviour(CONTENT, stall_after=MIB)) as server:
        origin = connect(server, timeout=60)

        def read() -> None:
            with pytest.raises(ImageError) as failure:
                origin.read_at(0, 2 * MIB)
            failures.append(failure.value)

        reader = threading.Thread(target=read)
        reader.start()
        while server.sent < MIB:
            time.sleep(0.01)
        before = time.monotonic()
        origin.close()
        reader.join()
        assert time.monotonic() - before < 5
        assert [failure.code for failure in failures] == ["image-interrupted"]
        with pytest.raises(ImageError):
            origin.read_at(3 * MIB, 1)


def test_connections_are_used_again_for_looks_here_and_there() -> None:
    with serve(Behaviour(CONTENT)) as server, connect(server) as origin:
        for offset in (MIB + 5, 3 * MIB, 4 * MIB, len(CONTENT) - 1):
            assert origin.read_at(offset, 100) == CONTENT[offset : offset + 100]
        assert len(server.requests) == 5
        # One brings the start, and is not disturbed by the looks.
        assert server.connections <= 2


def test_a_connection_that_the_server_has_ended_is_not_used_again() -> None:
    with serve(Behaviour(CONTENT, ends_connection=True)) as server, connect(server) as origin:
        assert read_through(origin) == CONTENT
        assert server.ranges == WINDOWS


def test_the_nearest_of_two_streams_goes_on_and_the_other_stays() -> None:
    with serve(Behaviour(CONTENT)) as server, connect(server) as origin:
        for start, length in [(0, 300_000), (1_500_000, 100), (1_565_536, 100)]:
            assert origin.read_at(start, length) == CONTENT[start : start + length]
        assert origin.read_at(300_000, 1_100_000) == CONTENT[300_000:1_400_000]
        before = len(server.requests)
        assert origin.read_at(1_565_636, 100) == CONTENT[1_565_636:1_565_736]
        assert origin.read_at(1_400_000, 100) == CONTENT[1_400_000:1_400_100]
        assert len(server.requests) == before


def test_a_server_that_sends_a_byte_now_and_then_is_given_up() -> None:
    dripping = Behaviour(CONTENT, ranges=False, drips=0.02)
    with serve(dripping) as server:
        before = time.monotonic()
        with connect(server, timeout=0.5) as origin, pytest.raises(ImageError) as failure:
            origin.read_at(0, 1000)
        assert time.monotonic() - before < 10
        assert "does not answer in time" in str(failure.value)


def test_a_server_that_sends_a_header_for_ever_is_given_up() -> None:
    with serve(Behaviour(CONTENT, drips=0.02, drips_header=True)) as server:
        before = time.monotonic()
        with pytest.raises(ImageError, match="does not answer in time"):
            connect(server, timeout=0.3)
        assert time.monotonic() - before < 10


def test_each_new_try_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("balenaflash.progress._listeners", [told.append])
    busy = Behaviour(status=500)
    broken, good = Behaviour(CONTENT, break_after=500_000), Behaviour(CONTENT)
    with serve(busy, busy, broken, busy, good) as server, connect(server) as origin:
        assert read_through(origin) == CONTENT
    url = server.url
    assert told == [
        f"{url}: the server cannot answer now (500 Internal Server Error); trying again in 0.01 s",
        f"{url}: the server cannot answer now (500 Internal Server Error); trying again in 0.01 s",
        # The first new try of a transfer that was under way is soon over, and not told.
        f"{url}: the server cannot answer now (500 Internal Server Error); trying again in 0.01 s",
    ]
