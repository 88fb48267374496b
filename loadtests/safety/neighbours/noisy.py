"""The tenant that floods, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from loadtests.harness.stack import variant
from loadtests.safety.neighbours.tenants import NOISY_KEY, SEED, WORDS
from memserve.client import AsyncClient, CallFailed
from memserve.domain import Sampling
from memserve.pb.v1 import inference_pb2, inference_pb2_grpc

NOISY_MEMORIES, NOISY_NAMESPACES = 400, 40
# A gate asks all its probes, also on a busy machine.
PREPARE_TIMEOUT_S = 180.0


class Noisy:
    """The tenant that floods. A refusal is counted, and noisy waits for nothing."""

    def __init__(self, address: str, folder: Path) -> None:
        self.client = AsyncClient(address, NOISY_KEY, timeout_s=30.0)
        self.address = address
        self.folder = folder
        self.rng = random.Random(SEED)
        self.outcomes: Counter[str] = Counter()
        self.number = 0
        # How many tasks run each flood, again and again.
        self.floods: dict[str, tuple[int, Callable[[], Awaitable[object]]]] = {
            "prompts of 3.9 MB": (6, self.huge_prompt),
            "generate: long answers": (64, self.long_answer),
            "generate: longest prompts": (32, self.longest_prompt),
            "generate: tiny": (64, self.tiny_answer),
            "128 streams unread": (128, self.unread_stream),
            "list namespaces": (40, self.client.namespaces),
            "search": (40, self.search),
            "remember": (40, self.remember),
            "forget": (40, self.forget),
            "upload": (8, self.upload),
            "publish": (8, self.publish),
            "gate": (8, self.gate),
            "preload and unload": (8, self.preload),
            "split and roll back": (8, self.split),
            "look prefixes up": (16, self.look_up),
            "warm prefixes": (16, self.warm),
            "evict prefixes": (16, self.evict),
            "watch": (32, self.watch),
            "read the audit": (16, self.audit),
            "status": (32, self.client.status),
            "health": (32, self.health),
            "reflection": (32, self.reflection),
        }

    def words(self, count: int) -> str:
        self.number += 1
        return f"{self.number} {' '.join(self.rng.choices(WORDS, k=count))}"

    async def prepare(self) -> None:
        """What its floods need: memories in many namespaces, two versions of a module."""

        async def some(first: int) -> None:
            for number in range(first, NOISY_MEMORIES, 8):
                await self.client.remember(f"n{number % NOISY_NAMESPACES}", self.words(30))

        await asyncio.gather(*(some(first) for first in range(8)))
        async with AsyncClient(self.address, NOISY_KEY, timeout_s=PREPARE_TIMEOUT_S) as patient:
            for number in (1, 2):
                folder = variant(
                    "harbour", self.folder / f"harbour{number}", scale=1 + number / 1000, probes=True
                )
                await patient.modules.publish("harbour", folder)
            await patient.modules.promote("harbour", 1, force=True)

    async def run(self, flood: str, seconds: float) -> None:
        tasks, call = self.floods[flood]
        until_s = time.monotonic() + seconds

        async def again() -> None:
            while time.monotonic() < until_s:
                try:
                    async with asyncio.timeout_at(
                        asyncio.get_running_loop().time() + until_s - time.monotonic() + 1
                    ):
                        await call()
                    self.outcomes["OK"] += 1
                except CallFailed as error:
                    self.outcomes[error.code.name] += 1
                except grpc.aio.AioRpcError as error:
                    self.outcomes[error.code().name] += 1
                except TimeoutError:
                    self.outcomes["under way at the end"] += 1

        await asyncio.gather(*(again() for _ in range(tasks)))

    async def huge_prompt(self) -> None:
        await self.client.generate("word " * 780_000)

    async def long_answer(self) -> None:
        await self.client.generate(self.words(20), sampling=Sampling(max_tokens=2000, min_tokens=2000))

    async def longest_prompt(self) -> None:
        await self.client.generate(self.words(2500), sampling=Sampling(max_tokens=1))

    async def tiny_answer(self) -> None:
        await self.client.generate("Hello.", sampling=Sampling(max_tokens=1))

    async def unread_stream(self) -> None:
        """Asks, and does not read the answer, for as long as the flood goes."""
        async with grpc.aio.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            request = inference_pb2.GenerateRequest(
                messages=[inference_pb2.Message(role=inference_pb2.ROLE_USER, content=self.words(10))],
                sampling=inference_pb2.Sampling(max_tokens=7000, min_tokens=7000, logprobs=True),
            )
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                request, metadata=(("authorization", f"Bearer {NOISY_KEY}"),)
            )
            await call.read()
            await asyncio.sleep(60)

    async def search(self) -> None:
        await self.client.search([f"n{number}" for number in range(16)], self.words(200), limit=64)

    async def remember(self) -> None:
        await self.client.remember(f"n{self.number % NOISY_NAMESPACES}", self.words(600))

    async def forget(self) -> None:
        with contextlib.suppress(CallFailed):
            await self.client.remember("forget", "soon gone", memory_id=f"m{self.number}")
        await self.client.forget("forget", f"m{self.number}")

    async def upload(self) -> None:
        """Sends a module's files, with a digest that is wrong: all of it is written and read, for nothing."""
        self.number += 1
        folder = self.folder / f"upload{self.number % 8}"
        if not folder.exists():
            variant("harbour", folder, scale=1 + self.number / 100_000)
        await self.client.modules.publish(
            "uploaded", folder, notes=str(self.number), expected_digest="0" * 64
        )

    async def publish(self) -> None:
        self.number += 1
        folder = variant("harbour", self.folder / f"v{self.number}", scale=1 + self.number / 100_000)
        await self.client.modules.publish("published", folder)

    async def gate(self) -> None:
        await self.client.modules.gate("harbour", 1 + self.number % 2)

    async def preload(self) -> None:
        self.number += 1
        reference = f"harbour@{1 + self.number % 2}"
        await self.client.modules.preload(reference)
        await self.client.modules.unload(reference)

    async def split(self) -> None:
        await self.client.modules.split("harbour", {1: 0.9, 2: 0.1}, alias="mixed")
        await self.client.modules.rollback("harbour", alias="mixed")

    async def look_up(self) -> None:
        await self.client.activation.lookup(self.words(2500))

    async def warm(self) -> None:
        async for _ in self.client.activation.warm(self.words(2500)):
            pass

    async def evict(self) -> None:
        await self.client.activation.evict(self.words(2500))

    async def watch(self) -> None:
        async for _ in self.client.modules.watch("0-0"):
            pass

    async def audit(self) -> None:
        async for _ in self.client.modules.audit():
            pass

    async def health(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for _ in range(100):
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)

    async def reflection(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="memserve.v1.ModuleService"
            )
            call = stub.ServerReflectionInfo(iter([request] * 100), timeout=10)
            async for _ in call:
                pass


async def noisy_main(address: str, folder: Path) -> None:
    """Reads commands, one a line, as JSON: {"flood", "seconds"}; answers each with its outcomes, one line of
    JSON.
    """
    os.nice(19)
    noisy = Noisy(address, folder)
    await noisy.prepare()
    print(json.dumps(sorted(noisy.floods, key=list(noisy.floods).index)), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        noisy.outcomes = Counter()
        await noisy.run(command["flood"], command["seconds"])
        print(json.dumps(noisy.outcomes), flush=True)
    await noisy.client.close()


@contextlib.contextmanager
def noisy_process(address: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtests.neighbours", "--noisy", address, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def answer_of(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = await asyncio.get_running_loop().run_in_executor(None, process.stdout.readline)
    if not line:
        raise RuntimeError("the noisy client has ended")
    return json.loads(line)
