"""An engine and its store, for each store that is compared."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from loadtests.harness import install_lmcache
from loadtests.harness.engines import (
    BLOCK_TOKENS,
    HOST_BYTES,
    KV_BYTES_PER_TOKEN,
    NAMESPACE,
    BenchEngine,
)
from loadtests.harness.redis_server import PrivateRedis

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig
from loadtests.kv.kv_peers.lmcache import LMCACHE_CHUNK_TOKENS, LMCacheServer

MEMSERVE, FILES, LMCACHE, LMCACHE_HERE = "memserve", "vLLM file system", "LMCache", "LMCache, our executor"
ANSWER_TOKENS = 16
# Between an answer and the next question: for the work that an engine or a server still does after an answer.
SETTLE_S = 0.1
# vLLM's own executor looks for work without a pause for a second after the last.
VLLMS_EXECUTOR_SETTLE_S = 1.2


class ArmEngine(BenchEngine):
    """The engine of one arm. Engines of arms differ in `transfer` only."""

    def answer(self, prompt: list[int]) -> list[tuple[int, float]]:
        """Greedy tokens, each with its log-probability."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0, max_tokens=ANSWER_TOKENS, ignore_eos=True, detokenize=False, logprobs=0
        )
        completion = self.output(prompt, params).outputs[0]
        return [
            (token, places[token].logprob)
            for token, places in zip(completion.token_ids, completion.logprobs or (), strict=True)
        ]

    def forget_all(self) -> None:
        """As `forget`. Raises RuntimeError when not all were dropped."""
        if not self.forget():
            raise RuntimeError("the engine has not dropped its prefixes")


@dataclass(frozen=True)
class Arm:
    """An engine and its store."""

    name: str
    engine: ArmEngine
    chunk_tokens: int
    stored: Callable[[], int]
    """How many chunks the store holds."""
    forget: Callable[[], None]
    """Drop prefixes from everywhere but the store."""
    redis: redis.Redis | None
    """None for a store that is not Redis."""
    settle_s: float = SETTLE_S
    """From an answer until the engine is at rest."""

    def read(self) -> tuple[int, int]:
        """How often its Redis was asked for a value so far, and the bytes that it has sent."""
        if self.redis is None:
            return 0, 0
        counted: Any = self.redis.info("everything")
        values = sum(
            counted.get(f"cmdstat_{name}", {"calls": 0})["calls"]
            for name in ("get", "getex", "mget", "getrange")
        )
        return values, int(counted["total_net_output_bytes"])


def _redis(stack: contextlib.ExitStack, folder: Path) -> tuple[PrivateRedis, redis.Redis]:
    folder.mkdir()
    server = stack.enter_context(PrivateRedis(folder))
    return server, stack.enter_context(redis.Redis.from_url(server.url))


def _engine(
    stack: contextlib.ExitStack, model: Path, transfer: KVTransferConfig, *, vllms_executor: bool = False
) -> ArmEngine:
    engine = ArmEngine(model, transfer=transfer, vllms_executor=vllms_executor)
    stack.callback(engine.close)
    return engine


def memserve_arm(stack: contextlib.ExitStack, model: Path, folder: Path) -> Arm:
    from memserve.kv.keys import VALUE_PREFIX
    from memserve.worker.kv.offload import chunk_blocks, kv_transfer_config
    from memserve.worker.kv.tier_settings import RedisTierSettings

    server, client = _redis(stack, folder / "memserve")
    blocks = chunk_blocks(kv_bytes_per_token=KV_BYTES_PER_TOKEN, block_size_tokens=BLOCK_TOKENS)
    tier = RedisTierSettings(redis_url=server.url, namespace=NAMESPACE)
    transfer = kv_transfer_config(platform="cpu", tier=tier, host_bytes=HOST_BYTES, blocks_per_chunk=blocks)
    engine = _engine(stack, model, transfer)

    def stored() -> int:
        return sum(1 for _ in client.scan_iter(match=f"{VALUE_PREFIX}*", count=1000))

    return Arm(MEMSERVE, engine, blocks * BLOCK_TOKENS, stored, engine.forget_all, client)


def files_arm(stack: contextlib.ExitStack, model: Path, folder: Path) -> Arm:
    from vllm.config import KVTransferConfig

    from memserve.worker.kv.offload import CpuTieringOffloadingSpec, chunk_blocks

    root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
    blocks = chunk_blocks(kv_bytes_per_token=KV_BYTES_PER_TOKEN, block_size_tokens=BLOCK_TOKENS)
    transfer = KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "spec_name": CpuTieringOffloadingSpec.__name__,
            "spec_module_path": CpuTieringOffloadingSpec.__module__,
            "cpu_bytes_to_use": HOST_BYTES,
            "blocks_per_chunk": blocks,
            "secondary_tiers": [{"type": "fs", "root_dir": str(root)}],
        },
    )
    engine = _engine(stack, model, transfer)
    return Arm(
        FILES,
        engine,
        blocks * BLOCK_TOKENS,
        lambda: sum(1 for _ in root.rglob("*.bin")),
        engine.forget_all,
        None,
    )


def lmcache_arm(stack: contextlib.ExitStack, model: Path, folder: Path, *, vllms_executor: bool) -> Arm:
    from vllm.config import KVTransferConfig

    folder = folder / f"lmcache-{vllms_executor}"
    store, client = _redis(stack, folder)
    os.environ.update(LMCACHE_TRACK_USAGE="false", LMCACHE_LOG_LEVEL="ERROR", LMCACHE_DISABLE_BANNER="1")
    server = stack.enter_context(LMCacheServer(store, folder))
    # At the end, so that nothing of the environment is hidden; the engine's process inherits it.
    if str(install_lmcache.FOLDER) not in sys.path:
        sys.path.append(str(install_lmcache.FOLDER))
    transfer = KVTransferConfig(
        kv_connector="LMCacheMPConnector",
        kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": server.port,
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",
        },
    )
    engine = _engine(stack, model, transfer, vllms_executor=vllms_executor)

    def forget() -> None:
        engine.forget_all()
        server.forget()

    name, settle_s = (LMCACHE, VLLMS_EXECUTOR_SETTLE_S) if vllms_executor else (LMCACHE_HERE, SETTLE_S)
    return Arm(name, engine, LMCACHE_CHUNK_TOKENS, lambda: int(client.dbsize()), forget, client, settle_s)
