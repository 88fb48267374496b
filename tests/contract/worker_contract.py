"""What every worker does, whichever way a gateway calls it: `WorkerCalls` in clauses.

An implementation has one fixture `worker` and one test:

    @each_clause
    async def test_a_worker_of_this_kind_keeps_the_contract(worker: ContractWorker, clause: Clause) -> None:
        await clause(worker)

What only the wire has is in `wire_contract.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import pytest

from memserve.domain import FinishReason, ModuleKind, ModulePlace, Priority, RefusalReason, Sampling
from memserve.domain.distilling import DEFAULT_RECIPE
from memserve.domain.worker_calls import (
    AnswerPart,
    AppliedModule,
    BlockChange,
    BlockEvent,
    ComposedPiece,
    ComposeProgress,
    ComposeRecipe,
    CompositionRequest,
    DistillationRequest,
    HeldBlocks,
    WorkerCalls,
    WorkerDied,
    WorkerFailure,
    WorkerFull,
    WorkerLate,
    WorkerRefused,
    WorkerRequest,
    WorkerState,
    WrongRequest,
)
from memserve.kv.keys import block_keys

TIMEOUT_S = 60.0
ONE_TOKEN = Sampling(max_tokens=1)
LONG = Sampling(max_tokens=512, min_tokens=512)
NOWHERE = "0" * 64
"""The digest of a module that nobody has."""
LOADED = {ModulePlace.DEVICE, ModulePlace.HOST}


@dataclass(frozen=True, slots=True)
class ContractWorker:
    """A worker that answers nobody else during a clause, and what a clause needs for its calls."""

    calls: WorkerCalls
    prompt: Sequence[int]
    """[prompt_tokens]: more than two full blocks; 512 tokens more fit into the context."""
    block_tokens: int
    lora: str
    """Digest of a LoRA of rank 16 in the module store, which is the worker's own directory."""

    def __post_init__(self) -> None:
        assert len(self.prompt) > 2 * self.block_tokens

    def request(
        self, sampling: Sampling = ONE_TOKEN, *, salt: str = "contract", lora: str = ""
    ) -> WorkerRequest:
        return WorkerRequest(
            request_id=uuid.uuid4().hex,
            token_ids=self.prompt,
            tenant="",
            cache_salt=salt,
            sampling=sampling,
            modules=(AppliedModule(lora, ModuleKind.LORA),) if lora else (),
        )

    async def answer(
        self, sampling: Sampling = ONE_TOKEN, *, salt: str = "contract", lora: str = ""
    ) -> list[AnswerPart]:
        request = self.request(sampling, salt=salt, lora=lora)
        return [part async for part in self.calls.generate(request, TIMEOUT_S)]

    def block_keys(self, salt: str) -> list[bytes]:
        """[full blocks of the prompt]"""
        return block_keys(self.prompt, self.block_tokens, lora=None, cache_salt=salt)

    async def load(self, digest: str, kind: str = ModuleKind.LORA, *, pin: bool = False) -> ModulePlace:
        return await self.calls.load_module(digest, cast(ModuleKind, kind), pin=pin, timeout_s=TIMEOUT_S)

    async def unload(self, *, forget: bool = False) -> ModulePlace:
        return await self.calls.unload_module(self.lora, ModuleKind.LORA, forget=forget, timeout_s=TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def watching(
        self, epoch: int = 0, after_sequence: int = 0
    ) -> AsyncIterator[AsyncGenerator[WorkerState | BlockEvent, None]]:
        async with contextlib.aclosing(self.calls.watch(epoch, after_sequence, TIMEOUT_S)) as events:
            yield events

    async def state_with(self, holds: Callable[[WorkerState], bool]) -> WorkerState:
        """The first state for which it holds."""
        async with self.watching() as events:
            async for event in events:
                if isinstance(event, WorkerState) and holds(event):
                    return event
        raise AssertionError("the watch ended")


Clause = Callable[[ContractWorker], Awaitable[None]]


async def an_answer_streams_and_ends_with_its_reason_and_cached_tokens(worker: ContractWorker) -> None:
    parts = await worker.answer(Sampling(max_tokens=5))
    token_ids = [token for part in parts for token in part.token_ids]
    assert 1 <= len(token_ids) <= 5
    *others, last = parts
    assert all(part.finish_reason is None and part.cached is None for part in others)
    assert last.cached is not None
    if len(token_ids) < 5:
        assert last.finish_reason is FinishReason.STOP
    else:
        assert last.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)


