"""Memories come back as they were remembered, over real Milvus Lite."""

import asyncio
import time
import unicodedata

import pytest

from memserve.domain import Memory
from memserve.errors import (
    MemoryConflict,
    MemoryNotFound,
    NamespaceNotFound,
)
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.rules import content_id
from tests.memory.texts.handbook import TENANT, ids, remember, search


@pytest.mark.asyncio
async def test_a_memory_comes_back_as_it_was_remembered(vector: VectorMemory) -> None:
    text = "line one\n\"quoted\" 'single' \\ back\\slash 東京 🙂\ttab"
    before_s = time.time()
    stored = await remember(
        vector,
        text,
        namespace="notes",
        source="https://example.org/?a=1&b='2'",
        keywords=("alpha", 'be"ta'),
        memory_id="m:1",
    )
    assert before_s <= stored.created_s == stored.updated_s <= time.time()
    assert stored == Memory(
        "m:1", "notes", text, "https://example.org/?a=1&b='2'", ("alpha", 'be"ta'), stored.created_s,
        updated_s=stored.created_s,
    )  # fmt: skip
    assert await vector.get(TENANT, "notes", "m:1") == stored


@pytest.mark.asyncio
async def test_a_memory_at_every_limit_is_stored_whole(vector: VectorMemory) -> None:
    text = "ä" * 4096
    stored = await remember(
        vector, text, namespace="a" * 64, source="s" * 512, keywords=["k" * 64] * 16, memory_id="i" * 128
    )
    assert await vector.get(TENANT, "a" * 64, "i" * 128) == stored
    assert stored.text == text


@pytest.mark.asyncio
async def test_an_accent_in_one_piece_or_in_two_is_the_same_memory(vector: VectorMemory) -> None:
    composed, decomposed = "Le café de Zoë, 가나", unicodedata.normalize("NFD", "Le café de Zoë, 가나")
    assert composed != decomposed
    first = await remember(
        vector, decomposed, namespace="notes", source=decomposed, keywords=[decomposed], memory_id=""
    )
    assert (first.text, first.source, first.keywords) == (composed, composed, (composed,))
    assert (
        await remember(
            vector, composed, namespace="notes", source=composed, keywords=[composed], memory_id=""
        )
        == first
    )
    named = await remember(vector, decomposed, namespace="notes", source="", keywords=(), memory_id="m1")
    assert (
        await remember(vector, composed, namespace="notes", source="", keywords=(), memory_id="m1") == named
    )
    assert ids(await search(vector, unicodedata.normalize("NFD", "café"), namespace="notes")) == ids(
        await search(vector, "café", namespace="notes")
    )


@pytest.mark.asyncio
async def test_repeating_a_remember_returns_the_memory_stored_first(vector: VectorMemory) -> None:
    first = await remember(vector, "one", namespace="notes", source="s", keywords=["k"], memory_id="m1")
    again = await remember(vector, "one", namespace="notes", source="s", keywords=["k"], memory_id="m1")
    assert again == first
    assert await vector.count(TENANT, "notes") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "source", "keywords"), [("two", "s", ["k"]), ("one", "t", ["k"]), ("one", "s", ["l"])]
)
async def test_an_id_with_other_content_is_a_conflict_and_changes_nothing(
    vector: VectorMemory, text: str, source: str, keywords: list[str]
) -> None:
    first = await remember(vector, "one", namespace="notes", source="s", keywords=["k"], memory_id="m1")
    with pytest.raises(MemoryConflict) as conflict:
        await remember(vector, text, namespace="notes", source=source, keywords=keywords, memory_id="m1")
    assert conflict.value.memory_id == "m1"
    assert await vector.get(TENANT, "notes", "m1") == first


@pytest.mark.asyncio
async def test_concurrent_remembers_of_one_id_store_one_content(vector: VectorMemory) -> None:
    results = await asyncio.gather(
        *(remember(vector, f"text {n}", memory_id="m1") for n in range(8)), return_exceptions=True
    )
    winners = [result for result in results if isinstance(result, Memory)]
    assert len(winners) == 1
    assert all(isinstance(result, MemoryConflict) for result in results if not isinstance(result, Memory))
    assert await vector.get(TENANT, "handbook", "m1") == winners[0]


@pytest.mark.asyncio
async def test_the_same_content_remembered_twice_without_an_id_is_one_memory(vector: VectorMemory) -> None:
    first = await remember(vector, "the same")
    assert await remember(vector, "the same") == first
    assert first.memory_id == content_id("the same", "handbook.pdf", ())
    assert (await remember(vector, "not the same")).memory_id != first.memory_id
    assert await vector.count(TENANT, "handbook") == 2


@pytest.mark.asyncio
async def test_a_namespace_comes_into_being_with_its_first_memory(vector: VectorMemory) -> None:
    assert await vector.list_namespaces(TENANT) == []
    for call in (
        vector.get(TENANT, "notes", "m1"),
        vector.count(TENANT, "notes"),
        search(vector, "anything", namespace="notes"),
    ):
        with pytest.raises(NamespaceNotFound) as missing:
            await call
        assert missing.value.namespace == "notes"
    await remember(vector, "one", namespace="notes", memory_id="m1")
    await remember(vector, "two", namespace="a.b_c-d", memory_id="m1")
    assert await vector.list_namespaces(TENANT) == ["a.b_c-d", "notes"]
    assert await vector.count(TENANT, "notes") == 1


@pytest.mark.asyncio
async def test_an_unknown_id_in_a_known_namespace_is_not_found(vector: VectorMemory) -> None:
    await remember(vector, "one", memory_id="m1")
    with pytest.raises(MemoryNotFound) as missing:
        await vector.get(TENANT, "handbook", "m2")
    assert missing.value.memory_id == "m2"


@pytest.mark.asyncio
async def test_one_id_in_two_namespaces_is_two_memories(vector: VectorMemory) -> None:
    await remember(vector, "one", namespace="first", memory_id="m1")
    await remember(vector, "two", namespace="second", memory_id="m1")
    assert await vector.forget(TENANT, "first", "m1")
    assert (await vector.get(TENANT, "second", "m1")).text == "two"
