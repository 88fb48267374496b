"""A real worker keeps the contract that the gateway's tests hold their fake one to."""

from __future__ import annotations

import json

import pytest
import redis

from memserve.credentials import salt_key, worker_credential
from memserve.demo import ADAPTERS_DIR
from memserve.embedded import Stack
from memserve.memory.modules.blobs.store import BlobStore
from memserve.registry.leases import WORKERS, lease_key
from tests.contract.worker_contract import check_worker_contract

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.mark.usefixtures("client")
async def test_a_real_worker_keeps_the_worker_contract(stack: Stack) -> None:
    with redis.Redis.from_url(stack.settings.redis, decode_responses=True) as registry:
        lease = json.loads(registry.get(lease_key(min(registry.smembers(WORKERS)))))
    prompt = list(range(300, 300 + 3 * lease["block_tokens"] + 5))
    lora = "a" * 64
    BlobStore("", stack.settings.modules_root / "modules").put(lora, ADAPTERS_DIR / "harbour")
    await check_worker_contract(
        lease["address"], worker_credential(salt_key(stack.settings)), prompt, lease["block_tokens"], lora
    )
