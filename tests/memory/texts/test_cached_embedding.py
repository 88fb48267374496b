"""Texts are embedded once, off the event loop, in batches, and no call spoils another."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from memserve.errors import EmbedderUnavailable, InvalidField, QuotaExceeded
from memserve.memory.texts.encoders.cached import CachedEmbedding
from memserve.memory.texts.encoders.embedder import BatchLimits, Floats
from memserve.memory.texts.encoders.vector_cache import ENTRY_BYTES, VectorCache, cache_key
from memserve.memory.texts.milvus import Vectors
from memserve.metrics.embedding import EmbeddingMetrics

DIM = 8


class Counting:
    """A vector for each text, from its letters. It waits while `gate` is closed."""

    def __init__(
        self, *, refuse: Callable[[str], Exception | None] = lambda text: None, limit: int = 16
    ) -> None:
        self.name, self.vectors = "counting", Vectors(DIM, "counting")
        self.limits = BatchLimits(limit, 4096, 1024)
        self.calls: list[tuple[bool, list[str]]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self._refuse = refuse

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        self.threads.add(threading.get_ident())
        self.calls.append((query, list(texts)))
        assert self.gate.wait(10)
        for text in texts:
            if (error := self._refuse(text)) is not None:
                raise error
        return np.stack([vector_of(text) for text in texts])

    def tokens(self, text: str) -> int:
        return len(text)


def vector_of(text: str) -> Floats:
    seeded = np.random.default_rng(list(text.encode()) or [0]).normal(size=DIM).astype(np.float32)
    return seeded / np.float32(np.linalg.norm(seeded))


async def ready(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def begun(embedding: CachedEmbedding, text: str = "first", tenant: str = "a") -> "asyncio.Task[Floats]":
    """A call that holds the tenant's place."""
    model = embedding.embedder
    assert isinstance(model, Counting)
    model.gate.clear()
    calls = len(model.calls)
    task = asyncio.create_task(embedding.embed(tenant, [text], query=False))
    await ready(lambda: len(model.calls) > calls)
    return task


async def test_rows_come_in_order_and_twice_where_a_text_is_there_twice() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    rows = await embedding.embed("a", ["x", "y", "x"], query=False)
    np.testing.assert_array_equal(rows, np.stack([vector_of(text) for text in "xyx"]))
    assert model.calls == [(False, ["x", "y"])]
    assert threading.get_ident() not in model.threads
    assert (await embedding.embed("a", [], query=False)).shape == (0, DIM)
    embedding.close()


async def test_a_text_is_embedded_once_for_each_tenant_and_role() -> None:
    metrics = EmbeddingMetrics()
    model = Counting()
    embedding = CachedEmbedding(model, metrics=metrics)
    for _ in range(3):
        for tenant in ("a", "b"):
            for query in (False, True):
                await embedding.embed(tenant, ["same"], query=query)
    assert len(model.calls) == 4
    assert metrics.cache.labels("hit")._value.get() == 8
    assert metrics.cache.labels("miss")._value.get() == 4
    embedding.close()


async def test_calls_at_the_same_time_share_one_text() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    rows = await asyncio.gather(*(embedding.embed("a", ["same"], query=False) for _ in range(20)))
    assert len(model.calls) == 1 and len({row.tobytes() for row in rows}) == 1
    embedding.close()


async def test_what_comes_while_the_thread_is_busy_is_one_batch() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    first = await begun(embedding)
    others = [asyncio.create_task(embedding.embed("a", [f"t{n}"], query=False)) for n in range(20)]
    await asyncio.sleep(0.02)
    model.gate.set()
    await asyncio.gather(first, *others)
    assert [len(texts) for _, texts in model.calls] == [1, 16, 4]
    embedding.close()


async def test_long_texts_make_smaller_batches() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    await embedding.embed("a", [f"{n} " + "x" * 5000 for n in range(10)], query=False)
    assert [len(texts) for _, texts in model.calls] == [4, 4, 2]
    assert BatchLimits(3, 10, 10).fitting([50]) == 1 and BatchLimits(3, 10, 10).fitting([]) == 0
    embedding.close()


async def test_queries_do_not_wait_for_all_passages() -> None:
    model = Counting(limit=4)
    embedding = CachedEmbedding(model)
    first = await begun(embedding)
    passages = asyncio.create_task(embedding.embed("a", [f"t{n}" for n in range(12)], query=False))
    queries = asyncio.create_task(embedding.embed("a", [f"q{n}" for n in range(8)], query=True))
    await asyncio.sleep(0.02)
    model.gate.set()
    await asyncio.gather(first, passages, queries)
    assert [query for query, _ in model.calls[1:]] == [True, False, True, False, False]
    embedding.close()


async def test_another_tenant_does_not_wait_for_a_long_queue() -> None:
    model = Counting(limit=1)
    embedding = CachedEmbedding(model)
    first = await begun(embedding)
    many = asyncio.create_task(embedding.embed("a", [f"t{n}" for n in range(50)], query=False))
    other = asyncio.create_task(embedding.embed("b", ["other"], query=True))
    await ready(lambda: (True, ["other"]) in model.calls)
    assert len(model.calls) == 2
    model.gate.set()
    await asyncio.gather(first, many, other)
    embedding.close()


