"""A gateway's HTTP port over fake workers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import openai
import pytest_asyncio

from memserve.api.entry import entry_of
from memserve.api.http.app import HttpApi
from memserve.api.http.server import answering, open_http
from memserve.gateway.assembly import services_of
from tests.gateway.running import RunningGateway

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True, slots=True)
class Http:
    """The port of a running gateway."""

    gateway: RunningGateway
    port: int
    client: httpx.AsyncClient
    model: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def body(self, **fields: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": "hello"}], **fields}

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.client.post(CHAT, json=self.body(**fields))

    async def events(self, **fields: Any) -> list[dict[str, Any]]:
        """Of a streamed chat, without the last one, [DONE]."""
        response = await self.chat(stream=True, **fields)
        assert response.headers["content-type"].startswith("text/event-stream"), response.text
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]


def client_of(http: Http, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{http.url}/v1", api_key="none", **options)


@contextlib.asynccontextmanager
async def http_of(gateway: RunningGateway, **settings: Any) -> AsyncIterator[Http]:
    chosen = gateway.settings.model_copy(update={"http_port": 0, "http": True, **settings})
    parts = replace(gateway.parts, settings=chosen)
    entry, services = entry_of(parts, gateway.access), services_of(parts, gateway.access)
    async with open_http(chosen) as front:
        assert front is not None
        async with answering(front, HttpApi(parts, services, entry).app()):
            address = f"http://127.0.0.1:{front.port}"
            async with httpx.AsyncClient(base_url=address, timeout=20) as client:
                yield Http(gateway, front.port, client, parts.model.name)


@pytest_asyncio.fixture(loop_scope="module")
async def http(gateway: RunningGateway) -> AsyncIterator[Http]:
    """Of the gateway that the tests of a module share."""
    async with http_of(gateway) as port:
        yield port
