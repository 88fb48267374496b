"""Asks without a pause while certificates change, and counts what fails. On the client's host; prints JSON.

Half of the lanes connect anew for every request, with the files as they are then. The others keep their
connections for the whole time, with answers that take a second.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from memserve.bench.http_connection import Broken, HttpConnections, origin_of
from memserve.client import AsyncClient, CallFailed, Message, Role, Sampling, TlsFiles

TIMEOUT_S = 20.0
LANES = 2
"""Of each kind."""
SHORT, LONG = (4, 5), (50, 20)
"""Tokens of an answer, and milliseconds between two."""
QUESTION = "What is in the harbour today?"
Ask = Callable[[], Awaitable[None]]


def files_of(part: Path) -> TlsFiles:
    """As they are now, all of one version: a change swaps what `..data` leads to."""
    version = (part / "..data").resolve()
    return TlsFiles(version / "ca.crt", version / "tls.crt", version / "tls.key")


class Load:
    """Asks one gateway."""

    def __init__(self, grpc: str, http: str, part: Path) -> None:
        self._grpc, self._http, self._part = grpc, http, part
        self.requests: dict[str, int] = {}
        self.failures: dict[str, list[str]] = {}
        self._numbers = itertools.count()

    def client(self) -> AsyncClient:
        return AsyncClient(self._grpc, tls=files_of(self._part), timeout_s=TIMEOUT_S)

    def connections(self) -> HttpConnections:
        return HttpConnections(origin_of(f"https://{self._http}", files_of(self._part)), {})

    async def lane(self, kind: str, ask: Ask, until_s: float) -> None:
        while time.monotonic() < until_s:
            self.requests[kind] = self.requests.get(kind, 0) + 1
            try:
                await ask()
            except (CallFailed, Broken, OSError) as error:
                self.failures.setdefault(kind, []).append(str(error) or type(error).__name__)
                await asyncio.sleep(0.05)

    async def answer(self, client: AsyncClient, shape: tuple[int, int]) -> None:
        tokens, step_ms = shape
        sampling = Sampling(tokens, seed=step_ms)
        answer = await client.generate([Message(Role.USER, QUESTION)], sampling=sampling)
        if answer.usage.output_tokens != tokens:
            raise Broken(f"{answer.usage.output_tokens} tokens of {tokens}")

    async def http_answer(self, connections: HttpConnections, shape: tuple[int, int]) -> None:
        tokens, step_ms = shape
        body = {
            "model": "", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": tokens,
            "seed": step_ms, "stream": True,
        }  # fmt: skip
        whole = False
        async with connections.request("POST", "/v1/chat/completions", json.dumps(body).encode()) as response:
            if response.status != 200:
                raise Broken(f"status {response.status}: {(await response.body())[:200]!r}")
            async for line in response.lines():
                whole |= line == b"data: [DONE]"
        if not whole:
            raise Broken("the stream ended early")

    async def anew_grpc(self) -> None:
        async with self.client() as client:
            await self.answer(client, SHORT)

    async def anew_http(self) -> None:
        connections = self.connections()
        try:
            await self.http_answer(connections, SHORT)
        finally:
            connections.close()

    async def memory(self, client: AsyncClient) -> None:
        number = next(self._numbers)
        await client.remember("notes", f"Ship {number} lies at pier {number % 40}.")
        await client.search(["notes"], f"pier of ship {number}")

    async def run(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        async with self.client() as kept, self.client() as remembering:
            connections = self.connections()
            kinds: dict[str, Ask] = {
                "gRPC, a connection for each": self.anew_grpc,
                "HTTP, a connection for each": self.anew_http,
                "gRPC, kept": lambda: self.answer(kept, LONG),
                "HTTP, kept": lambda: self.http_answer(connections, LONG),
                "memories (Milvus, registry)": lambda: self.memory(remembering),
            }
            lanes = [self.lane(kind, ask, until_s) for kind, ask in kinds.items() for _ in range(LANES)]
            await asyncio.gather(*lanes)
            connections.close()


async def main(job: str) -> None:
    told = json.loads(job)
    load = Load(told["grpc"], told["http"], Path(told["part"]))
    await load.run(told["seconds"])
    print(json.dumps({"requests": load.requests, "failures": load.failures}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
