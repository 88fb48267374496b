"""The generator's HTTP client against servers that keep connections, close them, and break the rules."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import pytest

from memserve.bench.http_connection import origin_of
from memserve.bench.http_target import HttpTarget
from memserve.bench.rows import Heard, NotAnswered
from memserve.bench.scenario import Scenario
from memserve.bench.workload import Planned
from memserve.domain import Message, Role
from memserve.errors import UsageError

REQUEST = Planned(0, 0.0, (Message(Role.USER, "s 0.0 hello"),), 2)
SCENARIO = Scenario(model="m")
CONTENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
WHOLE = CONTENT * 2 + b"data: [DONE]\n\n"


@contextlib.asynccontextmanager
async def serving(reply: bytes, *, closes: bool) -> AsyncGenerator[tuple[HttpTarget, list[int]], None]:
    """reply: to every request. closes: after it. Gives also how many requests each connection had."""
    counts: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(counts)
        counts.append(0)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
                counts[number] += 1
                writer.write(reply)
                await writer.drain()
                if closes:
                    break
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    target = HttpTarget(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "", SCENARIO, "")
    try:
        yield target, counts
    finally:
        target.close()
        server.close()
        await asyncio.sleep(0.01)


async def asked(target: HttpTarget) -> Heard:
    heard = Heard()
    async with asyncio.timeout(10):
        await target.ask(REQUEST, heard, time.perf_counter)
    return heard


def with_length(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


async def test_a_connection_is_used_again_and_one_that_the_server_has_closed_is_not() -> None:
    async with serving(with_length(WHOLE), closes=False) as (target, counts):
        for _ in range(3):
            assert len((await asked(target)).token_times_s) == 2
        assert counts == [3]
    async with serving(with_length(WHOLE), closes=True) as (target, counts):
        for _ in range(3):
            await asked(target)
            await asyncio.sleep(0.05)
        assert counts == [1, 1, 1]


async def test_a_body_without_a_length_goes_on_until_the_connection_ends() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE, closes=True) as (target, _):
        assert len((await asked(target)).token_times_s) == 2


@pytest.mark.parametrize(
    ("reply", "reason", "tokens"),
    [
        (b"", "connection: IncompleteReadError", 0),
        (b"nonsense\r\n\r\n", "connection: IndexError", 0),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n" + CONTENT, "connection: IncompleteReadError", 1),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\nzz\r\n"
            % (len(CONTENT), CONTENT),
            "connection: ValueError",
            1,
        ),
        (with_length(CONTENT), "the stream ended early", 1),
        (with_length(b"data: {nonsense\n"), "an event that is no JSON", 0),
        (with_length(b"data: []\n"), "an event that is no object", 0),
        (with_length(CONTENT + b'data: {"error":{"type":"server_error"}}\n'), "server_error", 1),
    ],
)
async def test_an_answer_that_breaks_off_has_its_reason(reply: bytes, reason: str, tokens: int) -> None:
    async with serving(reply, closes=True) as (target, _):
        heard = Heard()
        with pytest.raises(NotAnswered) as error:
            async with asyncio.timeout(10):
                await target.ask(REQUEST, heard, time.perf_counter)
    assert (error.value.reason, error.value.refused) == (reason, False)
    assert len(heard.token_times_s) == tokens


@pytest.mark.parametrize(
    ("status", "body", "reason", "refused"),
    [
        (b"429 x", b'{"error":{"code":"rate"}}', "HTTP 429 rate", True),
        (b"503 x", b"no json", "HTTP 503", True),
        (b"400 x", b'{"error":{"type":"invalid_request_error"}}', "HTTP 400 invalid_request_error", False),
    ],
)
async def test_a_status_tells_a_refusal_from_a_failure(
    status: bytes, body: bytes, reason: str, refused: bool
) -> None:
    async with serving(with_length(body, status), closes=False) as (target, _):
        with pytest.raises(NotAnswered) as error:
            await asked(target)
    assert (error.value.reason, error.value.refused) == (reason, refused)


async def test_nobody_who_listens_is_a_failure_that_says_so() -> None:
    with pytest.raises(NotAnswered, match="connection: no connection"):
        await asked(HttpTarget("http://127.0.0.1:1", "", SCENARIO, ""))


def test_an_address_may_have_a_path_and_the_apis_version() -> None:
    origin = origin_of("https://[::1]/proxy/v1/")
    assert (origin.host, origin.port, origin.path, origin.authority) == ("::1", 443, "/proxy", "[::1]:443")
    assert origin.tls is not None
    for url in ("127.0.0.1:8000", "http://", "http://a:b", "http://u@a"):
        with pytest.raises(UsageError, match="--http"):
            origin_of(url)
