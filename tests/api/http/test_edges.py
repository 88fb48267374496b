"""Where a caller goes away, is slow, sends too much, or nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import openai
import pytest

from memserve.api.http import app, server
from memserve.gateway.access import limits
from tests.api.http.fixtures import CHAT, HELLO, Http, client_of, http_of
from tests.contract.scripted_worker import Script
from tests.gateway.asking import published
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import until


def chat_bytes(http: Http, content: bytes, *, length: int | None = None) -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return (head + f"content-length: {length or len(content)}\r\n\r\n").encode() + content


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_that_leaves_ends_the_engines_work(start_gateway: StartGateway, stream: bool) -> None:
    gateway = await start_gateway(workers=[{"script": Script(pause_s=0.02)}])
    async with http_of(gateway) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        body = json.dumps(http.body(max_tokens=2000, stream=stream)).encode()
        writer.write(chat_bytes(http, body))
        await until(lambda: len(gateway.workers[0]._running) == 1)
        if stream:
            await reader.readuntil(b"data: ")
        writer.close()
        left_s = time.monotonic()
        await until(lambda: not gateway.workers[0]._running)
        assert time.monotonic() - left_s < 10, "the answer would take 40 s"
        await until(lambda: gateway.parts.inflight.total == 0)


async def test_a_caller_that_leaves_before_the_first_token_ends_it_too(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": Script(hangs_after=0)}])
    async with http_of(gateway) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.client.post(CHAT, json=http.body(max_tokens=5), timeout=0.5)
        await until(lambda: not gateway.workers[0]._running)
        await until(lambda: gateway.parts.inflight.total == 0)


async def test_a_caller_that_does_not_read_is_given_up(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = server._Protocol.connection_made

    def connection_made(self: server._Protocol, transport: asyncio.Transport) -> None:
        # Else the kernel takes the whole answer.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    monkeypatch.setattr(server._Protocol, "connection_made", connection_made)
    gateway = await start_gateway(write_timeout_s=0.5, workers=[{"script": Script(token_ids=(501,) * 5000)}])
    async with http_of(gateway) as http:
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(("127.0.0.1", http.port))
            body = json.dumps(http.body(max_tokens=5000, stream=True, logprobs=True)).encode()
            caller.sendall(chat_bytes(http, body))
            await until(lambda: counted(http) == {"CANCELLED": 1})
            assert gateway.parts.metrics.unread_streams._value.get() == 1
            await until(lambda: not gateway.workers[0]._running and gateway.parts.inflight.total == 0)


async def test_a_deadline_by_header(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": Script(hangs_after=0)}])
    async with http_of(gateway) as http:
        late = await http.client.post(
            CHAT, json=http.body(max_tokens=5), headers={"x-request-timeout-s": "0.3"}
        )
        assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")
        wrong = await http.client.post(CHAT, json=http.body(), headers={"x-request-timeout-s": "soon"})
        assert wrong.json()["error"]["param"] == "x-request-timeout-s"


async def test_an_answer_that_fails_midway_says_so(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        workers=[{"script": Script(fails_with=grpc.StatusCode.UNAVAILABLE, fails_after=2)}]
    )
    async with http_of(gateway) as http:
        response = await http.chat(max_tokens=9, stream=True)
        last = response.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert counted(http) == {"HTTP_502": 1}, "by its end, although it began well"
        assert (await http.chat(max_tokens=9)).status_code in (502, 503)


async def test_a_stream_is_counted_when_it_ends_and_as_it_ends(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        write_timeout_s=0.5, workers=[{"script": Script(pause_s=0.02, token_ids=(501,) * 5000)}]
    )
    async with http_of(gateway) as http:
        assert await http.events(max_tokens=2)
        assert counted(http) == {"HTTP_200": 1}
        async with http.client.stream("POST", CHAT, json=http.body(max_tokens=2000, stream=True)) as response:
            async for _ in response.aiter_lines():
                break
            assert counted(http) == {"HTTP_200": 1}, "not before its end"
        await until(lambda: counted(http) == {"HTTP_200": 1, "CANCELLED": 1})


def counted(http: Http) -> dict[str, float]:
    """Answers by their end, as the metrics have them."""
    return {
        sample.labels["code"]: sample.value
        for metric in http.gateway.parts.metrics.requests.collect()
        for sample in metric.samples
        if sample.value and sample.name.endswith("_total") and sample.labels["rpc"] == "Generate"
    }


async def test_nobody_is_there(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[])
    async with http_of(gateway) as http:
        assert (await http.client.get("/ready")).status_code == 503
        assert (await http.client.get("/health")).json() == {"status": "alive"}
        answered = await http.chat()
        assert answered.status_code == 503
        assert answered.headers["retry-after"]


async def test_a_body_is_bounded_and_must_come(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway(max_message_bytes=64 << 10)
    monkeypatch.setattr(app, "BODY_S", 0.3)
    async with http_of(gateway) as http:
        large = await http.chat(messages=[{"role": "user", "content": "x" * (80 << 10)}])
        assert large.status_code == 400
        assert "at most 65536 bytes" in large.json()["error"]["message"]
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(chat_bytes(http, b'{"model":', length=100))
        assert b"was not here within" in await reader.read(4096)
        writer.close()


async def test_without_a_key_no_body_is_taken(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    gateway.access.replace_keys([])
    async with http_of(gateway) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(chat_bytes(http, b"", length=8 << 20))
        async with asyncio.timeout(5):
            assert b" 401 " in await reader.readline()
            writer.write(b"x" * (8 << 20))  # and what it sends all the same is kept nowhere
            await writer.drain()
        writer.close()
        assert (await http.client.get("/health")).status_code == 200


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_message_bytes=64 << 10)
    async with http_of(gateway) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(chat_bytes(http, b"{", length=80 << 10))
        async with asyncio.timeout(5):
            assert b" 400 " in await reader.readline()
        writer.close()

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(80):
                yield b"x" * 1024

        large = await http.client.post(CHAT, content=parts(), headers={"content-type": "application/json"})
        assert large.json()["error"]["param"] == "body", "without a content-length too"


@pytest.mark.parametrize("whole", [True, False])
async def test_a_caller_that_closes_its_half_is_gone(start_gateway: StartGateway, whole: bool) -> None:
    """HTTP/1.1 has no half-closed requests: who sends no more has left."""
    gateway = await start_gateway(workers=[{"script": Script(pause_s=0.02)}])
    async with http_of(gateway) as http:
        body = json.dumps(http.body(max_tokens=2000)).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(chat_bytes(http, body if whole else body[:20], length=len(body)))
        if whole:
            await until(lambda: len(gateway.workers[0]._running) == 1)
        writer.write_eof()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        await until(lambda: not gateway.workers[0]._running and gateway.parts.inflight.total == 0)
        await until(lambda: counted(http) == {"CANCELLED": 1})
        writer.close()


async def test_pages_without_a_key_are_paced(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STRANGERS_PER_S", 2.0)
    monkeypatch.setattr(limits, "CALL_PATIENCE_S", 0.5)
    gateway = await start_gateway()
    async with http_of(gateway) as http:
        paths = ["/health", "/ready", "/version", "/openapi.json", "/nothing", "/v1/chat/completions"]
        answered = await asyncio.gather(*(http.client.get(path) for path in paths * 3))
        refused = [each for each in answered if each.status_code == 429]
        assert len(refused) >= len(answered) - 5
        assert {each.json()["error"]["type"] for each in refused} == {"rate_limit_error"}
        assert all(each.headers["retry-after"] for each in refused)
        assert (await http.chat(max_tokens=1)).status_code == 200, "who has a key is not a stranger"


async def test_a_connection_that_asks_nothing_is_closed(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway()
    monkeypatch.setattr(server, "HEADERS_S", 0.3)
    async with http_of(gateway) as http:
        for sent in (b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nx: y"):
            reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
            writer.write(sent)
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()


async def test_keys_and_roles_hold(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    gateway.access.replace_keys([])
    async with http_of(gateway) as http:
        answered = await http.chat()
        assert (answered.status_code, answered.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answered.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/v1/models"):
            assert (await http.client.get(path)).status_code == 401
        assert (await http.client.get("/version")).status_code == 200


async def test_module_aliases_are_models(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway()
    await published(gateway, tmp_path)
    async with http_of(gateway) as http, client_of(http) as client:
        names = [model.id async for model in client.models.list()]
        assert names == [http.model, f"{http.model}:tone@live", "all-MiniLM-L6-v2"]
        answered = await client.chat.completions.create(model=names[1], messages=HELLO, max_tokens=2)
        assert answered.model == names[1]
        assert gateway.workers[0].requests[-1].modules[0].kind == "lora"
        with pytest.raises(openai.NotFoundError, match="nothing"):
            await client.chat.completions.create(model=f"{http.model}:nothing", messages=HELLO)
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            await client.chat.completions.create(model="gpt-4", messages=HELLO)


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "10.0.0.1"])
async def test_no_web_page_reaches_the_port_by_a_name_of_its_own(
    start_gateway: StartGateway, name: str
) -> None:
    gateway = await start_gateway()
    async with http_of(gateway) as http:
        answered = await http.client.post(CHAT, json=http.body(), headers={"host": f"{name}:8000"})
        assert (answered.status_code, answered.json()["error"]["param"]) == (400, "host")
        for local in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
            said = await http.client.post(CHAT, json=http.body(max_tokens=1), headers={"host": local})
            assert said.status_code == 200
        gateway.access.replace_keys([])
        keyed = await http.client.post(CHAT, json=http.body(), headers={"host": name})
        assert keyed.status_code == 401, "with keys a name protects nobody"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_that_a_browser_sends_unasked_is_refused(start_gateway: StartGateway, kind: str) -> None:
    gateway = await start_gateway()
    async with http_of(gateway) as http:
        headers = {"content-type": kind} if kind else {}
        answered = await http.client.post(CHAT, content=json.dumps(http.body()).encode(), headers=headers)
        assert answered.json()["error"]["param"] == "content-type"
        asked = await http.client.options(CHAT, headers={"origin": "https://evil.example"})
        assert asked.status_code == 405
        assert "access-control-allow-origin" not in asked.headers
    assert gateway.workers[0].requests == []


async def test_the_client_waits_as_long_as_a_refusal_says(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": Script(full_s=2.5)}])
    async with http_of(gateway) as http:
        refused = await http.chat(max_tokens=1)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == refused.headers["x-memserve-reason"]
        assert refused.headers["retry-after"] == "3"
        assert refused.headers["retry-after-ms"] == "2500"
        async with client_of(http, max_retries=0) as client:
            with pytest.raises(openai.RateLimitError, match=r"try again in 2\.5 s"):
                await client.chat.completions.create(model=http.model, messages=HELLO, stream=True)


async def test_what_is_written_is_sent_at_once(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TCP_NODELAY the first token would wait 40 ms for an acknowledgement."""
    accepted: list[socket.socket] = []
    made = server._Protocol.connection_made

    def connection_made(self: server._Protocol, transport: asyncio.Transport) -> None:
        accepted.append(transport.get_extra_info("socket"))
        made(self, transport)

    monkeypatch.setattr(server._Protocol, "connection_made", connection_made)
    gateway = await start_gateway()
    async with http_of(gateway) as http:
        await http.client.get("/health")
        assert [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in accepted] == [1]


async def test_a_web_page_may_call_only_where_the_settings_name_it(http: Http) -> None:
    asked = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    for origins, status in (("", 405), ("https://chat.example", 200), ("https://other.example", 400)):
        async with http_of(http.gateway, http_cors_origins=origins) as other:
            preflight = await other.client.options("/v1/chat/completions", headers=asked)
            assert preflight.status_code == status
            allowed = preflight.headers.get("access-control-allow-origin")
            assert allowed == ("https://chat.example" if status == 200 else None)
