"""Soft prompts in a running engine, in clauses for the engine of `test_cartridge_engine.py`.

Those of the first clauses are the embeddings of tokens, so that the tokens' own answers are right.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from safetensors.numpy import load_file

from loadtests.harness.cartridges import Reference
from memserve.demo import ADAPTERS_DIR, MODEL_DIR, facts
from memserve.domain import CachedTokens, KvOrigin, ModuleKind, Sampling
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN, AppliedModule, ScoringRequest, WorkerRequest
from memserve.errors import InvalidModule
from memserve.kv.keys import chunk_keys, prompt_keys, redis_key
from memserve.memory.modules.blobs.store import BlobStore
from memserve.memory.modules.kinds.soft_prompt import read_rows, soft_prompt_files
from memserve.model.files import open_model
from tests.gateway.lora_files import write_files
from tests.worker.modules.demo_modules import put_adapter, put_expert

CARTRIDGE, LORA, SOFT_PROMPT = ModuleKind.CARTRIDGE, ModuleKind.LORA, ModuleKind.SOFT_PROMPT
TOKENS = 12
BLOCK_TOKENS, CHUNK_TOKENS = 32, 64
# The first one ends inside a block, the second one inside a chunk.
LENGTHS = (107, 96)
QUESTIONS = [
    "When does the north gate open?",
    "What is kept in the cellar of the mill, and since when is it there?",
    "Where does the ferry leave in winter?",
]


class Served(Protocol):
    """The engine with what it is compared with: `Worker` of the tests of cartridges."""

    engine: Any
    blobs: BlobStore
    reference: Reference
    redis: Any
    namespace: str
    digests: list[str]
    kvs: Any

    def prompt(self, turns: Sequence[dict[str, str]], *, answer: bool = False) -> list[int]: ...
    def turn(self, question: str) -> list[int]: ...
    def right(self, digest: str, turn: Sequence[int], tokens: int = TOKENS) -> list[int]: ...
    async def flood(self, seed: int) -> None: ...
    async def forget(self) -> None: ...


Clause = Callable[[Served, Path], Awaitable[None]]
CLAUSES: list[Clause] = []


def clause(test: Clause) -> Clause:
    CLAUSES.append(test)
    return test


def embeddings() -> Any:
    """[vocabulary, width]"""
    return load_file(MODEL_DIR / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)


def own_tokens(worker: Served, number: int) -> list[int]:
    """What a soft prompt has the embeddings of."""
    text = facts.handbook(40 + number, 400).text
    return worker.prompt([{"role": "system", "content": text}])[: LENGTHS[number % 2]]


def put(worker: Served, folder: Path, rows: Any, *documents: str) -> str:
    """Into the module store. Returns the digest."""
    files = soft_prompt_files(rows, open_model(MODEL_DIR).model_digest(), documents)
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()
    worker.blobs.put(digest, write_files(folder / digest, files))
    return digest


def put_own(worker: Served, folder: Path, number: int) -> tuple[str, list[int]]:
    """A soft prompt of tokens' own embeddings, and the tokens."""
    tokens = own_tokens(worker, number)
    return put(worker, folder, embeddings()[tokens]), tokens


def request_on(
    digest: str,
    prefix_tokens: int,
    turn: Sequence[int],
    *,
    lora: str = "",
    tokens: int = TOKENS,
    tenant: str = "a",
) -> WorkerRequest:
    modules = [AppliedModule(digest, SOFT_PROMPT)] if digest else []
    modules += [AppliedModule(lora, LORA)] if lora else []
    return WorkerRequest(
        uuid.uuid4().hex,
        [*[PLACEHOLDER_TOKEN] * prefix_tokens, *turn],
        tenant,
        tenant,
        Sampling(max_tokens=tokens, min_tokens=tokens),
        tuple(modules),
    )


async def answer(worker: Served, request: WorkerRequest) -> tuple[list[int], CachedTokens]:
    parts = [part async for part in worker.engine.generate(request)]
    return [token for part in parts for token in part.token_ids], parts[-1].cached


