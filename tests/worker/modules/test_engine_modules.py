"""Modules in a real engine: more than it has room for, pinned, in use, broken; and the streams of others
meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import pytest
import pytest_asyncio

from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.demo.adapters import held_facts
from memserve.domain import ModuleKind, ModulePlace, Sampling
from memserve.domain.kinds import KINDS
from memserve.domain.worker_calls import AppliedModule, WorkerRequest
from memserve.errors import InvalidModule, ModuleNotFound
from memserve.memory.modules.blobs.store import BlobStore
from memserve.model.files import open_model
from memserve.pb.v1 import inference_pb2, module_pb2, module_pb2_grpc
from tests.kv.redis_server import RedisServer
from tests.worker.modules.demo_modules import put_adapter, put_expert
from tests.worker.modules.third_kind import FILE, ROW, STEER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

LORA, EXPERT = ModuleKind.LORA, ModuleKind.LOGIT_EXPERT
SLOTS, ROOM, PINS = 2, 4, 2
FACT = held_facts("harbour")[0]
LONG = 200
PROMPT = list(range(300, 340))


def request_of(
    token_ids: Sequence[int], lora: str, sampling: Sampling, expert: tuple[str, float] | None = None
) -> WorkerRequest:
    """lora, expert: digests; empty and None for none."""
    modules = [AppliedModule(lora, LORA)] if lora else []
    modules += [AppliedModule(expert[0], EXPERT, expert[1])] if expert else []
    return WorkerRequest(uuid.uuid4().hex, token_ids, "", "test", sampling, tuple(modules))


class Worker:
    """An engine and a module store that is its own directory."""

    def __init__(self, settings: Settings, engine: Any, blobs: BlobStore) -> None:
        self.settings = settings
        self.engine = engine
        self.blobs = blobs
        self.vocabulary = engine.llm.model_config.get_vocab_size()

    async def ask(
        self,
        token_ids: Sequence[int],
        module: str = "",
        *,
        max_tokens: int = 12,
        expert: tuple[str, float] | None = None,
    ) -> tuple[str, tuple[int, ...]]:
        """Returns the answer's text and tokens."""
        sampling = Sampling(max_tokens=max_tokens, min_tokens=max_tokens if max_tokens == LONG else 0)
        parts = [part async for part in self.engine.generate(request_of(token_ids, module, sampling, expert))]
        return "".join(part.text for part in parts), tuple(
            token for part in parts for token in part.token_ids
        )

    async def question(self, text: str) -> list[int]:
        tokenizer: Any = self.engine.llm.get_tokenizer()
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer.encode(encoded, add_special_tokens=False))

    async def told_by_the_engine(self) -> dict[str, ModulePlace]:
        """Where the engine has its adapters, past everything that the worker remembers."""
        (places,) = await self.engine.llm.collective_rpc("lora_places")
        digests = {
            self.engine.kinds[LORA].request(digest).lora_int_id: digest for digest in self.engine.modules.held
        }
        return {
            digests[each]: ModulePlace.DEVICE if each in places["device"] else ModulePlace.HOST
            for each in places["held"]
        }

    async def empty(self) -> None:
        for digest in self.engine.modules.held:
            kind = LORA if digest in await self.engine.kinds[LORA].places() else EXPERT
            await self.engine.modules.unload(digest, kind)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray, vLLM and torch, which they import
        from memserve.worker.replica import engine_environment

        settings = Settings(
            data_dir=folder,
            max_loras=SLOTS,
            max_cpu_loras=ROOM,
            max_experts=1,
            kv_device_bytes=64 << 20,
            max_context_tokens=512,
        )
        patch.delenv("PYTHONHASHSEED", raising=False)
        for name, value in engine_environment(settings).items():
            patch.setenv(name, value)
        patch.chdir(settings.modules_root)
        patch.setitem(KINDS, STEER, ROW)
        from memserve.worker.engine.start import start_engine

        worker = Worker(
            settings,
            start_engine(settings, open_model(MODEL_DIR, 512), None, f"ipc://{folder}/events"),
            BlobStore("", settings.modules_root / "modules"),
        )
        try:
            yield worker
        finally:
            worker.engine.shutdown()
            del worker.engine  # vLLM's own clean-up must not wait for the interpreter's end


