"""Many memories at once: batches, lists, exports, imports, and the feed of changes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from memserve.domain import Link, LinkKind, MemoryAction, MemoryKind, MemoryState, NewMemory, Place
from memserve.errors import ChangesMissed, InvalidField, MemoryConflict, NamespaceNotFound, QuotaReached
from memserve.memory.texts import journal as journal_module
from memserve.memory.texts.journal_entries import Quotas
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import ItemOutcome, LineOutcome, ListQuery, MemoryChanges, MemoryName
from memserve.memory.texts.store import ListOrder
from tests.memory.texts.handbook import TENANT, ids, remember, search


async def store(vector: VectorMemory, items: list[NewMemory]) -> list[ItemOutcome]:
    return [outcome async for outcome in vector.remember_many(TENANT, items, "ann")]


@pytest.mark.asyncio
async def test_of_a_batch_each_is_told_and_the_bad_ones_stop_nothing(vector: VectorMemory) -> None:
    items = [NewMemory("notes", f"note number {number}", memory_id=f"m{number}") for number in range(400)]
    for number in range(0, 400, 100):
        items[number] = NewMemory("notes", " ", memory_id=f"m{number}")
    items[7] = NewMemory("No Name", "x")
    items[55] = items[54]
    items[66] = NewMemory("notes", "another text", memory_id="m65")
    outcomes = await store(vector, items)
    assert [outcome.index for outcome in outcomes] == list(range(400))
    refused = {outcome.index: outcome.error for outcome in outcomes if outcome.error is not None}
    assert set(refused) == {0, 7, 66, 100, 200, 300}
    assert isinstance(refused[0], InvalidField) and refused[0].field == "text"
    assert isinstance(refused[7], InvalidField) and refused[7].field == "namespace"
    assert isinstance(refused[66], MemoryConflict)
    twice = outcomes[55].remembered
    assert twice is not None and not twice.created
    assert await vector.counts(TENANT) == {"notes": 393}
    assert ids(await search(vector, "note number 321", namespace="notes", limit=1)) == ["m321"]
    again = await store(vector, items)
    assert all(not told.remembered.created for told in again if told.remembered is not None)
    assert await vector.counts(TENANT) == {"notes": 393}


@pytest.mark.asyncio
async def test_a_batch_beyond_a_quota_is_told_item_by_item(vector: VectorMemory) -> None:
    vector._journal.quotas = Quotas(memories=5, bytes=1 << 20)
    outcomes = await store(vector, [NewMemory("notes", f"note {number}") for number in range(9)])
    assert [type(outcome.error) for outcome in outcomes] == [type(None)] * 5 + [QuotaReached] * 4
    vector._journal.quotas = Quotas(memories=100, bytes=20_000)
    outcomes = await store(vector, [NewMemory("notes", f"{number} " * 2000) for number in range(9)])
    errors = [outcome.error for outcome in outcomes]
    assert errors[0] is None and isinstance(errors[-1], QuotaReached)
    assert "max_memory_bytes_per_tenant" in str(errors[-1])
    # What takes a memory away is never refused.
    assert await vector.forget(TENANT, "notes", (await listed(vector))[0])
    (usage,) = (await vector.usage(TENANT)).namespaces
    assert usage.bytes <= 21_000 and usage.records == usage.memories + 1


async def listed(vector: VectorMemory, **fields: Any) -> list[str]:
    """The ids of all pages."""
    query, found = ListQuery(**{"namespaces": ("notes",), "limit": 7, **fields}), list[str]()
    while True:
        page = await vector.list_memories(TENANT, query)
        found += [memory.memory_id for memory in page.memories]
        if not page.next_page_token:
            return found
        query = ListQuery(
            **{"namespaces": ("notes",), "limit": 7, **fields, "page_token": page.next_page_token}
        )


@pytest.mark.asyncio
async def test_a_list_has_pages_orders_filters_and_states(vector: VectorMemory) -> None:
    items = [
        NewMemory(
            "notes", f"text {number}", memory_id=f"m{number:02d}", metadata={"number": number},
            kind=MemoryKind.EPISODE if number % 3 == 0 else MemoryKind.FACT,
            place=Place("doc", 40 - number),
        )
        for number in range(40)
    ]  # fmt: skip
    await store(vector, items)
    names = [item.memory_id for item in items]
    assert await listed(vector, order=ListOrder.MEMORY_ID) == names
    assert await listed(vector, order=ListOrder.MEMORY_ID, descending=True) == names[::-1]
    assert await listed(vector, order=ListOrder.PLACE) == names[::-1]
    assert sorted(await listed(vector)) == names
    assert await listed(vector, order=ListOrder.MEMORY_ID, filter="metadata.number >= 37") == names[37:]
    assert await listed(vector, order=ListOrder.MEMORY_ID, kinds=(MemoryKind.EPISODE,)) == names[::3]
    assert await listed(vector, filter='kind == "episode" and kind == "fact"') == []
    await vector.forget(TENANT, "notes", "m05")
    assert await listed(vector, states=(MemoryState.FORGOTTEN,)) == ["m05"]
    assert "m05" not in await listed(vector)
    with pytest.raises(NamespaceNotFound):
        await vector.list_memories(TENANT, ListQuery(("nowhere",)))
    page = await vector.list_memories(TENANT, ListQuery(("notes",), limit=7))
    forged = base64.urlsafe_b64encode(json.dumps(["0" * 16, [0, "notes", "m"]]).encode()).decode()
    for bad in (
        ListQuery(("notes",), limit=0), ListQuery(("notes",), limit=257), ListQuery(()),
        ListQuery(("notes",), states=()), ListQuery(("notes",), filter="("), ListQuery(("No",)),
        ListQuery(("notes",), page_token="x"), ListQuery(("notes",), page_token=forged),
        ListQuery(("notes",), page_token=page.next_page_token, filter="version == 1"),
        ListQuery(("notes",), created_from_s=float("nan")),
    ):  # fmt: skip
        with pytest.raises(InvalidField):
            await vector.list_memories(TENANT, bad)


async def lines_of(lines: list[Mapping[str, Any]]) -> AsyncIterator[Mapping[str, Any]]:
    for line in lines:
        yield json.loads(json.dumps(line))


async def brought_in(vector: VectorMemory, tenant: str, lines: list[Mapping[str, Any]]) -> list[LineOutcome]:
    return [outcome async for outcome in vector.import_lines(tenant, lines_of(lines))]


@pytest.mark.asyncio
async def test_an_export_reads_back_exactly(vector: VectorMemory) -> None:
    new = NewMemory(
        "notes", "Füße 東京 🙂", metadata={"a": 1, "b": 1.5, "c": ("x",)}, memory_id="m1", strength=2.0,
        links=(Link(LinkKind.NEXT, "m2"),), valid_from_s=0.1, place=Place("d", 1, "t", ("h",)),
    )  # fmt: skip
    await vector.remember(TENANT, new, "ann")
    changes = MemoryChanges(NewMemory("notes", "Another text", memory_id="m1"), frozenset({"text"}))
    await vector.update(TENANT, changes, "bob")
    await store(
        vector, [NewMemory("notes", f"note {number}", memory_id=f"n{number}") for number in range(300)]
    )
    await remember(vector, "elsewhere", namespace="others", memory_id="m1")
    await vector.forget(TENANT, "notes", "n5")
    await vector.supersede(TENANT, MemoryName("notes", "n6"), MemoryName("others", "m1"))
    lines: list[Mapping[str, Any]] = [line async for line in vector.export(TENANT, ["notes", "others"])]
    assert lines[0]["namespaces"] == {"notes": 301, "others": 1}
    outcomes = await brought_in(vector, "globex", lines)
    assert [outcome.error for outcome in outcomes] == [None] * 304
    assert sum(outcome.created for outcome in outcomes) == 302
    for name in ("m1", "n5", "n6", "n7"):
        assert await vector.history("globex", "notes", name) == await vector.history(TENANT, "notes", name)
    assert [line async for line in vector.export("globex", ["notes", "others"])] == lines
    again = await brought_in(vector, "globex", lines)
    assert not any(outcome.created or outcome.error for outcome in again)
    assert ids(await search(vector, "Another text", namespace="notes", tenant="globex", limit=1)) == ["m1"]
    # What is there with another history stays, and is told.
    await vector.forget("globex", "notes", "n7")
    errors = [outcome.error for outcome in await brought_in(vector, "globex", lines) if outcome.error]
    assert [type(error) for error in errors] == [MemoryConflict]


@pytest.mark.asyncio
async def test_lines_that_no_export_has_written_are_refused_one_by_one(vector: VectorMemory) -> None:
    await store(vector, [NewMemory("notes", f"note {number}", memory_id=f"n{number}") for number in range(3)])
    lines: list[Mapping[str, Any]] = [line async for line in vector.export(TENANT, ["notes"])]
    assert [type(told.error) for told in await brought_in(vector, "globex", lines[1:])] == [InvalidField]
    (outcome,) = (await brought_in(vector, "globex", lines[:-2] + lines[-1:]))[-1:]
    assert isinstance(outcome.error, InvalidField) and outcome.error.field == "trailer"
    memory = lines[1]["memory"]["versions"][0]["memory"]
    bad: list[Any] = [
        {}, {"memory": None}, {"memory": []}, {"memory": {"dropped": 0, "versions": []}}, {"other": 1},
        *(
            {"memory": {"dropped": 0, "versions": [{"action": "remembered", "memory": {**memory, **change}}]}}
            for change in (
                {"text": ""}, {"text": 5}, {"namespace": "No"}, {"memory_id": "a b"}, {"version": 2},
                {"created_s": "x"}, {"updated_s": float("inf")}, {"state": "gone"}, {"kind": "x"},
                {"links": [{"kind": "x", "memory_id": "a", "namespace": ""}]}, {"metadata": {"A": 1}},
                {"strength": 11}, {"keywords": [1]}, {"pinned": 1}, {"applies_when": "("}, {"unknown": 1},
                {"place": {"within": "", "position": 3, "title": "", "headings": []}}, {"author": 5},
            )
        ),
        {"memory": {"dropped": 0, "versions": [{"action": "erased", "memory": memory}]}},
        {"memory": {"dropped": 4, "versions": [{"action": "remembered", "memory": memory}]}},
    ]  # fmt: skip
    outcomes = await brought_in(vector, "fresh", [lines[0], *bad])
    assert [outcome.error is None for outcome in outcomes] == [True] + [False] * len(bad)
    assert all(isinstance(outcome.error, InvalidField) for outcome in outcomes[1:])
    assert await vector.counts("fresh") == {}


@pytest.mark.asyncio
async def test_the_feed_tells_every_change_in_order(
    vector: VectorMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = vector.watch(TENANT)
    first = asyncio.ensure_future(anext(feed))
    await asyncio.sleep(0.1)
    await remember(vector, "one", memory_id="m1")
    await remember(vector, "of another tenant", tenant="globex", memory_id="m1")
    await vector.update(
        TENANT, MemoryChanges(NewMemory("handbook", "two", memory_id="m1"), frozenset({"text"}))
    )
    await vector.forget(TENANT, "handbook", "m1")
    await vector.erase(TENANT, MemoryName("handbook", "m1"))
    changes = [await first, *[await anext(feed) for _ in range(3)]]
    assert [(change.action, change.version) for change in changes] == [
        (MemoryAction.REMEMBERED, 1), (MemoryAction.UPDATED, 2), (MemoryAction.FORGOTTEN, 3),
        (MemoryAction.ERASED, 0),
    ]  # fmt: skip
    assert {(change.namespace, change.memory_id) for change in changes} == {("handbook", "m1")}
    later = vector.watch(TENANT, changes[1].sequence)
    assert await anext(later) == changes[2]
    with pytest.raises(ChangesMissed):
        await anext(vector.watch(TENANT, changes[-1].sequence + 1000))
    monkeypatch.setattr(journal_module, "FEED_MAX", 100)
    await store(vector, [NewMemory("notes", f"note {number}") for number in range(500)])
    with pytest.raises(ChangesMissed):
        await anext(vector.watch(TENANT, changes[0].sequence))
    recent = await vector._journal.last_change(TENANT) - 50
    assert (await anext(vector.watch(TENANT, recent))).sequence == recent + 1
    for watching in (feed, later):
        await watching.aclose()
