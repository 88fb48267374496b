"""Hits in a cross-encoder's order, within the time that is left."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from memserve.domain import Memory, ScoredMemory, SearchQuery
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.encoders.reranking import SAFE, Reranking
from memserve.memory.texts.memory import VectorMemory
from memserve.policy.recall.reranking import candidates_in_time, reordered
from tests.memory.texts.handbook import TENANT, remember


class ByLength:
    """The longer text is the better one."""

    name, identity = "by length", "0" * 16

    def __init__(self, slow_s: float = 0.0, error: Exception | None = None) -> None:
        self.seen: list[list[str]] = []
        self._slow_s, self._error = slow_s, error

    def tokens(self, query: str, texts: Sequence[str]) -> list[int]:
        return [10] * len(texts)

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        self.seen.append(list(texts))
        time.sleep(self._slow_s)
        if self._error is not None:
            raise self._error
        return [float(len(text)) for text in texts]


def hits(*texts: str) -> list[ScoredMemory]:
    return [
        ScoredMemory(Memory(f"m{number}", "notes", text, "", (), 0.0), 1.0 / (1 + number), None, None)
        for number, text in enumerate(texts)
    ]


def later(seconds: float) -> float:
    return time.monotonic() + seconds


async def test_the_candidates_are_in_the_order_of_their_scores_and_the_others_behind() -> None:
    reranking = Reranking(ByLength(), 3)
    found = await reranking("a", "q", hits("1", "333", "22", "4444"), later(60))
    assert [hit.memory.text for hit in found.hits] == ["333", "22", "1", "4444"]
    assert [hit.rerank_score for hit in found.hits] == [3.0, 2.0, 1.0, None]
    assert not found.note
    reranking.close()


async def test_without_time_the_order_stays_and_it_is_said() -> None:
    model = ByLength()
    reranking = Reranking(model, 16)
    found = await reranking("a", "q", hits("1", "22"), later(-1))
    assert [hit.memory.text for hit in found.hits] == ["1", "22"] and "not reranked" in found.note
    assert not model.seen
    assert reranking._metrics.reranked.labels("skipped")._value.get() == 1
    reranking.close()


async def test_as_many_are_read_as_the_time_does_for_and_the_time_is_learned() -> None:
    now_s = 100.0
    model = ByLength()
    reranking = Reranking(model, 16, clock=lambda: now_s)
    reranking._token_s = 1.0
    end_s = now_s + 35 / SAFE
    found = await reranking("a", "q", hits("1", "22", "333", "4444", "55555"), end_s)
    assert [hit.memory.text for hit in found.hits] == ["333", "22", "1", "4444", "55555"]
    assert found.note == "reranked 3 of 5 candidates: no more time"
    assert (await reranking("a", "q", hits("1", "22", "333", "4444"), end_s)).note == "", "it was quick"
    reranking.close()
    slow = Reranking(ByLength(slow_s=0.2), 16)
    assert not (await slow("a", "q", hits("1", "22"), later(5))).note
    assert "not reranked" in (await slow("a", "q", hits("1", "22"), later(0.05))).note
    slow.close()


async def test_a_reranker_that_is_busy_does_not_hold_up_a_search() -> None:
    reranking = Reranking(ByLength(slow_s=1.0), 16)
    first = asyncio.create_task(reranking("a", "q", hits("1", "22"), later(60)))
    await asyncio.sleep(0.05)
    began_s = time.monotonic()
    found = await reranking("a", "q", hits("1", "22"), later(0.1))
    assert time.monotonic() - began_s < 0.9 and "not reranked" in found.note
    assert [hit.rerank_score for hit in (await first).hits] == [2.0, 1.0]
    reranking.close()


async def test_a_reranker_that_fails_leaves_the_order() -> None:
    reranking = Reranking(ByLength(error=ValueError("broken")), 16)
    found = await reranking("a", "q", hits("1", "22"), later(60))
    assert [hit.memory.text for hit in found.hits] == ["1", "22"] and "ValueError" in found.note
    assert (await reranking("a", "q", hits("1"), later(60))).hits[0].memory.text == "1"
    reranking.close()


def test_equal_scores_keep_their_order_and_nan_comes_last() -> None:
    assert reordered([1.0, float("nan"), 2.0, 1.0]) == [2, 0, 3, 1]
    assert reordered([]) == []


@pytest.mark.parametrize(
    ("left_s", "fitting"), [(-1.0, 0), (0.0, 0), (0.9, 0), (1.0, 1), (2.9, 1), (3.0, 2), (99.0, 3)]
)
def test_candidates_count_by_their_tokens(left_s: float, fitting: int) -> None:
    assert candidates_in_time([10, 20, 30], 0.1, left_s) == fitting


async def search_reranked(vector: VectorMemory) -> tuple[ScoredMemory, ...]:
    query = SearchQuery(("handbook",), "the spare key", 1, rerank=True)
    return (await vector.search(TENANT, query, 10)).hits


async def test_a_search_is_reranked(vector: VectorMemory, embedder: BertEmbedder) -> None:
    for text in ("the spare key", "the spare key is in the drawer", "the spare key of hall three is lost"):
        await remember(vector, text)
    first = await search_reranked(vector)
    assert [hit.memory.text for hit in first] == ["the spare key"] and first[0].rerank_score is None
    vector.reranking = Reranking(ByLength(), 16)
    found = await search_reranked(vector)
    assert [hit.memory.text for hit in found] == ["the spare key of hall three is lost"]
    assert found[0].rerank_score == 35.0
