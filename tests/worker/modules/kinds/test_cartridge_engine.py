"""Cartridges and soft prompts in a running engine, whose tokens are transformers'."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from redis import Redis

from loadtests.harness.cartridges import Kv, Reference, write_cartridge
from memserve.config import Settings
from memserve.demo import ADAPTERS_DIR, MODEL_DIR, facts
from memserve.domain import CachedTokens, ModuleKind, Sampling
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN, AppliedModule, ScoringRequest, WorkerRequest
from memserve.errors import InvalidModule
from memserve.memory.modules.blobs.store import BlobStore
from memserve.model.files import open_model
from tests.kv.redis_server import RedisServer
from tests.worker.modules.demo_modules import put_adapter
from tests.worker.modules.kinds.soft_prompt_clauses import CLAUSES, Clause

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

CARTRIDGE, LORA = ModuleKind.CARTRIDGE, ModuleKind.LORA
CONTEXT, KV_TOKENS = 1024, 1536
TOKENS = 12
# The second one ends inside a chunk, which has 64 tokens.
LENGTHS = (128, 96, 64)
ROOM = 2


class Worker:
    """An engine that shares its KV through Redis, and cartridges in its module store."""

    def __init__(self, engine: Any, blobs: BlobStore, folder: Path, redis: Redis, namespace: str) -> None:
        self.engine = engine
        self.redis = redis
        self.namespace = namespace
        self.blobs = blobs
        self.reference = Reference()
        self.tokenizer: Any = engine.llm.get_tokenizer()
        self.kvs: dict[str, Kv] = {}
        for number, tokens in enumerate(LENGTHS):
            text = facts.handbook(number, 400).text
            kv = self.reference.kv(self.prompt([{"role": "system", "content": text}])[:tokens])
            digest = hashlib.sha256(f"cartridge {number}".encode()).hexdigest()
            blobs.put(digest, write_cartridge(folder / str(number), kv))
            self.kvs[digest] = kv
        self.digests = list(self.kvs)

    def prompt(self, turns: Sequence[dict[str, str]], *, answer: bool = False) -> list[int]:
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def turn(self, question: str) -> list[int]:
        """A question's turn, as it stands behind a cartridge."""
        return self.prompt([{"role": "user", "content": question}], answer=True)[1:]

    async def ask(
        self, digest: str, turn: Sequence[int], *, lora: str = "", tokens: int = TOKENS, tenant: str = "a"
    ) -> tuple[list[int], CachedTokens]:
        placeholders = [PLACEHOLDER_TOKEN] * (len(self.kvs[digest]) if digest else 0)
        modules = [AppliedModule(digest, CARTRIDGE)] if digest else []
        modules += [AppliedModule(lora, LORA)] if lora else []
        request = WorkerRequest(
            uuid.uuid4().hex,
            [*placeholders, *turn],
            tenant,
            tenant,
            Sampling(max_tokens=tokens, min_tokens=tokens),
            tuple(modules),
        )
        parts = [part async for part in self.engine.generate(request)]
        return [token for part in parts for token in part.token_ids], parts[-1].cached

    def right(self, digest: str, turn: Sequence[int], tokens: int = TOKENS) -> list[int]:
        return self.reference.answer(self.kvs[digest], turn, tokens)

    async def flood(self, seed: int) -> None:
        """Fill the engine's blocks with others' prompts."""
        books = [facts.handbook(1000 * seed + number, 700).text for number in range(4)]
        turns = [self.turn(book)[-700:] for book in books]
        await asyncio.gather(*(self.ask("", turn, tokens=1, tenant="flood") for turn in turns))

    async def forget(self) -> None:
        assert await self.engine.llm.reset_prefix_cache(reset_connector=True)


def counted(name: str) -> float:
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name == name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    redis = RedisServer(tmp_path_factory.mktemp("redis"))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray, vLLM and torch, which they import
        from memserve.worker.replica import engine_environment

        redis.start()
        settings = Settings.model_validate(
            {
                "data_dir": folder,
                "redis_url": redis.url,
                "max_context_tokens": CONTEXT,
                "max_cartridges": ROOM,
                "max_soft_prompts": ROOM,
                "kv_host_bytes": 16 << 20,
                "kv_always_load": True,
                "max_experts": 2,
            }
        )
        model = open_model(MODEL_DIR, CONTEXT)
        # Less than a worker may have: a few prompts fill it.
        settings = settings.model_copy(update={"kv_device_bytes": KV_TOKENS * model.kv_bytes_per_token})
        patch.delenv("PYTHONHASHSEED", raising=False)
        for name, value in engine_environment(settings).items():
            patch.setenv(name, value)
        patch.chdir(settings.modules_root)
        from memserve.worker.engine.start import start_engine
        from memserve.worker.kv.configure import activation_memory

        namespace, transfer = activation_memory(settings, model, "digest")
        async with AsyncExitStack() as opened:
            engine = start_engine(settings, model, transfer, f"ipc://{folder}/events")
            opened.callback(engine.shutdown)
            blobs = BlobStore("", settings.modules_root / "modules")
            client = opened.enter_context(contextlib.closing(Redis.from_url(redis.url)))
            yield Worker(engine, blobs, folder / "cartridges", client, namespace.digest)
    redis.stop()