async def test_a_cancelled_call_takes_nothing_from_another() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    first = await begun(embedding)
    both = [asyncio.create_task(embedding.embed("a", ["shared", f"own{n}"], query=False)) for n in range(2)]
    await asyncio.sleep(0.02)
    both[0].cancel()
    first.cancel()
    await asyncio.gather(first, both[0], return_exceptions=True)
    model.gate.set()
    np.testing.assert_array_equal((await both[1])[0], vector_of("shared"))
    assert model.calls[1:] == [(False, ["shared", "own1"])], "what nobody waits for is not embedded"
    embedding.close()


async def test_only_the_texts_that_are_the_reason_fail() -> None:
    bad = {"t3", "t9"}
    model = Counting(refuse=lambda text: InvalidField("text", "too long") if text in bad else None)
    embedding = CachedEmbedding(model)
    first = await begun(embedding)
    calls = [asyncio.create_task(embedding.embed("a", [f"t{n}"], query=False)) for n in range(16)]
    await asyncio.sleep(0.02)
    model.gate.set()
    results = await asyncio.gather(first, *calls, return_exceptions=True)
    failed = [number for number, result in enumerate(results[1:]) if isinstance(result, InvalidField)]
    assert failed == [3, 9]
    assert len([result for result in results if isinstance(result, np.ndarray)]) == 15
    with pytest.raises(InvalidField):
        await embedding.embed("a", ["t3"], query=False)
    embedding.close()


async def test_an_embedder_that_is_unavailable_is_not_asked_for_every_text() -> None:
    model = Counting(refuse=lambda text: EmbedderUnavailable("down"))
    embedding = CachedEmbedding(model)
    with pytest.raises(EmbedderUnavailable, match="down"):
        await embedding.embed("a", [f"t{n}" for n in range(10)], query=False)
    assert len(model.calls) == 1
    model._refuse = lambda text: None
    assert (await embedding.embed("a", ["t1"], query=False)).shape == (1, DIM), "no failure is kept"
    embedding.close()


async def test_a_batch_of_bad_texts_is_bounded() -> None:
    model = Counting(refuse=lambda text: ValueError("no"), limit=200)
    embedding = CachedEmbedding(model)
    with pytest.raises((ValueError, EmbedderUnavailable)):
        await embedding.embed("a", [f"{n}" for n in range(200)], query=False)
    assert len(model.calls) == 64
    embedding.close()


async def test_a_forgotten_text_is_not_kept_also_when_it_is_on_its_way() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    await embedding.embed("a", ["x", "y"], query=False)
    await embedding.embed("a", ["x"], query=True)
    await embedding.embed("b", ["x"], query=False)
    assert embedding.forget("a", ["x", "never seen"]) == 2
    before = len(model.calls)
    await embedding.embed("b", ["x"], query=False)
    await embedding.embed("a", ["y"], query=False)
    assert len(model.calls) == before
    task = await begun(embedding, "x")
    embedding.forget("a", ["x"])
    model.gate.set()
    await task
    assert embedding.forget("a", ["x"]) == 0
    embedding.close()


async def test_calls_that_wait_are_bounded_for_each_tenant() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    first = await begun(embedding)
    calls = [asyncio.create_task(embedding.embed("a", [f"t{n}"], query=False)) for n in range(150)]
    await asyncio.sleep(0.02)
    model.gate.set()
    results = await asyncio.gather(first, *calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, QuotaExceeded)]
    assert len(refused) == 22 and "tenant a" in str(refused[0])
    embedding.close()


async def test_the_end_ends_every_call() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    first = await begun(embedding)
    waiting = asyncio.create_task(embedding.embed("a", ["t"], query=False))
    await asyncio.sleep(0.02)
    embedding.close()
    for call in (first, waiting, embedding.embed("a", ["later"], query=False)):
        with pytest.raises(EmbedderUnavailable, match="closed"):
            await call
    model.gate.set()


async def test_the_loop_goes_on_while_a_text_is_embedded() -> None:
    model = Counting()
    embedding = CachedEmbedding(model)
    task = await begun(embedding)
    began_s = time.monotonic()
    await asyncio.sleep(0.01)
    assert time.monotonic() - began_s < 1 and not task.done()
    model.gate.set()
    await task
    embedding.close()


def test_the_cache_is_bounded_in_bytes_and_drops_what_was_used_longest_ago() -> None:
    entry = DIM * 4 + ENTRY_BYTES
    cache = VectorCache(3 * entry)
    rows = np.stack([vector_of(str(number)) for number in range(5)])
    keys = [cache_key("a", "e", str(number), query=False) for number in range(5)]
    for key, row in zip(keys[:3], rows, strict=False):
        cache.put(key, row)
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], rows[3])
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True, False]
    assert cache.bytes == 3 * entry == len(cache) * entry
    cache.put(keys[3], rows[3])
    assert len(cache) == 3 and cache.bytes == 3 * entry
    kept = cache.get(keys[3])
    assert kept is not None and kept.base is None and not kept.flags.writeable
    nothing = VectorCache(0)
    nothing.put(keys[0], rows[0])
    assert len(nothing) == 0 == nothing.bytes


def test_no_two_parts_of_a_key_can_be_shifted_into_each_other() -> None:
    keys = {
        cache_key(*parts, query=query)
        for parts in (("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("", "ab", "c"))
        for query in (False, True)
    }
    assert len(keys) == 8