async def a_prompt_sent_again_is_cached_for_the_same_salt_only(worker: ContractWorker) -> None:
    salt = uuid.uuid4().hex
    assert cached_tokens(await worker.answer(salt=salt)) == 0
    full_blocks = (len(worker.prompt) - 1) // worker.block_tokens
    assert cached_tokens(await worker.answer(salt=salt)) == full_blocks * worker.block_tokens
    assert cached_tokens(await worker.answer(salt=uuid.uuid4().hex)) == 0


async def logprobs_come_one_a_token_when_asked_for(worker: ContractWorker) -> None:
    for part in await worker.answer(Sampling(max_tokens=3, logprobs=True)):
        assert len(part.logprobs) == len(part.token_ids)
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in part.logprobs)
    assert all(not part.logprobs for part in await worker.answer(Sampling(max_tokens=3)))


async def an_unknown_module_is_refused_and_the_worker_lives_on(worker: ContractWorker) -> None:
    await refused(worker.answer(lora=NOWHERE))
    assert await worker.answer()


async def closing_an_answer_ends_the_work(worker: ContractWorker) -> None:
    parts = worker.calls.generate(worker.request(Sampling(max_tokens=64)), None)
    await anext(parts)
    await parts.aclose()
    state = await worker.state_with(lambda state: state.running + state.waiting == 0)
    assert state.pending_prefill_tokens == 0


async def an_answer_whose_time_is_up_is_late(worker: ContractWorker) -> None:
    async with contextlib.aclosing(worker.calls.generate(worker.request(LONG), 0.02)) as parts:
        with pytest.raises(WorkerLate):
            async for _ in parts:
                pass
    await worker.state_with(lambda state: state.running + state.waiting == 0)


async def a_worker_that_cannot_be_in_time_says_so_and_when_to_come_again(worker: ContractWorker) -> None:
    hopeless = replace(worker.request(), first_token_s=1e-5, refuse_late=True)
    with pytest.raises(WorkerFull) as refusal:
        async for _ in worker.calls.generate(hopeless, TIMEOUT_S):
            pass
    assert refusal.value.reason is RefusalReason.LATE
    assert 0 < refusal.value.retry_after_s < TIMEOUT_S
    late = replace(worker.request(), first_token_s=1e-5)
    assert [part async for part in worker.calls.generate(late, TIMEOUT_S)][-1].finish_reason is not None


async def every_priority_is_answered(worker: ContractWorker) -> None:
    for priority in Priority:
        request = replace(worker.request(), priority=priority)
        assert [part async for part in worker.calls.generate(request, TIMEOUT_S)][-1].finish_reason


async def closing_the_calls_ends_those_under_way(worker: ContractWorker) -> None:
    async with contextlib.aclosing(worker.calls.generate(worker.request(LONG), None)) as parts:
        await anext(parts)
        await worker.calls.close()
        with pytest.raises(WorkerDied):
            async for _ in parts:
                pass
    with pytest.raises(WorkerDied):
        await worker.calls.lookup_blocks([], TIMEOUT_S)


async def closing_the_calls_wakes_who_waits_for_them(worker: ContractWorker) -> None:
    async def watch() -> None:
        async with worker.watching() as events:
            async for event in events:
                if isinstance(event, WorkerState):
                    watches.set()

    watches = asyncio.Event()
    watch_task = asyncio.create_task(watch())
    await watches.wait()
    await worker.calls.close()
    with pytest.raises(WorkerDied):
        await watch_task