QUESTIONS = [
    "When does the north gate open?",
    "Who keeps the keys of the archive?",
    "What is kept in the cellar of the mill, and since when is it there?",
    "Where does the ferry leave in winter?",
]


async def test_cold_warm_and_after_eviction_the_tokens_are_transformers(worker: Worker) -> None:
    turns = [worker.turn(question) for question in QUESTIONS]
    for digest in worker.digests[:2]:
        right = [worker.right(digest, turn) for turn in turns]
        base = [worker.reference.answer(None, [1, *turn], TOKENS) for turn in turns]
        assert all(one != other for one, other in zip(right, base, strict=True))
        for seed in range(3):
            for turn, tokens in zip(turns, right, strict=True):
                answer, cached = await worker.ask(digest, turn)
                assert answer == tokens
                assert cached.cartridge == len(worker.kvs[digest])
            await worker.flood(seed)


async def test_questions_in_one_batch_share_a_supply_and_the_base_is_left_alone(worker: Worker) -> None:
    turns = [worker.turn(question) for question in QUESTIONS]
    await worker.forget()
    asked = [(digest, turn) for turn in turns for digest in worker.digests[:2]]
    answers = await asyncio.gather(
        *(worker.ask(digest, turn) for digest, turn in asked), *(worker.ask("", [1, *turn]) for turn in turns)
    )
    for (digest, turn), (answer, _) in zip(asked, answers, strict=False):
        assert answer == worker.right(digest, turn)
    for turn, (answer, cached) in zip(turns, answers[len(asked) :], strict=True):
        assert answer == worker.reference.answer(None, [1, *turn], TOKENS)
        assert cached.cartridge == 0


async def test_preempted_requests_are_supplied_again(worker: Worker) -> None:
    before = counted("vllm:num_preemptions_total")
    asked = [(digest, worker.turn(question)) for question in QUESTIONS for digest in worker.digests[:2]]
    answers = await asyncio.gather(*(worker.ask(digest, turn, tokens=160) for digest, turn in asked))
    assert counted("vllm:num_preemptions_total") > before
    for (digest, turn), (answer, _) in zip(asked, answers, strict=True):
        assert answer == worker.right(digest, turn, 160)


async def test_with_a_lora_the_tokens_are_those_of_peft(worker: Worker) -> None:
    lora = put_adapter(worker.blobs, "harbour")
    reference = Reference(adapter=ADAPTERS_DIR / "harbour")
    digest = worker.digests[0]
    for question in QUESTIONS:
        turn = worker.turn(question)
        right = reference.answer(worker.kvs[digest], turn, TOKENS)
        assert (await worker.ask(digest, turn, lora=lora))[0] == right
        assert (await worker.ask(digest, turn))[0] == worker.right(digest, turn)


async def test_what_follows_a_cartridge_comes_from_redis_and_the_cartridge_does_not(worker: Worker) -> None:
    turn = worker.turn(f"{facts.handbook(77, 500).text} {QUESTIONS[0]}")[-300:]
    for digest in worker.digests[:2]:
        prefix = len(worker.kvs[digest])
        behind = (prefix + len(turn)) // 64 * 64 - prefix
        answer, cached = await worker.ask(digest, turn)
        assert answer == worker.right(digest, turn)
        for _ in range(50):
            await asyncio.sleep(0.1)
            await worker.forget()
            answer, cached = await worker.ask(digest, turn)
            assert answer == worker.right(digest, turn)
            if cached.redis == behind:
                break
        assert cached == CachedTokens(redis=behind, cartridge=prefix)


async def test_another_tenant_shares_nothing_behind_a_cartridge(worker: Worker) -> None:
    turn = worker.turn(facts.handbook(78, 300).text)[-200:]
    digest = worker.digests[0]
    await worker.ask(digest, turn, tenant="a")
    answer, cached = await worker.ask(digest, turn, tenant="b")
    assert cached == CachedTokens(cartridge=len(worker.kvs[digest]))
    assert answer == worker.right(digest, turn)


