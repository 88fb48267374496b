"""MemoryService on many memories: batches, documents, lists, exports, changes as they happen, namespaces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from memserve.client import (
    AsyncClient,
    CallFailed,
    DocumentReport,
    MemoryAction,
    MemoryState,
    NewDocument,
    NewMemory,
)
from memserve.domain import ImportResult, MemoryChange
from tests.gateway.running import TIMEOUT_S, RunningGateway, open_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = {"alice-key-1": "alice", "bob-key-1": "bob"}
ITEMS = 1000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> AsyncIterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("gateway")
    keys = folder / "keys.json"
    keys.write_text(json.dumps(KEYS), encoding="utf-8")
    async with open_gateway(folder, model_dir, api_keys_file=keys) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def alice(gateway: RunningGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, "alice-key-1", 4 * TIMEOUT_S) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def bob(gateway: RunningGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, "bob-key-1", 4 * TIMEOUT_S) as client:
        yield client


async def failure_of(call: object) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await call  # type: ignore[misc]
    return failed.value


async def imported(client: AsyncClient, lines: list[str]) -> list[ImportResult]:
    return [result async for result in client.import_memories(lines)]


async def exported(client: AsyncClient, *namespaces: str) -> list[str]:
    return [line async for line in client.export_memories(namespaces)]


async def test_a_bad_item_of_a_batch_is_told_in_its_place_and_the_others_are_stored(
    alice: AsyncClient,
) -> None:
    """The first and the last one are bad too."""
    bad = {*range(0, ITEMS, 100), ITEMS - 1}
    refused = [("text", ""), ("text", "<|end|>"), ("strength", 11.0), ("applies_when", "user.role ==")]

    def item(number: int) -> NewMemory:
        fields: dict[str, object] = {"text": f"Lamp {number} hangs at pier {number % 7}."}
        if number in bad:
            field, value = refused[number // 100 % len(refused)]
            fields[field] = value
        return NewMemory("batch", memory_id=f"m{number}", **fields)  # type: ignore[arg-type]

    results = [result async for result in alice.remember_many(map(item, range(ITEMS)))]
    assert [result.index for result in results] == list(range(ITEMS))
    assert {result.index for result in results if result.refusal is not None} == bad
    for result in results:
        if result.refusal is not None:
            field, _ = refused[result.index // 100 % len(refused)]
            assert (result.refusal.status, result.refusal.field) == ("INVALID_ARGUMENT", field)
        else:
            assert result.remembered is not None and result.remembered.created
    assert (await alice.namespaces())["batch"] == ITEMS - len(bad)
    assert (await alice.get_memory("batch", "m1")).text == "Lamp 1 hangs at pier 1."


async def test_an_id_that_stands_twice_in_a_batch_is_stored_once(alice: AsyncClient) -> None:
    items = [
        NewMemory("twice", "one", memory_id="m"),
        NewMemory("twice", "one", memory_id="m"),
        NewMemory("twice", "another", memory_id="m"),
    ]
    results = [result async for result in alice.remember_many(items)]
    assert [result.refusal.status if result.refusal else "" for result in results] == [
        "",
        "",
        "ALREADY_EXISTS",
    ]
    assert [result.remembered.created for result in results if result.remembered] == [True, False]
    assert (await alice.namespaces())["twice"] == 1


async def test_an_export_comes_back_as_it_was_for_another_tenant(
    alice: AsyncClient, bob: AsyncClient
) -> None:
    await alice.remember(
        "books", "Ähren im Juli.", memory_id="a", metadata={"year": 1, "share": 1.0, "is": True}
    )
    await alice.update_memory("books", "a", text="Ähren im August.\n\u2028 'quoted' \\ \u202e")
    await alice.remember("books", "Gone.", memory_id="b")
    await alice.forget("books", "b")
    await alice.remember("books", "Old.", memory_id="c", valid_from_s=1.0)
    await alice.remember("books", "New.", memory_id="d")
    await alice.supersede_memory("books", "c", "d")
    lines = await exported(alice, "books")
    assert len(lines) == 6 and not any("\n" in line for line in lines)
    results = await imported(bob, lines)
    assert [result.index for result in results] == list(range(6))
    assert not any(result.refusal for result in results)
    assert [result.skipped for result in results] == [True, False, False, False, False, True]
    assert await exported(bob, "books") == lines
    assert await bob.memory_history("books", "a") == await alice.memory_history("books", "a")
    found = [hit.memory.memory_id for hit in await bob.search("books", "Ähren im August")]
    assert found[0] == "a" and not {"b", "c"} & set(found)
    again = await imported(bob, lines)
    assert all(result.skipped for result in again)
    assert await exported(bob, "books") == lines


async def test_a_bad_line_of_an_import_is_told_and_the_others_come_in(
    alice: AsyncClient, bob: AsyncClient
) -> None:
    for name in ("x", "y", "z"):
        await alice.remember("lines", f"Text {name}.", memory_id=name)
    header, first, second, third, trailer = await exported(alice, "lines")
    spoilt = second.replace('"Text y."', '"<|end|>"')
    results = await imported(bob, [header, first, spoilt, "{", "[]", "1" * 5000, third, trailer])
    fields = [result.refusal.field if result.refusal else "" for result in results]
    assert fields == ["", "", "line", "line", "line", "line", "", "trailer"]
    assert (await bob.namespaces())["lines"] == 2
    (nothing,) = await imported(bob, [first])
    assert nothing.refusal is not None and nothing.refusal.field == "header"


async def test_an_export_of_all_has_more_namespaces_than_a_search_may_name(bob: AsyncClient) -> None:
    before = len(await exported(bob))
    for number in range(18):
        await bob.remember(f"shelf-{number}", "One book.")
    lines = await exported(bob)
    assert len(lines) == before + 18
    assert len(json.loads(lines[0])["namespaces"]) >= 18


async def test_documents_of_each_kind_are_brought_up_to_date(alice: AsyncClient) -> None:
    async def keep(document: NewDocument, content: str) -> DocumentReport:
        reports = [report async for report in alice.remember_document(document, content.encode())]
        assert [report.done for report in reports] == [*[False] * (len(reports) - 1), True]
        return reports[-1]

    markdown = NewDocument("docs", "handbook", file_name="handbook.md", metadata={"edition": 2})
    text = "# Handbook\n\n## Lamps\n\nTrim the lamp at dusk.\n\n## Doors\n\nShut the door at ten.\n"
    first = await keep(markdown, text)
    assert (first.title, first.stored, first.refused) == ("Handbook", first.passages, ())
    found = await alice.search("docs", "when is the lamp trimmed")
    assert found[0].memory.place.within == "handbook" and "Lamps" in found[0].memory.place.headings
    assert found[0].memory.metadata == {"edition": 2}
    same = await keep(markdown, text)
    assert (same.stored, same.unchanged, same.updated) == (0, first.passages, 0)
    changed = await keep(markdown, text.replace("at ten", "at eleven"))
    assert changed.updated + changed.stored >= 1
    shorter = await keep(markdown, text.split("## Doors", maxsplit=1)[0])
    assert shorter.forgotten >= 1 or shorter.updated >= 1
    assert not any("eleven" in hit.memory.text for hit in await alice.search("docs", "door at eleven"))
    html = await keep(
        NewDocument("docs", "page", media_type="text/html"),
        "<html><head><title>The page</title></head><body><h1>Tides</h1><p>High water is at six.</p>"
        "<script>alert(1)</script></body></html>",
    )
    assert html.title == "The page" and html.stored >= 1
    tide = (await alice.search("docs", "when is high water"))[0].memory
    assert "High water is at six." in tide.text and "alert" not in tide.text
    plain = await keep(NewDocument("docs", "note", file_name="note.txt"), "The ferry leaves at nine.\n")
    assert plain.stored == 1


async def test_a_document_that_cannot_be_read_is_refused_by_its_field(alice: AsyncClient) -> None:
    cases = (
        (NewDocument("docs", "", file_name="a.txt"), b"text", "header.document_id"),
        (NewDocument("docs", 'x" or within != "', file_name="a.txt"), b"text", "header.document_id"),
        (NewDocument("docs", "a" * 121, file_name="a.txt"), b"text", "header.document_id"),
        (NewDocument("docs", "empty", file_name="a.txt"), b"", "document"),
        (NewDocument("docs", "pdf", media_type="application/pdf"), b"no pdf", "media_type"),
        (NewDocument("docs", "zip", media_type="application/zip"), b"PK\x03\x04", "document"),
    )
    before = (await alice.namespaces()).get("docs", 0)
    for document, content, field in cases:
        failed = await failure_of(anext(aiter(alice.remember_document(document, content))))
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT, document
        assert (failed.field or "").endswith(field), (document, failed.field)
    assert (await alice.namespaces()).get("docs", 0) == before


async def test_a_list_is_paged_filtered_and_in_order(alice: AsyncClient) -> None:
    for number in range(7):
        await alice.remember(
            "listed", f"Text {number}.", memory_id=f"m{number}", metadata={"odd": number % 2 == 1}
        )
    await alice.forget("listed", "m6")
    names: list[str] = []
    token = ""
    while True:
        page = await alice.list_memories("listed", order="id", descending=True, page_size=4, page_token=token)
        names += [memory.memory_id for memory in page.memories]
        token = page.next_page_token
        if not token:
            break
    assert names == ["m5", "m4", "m3", "m2", "m1", "m0"]
    odd = await alice.list_memories("listed", filter="metadata.odd", order="id")
    assert [memory.memory_id for memory in odd.memories] == ["m1", "m3", "m5"]
    gone = await alice.list_memories("listed", states=[MemoryState.FORGOTTEN])
    assert [memory.memory_id for memory in gone.memories] == ["m6"]
    token = (await alice.list_memories("listed", page_size=2)).next_page_token
    other = await failure_of(alice.list_memories("batch", page_size=2, page_token=token))
    assert (other.code, other.field) == (grpc.StatusCode.INVALID_ARGUMENT, "page_token")


async def test_forgetting_by_a_filter_needs_the_token_of_its_dry_run(alice: AsyncClient) -> None:
    for number in range(4):
        await alice.remember(
            "sweep", f"Text {number}.", memory_id=f"m{number}", source="old" if number else ""
        )
    dry = await alice.forget_where("sweep", 'source == "old"')
    assert (dry.matched, dry.forgotten, len(dry.examples)) == (3, 0, 3)
    assert (await alice.namespaces())["sweep"] == 4
    await alice.update_memory("sweep", "m3", text="Changed meanwhile.")
    stale = await failure_of(alice.forget_where("sweep", 'source == "old"', dry_run_token=dry.dry_run_token))
    assert stale.code in (grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION)
    assert (await alice.namespaces())["sweep"] == 4
    dry = await alice.forget_where("sweep", 'source == "old"')
    done = await alice.forget_where("sweep", 'source == "old"', dry_run_token=dry.dry_run_token)
    assert done.forgotten == 3
    assert (await alice.namespaces())["sweep"] == 1
    assert (await alice.restore_memory("sweep", "m1")).text == "Text 1."


async def test_a_namespace_is_erased_when_its_name_is_said_twice(
    alice: AsyncClient, bob: AsyncClient
) -> None:
    for number in range(3):
        await alice.remember("doomed", f"Text {number}.", memory_id=f"m{number}")
    await alice.forget("doomed", "m0")
    await bob.remember("doomed", "Bob's.", memory_id="m1")
    refused = await failure_of(anext(aiter(alice.delete_namespace("doomed", confirm="doome"))))
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "confirm")
    last = [erasure async for erasure in alice.delete_namespace("doomed", confirm="doomed")][-1]
    assert (last.erased, last.remaining, last.done) == (3, 0, True)
    assert "doomed" not in await alice.namespaces()
    assert "doomed" not in {usage.namespace for usage in (await alice.memory_usage()).namespaces}
    again = await failure_of(anext(aiter(alice.delete_namespace("doomed", confirm="doomed"))))
    assert again.code is grpc.StatusCode.NOT_FOUND
    assert (await bob.get_memory("doomed", "m1")).text == "Bob's."


async def test_changes_are_seen_as_they_happen_and_again_from_a_number_on(
    alice: AsyncClient, bob: AsyncClient
) -> None:
    seen: list[MemoryChange] = []

    async def watch(after_sequence: int, most: int) -> None:
        async with aclosing(alice.watch_memories("watched", after_sequence=after_sequence)) as changes:
            async for change in changes:
                seen.append(change)
                if len(seen) == most:
                    return

    await alice.remember("watched", "First.", memory_id="m0")
    watching = asyncio.create_task(watch(0, 4))
    await asyncio.sleep(0.3)
    await alice.remember("watched", "Text.", memory_id="m")
    await alice.remember("unwatched", "Text.", memory_id="m")
    await bob.remember("watched", "Text.", memory_id="m")
    await alice.update_memory("watched", "m", text="Another.")
    await alice.forget("watched", "m")
    await alice.erase_memory("watched", "m")
    await asyncio.wait_for(watching, TIMEOUT_S)
    assert [change.action for change in seen] == [
        MemoryAction.REMEMBERED,
        MemoryAction.UPDATED,
        MemoryAction.FORGOTTEN,
        MemoryAction.ERASED,
    ]
    assert {(change.namespace, change.memory_id) for change in seen} == {("watched", "m")}
    numbers = [change.sequence for change in seen]
    assert numbers == sorted(set(numbers))
    first, seen = seen, []
    await asyncio.wait_for(watch(first[0].sequence, 3), TIMEOUT_S)
    assert seen == first[1:]


async def test_usage_counts_what_is_kept(alice: AsyncClient) -> None:
    await alice.remember("counted", "é" * 100, memory_id="m")
    await alice.remember("counted", "gone", memory_id="n")
    await alice.forget("counted", "n")
    usage = await alice.memory_usage()
    (counted,) = [entry for entry in usage.namespaces if entry.namespace == "counted"]
    assert (counted.memories, counted.records) == (1, 2) and counted.bytes > 200
    assert min(usage.max_memories, usage.max_namespaces, usage.max_bytes) > 0