@clause
async def tokens_are_those_of_the_tokens_path(worker: Served, folder: Path) -> None:
    """Cold, cached, after eviction, and preempted."""
    soft = [put_own(worker, folder, number) for number in range(2)]
    asked = [(digest, own, worker.turn(question)) for question in QUESTIONS for digest, own in soft]
    for digest, own, turn in asked:
        right = worker.reference.answer(None, [*own, *turn], TOKENS)
        for _ in range(2):
            tokens, cached = await answer(worker, request_on(digest, len(own), turn))
            assert tokens == right
            assert cached.cartridge == 0
        assert (await answer(worker, request_on("", 0, [*own, *turn])))[0] == right
    await worker.flood(50)
    # More than the engine's blocks hold.
    answers = await asyncio.gather(
        *(answer(worker, request_on(digest, len(own), turn, tokens=160)) for digest, own, turn in asked)
    )
    for (_, own, turn), (tokens, _) in zip(asked, answers, strict=True):
        assert tokens == (await answer(worker, request_on("", 0, [*own, *turn], tokens=160)))[0]


@clause
async def a_batch_mixes_tokens_embeddings_cartridges_and_adapters(worker: Served, folder: Path) -> None:
    lora = put_adapter(worker.blobs, "harbour")
    under_lora = Reference(adapter=ADAPTERS_DIR / "harbour")
    digest, own = put_own(worker, folder, 0)
    cartridge = worker.digests[0]
    for _ in range(2):
        await worker.forget()
        requests, right = [], []
        for turn in map(worker.turn, QUESTIONS):
            requests += [
                request_on(digest, len(own), turn),
                request_on(digest, len(own), turn, lora=lora),
                request_on("", 0, [1, *turn]),
                request_on("", 0, [1, *turn], lora=lora),
            ]
            right += [
                worker.reference.answer(None, [*own, *turn], TOKENS),
                under_lora.answer(None, [*own, *turn], TOKENS),
                worker.reference.answer(None, [1, *turn], TOKENS),
                under_lora.answer(None, [1, *turn], TOKENS),
            ]
            placeholders = [PLACEHOLDER_TOKEN] * len(worker.kvs[cartridge])
            modules = (AppliedModule(cartridge, CARTRIDGE),)
            sampling = Sampling(max_tokens=TOKENS, min_tokens=TOKENS)
            requests.append(
                WorkerRequest(uuid.uuid4().hex, [*placeholders, *turn], "a", "a", sampling, modules)
            )
            right.append(worker.right(cartridge, turn))
        answers = await asyncio.gather(*(answer(worker, request) for request in requests))
        assert [tokens for tokens, _ in answers] == right