async def a_module_is_loaded_when_asked_for_and_gone_when_unloaded(worker: ContractWorker) -> None:
    assert await worker.load(worker.lora, pin=True) in LOADED
    state = await worker.state_with(lambda state: worker.lora in state.modules)
    assert set(state.modules.values()) <= LOADED
    assert worker.lora not in state.used_modules
    for _ in range(2):
        # The files stay: they are the module store's, and no copy.
        assert await worker.unload(forget=True) is ModulePlace.DISK
    await worker.state_with(lambda state: worker.lora not in state.modules)


async def a_request_loads_its_module_and_keeps_it_while_it_runs(worker: ContractWorker) -> None:
    parts = worker.calls.generate(worker.request(LONG, lora=worker.lora), None)
    async with contextlib.aclosing(parts):
        await anext(parts)
        state = await worker.state_with(lambda state: worker.lora in state.used_modules)
        assert worker.lora in state.modules
        await refused(worker.unload())
        assert (await anext(parts)).finish_reason is None
    await worker.state_with(
        lambda state: worker.lora not in state.used_modules and worker.lora in state.modules
    )


async def places_are_known_without_loading_anything(worker: ContractWorker) -> None:
    async def places() -> list[ModulePlace]:
        return await worker.calls.module_places([NOWHERE, worker.lora], TIMEOUT_S)

    await worker.unload()
    for _ in range(2):
        assert await places() == [ModulePlace.ABSENT, ModulePlace.DISK]
    await worker.load(worker.lora)
    absent, loaded = await places()
    assert absent is ModulePlace.ABSENT
    assert loaded in LOADED
    await refused(worker.calls.module_places(["../modules"], TIMEOUT_S), WrongRequest)


async def an_unknown_module_or_kind_is_not_loaded(worker: ContractWorker) -> None:
    await refused(worker.load(NOWHERE))
    # The files of one kind are no module of another, on any worker.
    await refused(worker.load(worker.lora, ModuleKind.LOGIT_EXPERT), WrongRequest)
    await refused(worker.calls.try_module(NOWHERE, ModuleKind.LORA, TIMEOUT_S))
    # A kind that only a newer gateway knows.
    await refused(worker.load(worker.lora, "riddle"), WrongRequest)
    await worker.state_with(lambda state: not state.used_modules)


async def the_canary_prompts_feel_the_module(worker: ContractWorker) -> None:
    assert await worker.calls.try_module(worker.lora, ModuleKind.LORA, TIMEOUT_S) > 0.01


async def a_composition_is_its_progress_then_its_files_then_its_recipe(worker: ContractWorker) -> None:
    request = CompositionRequest("compress", ((worker.lora, 0.0),), rank=4)
    events = [event async for event in worker.calls.compose(request, TIMEOUT_S)]
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[ComposeProgress, ComposedPiece, ComposeRecipe].index)
    assert kinds.count(ComposeRecipe) == 1
    progress = [event for event in events if isinstance(event, ComposeProgress)]
    assert progress[-1].done == progress[-1].total > 0
    assert {event.file_name for event in events if isinstance(event, ComposedPiece)} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    recipe = events[-1]
    assert isinstance(recipe, ComposeRecipe)
    assert json.loads(recipe.recipe)["method"] == "compress"
    unknown = worker.calls.compose(CompositionRequest("linear", ((NOWHERE, 0.0),)), TIMEOUT_S)
    await refused(anext(unknown))
    expert = DistillationRequest(ModuleKind.LOGIT_EXPERT, ("The code is 4821.",), DEFAULT_RECIPE)
    await refused(anext(worker.calls.distil(expert, TIMEOUT_S)), WrongRequest)


async def a_watch_starts_with_a_reset_and_a_state(worker: ContractWorker) -> None:
    async with worker.watching() as events:
        first = await reset(events)
        assert first.epoch != 0
        async for event in events:
            if isinstance(event, WorkerState):
                return
            assert event.epoch == first.epoch
            assert event.change is not BlockChange.RESET
    raise AssertionError("the watch ended")


async def a_watch_follows_what_is_stored(worker: ContractWorker) -> None:
    salt = uuid.uuid4().hex
    missing = set(worker.block_keys(salt))
    assert missing
    async with worker.watching() as events:
        first = await reset(events)
        assert missing.isdisjoint(first.keys)
        await worker.answer(salt=salt)
        sequence = first.sequence
        while missing:
            event = await block_event(events)
            assert event.sequence == sequence + 1
            sequence = event.sequence
            if event.change is BlockChange.STORED:
                missing.difference_update(event.keys)
    async with worker.watching() as events:
        assert set((await reset(events)).keys).issuperset(worker.block_keys(salt))


