"""A real gateway in this process: real Redis, real Milvus Lite, fake workers, a free port."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from memserve.api.grpc.server import listen
from memserve.client import AsyncClient, CallFailed
from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.disk import DiskWatch
from memserve.domain import Message, ModuleVersion, Role, Route, TextDelta, Usage
from memserve.gateway.access.callers import Access, load_access
from memserve.gateway.assembly import GatewayParts, open_parts
from memserve.loop_pressure import TICK_S, LoopPressure
from memserve.model.files import open_model
from tests.contract.fake_worker import SALT_KEY, FakeWorker
from tests.kv.redis_server import RedisServer

TIMEOUT_S = 20.0
Event = Route | TextDelta | Usage


class NoPressure(LoopPressure):
    """Of a gateway that is never late, however busy the machine is: each token comes in a part of its own.

    `tests/gateway/workers/test_pacing.py` and `tests/test_loop_pressure.py` have the real one.
    """

    async def look(self) -> None:
        await asyncio.sleep(TICK_S)


@dataclass
class RunningGateway:
    """`client` is of the tenant `default`; `workers` are those that it was started with, by order."""

    address: str
    settings: Settings
    parts: GatewayParts
    access: Access
    redis: RedisServer
    workers: list[FakeWorker]
    channel: grpc.aio.Channel
    client: AsyncClient

    def token_ids(self, text: str) -> list[int]:
        """The prompt that one message of the user makes."""
        return self.parts.tokenizer.encode([Message(Role.USER, text)])

    @property
    def cache_salt(self) -> str:
        """Of the tenant `default`."""
        return self.access.tenant("").cache_salt

    async def sees(self, ready: int) -> None:
        """Wait until the gateway sends requests to so many workers and no more."""

        async def seen() -> bool:
            return sum(worker.ready for worker in (await self.client.status()).workers) == ready

        await eventually(seen)

    async def is_alive(self) -> bool:
        """It answers, and counts nothing as under way."""
        await self.client.status()
        return self.parts.inflight.total == 0


@contextlib.asynccontextmanager
async def open_gateway(
    directory: Path,
    model_dir: Path,
    *,
    workers: Sequence[dict[str, Any]] = ({},),
    redis_options: Sequence[str] = (),
    disk: DiskWatch | None = None,
    **settings: Any,
) -> AsyncIterator[RunningGateway]:
    """workers: the fields of each FakeWorker. disk: in place of the gateway's own watch.

    settings: of the gateway, over the tests' own.
    """
    directory = directory / uuid.uuid4().hex[:8]
    directory.mkdir()
    redis = RedisServer(directory)
    redis.start(*redis_options)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(redis.stop)
        chosen = {
            "data_dir": directory,
            "model": str(model_dir),
            "redis_url": redis.url,
            "port": 0,
            "shutdown_grace_s": 0.0,
            "salt_key": SALT_KEY,
            # Of equal workers it picks the first, and the default one of them at random.
            "routing_policy": "least_ttft",
            "routing_exploration": 0.0,
            **settings,
        }
        configured = Settings(**chosen)
        model = open_model(model_dir, configured.max_context_tokens)
        started = [
            await stack.enter_async_context(
                FakeWorker(redis.url, model, configured.modules_root, **{"worker_id": f"w{number}", **fields})
            )
            for number, fields in enumerate(workers)
        ]
        parts = await stack.enter_async_context(open_parts(configured))
        parts = replace(parts, disk=disk or parts.disk, pressure=NoPressure())
        access = load_access(configured)
        port = await stack.enter_async_context(listen(parts, access))
        address = f"127.0.0.1:{port}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        client = await stack.enter_async_context(AsyncClient(address, timeout_s=TIMEOUT_S))
        gateway = RunningGateway(address, configured, parts, access, redis, started, channel, client)
        await until(lambda: len(parts.pool.ready(time.monotonic())) == len(started))
        yield gateway


def model_directory(directory: Path) -> Path:
    """The bundled demo model, copied so that a training that writes it does not matter; else one with random
    weights.
    """
    folder = directory / "tiny-demo"
    if (MODEL_DIR / "model.safetensors").is_file():
        shutil.copytree(MODEL_DIR, folder)
    else:
        from memserve.demo.tokenizer import train_tokenizer
        from memserve.demo.training.files import save_base
        from memserve.demo.training.network import new_model

        tokenizer = train_tokenizer(0)
        save_base(new_model(tokenizer), tokenizer, folder)
    return folder


async def publish_live(client: AsyncClient, name: str, folder: Path) -> ModuleVersion:
    """Publish a version and promote it."""
    version = await client.modules.publish(name, folder)
    await client.modules.promote(name, version.version)
    return version


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_s: float = TIMEOUT_S) -> None:
    """Poll until the condition holds; a call that fails meanwhile counts as not yet."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(CallFailed):
            if await condition():
                return
        assert time.monotonic() < deadline_s, "not in time"
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], object]) -> None:
    """The same for a condition that needs no call."""

    async def met() -> bool:
        return bool(condition())

    await eventually(met)
