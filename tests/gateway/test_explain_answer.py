"""What an answer used is told later by any gateway, with what each passage weighed; and it can be scored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from memserve.client import AnswerExplanation, CallFailed
from memserve.domain import Memory, Message, Role, ScoredMemory, SurpriseScore
from memserve.domain.worker_calls import ScoringRequest
from memserve.errors import DeadlineExceeded, InvalidField, NoWorker, QuotaExceeded
from memserve.gateway.assembly import services_of
from memserve.gateway.scoring import WAITING_MAX
from memserve.memory.texts.records import memory_key
from memserve.pb.worker.v1 import worker_pb2 as pb
from tests.contract.scripted_worker import Script
from tests.gateway.asking import GREEDY, events_of, failure_of, published
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway, eventually, until
from tests.gateway.test_several_gateways import another

QUESTION = [Message(Role.USER, "What is the gate of Rainy Siding?")]
TEXTS = {"gate": "The gate of Rainy Siding is 46.", "crew": "The crew of Royal Dolphin is 32."}


def needs(gateway: RunningGateway, text: str, lost: float) -> Callable[[ScoringRequest], Sequence[float]]:
    """Scores of a model whose answer's every token loses so many nats without this text in the prompt."""

    def score(request: ScoringRequest) -> list[float]:
        has = text in gateway.parts.tokenizer.decode(request.token_ids)
        return [-0.25 - (0.0 if has else lost)] * len(request.continuation)

    return score


async def remembered(gateway: RunningGateway) -> None:
    for memory_id, text in TEXTS.items():
        await gateway.client.remember("notes", text, memory_id=memory_id, source="a book")


async def explained(gateway: RunningGateway, request_id: str, **options: bool) -> AnswerExplanation:
    """When the answer has been written."""
    found: list[AnswerExplanation] = []

    async def kept() -> bool:
        found.append(await gateway.client.explain_answer(request_id, **options))
        return found[-1].answer is not None

    await eventually(kept)
    return found[-1]