@pytest_asyncio.fixture(loop_scope="module")
async def worker(running: Worker) -> AsyncIterator[Worker]:
    """Holding nothing."""
    await running.empty()
    yield running
    assert not running.engine.llm.output_processor.has_unfinished_requests()
    assert not running.engine.llm.errored


async def test_more_adapters_than_there_is_room_for_take_turns_and_each_answers_as_itself(
    worker: Worker,
) -> None:
    question = await worker.question(FACT.held_out_questions[0])
    digests = [put_adapter(worker.blobs, "harbour", scale) for scale in (1.0, 0.7, 0.4)]
    digests += [put_adapter(worker.blobs, "observatory", scale) for scale in (1.0, 0.6, 0.2)]
    assert FACT.answer in (await worker.ask(question, digests[0]))[0]
    assert FACT.answer not in (await worker.ask(question))[0]
    alone = {digest: await worker.ask(PROMPT, digest, max_tokens=LONG) for digest in digests}
    assert len(set(alone.values())) == len(digests)
    draw = random.Random(0)
    for _ in range(4):
        batch = draw.sample(digests, ROOM)
        answers = await asyncio.gather(*(worker.ask(PROMPT, digest, max_tokens=LONG) for digest in batch))
        assert answers == [alone[digest] for digest in batch]
        assert set(worker.engine.modules.held) == set(batch)
    assert worker.engine.modules.used == []


async def test_places_are_the_engines_own_word(worker: Worker) -> None:
    first, second, third = (put_adapter(worker.blobs, "harbour", scale) for scale in (1.0, 0.7, 0.4))
    assert await worker.engine.modules.load(first, LORA) is ModulePlace.DEVICE
    for digest in (second, third):
        await worker.engine.modules.load(digest, LORA)
    told = {first: ModulePlace.HOST, second: ModulePlace.DEVICE, third: ModulePlace.DEVICE}
    assert worker.engine.modules.held == told == await worker.told_by_the_engine()
    await worker.ask(PROMPT, first)
    assert worker.engine.modules.stale
    await worker.engine.modules.refresh()
    told = {first: ModulePlace.DEVICE, second: ModulePlace.HOST, third: ModulePlace.DEVICE}
    assert worker.engine.modules.held == told == await worker.told_by_the_engine()
    assert await worker.engine.modules.unload(first, LORA) is ModulePlace.DISK
    assert worker.engine.modules.held == await worker.told_by_the_engine()
    assert first not in worker.engine.modules.held


async def test_a_stream_goes_on_unchanged_while_others_are_loaded_and_keeps_its_adapter(
    worker: Worker,
) -> None:
    mine = put_adapter(worker.blobs, "harbour", 0.9)
    others = [put_adapter(worker.blobs, "observatory", scale) for scale in (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)]
    _, alone = await worker.ask(PROMPT, mine, max_tokens=LONG)
    sampling = Sampling(max_tokens=LONG, min_tokens=LONG)
    tokens: list[int] = []
    async with aclosing(worker.engine.generate(request_of(PROMPT, mine, sampling))) as stream:
        tokens += (await anext(stream)).token_ids
        assert worker.engine.modules.used == [mine]
        with pytest.raises(Exception, match="requests use it"):
            await worker.engine.modules.unload(mine, LORA)
        for other in others:
            await worker.engine.modules.load(other, LORA)
            tokens += (await anext(stream)).token_ids
        assert len(tokens) < LONG, "the stream was over before all had been loaded"
        assert mine in await worker.told_by_the_engine()
        tokens += [token async for delta in stream for token in delta.token_ids]
    assert tuple(tokens) == alone


async def test_a_pinned_adapter_stays_and_half_of_the_room_is_never_pinned(worker: Worker) -> None:
    digests = [put_adapter(worker.blobs, "harbour", scale) for scale in (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)]
    pinned = digests[:PINS]
    for digest in pinned:
        await worker.engine.modules.load(digest, LORA, pin=True)
    for digest in digests[PINS:]:
        await worker.engine.modules.load(digest, LORA)
    assert set(await worker.told_by_the_engine()) == {*pinned, *digests[-2:]}
    with pytest.raises(Exception, match=r"2 of the 4 that fit \(setting max_cpu_loras\) are pinned"):
        await worker.engine.modules.load(digests[-1], LORA, pin=True)
    assert await worker.ask(PROMPT, digests[-1])