async def the_leading_blocks_of_a_prompt_are_counted(worker: ContractWorker) -> None:
    salt = uuid.uuid4().hex
    keys = worker.block_keys(salt)
    assert await worker.calls.lookup_blocks(keys, TIMEOUT_S) == HeldBlocks(0, 0)
    async with worker.watching() as events:
        held = set((await reset(events)).keys)
        await worker.answer(salt=salt)
        while not held.issuperset(keys):
            held.update((await block_event(events)).keys)
    assert await worker.calls.lookup_blocks(keys, TIMEOUT_S) == HeldBlocks(len(keys), len(keys))
    assert await worker.calls.lookup_blocks([bytes(32), *keys], TIMEOUT_S) == HeldBlocks(0, 0)


async def a_watch_goes_on_after_a_number_without_a_reset(worker: ContractWorker) -> None:
    async with worker.watching() as events:
        last = await reset(events)
    async with worker.watching(last.epoch, last.sequence) as events:
        async for event in events:
            if isinstance(event, WorkerState):
                return
            assert event.change is not BlockChange.RESET
            assert event.epoch == last.epoch
            assert event.sequence > last.sequence
    raise AssertionError("the watch ended")


async def a_number_of_another_epoch_gives_a_reset(worker: ContractWorker) -> None:
    async with worker.watching(epoch=1, after_sequence=1) as events:
        await reset(events)


CLAUSES: Sequence[Clause] = (
    an_answer_streams_and_ends_with_its_reason_and_cached_tokens,
    a_prompt_sent_again_is_cached_for_the_same_salt_only,
    logprobs_come_one_a_token_when_asked_for,
    an_unknown_module_is_refused_and_the_worker_lives_on,
    closing_an_answer_ends_the_work,
    an_answer_whose_time_is_up_is_late,
    a_worker_that_cannot_be_in_time_says_so_and_when_to_come_again,
    every_priority_is_answered,
    closing_the_calls_ends_those_under_way,
    closing_the_calls_wakes_who_waits_for_them,
    a_module_is_loaded_when_asked_for_and_gone_when_unloaded,
    a_request_loads_its_module_and_keeps_it_while_it_runs,
    places_are_known_without_loading_anything,
    an_unknown_module_or_kind_is_not_loaded,
    the_canary_prompts_feel_the_module,
    a_composition_is_its_progress_then_its_files_then_its_recipe,
    a_watch_starts_with_a_reset_and_a_state,
    a_watch_follows_what_is_stored,
    the_leading_blocks_of_a_prompt_are_counted,
    a_watch_goes_on_after_a_number_without_a_reset,
    a_number_of_another_epoch_gives_a_reset,
)
each_clause = pytest.mark.parametrize("clause", CLAUSES, ids=[clause.__name__ for clause in CLAUSES])


async def refused(call: Awaitable[object], meaning: type[WorkerFailure] = WorkerRefused) -> None:
    """A refusal of this meaning, with a reason."""
    with pytest.raises(meaning) as refusal:
        await call
    assert type(refusal.value) is meaning
    assert refusal.value.detail
    assert not refusal.value.detail.isupper(), "the name of a status is no reason"


async def reset(events: AsyncIterator[WorkerState | BlockEvent]) -> BlockEvent:
    """The first event of a watch, which is a reset."""
    first = await anext(events)
    assert isinstance(first, BlockEvent)
    assert first.change is BlockChange.RESET
    return first


async def block_event(events: AsyncIterator[WorkerState | BlockEvent]) -> BlockEvent:
    """The next block event; states before it are passed over."""
    async for event in events:
        if isinstance(event, BlockEvent):
            return event
    raise AssertionError("the watch ended")


def cached_tokens(parts: Sequence[AnswerPart]) -> int:
    cached = parts[-1].cached
    assert cached is not None
    return cached.total