async def test_any_gateway_tells_what_an_answer_used_and_which_passage_it_needed(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    first = await start_gateway()
    worker = first.workers[0]
    worker.scorer = needs(first, "46", 3.0)
    await remembered(first)
    await published(first, tmp_path)
    async with another(first, tmp_path) as second:
        answer = await first.client.generate(
            QUESTION, namespaces="notes", module="tone", sampling=GREEDY, keep_prompt=True
        )
        request_id = answer.route.request_id
        here, there = await explained(first, request_id), await explained(second, request_id)
        assert here == there
        kept = there.answer
        assert there.routing is not None
        assert kept is not None
        assert there.routing.route.worker_id == kept.worker_id
        assert [passage.memory_id for passage in kept.passages] == ["gate", "crew"]
        assert all("by meaning" in passage.why for passage in kept.passages)
        assert [(module.name, module.version) for module in kept.modules] == [("tone", 1)]
        assert kept.outcome == "answered"
        assert kept.output_tokens == 4
        assert kept.prompt is not None
        assert kept.prompt.answer_ids == answer.token_ids
        assert list(kept.prompt.token_ids) == list(worker.requests[-1].token_ids)
        assert all(text in kept.prompt.text for text in (*TEXTS.values(), QUESTION[0].content))
        assert kept.leave_one_out is None
        found = (await explained(second, request_id, leave_one_out=True)).answer
        assert found is not None
        assert found.leave_one_out is not None
        weights = {weight.memory_id: weight for weight in found.leave_one_out.passages}
        assert weights["gate"].nats == pytest.approx(12.0)
        assert weights["gate"].nats_per_token == pytest.approx(3.0)
        assert weights["crew"].nats == pytest.approx(0.0)
        assert found.leave_one_out.logprob == pytest.approx(-1.0)
        assert found.leave_one_out.scored_tokens == 4
        scorings = worker.scorings
        assert len(scorings) == 3
        assert {scoring.priority for scoring in scorings} == {pb.PRIORITY_BACKGROUND}
        assert {scoring.modules[0].digest for scoring in scorings} == {kept.modules[0].digest}
        again = (await explained(first, request_id, leave_one_out=True)).answer
        assert again == found
        assert len(worker.scorings) == 3, "what has been measured is kept"


async def test_without_a_kept_prompt_no_passage_is_left_out_and_the_reply_says_why(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await remembered(gateway)
    plain = await gateway.client.generate(QUESTION, namespaces="notes", sampling=GREEDY)
    found = await explained(gateway, plain.route.request_id, leave_one_out=True)
    assert found.answer is not None
    assert found.answer.prompt is None
    assert "keep_prompt" in found.answer.prompt_absent
    assert found.leave_one_out_absent == f"no prompt is kept: {found.answer.prompt_absent}"
    alone = await gateway.client.generate(QUESTION, sampling=GREEDY, keep_prompt=True)
    found = await explained(gateway, alone.route.request_id, leave_one_out=True)
    assert found.leave_one_out_absent == "the prompt has no passages"
    failure = await failure_of(gateway.client.explain_answer("0" * 32))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    failure = await failure_of(gateway.client.explain_answer(""))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_gateway_that_keeps_no_prompts_or_no_answers_says_so(start_gateway: StartGateway) -> None:
    no_prompts = await start_gateway(keep_prompts="never")
    answer = await no_prompts.client.generate(QUESTION, sampling=GREEDY, keep_prompt=True)
    found = (await explained(no_prompts, answer.route.request_id)).answer
    assert found is not None
    assert found.prompt is None
    assert "keep_prompts" in found.prompt_absent
    nothing = await start_gateway(answers_kept_s=0)
    answer = await nothing.client.generate(QUESTION, sampling=GREEDY, keep_prompt=True)
    explanation = await nothing.client.explain_answer(answer.route.request_id)
    assert explanation.answer is None
    assert "answers_kept_s" in explanation.answer_absent
    assert explanation.routing is not None
    nothing.redis.stop()
    assert (await nothing.client.explain_answer(answer.route.request_id)).routing is not None


async def test_what_an_erased_memory_was_used_for_is_forgotten(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await remembered(gateway)
    answer = await gateway.client.generate(QUESTION, namespaces="notes", sampling=GREEDY, keep_prompt=True)
    await explained(gateway, answer.route.request_id)
    key = memory_key("default", "notes", "gate")
    assert await gateway.parts.answers.forget_memory("default", key) == 1
    explanation = await gateway.client.explain_answer(answer.route.request_id)
    assert explanation.answer is None
    assert "erased" in explanation.answer_absent
    for name in gateway.redis.client.scan_iter("memserve:answers:*"):
        assert b"Rainy" not in gateway.redis.client.dump(name)


async def test_an_answer_that_is_broken_off_is_kept_with_what_became_of_it(
    start_gateway: StartGateway,
) -> None:
    broken_off = Script(fails_with=grpc.StatusCode.UNAVAILABLE, fails_after=2)
    gateway = await start_gateway(workers=[{"script": broken_off}])
    events: list[Any] = []
    with pytest.raises(CallFailed, match="lost"):
        await events_of(gateway.client.stream(QUESTION, sampling=GREEDY), events)
    found = (await explained(gateway, events[0].request_id)).answer
    assert found is not None
    assert found.outcome == "the worker was lost in the answer"
    assert found.output_tokens == 2


async def test_texts_are_scored_by_another_worker_where_one_fails_and_within_their_time(
    start_gateway: StartGateway,
) -> None:
    fails: dict[str, Any] = {"script": Script(fails_with=grpc.StatusCode.UNAVAILABLE)}
    gateway = await start_gateway(workers=[fails, {}], tokens_per_minute_per_tenant=10_000)
    scoring = services_of(gateway.parts, gateway.access).scoring
    tenant = gateway.access.tenant("")
    prompt = await scoring.prompt(tenant, QUESTION)
    tokens = [token.token_id for token in await scoring.continuation(tenant, "The gate is 46.")]
    soon = time.monotonic() + 10
    assert await scoring.score(tenant, prompt, tokens, deadline_s=soon) == (-0.5,) * len(tokens)
    redis = gateway.redis.client
    counted = [int(redis.get(name) or 0) for name in redis.scan_iter("memserve:tokens:*")]
    assert sum(counted) == len(prompt) + len(tokens)
    gateway.workers[1].script = Script(hangs_after=0)
    with pytest.raises(DeadlineExceeded):
        await scoring.score(tenant, prompt, tokens, deadline_s=time.monotonic() + 0.2)
    await until(lambda: bool(gateway.workers[1].cancelled))
    for wrong in ([], [5] * 513):
        with pytest.raises(InvalidField, match="1 to 512"):
            await scoring.score(tenant, prompt, wrong, deadline_s=soon)
    with pytest.raises(InvalidField, match="not below 0"):
        await scoring.score(tenant, prompt, [-1], deadline_s=soon)
    score = partial(scoring.score, tenant, prompt, tokens, deadline_s=soon)
    waiting = [asyncio.create_task(score()) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0.1)
    with pytest.raises(QuotaExceeded, match="texts that are scored"):
        await score()
    for task in waiting:
        task.cancel()
    assert len(await asyncio.gather(*waiting, return_exceptions=True)) == WAITING_MAX
    for worker in gateway.workers:
        await worker.die()
    with pytest.raises((NoWorker, DeadlineExceeded)):
        await scoring.score(tenant, prompt, tokens, deadline_s=time.monotonic() + 2)


async def test_a_text_is_stored_by_what_the_model_makes_of_its_end(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    surprise = services_of(gateway.parts, gateway.access).remembering.surprise
    tenant, worker = gateway.access.tenant(""), gateway.workers[0]
    worker.scorer = needs(gateway, "46", 6.0)
    near = [ScoredMemory(Memory("gate", "notes", TEXTS["gate"], "", (), 0.0), 1.0, 0.9, None)]

    async def judged(
        *hits: ScoredMemory, text: str = "The gate is 46.", within_s: float = 10.0
    ) -> SurpriseScore:
        return await surprise.judge(tenant, text, hits, deadline_s=time.monotonic() + within_s)

    alone = await judged()
    assert alone.stored
    assert alone.strength == 1.0
    assert alone.nats_per_token == pytest.approx(6.25)
    assert alone.nats_per_token_recalled is None
    recalled = await judged(*near)
    assert not recalled.stored
    assert recalled.nats_per_token == pytest.approx(6.25)
    assert recalled.nats_per_token_recalled == pytest.approx(0.25)
    assert "already" in recalled.reason
    assert (await judged(*near, text="word " * 600)).reason.startswith("not judged: text: ")
    assert (await judged(text="a <|user|> b")).reason.startswith("not judged: text: must not contain")
    worker.script = Script(hangs_after=0)
    late = await judged(*near, within_s=0.1)
    assert late.stored
    assert late.nats_per_token is None
    assert late.reason.startswith("not judged")