async def test_more_adapters_at_once_than_fit_wait_and_each_answers_as_itself(worker: Worker) -> None:
    digests = [put_adapter(worker.blobs, "harbour", scale) for scale in (1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2)]
    alone = {digest: await worker.ask(PROMPT, digest, max_tokens=LONG) for digest in digests}
    answers = await asyncio.gather(*(worker.ask(PROMPT, digest, max_tokens=LONG) for digest in digests * 2))
    assert answers == [alone[digest] for digest in digests * 2]
    assert len(await worker.told_by_the_engine()) == ROOM


async def test_what_the_engine_refuses_leaves_it_and_its_streams_as_they_were(worker: Worker) -> None:
    held = [put_adapter(worker.blobs, "harbour", scale) for scale in (1.0, 0.9, 0.8, 0.7)]
    for digest in held:
        await worker.engine.modules.load(digest, LORA)
    _, alone = await worker.ask(PROMPT, max_tokens=LONG)
    stream = asyncio.create_task(worker.ask(PROMPT, max_tokens=LONG))
    cut = put_adapter(worker.blobs, "harbour", cut_bytes=1000)
    with pytest.raises(InvalidModule, match="the engine refuses it"):
        await worker.ask(PROMPT, cut)
    assert set(await worker.told_by_the_engine()) == set(held)
    with pytest.raises(InvalidModule, match="the engine refuses it"):
        await worker.ask(PROMPT, put_adapter(worker.blobs, "harbour", transposed=True))
    with pytest.raises(ModuleNotFound):
        await worker.ask(PROMPT, "0" * 64)
    assert worker.engine.modules.held == await worker.told_by_the_engine()
    assert (await stream)[1] == alone


async def test_a_stream_that_is_closed_early_frees_its_adapter(worker: Worker) -> None:
    digest = put_adapter(worker.blobs, "harbour")
    sampling = Sampling(max_tokens=LONG, min_tokens=LONG)
    async with aclosing(worker.engine.generate(request_of(PROMPT, digest, sampling))) as stream:
        await anext(stream)
    assert worker.engine.modules.used == []
    assert await worker.engine.modules.unload(digest, LORA) is ModulePlace.DISK
    assert await worker.told_by_the_engine() == {}


async def test_an_expert_shifts_the_answer_and_alpha_zero_is_the_base(worker: Worker) -> None:
    expert, adapter = put_expert(worker.blobs, worker.vocabulary, 1), put_adapter(worker.blobs, "harbour")
    base = await worker.ask(PROMPT)
    assert await worker.ask(PROMPT, expert=(expert, 0.0)) == base
    assert worker.engine.modules.held == {}
    shifted = await worker.ask(PROMPT, expert=(expert, 5.0))
    assert shifted != base
    assert worker.engine.modules.held == {expert: ModulePlace.DEVICE}
    with_lora = await worker.ask(PROMPT, adapter)
    both = await asyncio.gather(
        worker.ask(PROMPT),
        worker.ask(PROMPT, expert=(expert, 5.0)),
        worker.ask(PROMPT, adapter),
        worker.ask(PROMPT, adapter),
    )
    assert both == [base, shifted, with_lora, with_lora]
    assert await worker.engine.modules.unload(expert, EXPERT) is ModulePlace.DISK
    assert await worker.engine.llm.collective_rpc("loaded_experts") == [[]]


