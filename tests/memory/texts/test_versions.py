"""A memory can be corrected, and its history tells it truthfully."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from memserve.domain import (
    Finding,
    FindingKind,
    Link,
    LinkKind,
    Memory,
    MemoryAction,
    MemoryKind,
    MemoryState,
    NewMemory,
    Place,
    SearchQuery,
    WritePolicy,
)
from memserve.errors import (
    InvalidField,
    MemoryConflict,
    MemoryNotFound,
    NamespaceNotFound,
    VersionConflict,
    VersionNotFound,
)
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.records import VERSIONS_MAX
from memserve.memory.texts.requests import MemoryChanges, MemoryName
from tests.memory.texts.handbook import TENANT, ids, remember, search

GATE = MemoryName("handbook", "gate")


async def update(memory: VectorMemory, text: str, expected: int | None = None) -> Memory:
    content = NewMemory("handbook", text, memory_id="gate")
    changes = MemoryChanges(content, frozenset({"text"}), expected)
    updated = (await memory.update(TENANT, changes, "bob", WritePolicy(skip_relations=True))).memory
    assert updated is not None
    return updated


async def actions(memory: VectorMemory) -> list[MemoryAction]:
    history = await memory.history(TENANT, "handbook", "gate")
    return [version.action for version in history.versions]


@pytest.mark.asyncio
async def test_every_field_comes_back_as_it_was_remembered(vector: VectorMemory) -> None:
    new = NewMemory(
        "notes", "text", "source", ("k",), "m1", MemoryKind.PROCEDURE,
        metadata={"n": 1, "x": 1.0, "yes": True, "tags": ("a", "b")}, valid_from_s=1.5, valid_until_s=2e9,
        applies_when='region == "eu"', strength=2.5, links=(Link(LinkKind.CAUSED_BY, "m0", "others"),),
        place=Place("doc", 3, "Title", ("One", "Two")), pinned=True,
    )  # fmt: skip
    stored = await vector.remember(TENANT, new, "ann")
    assert stored.created and stored.memory is not None
    kept = await vector.get(TENANT, "notes", "m1")
    assert kept == stored.memory
    for name in ("kind", "metadata", "applies_when", "strength", "links", "place", "pinned", "valid_from_s"):
        assert getattr(kept, name) == getattr(new, name), name
    assert (kept.author, kept.version, kept.state) == ("ann", 1, MemoryState.LIVE)
    again = await vector.remember(TENANT, new, "ben")
    assert (again.created, again.memory) == (False, kept)
    for change in ({"kind": MemoryKind.FACT}, {"metadata": {"n": 1.0}}, {"strength": 1.0}, {"pinned": False}):
        with pytest.raises(MemoryConflict):
            await vector.remember(TENANT, replace(new, **change), "ann")  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_an_update_is_a_new_version_and_the_old_one_stays(vector: VectorMemory) -> None:
    first = await remember(vector, "The north gate opens with the code QX7741B.", memory_id="gate")
    second = await update(vector, "The north gate opens with the code ZZ9000A.")
    assert (second.version, second.author, second.created_s) == (2, "bob", first.created_s)
    assert second.source == first.source, "fields that are not named stay"
    assert await vector.get(TENANT, "handbook", "gate") == second
    assert await vector.get(TENANT, "handbook", "gate", version=1) == first
    assert await vector.get(TENANT, "handbook", "gate", as_of_s=first.updated_s) == first
    assert ids(await search(vector, "ZZ9000A")) == ["gate"]
    (hit,) = await search(vector, "QX7741B")
    assert hit.memory == second and hit.bm25_score is None, "the words of before are not found"
    assert await actions(vector) == [MemoryAction.REMEMBERED, MemoryAction.UPDATED]
    with pytest.raises(VersionNotFound):
        await vector.get(TENANT, "handbook", "gate", version=3)
    with pytest.raises(VersionNotFound):
        await vector.get(TENANT, "handbook", "gate", as_of_s=first.created_s - 1)
    unchanged = await vector.update(
        TENANT, MemoryChanges(NewMemory("handbook", second.text, memory_id="gate"), frozenset({"text"}))
    )
    assert (unchanged.created, unchanged.memory) == (False, second)
    assert await vector.count(TENANT, "handbook") == 1


@pytest.mark.asyncio
async def test_an_update_is_refused_when_another_version_is_current(vector: VectorMemory) -> None:
    await remember(vector, "one", memory_id="gate")
    await update(vector, "two", expected=1)
    with pytest.raises(VersionConflict) as conflict:
        await update(vector, "three", expected=1)
    assert conflict.value.current == 2
    results = await asyncio.gather(
        *(update(vector, f"four {number}", expected=2) for number in range(6)), return_exceptions=True
    )
    assert sum(isinstance(result, Memory) for result in results) == 1
    assert all(isinstance(result, Memory | VersionConflict) for result in results)
    # Without an expected version every update takes place, one after the other.
    await asyncio.gather(*(update(vector, f"five {number}") for number in range(6)))
    assert (await vector.get(TENANT, "handbook", "gate")).version == 9
    for refused, content in (
        (MemoryNotFound, NewMemory("handbook", "x", memory_id="none")),
        (NamespaceNotFound, NewMemory("nowhere", "x", memory_id="gate")),
        (InvalidField, NewMemory("handbook", "", memory_id="gate")),
    ):
        with pytest.raises(refused):
            await vector.update(TENANT, MemoryChanges(content, frozenset({"text"})))
    with pytest.raises(InvalidField):
        await vector.update(
            TENANT, MemoryChanges(NewMemory("handbook", "x", memory_id="gate"), frozenset({"x"}))
        )


@pytest.mark.asyncio
async def test_what_is_forgotten_can_be_restored(vector: VectorMemory) -> None:
    first = await remember(vector, "The north gate opens with the code QX7741B.", memory_id="gate")
    await update(vector, "The north gate opens with the code ZZ9000A.")
    assert await vector.forget(TENANT, "handbook", "gate", "carl")
    assert await search(vector, "ZZ9000A") == []
    history = await vector.history(TENANT, "handbook", "gate")
    assert (history.current.state, history.current.author) == (MemoryState.FORGOTTEN, "carl")
    restored = await vector.restore(TENANT, GATE, "dora")
    assert (restored.text, restored.version) == ("The north gate opens with the code ZZ9000A.", 4)
    assert ids(await search(vector, "ZZ9000A")) == ["gate"]
    oldest = await vector.restore(TENANT, GATE, version=1)
    assert (oldest.text, oldest.version, oldest.state) == (first.text, 5, MemoryState.LIVE)
    assert ids(await search(vector, "QX7741B")) == ["gate"]
    with pytest.raises(VersionNotFound):
        await vector.restore(TENANT, GATE, version=9)
    with pytest.raises(VersionConflict):
        await vector.restore(TENANT, GATE, version=1, expected_version=1)
    assert await actions(vector) == [
        MemoryAction.REMEMBERED, MemoryAction.UPDATED, MemoryAction.FORGOTTEN, MemoryAction.RESTORED,
        MemoryAction.RESTORED,
    ]  # fmt: skip
    assert await vector.count(TENANT, "handbook") == 1


@pytest.mark.asyncio
async def test_a_superseded_memory_keeps_its_history_and_frees_its_slot(vector: VectorMemory) -> None:
    await remember(vector, "The north gate opens with the code QX7741B.", memory_id="gate")
    await remember(vector, "The north gate opens with the code ZZ9000A.", memory_id="new")
    lost, won = await vector.supersede(TENANT, GATE, MemoryName("handbook", "new"), "bob")
    assert (lost.state, lost.superseded_by) == (
        MemoryState.SUPERSEDED, Link(LinkKind.SUPERSEDES, "new", "handbook")
    )  # fmt: skip
    assert Link(LinkKind.SUPERSEDES, "gate") in won.links
    for query in ("QX7741B", "which code opens the north gate?"):
        assert ids(await search(vector, query, limit=1)) == ["new"]
    assert (await vector.get(TENANT, "handbook", "gate")).text.endswith("QX7741B.")
    assert await vector.supersede(TENANT, GATE, MemoryName("handbook", "new")) == (lost, won), "once"
    asked = SearchQuery(("handbook",), "ZZ9000A", 1, link_depth=1, link_kinds=(LinkKind.SUPERSEDES,))
    linked = (await vector.search(TENANT, asked, 10)).hits
    assert [(hit.memory.memory_id, hit.via and hit.via.kind) for hit in linked] == [
        ("new", None), ("gate", LinkKind.SUPERSEDES)
    ]  # fmt: skip
    await vector.restore(TENANT, GATE)
    assert set(ids(await search(vector, "north gate code"))) == {"gate", "new"}
    with pytest.raises(InvalidField):
        await vector.supersede(TENANT, GATE, GATE)
    with pytest.raises(MemoryNotFound):
        await vector.supersede(TENANT, MemoryName("handbook", "none"), GATE)


@pytest.mark.asyncio
async def test_a_history_has_a_bounded_number_of_versions(vector: VectorMemory) -> None:
    await remember(vector, "text 0", memory_id="gate")
    for number in range(1, VERSIONS_MAX + 3):
        await update(vector, f"text {number}")
    history = await vector.history(TENANT, "handbook", "gate")
    assert (len(history.versions), history.dropped) == (VERSIONS_MAX, 3)
    assert history.versions[0].memory.version == 4
    with pytest.raises(VersionNotFound):
        await vector.get(TENANT, "handbook", "gate", version=3)


def always(kind: FindingKind) -> Callable[..., list[Finding]]:
    return lambda memory, near: [
        Finding(kind, other.namespace, other.memory_id, 1.0, "a rule of the test") for other, _ in near
    ]


@pytest.mark.asyncio
async def test_what_is_near_is_told_linked_and_superseded_where_it_is_wanted(vector: VectorMemory) -> None:
    await remember(vector, "The office of Anna is in hall two.", memory_id="old")
    vector._relate = always(FindingKind.UPDATE)
    new = NewMemory("handbook", "The office of Anna is in hall nine.", memory_id="new")
    told = await vector.remember(TENANT, new)
    assert [(finding.kind, finding.memory_id, finding.superseded) for finding in told.findings] == [
        (FindingKind.UPDATE, "old", False)
    ]
    assert told.memory is not None and told.memory.links == (Link(LinkKind.CONTRADICTS, "old"),)
    repeated = await vector.remember(TENANT, new)
    assert (repeated.created, repeated.memory) == (False, told.memory), "links that were found do not matter"
    await vector.erase(TENANT, MemoryName("handbook", "new"))
    told = await vector.remember(TENANT, new, "", WritePolicy(supersede_updates=True))
    assert told.findings[0].superseded
    old = await vector.get(TENANT, "handbook", "old")
    assert (
        old.state is MemoryState.SUPERSEDED
        and len((await vector.history(TENANT, "handbook", "old")).versions) == 2
    )
    vector._relate = always(FindingKind.DUPLICATE)
    skipped = await vector.remember(
        TENANT, NewMemory("handbook", "Anna's office: hall nine.", memory_id="third"), "",
        WritePolicy(skip_duplicates=True),
    )  # fmt: skip
    assert skipped.memory is not None
    assert (skipped.created, skipped.memory.memory_id) == (False, "new")
    with pytest.raises(MemoryNotFound):
        await vector.get(TENANT, "handbook", "third")
    untold = await vector.remember(
        TENANT, NewMemory("handbook", "x y z", memory_id="4"), "", WritePolicy(skip_relations=True)
    )
    assert untold.findings == ()
