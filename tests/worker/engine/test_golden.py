"""The golden prefix under a real engine: sound, and with a copy that goes wrong."""

from __future__ import annotations

import asyncio
import os
import uuid
import warnings
from pathlib import Path

import pytest

from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.model.files import open_model
from tests.kv.redis_server import RedisServer
from tests.worker.kv.tier_collectors import unregister_tier_metrics

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def golden_of(redis_server: RedisServer, directory: Path, *, broken: bool = False, context: int = 0) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray, vLLM and torch, which they import
        from memserve.worker.replica import engine_environment

        settings = Settings(
            data_dir=directory, redis_url=redis_server.url, kv_device_bytes=64 << 20, kv_host_bytes=32 << 20
        )
        os.environ.pop("PYTHONHASHSEED", None)
        os.environ.update(engine_environment(settings))
        from memserve.kv.ledger.records import NO_QUOTAS
        from memserve.memory.prefixes.memory import ActivationMemory
        from memserve.worker.engine.golden import check_golden_prefix
        from memserve.worker.engine.start import start_engine
        from memserve.worker.kv.configure import activation_memory

    async def check() -> str:
        model = open_model(MODEL_DIR, context)
        namespace, transfer = activation_memory(settings, model, uuid.uuid4().hex)
        if broken:
            transfer.kv_connector_extra_config.update(
                spec_name="FlippingSpec", spec_module_path="tests.worker.kv.flipping_spec"
            )
        engine = start_engine(settings, model, transfer, f"ipc://{directory}/events")
        try:
            memory = ActivationMemory(settings.cache_redis, ttl_s=100, quotas=NO_QUOTAS)
            golden = await check_golden_prefix(engine, memory, namespace, model, exact=True)
            await memory.close()
            return golden.value
        finally:
            engine.shutdown()
            unregister_tier_metrics()

    return asyncio.run(check())


def test_kv_that_comes_back_as_it_was_is_the_same(redis_server: RedisServer, tmp_path: Path) -> None:
    assert golden_of(redis_server, tmp_path) == "same"
    assert redis_server.client.hgetall("{memserve:kv}:bytes") == {}
    assert redis_server.client.keys("memserve:kv:*") == []


def test_kv_that_comes_back_with_a_wrong_byte_is_different(redis_server: RedisServer, tmp_path: Path) -> None:
    assert golden_of(redis_server, tmp_path, broken=True) == "different"


def test_a_prefix_shrinks_with_the_context(redis_server: RedisServer, tmp_path: Path) -> None:
    """Two chunks of 64 tokens do not fit; one does."""
    assert golden_of(redis_server, tmp_path, context=100) == "same"