@clause
async def nobody_else_finds_its_kv(worker: Served, folder: Path) -> None:
    """Not another soft prompt, were it the same embeddings, not another tenant, not the tokens."""
    digest, own = put_own(worker, folder, 2)
    turn = worker.turn(facts.handbook(80, 200).text)[-150:]
    positions = len(own) + len(turn)
    await worker.forget()
    first, cached = await answer(worker, request_on(digest, len(own), turn))
    assert cached.device == 0
    again, cached = await answer(worker, request_on(digest, len(own), turn))
    assert again == first
    assert cached.device == (positions - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    moved = embeddings()[own]
    moved[-1] *= 2.0
    same = put(worker, folder, embeddings()[own], "ab" * 32)
    for other in (
        request_on(put(worker, folder, moved), len(own), turn),
        request_on(same, len(own), turn),
        request_on(digest, len(own), turn, tenant="b"),
        request_on("", len(own), turn),
        request_on("", 0, [*own, *turn]),
    ):
        _, cached = await answer(worker, other)
        assert cached.total == 0


@clause
async def its_kv_is_in_redis_under_the_gateways_keys(worker: Served, folder: Path) -> None:
    """With a LoRA too. The gateway reads the embeddings by itself."""
    lora = put_adapter(worker.blobs, "harbour")
    for number, adapter in ((0, ""), (1, lora)):
        digest, own = put_own(worker, folder, number)
        turn = worker.turn(facts.handbook(90 + number, 300).text)[-200:]
        request = request_on(digest, len(own), turn, lora=adapter)
        first, _ = await answer(worker, request)
        model = open_model(MODEL_DIR)
        rows = read_rows(worker.blobs.local(digest), model.hidden_size, model.dtype, 512)
        origin = KvOrigin(adapter, digest, len(own), is_embedded=True)
        keys = prompt_keys(request.token_ids, BLOCK_TOKENS, origin, request.cache_salt, rows)
        names = [redis_key(worker.namespace, key) for key in chunk_keys(keys, CHUNK_TOKENS // BLOCK_TOKENS)]
        assert len(names) == len(request.token_ids) // CHUNK_TOKENS
        for _ in range(50):
            await asyncio.sleep(0.1)
            if worker.redis.exists(*names) == len(names):
                break
        assert worker.redis.exists(*names) == len(names)
        await worker.forget()
        again, cached = await answer(worker, request_on(digest, len(own), turn, lora=adapter))
        assert again == first
        assert cached == CachedTokens(redis=len(names) * CHUNK_TOKENS)


@clause
async def trained_embeddings_change_the_answer_and_may_be_scored_behind(worker: Served, folder: Path) -> None:
    rows = np.random.default_rng(0).normal(scale=0.5, size=(20, embeddings().shape[1])).astype(np.float32)
    digest = put(worker, folder, rows)
    modules = worker.engine.modules
    async with modules.using(digest, SOFT_PROMPT):
        kind = worker.engine.kinds[SOFT_PROMPT]
        assert await kind.effect(digest, folder, [worker.turn("Who?")[:20]]) > 0
    turn = worker.turn(QUESTIONS[0])
    tokens, _ = await answer(worker, request_on(digest, 20, turn))
    scored = ScoringRequest(
        uuid.uuid4().hex, [PLACEHOLDER_TOKEN] * 20 + turn, tokens, "a", "a",
        (AppliedModule(digest, SOFT_PROMPT),),
    )  # fmt: skip
    plain = ScoringRequest(uuid.uuid4().hex, [1, *turn], tokens, "a", "a")
    behind = await worker.engine.score(scored)
    assert sum(behind.logprobs) > sum((await worker.engine.score(plain)).logprobs)


@clause
async def an_expert_joins_in_and_reads_what_follows(worker: Served, folder: Path) -> None:
    digest, own = put_own(worker, folder, 0)
    vocabulary = len(embeddings())
    plain = request_on(digest, len(own), worker.turn(QUESTIONS[0]))
    alone, _ = await answer(worker, plain)
    for constant in (True, False):
        expert = put_expert(worker.blobs, vocabulary, 1, constant=constant)
        both = (*plain.modules, AppliedModule(expert, ModuleKind.LOGIT_EXPERT, 4.0))
        tokens, _ = await answer(worker, replace(plain, request_id=uuid.uuid4().hex, modules=both))
        assert (tokens == alone) == constant


@clause
async def what_does_not_fit_is_refused(worker: Served, folder: Path) -> None:
    digest, own = put_own(worker, folder, 0)
    for token_ids in ([1, *worker.turn(QUESTIONS[0])], [PLACEHOLDER_TOKEN] * len(own)):
        request = request_on(digest, 0, token_ids)
        with pytest.raises(ValueError, match="token_ids: with soft prompt"):
            await anext(worker.engine.generate(request))
    vocabulary = len(embeddings())
    for request in (request_on(digest, len(own), [5, vocabulary]), request_on("", 0, [5, vocabulary])):
        with pytest.raises(ValueError, match=f"token_ids: from 0 to {vocabulary - 1}"):
            await anext(worker.engine.generate(request))
    both = (AppliedModule(digest, SOFT_PROMPT), AppliedModule(worker.digests[0], CARTRIDGE))
    request = WorkerRequest(
        uuid.uuid4().hex, [PLACEHOLDER_TOKEN] * 200, "a", "a", Sampling(max_tokens=1), both
    )
    with pytest.raises(ValueError, match="one cartridge or one soft prompt"):
        await anext(worker.engine.generate(request))
    narrow = put(worker, folder, np.ones((8, 16), np.float32))
    with pytest.raises(InvalidModule, match="hidden width"):
        await worker.engine.modules.load(narrow, SOFT_PROMPT)
    endless = put(worker, folder, np.full((8, embeddings().shape[1]), np.nan, np.float32))
    with pytest.raises(InvalidModule, match="NaN"):
        await worker.engine.modules.load(endless, SOFT_PROMPT)


@clause
async def more_than_there_is_room_for_take_turns(worker: Served, folder: Path) -> None:
    turn = worker.turn(QUESTIONS[1])
    own = own_tokens(worker, 0)
    digests = [put(worker, folder, embeddings()[own[:cut]]) for cut in (40, 60, 80)]
    for digest, cut in zip([*digests, *digests], (40, 60, 80) * 2, strict=True):
        tokens, _ = await answer(worker, request_on(digest, cut, turn))
        assert tokens == worker.reference.answer(None, [*own[:cut], *turn], TOKENS)
        assert len(await worker.engine.kinds[SOFT_PROMPT].places()) <= 2