async def test_given_tokens_are_scored_behind_a_cartridge(worker: Worker) -> None:
    digest, turn = worker.digests[0], worker.turn(QUESTIONS[0])
    tokens = worker.right(digest, turn)
    request = ScoringRequest(
        uuid.uuid4().hex,
        [PLACEHOLDER_TOKEN] * len(worker.kvs[digest]) + turn,
        tokens,
        "a",
        "a",
        (AppliedModule(digest, CARTRIDGE),),
    )
    scores = await worker.engine.score(request)
    assert scores.cached.cartridge == len(worker.kvs[digest])
    assert len(scores.logprobs) == TOKENS
    other = await worker.engine.score(ScoringRequest(uuid.uuid4().hex, [1, *turn], tokens, "a", "a"))
    assert sum(scores.logprobs) > sum(other.logprobs)


async def test_a_request_that_would_compute_placeholders_is_ended_and_leaves_nothing_behind(
    worker: Worker,
) -> None:
    """vLLM passes the connector over for such a request. Without the guard it would answer."""
    from vllm import SamplingParams

    from memserve.kv.keys import prefix_salt
    from memserve.worker.kv.cartridges import PREFIX, prefix_parameters

    digest, turn = worker.digests[0], worker.turn(facts.handbook(79, 300).text)[-200:]
    prefix = len(worker.kvs[digest])
    await worker.forget()
    params = SamplingParams(
        max_tokens=TOKENS,
        temperature=0.0,
        skip_reading_prefix_cache=True,
        extra_args={"kv_transfer_params": {PREFIX: prefix_parameters(digest, prefix)}},
    )
    prompt: Any = {
        "prompt_token_ids": [PLACEHOLDER_TOKEN] * prefix + turn,
        "cache_salt": prefix_salt("a", digest),
    }

    async def passed_over() -> tuple[list[int], str | None]:
        outputs = [each async for each in worker.engine.llm.generate(prompt, params, uuid.uuid4().hex)]
        tokens = [token for output in outputs for token in output.outputs[0].token_ids]
        return tokens, outputs[-1].outputs[0].finish_reason

    async with worker.engine.modules.using(digest, CARTRIDGE):
        assert await passed_over() == ([], "error")
        assert (await worker.ask(digest, turn))[0] == worker.right(digest, turn)
        answers = await asyncio.gather(
            passed_over(), *(worker.ask(digest, turn) for _ in range(3)), return_exceptions=True
        )
    assert answers[0] == ([], "error")
    for answer in answers[1:]:
        # It may have taken blocks of the first for its prefix, and is then ended with it.
        assert isinstance(answer, Exception) or answer[0] == worker.right(digest, turn)
    assert (await worker.ask(digest, turn))[0] == worker.right(digest, turn)


async def test_a_prompt_that_leaves_the_cartridge_no_place_is_refused(worker: Worker) -> None:
    digest = worker.digests[0]
    for token_ids in ([1, *worker.turn(QUESTIONS[0])], [PLACEHOLDER_TOKEN] * len(worker.kvs[digest])):
        modules = (AppliedModule(digest, CARTRIDGE),)
        request = WorkerRequest(uuid.uuid4().hex, token_ids, "a", "a", Sampling(max_tokens=1), modules)
        with pytest.raises(ValueError, match="token_ids: with cartridge"):
            await anext(worker.engine.generate(request))


async def test_more_cartridges_than_there_is_room_for_take_turns(worker: Worker) -> None:
    turn = worker.turn(QUESTIONS[1])
    for digest in [*worker.digests, *worker.digests]:
        assert (await worker.ask(digest, turn))[0] == worker.right(digest, turn)
        assert len(await worker.engine.kinds[CARTRIDGE].places()) <= ROOM


async def test_a_file_of_another_shape_is_refused(worker: Worker, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"narrow").hexdigest()
    worker.blobs.put(digest, write_cartridge(tmp_path, worker.kvs[worker.digests[0]][:, :2]))
    with pytest.raises(InvalidModule, match="this engine has 4 layers of 2 KV heads of 64"):
        await worker.engine.modules.load(digest, CARTRIDGE)


@pytest.mark.parametrize("clause", [pytest.param(each, id=each.__name__) for each in CLAUSES])
async def test_a_soft_prompt(worker: Worker, tmp_path: Path, clause: Clause) -> None:
    await clause(worker, tmp_path)
