"""The pinned memories of a namespace, over real Milvus Lite and a real registry."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memserve.domain import NewMemory
from memserve.errors import NamespaceNotFound, PinnedMemoriesFull
from memserve.memory.texts.journal import PINNED_MAX, PINNED_MAX_BYTES
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.records import tenant_key
from memserve.memory.texts.requests import MemoryChanges, MemoryName

NAMESPACE = "desk"


def new(memory_id: str, text: str = "", *, pinned: bool = True, namespace: str = NAMESPACE) -> NewMemory:
    return NewMemory(namespace, text or f"Rule {memory_id} holds.", memory_id=memory_id, pinned=pinned)


def change(memory_id: str, field: str, **content: object) -> MemoryChanges:
    return MemoryChanges(
        NewMemory(NAMESPACE, memory_id=memory_id, **{"text": "", **content}),  # type: ignore[arg-type]
        frozenset({field}),
    )


async def ids(vector: VectorMemory, tenant: str = "acme") -> list[str]:
    return [memory.memory_id for memory in await vector.pinned(tenant, NAMESPACE)]


async def test_the_pinned_memories_are_those_that_are_live_and_pinned_oldest_first(
    vector: VectorMemory,
) -> None:
    for name, pinned in (("b", True), ("a", True), ("c", False), ("1", True)):
        await vector.remember("acme", new(name, pinned=pinned))
    assert await ids(vector) == ["b", "a", "1"]
    await vector.remember("bolt", new("z"))
    assert await ids(vector, "bolt") == ["z"]

    await vector.update("acme", change("c", "pinned", pinned=True))
    await vector.update("acme", change("a", "pinned", pinned=False))
    await vector.update("acme", change("b", "text", text="Rule b is another one."))
    assert await ids(vector) == ["b", "c", "1"]
    assert (await vector.pinned("acme", NAMESPACE))[0].text == "Rule b is another one."

    await vector.forget("acme", NAMESPACE, "1")
    assert await ids(vector) == ["b", "c"]
    await vector.restore("acme", MemoryName(NAMESPACE, "1"))
    assert await ids(vector) == ["b", "c", "1"]
    await vector.erase("acme", MemoryName(NAMESPACE, "c"))
    assert await ids(vector) == ["b", "1"]
    with pytest.raises(NamespaceNotFound):
        await vector.pinned("acme", "nowhere")


async def refused(write: Callable[[], object]) -> str:
    with pytest.raises(PinnedMemoriesFull) as refusal:
        await write()  # type: ignore[misc]
    return str(refusal.value)


async def test_a_namespace_has_a_bounded_number_of_pinned_memories_and_of_their_bytes(
    vector: VectorMemory,
) -> None:
    many = [new(f"n{number}") for number in range(PINNED_MAX + 3)]
    outcomes = [outcome async for outcome in vector.remember_many("acme", many)]
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert [type(error) for error in errors] == [PinnedMemoriesFull] * 3
    said = await refused(lambda: vector.remember("acme", new("more")))
    assert said.startswith("pinned: ")
    assert str(PINNED_MAX) in said
    assert str(PINNED_MAX_BYTES) in said
    # What is not pinned, another namespace and another tenant have room.
    await vector.remember("acme", new("free", pinned=False))
    await refused(lambda: vector.update("acme", change("free", "pinned", pinned=True)))
    await vector.remember("acme", new("more", namespace="other"))
    await vector.remember("bolt", new("more"))
    assert len(await vector.pinned("acme", NAMESPACE)) == PINNED_MAX

    await vector.remember("acme", new("long", "x" * 8000, namespace="texts"))
    await vector.remember("acme", new("longer", "y" * 8000, namespace="texts"))
    await refused(lambda: vector.remember("acme", new("longest", "z" * 400, namespace="texts")))
    await vector.remember("acme", new("short", "z" * 300, namespace="texts"))


async def test_a_change_of_the_pinned_memories_is_told_and_no_other_one(vector: VectorMemory) -> None:
    told: list[tuple[str, str]] = []
    vector.on_pinned_change(lambda owner, namespace: told.append((owner, namespace)))
    await vector.remember("acme", new("a", pinned=False))
    assert told == []
    await vector.remember("acme", new("b"))
    await vector.update("acme", change("b", "text", text="Rule b has changed."))
    await vector.forget("acme", NAMESPACE, "b")
    assert told == [(tenant_key("acme"), NAMESPACE)] * 3
