"""The fake worker on its port keeps the contract of the real one."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.demo import ADAPTERS_DIR
from memserve.gateway.workers.calls import GrpcCalls
from memserve.model.files import open_model
from tests.contract.fake_worker import CREDENTIAL, FakeWorker
from tests.contract.forgetting_contract import each_forgetting_clause
from tests.contract.scoring_contract import each_scoring_clause
from tests.contract.scripted_worker import BLOCK_TOKENS, Script
from tests.contract.wire_contract import WireClause, WireWorker, each_wire_clause
from tests.contract.worker_contract import Clause, ContractWorker, each_clause
from tests.kv.redis_server import RedisServer

LORA = "a" * 64
PROMPT = range(100, 100 + 3 * BLOCK_TOKENS + 5)
KEYS_IN_A_MESSAGE = 2
"""Less than the prompt has, so that its blocks come in several messages."""


@pytest_asyncio.fixture
async def fake(redis_server: RedisServer, model_dir: Path, tmp_path: Path) -> AsyncIterator[FakeWorker]:
    shutil.copytree(ADAPTERS_DIR / "harbour", tmp_path / "modules" / LORA)
    async with FakeWorker(
        redis_server.url,
        open_model(model_dir),
        tmp_path,
        script=Script(pause_s=0.005),
        keys_in_a_message=KEYS_IN_A_MESSAGE,
    ) as running:
        yield running


@pytest_asyncio.fixture
async def worker(fake: FakeWorker) -> AsyncIterator[ContractWorker]:
    calls = GrpcCalls(fake.lease, CREDENTIAL)
    yield ContractWorker(calls, PROMPT, BLOCK_TOKENS, LORA)
    await calls.close()


@pytest.fixture
def wire_worker(fake: FakeWorker) -> WireWorker:
    return WireWorker(fake.lease, CREDENTIAL, PROMPT, LORA, KEYS_IN_A_MESSAGE)


@each_clause
async def test_a_fake_worker_keeps_the_contract(worker: ContractWorker, clause: Clause) -> None:
    await clause(worker)


@each_forgetting_clause
async def test_a_fake_worker_keeps_the_contract_of_erased_memories(
    worker: ContractWorker, clause: Clause
) -> None:
    await clause(worker)


@each_scoring_clause
async def test_a_fake_worker_keeps_the_contract_of_given_tokens(
    worker: ContractWorker, clause: Clause
) -> None:
    await clause(worker)


@each_wire_clause
async def test_a_fake_worker_keeps_the_wires_contract(wire_worker: WireWorker, clause: WireClause) -> None:
    await clause(wire_worker)
