"""The fake worker keeps the contract of the real one."""

from __future__ import annotations

import shutil
from pathlib import Path

from memserve.demo import ADAPTERS_DIR
from memserve.model.files import open_model
from tests.contract.fake_worker import BLOCK_TOKENS, CREDENTIAL, FakeWorker, Script
from tests.contract.worker_contract import check_worker_contract
from tests.kv.redis_server import RedisServer

LORA = "a" * 64
PROMPT = list(range(100, 100 + 3 * BLOCK_TOKENS + 5))


async def test_the_fake_worker_keeps_the_worker_contract(model_dir: Path, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        shutil.copytree(ADAPTERS_DIR / "harbour", tmp_path / "modules" / LORA)
        async with FakeWorker(
            redis.url, open_model(model_dir), tmp_path, script=Script(pause_s=0.005)
        ) as worker:
            await check_worker_contract(worker.address, CREDENTIAL, PROMPT, BLOCK_TOKENS, LORA)
    finally:
        redis.stop()
