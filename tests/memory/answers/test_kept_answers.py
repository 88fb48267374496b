"""What an answer used is kept for a while, per tenant, bounded; and it goes with its memories."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest_asyncio

from memserve.domain import (
    CachedTokens,
    KeptAnswer,
    KeptModule,
    KeptPassage,
    KeptPrompt,
    LeaveOneOut,
    Message,
    ModuleKind,
    PassageWeight,
    RecallOutcome,
    Role,
    Skipped,
    SkipReason,
)
from memserve.memory.answers.records import packed
from memserve.memory.answers.store import WAITING_MAX, KeptAnswers
from memserve.memory.texts.records import memory_key
from tests.kv.redis_server import RedisServer

MESSAGES = (Message(Role.USER, "Which gate?"),)
PROMPT = KeptPrompt("", (7, 8, 9), (1, 2), MESSAGES, ("The gate is 46.",))


def answer(*memory_ids: str, prompt: KeptPrompt | None = None, **fields: Any) -> KeptAnswer:
    return replace(
        KeptAnswer(
            request_id=uuid.uuid4().hex,
            at_s=12.5,
            model="tiny",
            worker_id="w0",
            namespaces=("notes",),
            recall_outcome=RecallOutcome.FOUND,
            passages=tuple(
                KeptPassage("notes", memory_id, 2, 0.5, 0.75, "by meaning") for memory_id in memory_ids
            ),
            skipped=(),
            modules=(KeptModule("tone", 3, "d", ModuleKind.LORA, 1.0, ("a book",), ("e",)),),
            prompt_tokens=10,
            output_tokens=2,
            cached=CachedTokens(1, 2, 3),
            outcome="answered",
            prompt=prompt,
            prompt_absent="" if prompt else "not asked for",
        ),
        **fields,
    )


def key(memory_id: str, tenant: str = "acme") -> str:
    return memory_key(tenant, "notes", memory_id)


def text_of(token_ids: object) -> str:
    return f"text of {token_ids}"


@pytest_asyncio.fixture
async def kept(redis_server: RedisServer) -> AsyncIterator[KeptAnswers]:
    store = KeptAnswers(redis_server.url, 60.0, text_of, answers_max=5, prompts_max=2)
    yield store
    await store.close()


async def test_an_answer_comes_back_as_it_was_kept_with_the_text_of_its_prompt(
    kept: KeptAnswers, redis_server: RedisServer
) -> None:
    skipped = Skipped("notes", "old", 1, SkipReason.EXPIRED, "since May")
    full = answer("a", "b", prompt=PROMPT, skipped=(skipped,))
    shown = replace(full, prompt=replace(PROMPT, text="text of (7, 8, 9)"))
    kept.keep("acme", full, time.monotonic())
    assert await kept.get("acme", full.request_id) == shown, "it waits to be written"
    await kept.write()
    weights = LeaveOneOut((PassageWeight("notes", "a", 2, 4.0, 2.0),), -0.5, 2, 20.0)
    await kept.keep_weights("acme", full.request_id, weights)
    other = KeptAnswers(redis_server.url, 60.0, text_of)
    assert await other.get("acme", full.request_id) == replace(shown, leave_one_out=weights)
    await other.close()


async def test_a_tenant_sees_no_answer_of_another_whatever_their_names(kept: KeptAnswers) -> None:
    mine = answer("a")
    kept.keep("acme", mine, time.monotonic())
    await kept.write()
    for tenant, request_id in (
        ("acm", mine.request_id),
        ("", mine.request_id),
        ("acme:a", mine.request_id),
        ("acme", "ids"),
        ("acme", f"../{mine.request_id}"),
        ("acme", mine.request_id.upper()),
    ):
        assert await kept.get(tenant, request_id) is None


async def test_the_oldest_answers_and_the_oldest_prompts_leave(kept: KeptAnswers) -> None:
    answers = [answer("a", prompt=PROMPT) for _ in range(7)]
    for each in answers:
        kept.keep("acme", each, time.monotonic())
        await kept.write()
    kept.keep("other", answer("a"), time.monotonic())
    await kept.write()
    found = [await kept.get("acme", each.request_id) for each in answers]
    assert [each is not None for each in found] == [False] * 2 + [True] * 5
    assert [each.prompt is not None for each in found if each] == [False] * 3 + [True] * 2
    assert found[2] is not None
    assert "2 of a tenant's prompts are kept" in found[2].prompt_absent


async def test_what_used_a_memory_goes_with_it_what_waits_and_what_is_under_way_too(
    kept: KeptAnswers, redis_server: RedisServer
) -> None:
    written, other, waiting = answer("a", "b"), answer("b"), answer("a")
    by_skipping = answer(skipped=(Skipped("notes", "a", 1, SkipReason.SCORE, ""),))
    for each in (written, other, by_skipping):
        kept.keep("acme", each, time.monotonic())
    await kept.write()
    kept.keep("acme", waiting, time.monotonic())
    began_s = time.monotonic()
    await asyncio.sleep(0.01)
    assert await kept.forget_memory("acme", key("a")) == 3
    under_way, later = answer("a"), answer("a")
    kept.keep("acme", under_way, began_s)
    await asyncio.sleep(0.01)
    kept.keep("acme", later, time.monotonic())
    await kept.write()
    for gone in (written, by_skipping, waiting, under_way):
        assert await kept.get("acme", gone.request_id) is None
        assert gone.request_id.encode() not in b"".join(redis_server.client.scan_iter("*"))
    assert await kept.get("acme", other.request_id) == other
    assert await kept.get("acme", later.request_id) == later, "the id belongs to a new memory"
    assert await kept.forget_memory("acme", key("nobody's")) == 0


async def test_answers_expire_and_so_does_all_that_stands_beside_them(redis_server: RedisServer) -> None:
    store = KeptAnswers(redis_server.url, 1.0, text_of)
    kept = answer("a", prompt=PROMPT)
    store.keep("acme", kept, time.monotonic())
    await store.write()
    lives = [redis_server.client.ttl(name) for name in redis_server.client.scan_iter("memserve:answers:*")]
    assert len(lives) == 5
    assert all(0 <= life <= 1 for life in lives)
    await store.close()


async def test_nothing_waits_for_ever_and_what_is_dropped_is_counted(redis_server: RedisServer) -> None:
    dropped: list[int] = []
    full = KeptAnswers(redis_server.url, 60.0, text_of, dropped=dropped.append)
    for _ in range(WAITING_MAX + 3):
        full.keep("acme", answer("a"), time.monotonic())
    assert sum(dropped) == 3
    await full.close()
    assert redis_server.client.zcard(next(redis_server.client.scan_iter("*:ids"))) == WAITING_MAX
    dropped.clear()
    unreachable = KeptAnswers("redis://127.0.0.1:1", 60.0, text_of, dropped=dropped.append)
    unreachable.keep("acme", answer("a"), time.monotonic())
    await unreachable.write()
    assert dropped == [1]
    off = KeptAnswers(redis_server.url, 0.0, text_of)
    off.keep("acme", kept := answer("a"), time.monotonic())
    assert await off.get("acme", kept.request_id) is None
    await unreachable.close()
    await off.close()


async def test_a_prompt_that_is_too_large_is_left_out_and_the_answer_says_so(kept: KeptAnswers) -> None:
    large = answer("a", prompt=replace(PROMPT, token_ids=tuple(range(600_000))))
    assert large.prompt is not None
    assert packed(large.prompt) is None
    kept.keep("acme", large, time.monotonic())
    await kept.write()
    found = await kept.get("acme", large.request_id)
    assert found is not None
    assert found.prompt is None
    assert "over 2097152 bytes" in found.prompt_absent


async def test_a_record_of_a_newer_gateway_is_read(kept: KeptAnswers, redis_server: RedisServer) -> None:
    written = answer("a")
    kept.keep("acme", written, time.monotonic())
    await kept.write()
    name = next(redis_server.client.scan_iter(f"*:a:{written.request_id}"))
    record = redis_server.client.hget(name, "record")
    text = record.decode() if isinstance(record, bytes) else record
    redis_server.client.hset(name, "record", '{"mood":"good",' + text[1:])
    assert await kept.get("acme", written.request_id) == written
