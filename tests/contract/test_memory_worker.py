"""The worker in memory keeps the contract of the real one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memserve.demo import ADAPTERS_DIR
from tests.contract.forgetting_contract import each_forgetting_clause
from tests.contract.memory_worker import MemoryWorker
from tests.contract.scoring_contract import each_scoring_clause
from tests.contract.scripted_worker import BLOCK_TOKENS, Script, ScriptedWorker
from tests.contract.worker_contract import Clause, ContractWorker, each_clause

LORA = "a" * 64
PROMPT = range(100, 100 + 3 * BLOCK_TOKENS + 5)


@pytest.fixture
def worker(tmp_path: Path) -> ContractWorker:
    shutil.copytree(ADAPTERS_DIR / "harbour", tmp_path / "modules" / LORA)
    calls = MemoryWorker(ScriptedWorker(tmp_path, Script(pause_s=0.005)), "w0")
    return ContractWorker(calls, PROMPT, BLOCK_TOKENS, LORA)


@each_clause
async def test_a_worker_in_memory_keeps_the_contract(worker: ContractWorker, clause: Clause) -> None:
    await clause(worker)


@each_forgetting_clause
async def test_a_worker_in_memory_keeps_the_contract_of_erased_memories(
    worker: ContractWorker, clause: Clause
) -> None:
    await clause(worker)


@each_scoring_clause
async def test_a_worker_in_memory_keeps_the_contract_of_given_tokens(
    worker: ContractWorker, clause: Clause
) -> None:
    await clause(worker)
