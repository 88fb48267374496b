"""What is erased is nowhere, and what a filter forgets is never a surprise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.domain import ErasedPlace, MemoryAction, MemoryState, NewMemory, WritePolicy
from memserve.errors import InvalidField, MatchesChanged, MemoryNotFound, NamespaceNotFound
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.memory.texts.records import Record
from memserve.memory.texts.requests import ListQuery, MemoryChanges, MemoryName
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import TENANT, ids, remember, search

SECRET = "The safe of Doctor Quillfeather opens with 4711-0815-zebra."
LATER = "The safe of Doctor Quillfeather opens with 2222-3333-okapi."
PLAIN = WritePolicy(skip_relations=True)


@pytest_asyncio.fixture
async def durable(
    tmp_path: Path, own_redis_server: RedisServer, embedder: BertEmbedder
) -> AsyncIterator[VectorMemory]:
    """Over a registry that keeps an append-only file."""
    own_redis_server.start_durably()
    memory = await VectorMemory.open(str(tmp_path / "memories.db"), embedder, own_redis_server.url)
    yield memory
    await memory.close()


def files_with(folder: Path, text: str) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


@pytest.mark.asyncio
@pytest.mark.parametrize("flushed", [False, True], ids=["unflushed", "flushed"])
async def test_after_an_erasure_the_text_is_in_no_file_and_in_no_answer(
    durable: VectorMemory, tmp_path: Path, own_redis_server: RedisServer, flushed: bool
) -> None:
    told: list[tuple[str, str]] = []

    async def eraser(tenant: str, record: Record) -> ErasedPlace:
        told.append((tenant, record.memory.text))
        return ErasedPlace("answers", 1, "one answer")

    durable.erasers.append(eraser)
    await remember(durable, SECRET, memory_id="safe")
    await remember(durable, "Lunch is served at noon.", memory_id="lunch")
    if flushed:
        await durable.settling.settle_now()
    content = NewMemory("handbook", LATER, memory_id="safe")
    await durable.update(TENANT, MemoryChanges(content, frozenset({"text"})))
    registry = own_redis_server.socket.parent
    assert files_with(registry, "zebra") and files_with(tmp_path / "memories.index", "zebra")
    places = await durable.erase(TENANT, MemoryName("handbook", "safe"), "asked for")
    assert told == [(TENANT, LATER)]
    by_name = {place.place: place for place in places}
    assert by_name["history"].removed == 2
    assert by_name["registry_log"].removed == 1
    assert {"index", "journal", "milvus", "embeddings", "answers"} <= set(by_name)
    details = [place.detail for place in places if "files of" in place.place]
    assert details and set(details) == {"the text stands in no file with its memory's key"}
    for folder in (registry, tmp_path):
        for text in ("zebra", "okapi", "Quillfeather"):
            assert files_with(folder, text) == [], text
    with pytest.raises(MemoryNotFound):
        await durable.history(TENANT, "handbook", "safe")
    with pytest.raises(MemoryNotFound):
        await durable.erase(TENANT, MemoryName("handbook", "safe"))
    assert "safe" not in ids(await search(durable, SECRET))
    assert [line async for line in durable.export(TENANT, ["handbook"])][-1]["memories"] == 1
    assert await durable.count(TENANT, "handbook") == 1


@pytest.mark.asyncio
async def test_a_filter_forgets_only_what_its_dry_run_has_shown(vector: VectorMemory) -> None:
    for number in range(12):
        new = NewMemory("notes", f"note {number}", memory_id=f"m{number}", metadata={"even": number % 2 == 0})
        await vector.remember(TENANT, new, "", PLAIN)
    query = ListQuery(("notes",), filter="metadata.even == true")
    dry = await vector.forget_where(TENANT, query)
    assert (dry.matched, dry.forgotten, len(dry.examples)) == (6, 0, 6)
    assert await vector.count(TENANT, "notes") == 12
    await vector.forget(TENANT, "notes", "m0")
    with pytest.raises(MatchesChanged):
        await vector.forget_where(TENANT, query, dry_run_token=dry.dry_run_token)
    assert await vector.count(TENANT, "notes") == 11
    dry = await vector.forget_where(TENANT, query)
    done = await vector.forget_where(TENANT, query, "ann", dry_run_token=dry.dry_run_token)
    assert (done.matched, done.forgotten) == (5, 5)
    assert sorted((await vector.counts(TENANT)).items()) == [("notes", 6)]
    assert (await vector.history(TENANT, "notes", "m2")).current.author == "ann"
    await vector.restore(TENANT, MemoryName("notes", "m2"))
    for refused in ("", "metadata.even ==", "nothing == 1"):
        with pytest.raises(InvalidField):
            await vector.forget_where(TENANT, ListQuery(("notes",), filter=refused))


@pytest.mark.asyncio
async def test_a_namespace_is_deleted_whole(vector: VectorMemory) -> None:
    items = (NewMemory("notes", f"note {number}", memory_id=f"m{number}") for number in range(150))
    assert all([outcome.error is None async for outcome in vector.remember_many(TENANT, items)])
    await remember(vector, "stays", namespace="others", memory_id="m1")
    await remember(vector, "of another tenant", tenant="globex", namespace="notes", memory_id="m1")
    await vector.forget(TENANT, "notes", "m7")
    steps = [step async for step in vector.delete_namespace(TENANT, "notes")]
    assert (steps[-1].erased, steps[-1].remaining, steps[-1].done) == (150, 0, True)
    assert [step.erased for step in steps] == sorted(step.erased for step in steps) and len(steps) > 2
    assert await vector.list_namespaces(TENANT) == ["others"]
    with pytest.raises(NamespaceNotFound):
        await vector.get(TENANT, "notes", "m1")
    with pytest.raises(NamespaceNotFound):
        [step async for step in vector.delete_namespace(TENANT, "notes")]
    assert (await vector.get("globex", "notes", "m1")).text == "of another tenant"


@pytest.mark.asyncio
async def test_what_was_forgotten_long_ago_is_purged(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    now = [1_000_000.0]
    memory = await VectorMemory.open(
        str(tmp_path / "memories.db"), embedder, redis_server.url, TextOptions(now_s=lambda: now[0])
    )
    for name in ("kept", "old", "young"):
        await remember(memory, f"the text of {name}", namespace="notes", memory_id=name)
    await memory.forget(TENANT, "notes", "old")
    now[0] += 20 * 86_400
    await memory.forget(TENANT, "notes", "young")
    now[0] += 20 * 86_400
    assert await memory.purge(30 * 86_400.0) == 1
    with pytest.raises(MemoryNotFound):
        await memory.history(TENANT, "notes", "old")
    assert (await memory.history(TENANT, "notes", "young")).current.state is MemoryState.FORGOTTEN
    usage = (await memory.usage(TENANT)).namespaces
    assert [(held.memories, held.records) for held in usage] == [(1, 2)]
    changes = await memory._journal.changes(TENANT, 0, 100)
    assert [change.action for change in changes][-1] is MemoryAction.ERASED
    await memory.close()


@pytest.mark.asyncio
async def test_a_report_does_not_tell_what_another_tenant_remembers(durable: VectorMemory) -> None:
    text = "The quillfeather bridge opens at four in the morning."
    reports = []
    for is_shared in (False, True):
        if is_shared:
            await durable.remember("other", NewMemory("handbook", text, memory_id="theirs"))
            await durable.settling.settle_now()
        await remember(durable, text, memory_id="mine")
        places = await durable.erase(TENANT, MemoryName("handbook", "mine"))
        reports.append([(place.place, place.removed, place.detail) for place in places])
    assert reports[0] == reports[1]
    assert (await durable.get("other", "handbook", "theirs")).text == text