async def test_experts_take_turns_and_one_in_use_stays(worker: Worker) -> None:
    first, second = (put_expert(worker.blobs, worker.vocabulary, seed) for seed in (1, 2))
    alone = await worker.ask(PROMPT, expert=(first, 5.0))
    sampling = Sampling(max_tokens=LONG, min_tokens=LONG)
    async with aclosing(worker.engine.generate(request_of(PROMPT, "", sampling, (first, 5.0)))) as stream:
        await anext(stream)
        assert worker.engine.modules.used == [first]
        waiting = asyncio.create_task(worker.ask(PROMPT, expert=(second, 5.0)))
        # What another request does needs no expert, and is not held up.
        await worker.ask(PROMPT)
        assert not waiting.done()
        assert list(worker.engine.modules.held) == [first]
    await waiting
    assert list(worker.engine.modules.held) == [second]
    await worker.engine.modules.load(second, EXPERT, pin=True)
    with pytest.raises(Exception, match=r"no room: all 1 modules are pinned \(setting max_experts\)"):
        await worker.ask(PROMPT, expert=(first, 5.0))
    worker.engine.modules.unpin(second, EXPERT)
    assert await worker.ask(PROMPT, expert=(first, 5.0)) == alone


async def test_a_broken_expert_or_one_with_another_vocabulary_is_refused(worker: Worker) -> None:
    for broken in (
        put_expert(worker.blobs, worker.vocabulary, 3, cut_bytes=1000),
        put_expert(worker.blobs, 256, 4),
    ):
        with pytest.raises(InvalidModule, match="the engine refuses it"):
            await worker.ask(PROMPT, expert=(broken, 1.0))
    with pytest.raises(InvalidModule, match="the engine refuses it"):
        await worker.engine.modules.load(put_adapter(worker.blobs, "harbour"), EXPERT)
    with pytest.raises(Exception, match="alpha must be a number from"):
        await worker.ask(PROMPT, expert=(put_expert(worker.blobs, worker.vocabulary, 1), 1e9))
    assert await worker.ask(PROMPT)


async def test_the_canary_prompts_tell_a_module_that_changes_something_from_one_that_does_not(
    worker: Worker,
) -> None:
    from memserve.worker.engine.trial import try_module

    blobs, vocabulary = worker.blobs, worker.vocabulary
    assert await try_module(worker.engine, put_adapter(blobs, "harbour"), LORA) > 0.1
    assert await try_module(worker.engine, put_adapter(blobs, "harbour", 0.0), LORA) == 0.0
    assert await try_module(worker.engine, put_expert(blobs, vocabulary, 1), EXPERT) > 0.1
    assert await try_module(worker.engine, put_expert(blobs, vocabulary, 2, constant=True), EXPERT) == 0.0
    assert worker.engine.modules.used == []


async def test_a_third_kind_is_one_row_and_two_classes(worker: Worker, own_redis_server: RedisServer) -> None:
    """It is published, promoted, loaded and answers, through a gateway and over the worker's port."""
    from tests.worker.modules.served_engine import generated, serving

    token = 77
    async with serving(worker.engine, worker.settings, own_redis_server.url) as (channel, client):
        content = str(token).encode()
        file = module_pb2.UploadFile(
            file_name=FILE, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        header = module_pb2.PublishModuleHeader(name="steered", kind=ROW.number, files=[file])
        chunk = module_pb2.FileChunk(file_name=FILE, content=content)
        parts = [
            module_pb2.PublishModuleRequest(header=header),
            module_pb2.PublishModuleRequest(chunk=chunk),
        ]
        published = await module_pb2_grpc.ModuleServiceStub(channel).PublishModule(iter(parts))
        assert (published.version.kind, published.version.moves_logits) == (ROW.number, True)
        await client.modules.promote("steered", 1)
        plain, plain_tokens = await generated(channel)
        assert not plain.modules
        receipt, tokens = await generated(channel, inference_pb2.ModuleUse(reference="steered"))
        (used,) = receipt.modules
        assert (used.name, used.version, used.kind, used.alpha) == ("steered", 1, STEER, 1.0)
        assert set(tokens) == {token} != set(plain_tokens)
        off, tokens = await generated(channel, inference_pb2.ModuleUse(reference="steered", strength=0.0))
        assert (list(off.modules), tokens) == ([], plain_tokens)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await generated(channel, *[inference_pb2.ModuleUse(reference="steered")] * 2)
        assert refused.value.details() == "modules[1].reference: at most 1 of kind steer"
        assert worker.engine.modules.held == {published.version.digest: ModulePlace.DEVICE}
        await worker.engine.modules.unload(published.version.digest, STEER)
