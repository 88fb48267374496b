"""A real worker keeps the contract that the fake ones of other tests are held to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest
import pytest_asyncio

from memserve.credentials import salt_key, worker_credential
from memserve.demo import ADAPTERS_DIR, MODEL_DIR
from memserve.demo.adapters import held_facts
from memserve.domain import WorkerLease
from memserve.embedded import Stack
from memserve.gateway.workers.calls import GrpcCalls
from memserve.memory.modules.blobs.store import BlobStore
from memserve.private_files import private_umask
from memserve.registry.leases import Registry
from tests.contract.forgetting_contract import each_forgetting_clause
from tests.contract.scoring_contract import each_scoring_clause, score
from tests.contract.wire_contract import WireClause, WireWorker, each_wire_clause
from tests.contract.worker_contract import LONG, TIMEOUT_S, Clause, ContractWorker, each_clause

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

LORA = "a" * 64
KEYS_IN_A_MESSAGE = 16_384
"""As `memserve.worker.service` has it, whose import takes seconds."""


@pytest_asyncio.fixture
async def lease(stack: Stack, client: object) -> WorkerLease:
    """Of one of the two workers. client: both are ready."""
    private_umask()  # as the workers have it, whose directory this is
    BlobStore("", stack.settings.modules_root / "modules").put(LORA, ADAPTERS_DIR / "harbour")
    registry = Registry(stack.settings.redis)
    leases = await registry.live_workers()
    await registry.close()
    return min(leases, key=lambda lease: lease.worker_id)


@pytest.fixture
def credential(stack: Stack) -> str:
    return worker_credential(salt_key(stack.settings))


@pytest.fixture
def prompt(lease: WorkerLease) -> range:
    return range(300, 300 + 3 * lease.block_tokens + 5)


@pytest_asyncio.fixture
async def worker(lease: WorkerLease, credential: str, prompt: range) -> AsyncIterator[ContractWorker]:
    calls = GrpcCalls(lease, credential)
    yield ContractWorker(calls, prompt, lease.block_tokens, LORA)
    await calls.close()


@pytest.fixture
def wire_worker(lease: WorkerLease, credential: str, prompt: range) -> WireWorker:
    return WireWorker(lease, credential, prompt, LORA, KEYS_IN_A_MESSAGE)


@each_clause
async def test_a_real_worker_keeps_the_contract(worker: ContractWorker, clause: Clause) -> None:
    await clause(worker)


@each_forgetting_clause
async def test_a_real_worker_keeps_the_contract_of_erased_memories(
    worker: ContractWorker, clause: Clause
) -> None:
    await clause(worker)


@each_scoring_clause
async def test_a_real_worker_keeps_the_contract_of_given_tokens(
    worker: ContractWorker, clause: Clause
) -> None:
    await clause(worker)


async def test_a_worker_says_what_its_engine_costs_and_has_to_do(worker: ContractWorker) -> None:
    idle = await worker.state_with(lambda state: state.engine is not None and state.engine.requests == 0)
    assert idle.engine is not None
    costs = idle.engine.costs
    assert 1e-7 < costs.token_s < 0.1
    assert 1e-7 < costs.answer_s < 1.0
    assert 0 < costs.step_s < costs.step_limit_s
    answer = worker.calls.generate(worker.request(LONG), TIMEOUT_S)
    async with aclosing(answer):
        await anext(answer)
        busy = await worker.state_with(lambda state: state.engine is not None and state.engine.answers == 1)
        assert busy.engine is not None
        assert busy.engine.kv_tokens >= len(worker.prompt)
        assert busy.engine.free_kv_tokens < idle.engine.free_kv_tokens
    await worker.state_with(lambda state: state.engine is not None and state.engine.requests == 0)


@each_wire_clause
async def test_a_real_worker_keeps_the_wires_contract(wire_worker: WireWorker, clause: WireClause) -> None:
    await clause(wire_worker)


@pytest.mark.parametrize("lora", ["", LORA])
async def test_given_tokens_score_as_in_transformers_alone_and_beside_others(
    worker: ContractWorker, lora: str
) -> None:
    cases = given_cases()
    expected = scores_by_transformers(cases, with_lora=bool(lora))
    alone = [await score(worker, given, prompt=prompt, lora=lora) for prompt, given in cases]
    answers = [asyncio.create_task(worker.answer(LONG)) for _ in range(2)]
    beside = await asyncio.gather(
        *(score(worker, given, prompt=prompt, lora=lora) for prompt, given in cases)
    )
    await asyncio.gather(*answers)
    for found, other, right in zip(alone, beside, expected, strict=True):
        assert found.logprobs == pytest.approx(right, abs=0.01)
        assert other.logprobs == pytest.approx(right, abs=0.01)


def given_cases() -> list[tuple[list[int], list[int]]]:
    """Prompts and what is scored behind them: an answer of the adapter, and tokens without sense, an end of
    text among them.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    fact = held_facts("harbour")[0]
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": fact.questions[0]}], tokenize=False, add_generation_prompt=True
    )
    question, answer = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, fact.answer)
    )
    return [(question, answer), (list(range(300, 400)), [*range(5, 60), tokenizer.eos_token_id, 7, 8])]


def scores_by_transformers(
    cases: Sequence[tuple[list[int], list[int]]], *, with_lora: bool
) -> list[list[float]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    if with_lora:
        model = PeftModel.from_pretrained(model, ADAPTERS_DIR / "harbour")
    scores = []
    for prompt, given in cases:
        with torch.inference_mode():
            logprobs = model(torch.tensor([prompt + given])).logits[0].float().log_softmax(-1)
        scores.append([logprobs[len(prompt) - 1 + at, token].item() for at, token in enumerate(given)])
    return scores
