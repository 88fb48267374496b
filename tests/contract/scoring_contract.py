"""What every worker does with given tokens, in clauses. `worker_contract.py` has the rest."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence

import pytest

from memserve.domain import ModuleKind
from memserve.domain.worker_calls import (
    AppliedModule,
    ScoringRequest,
    TokenScores,
    WorkerFull,
    WorkerLate,
    WrongRequest,
)
from tests.contract.worker_contract import NOWHERE, TIMEOUT_S, Clause, ContractWorker, refused


async def given_tokens_get_a_logprob_each_and_the_prompt_is_cached(worker: ContractWorker) -> None:
    salt = uuid.uuid4().hex
    first = await score(worker, [5, 6, 7, 8], salt=salt)
    assert len(first.logprobs) == 4
    assert all(math.isfinite(logprob) and logprob <= 0 for logprob in first.logprobs)
    assert first.cached.total == 0
    full_blocks = (len(worker.prompt) - 1) // worker.block_tokens
    again = await score(worker, [5, 6, 7, 8], salt=salt)
    assert again.cached.total == full_blocks * worker.block_tokens
    assert again.logprobs == pytest.approx(first.logprobs, abs=0.05)


async def given_tokens_that_cannot_be_scored_are_refused(worker: ContractWorker) -> None:
    for continuation in ([], [1] * 513, [5, -1]):
        await refused(score(worker, continuation), WrongRequest)
    await refused(score(worker, [5], lora=NOWHERE))
    with pytest.raises((WorkerLate, WorkerFull)):  # a slow worker foresees it
        await score(worker, [5] * 512, timeout_s=0.02)
    await worker.state_with(lambda state: state.running + state.waiting == 0)


SCORING_CLAUSES: Sequence[Clause] = (
    given_tokens_get_a_logprob_each_and_the_prompt_is_cached,
    given_tokens_that_cannot_be_scored_are_refused,
)
each_scoring_clause = pytest.mark.parametrize(
    "clause", SCORING_CLAUSES, ids=[clause.__name__ for clause in SCORING_CLAUSES]
)


async def score(
    worker: ContractWorker,
    continuation: Sequence[int],
    *,
    prompt: Sequence[int] = (),
    salt: str = "contract",
    lora: str = "",
    timeout_s: float = TIMEOUT_S,
) -> TokenScores:
    """prompt: [prompt_tokens]; empty for the worker's own."""
    modules = (AppliedModule(lora, ModuleKind.LORA),) if lora else ()
    request = ScoringRequest(uuid.uuid4().hex, prompt or worker.prompt, continuation, "", salt, modules)
    return await worker.calls.score_tokens(request, timeout_s)
