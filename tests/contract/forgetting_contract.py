"""What every worker removes of erased memories. `worker_contract.py` has the rest of the contract."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import pytest

from memserve.domain.worker_calls import HeldBlocks, WrongRequest
from tests.contract.worker_contract import TIMEOUT_S, Clause, ContractWorker, block_event, refused, reset

DEFAULT_TENANT = "default"
"""Of a request that names none."""


async def the_kv_of_erased_memories_is_freed_and_their_tenant_must_be_named(worker: ContractWorker) -> None:
    salt = uuid.uuid4().hex
    keys = worker.block_keys(salt)
    async with worker.watching() as events:
        held = set((await reset(events)).keys)
        await worker.answer(salt=salt)
        while not held.issuperset(keys):
            held.update((await block_event(events)).keys)
    assert (await worker.calls.forget_memories(DEFAULT_TENANT, [], TIMEOUT_S)).blocks >= len(keys)
    while (await worker.calls.forget_memories(DEFAULT_TENANT, [], TIMEOUT_S)).held:
        await asyncio.sleep(0.05)
    async with asyncio.timeout(TIMEOUT_S):
        while await worker.calls.lookup_blocks(keys, TIMEOUT_S) != HeldBlocks(0, 0):
            await asyncio.sleep(0.05)
    await refused(worker.calls.forget_memories("", [], TIMEOUT_S), WrongRequest)


FORGETTING_CLAUSES: Sequence[Clause] = (the_kv_of_erased_memories_is_freed_and_their_tenant_must_be_named,)
each_forgetting_clause = pytest.mark.parametrize(
    "clause", FORGETTING_CLAUSES, ids=[clause.__name__ for clause in FORGETTING_CLAUSES]
)
