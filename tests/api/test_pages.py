"""Every list at its worst: no answer is larger than the least message that a gRPC client takes, and pages
tell all of it, each once.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memserve.api.grpc.convert.modules import REASON_MAX_BYTES
from memserve.cli.app import app
from memserve.domain import ModuleKind, ModuleVersion, TrafficShare, WeightFigures
from memserve.memory.modules.memory import SOURCE_MAX_BYTES, SOURCES_MAX, TEXT_MAX_BYTES
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.pb.v1 import (
    memory_pb2,
    memory_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)
from memserve.pb.worker.v1 import worker_pb2
from memserve.policy.modules.traffic import TARGETS_MAX
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway, until

LEAST_LIMIT_BYTES = 4 << 20
VERSION = ModuleVersion(
    module="tone",
    version=0,
    digest="a" * 64,
    kind=ModuleKind.LORA,
    base_digest="",
    rank=4,
    target_modules=("q_proj",) * 8,
    size_bytes=1,
    created_s=1.0,
    author="a" * 64,
    sources=("é" * (SOURCE_MAX_BYTES // 2),) * SOURCES_MAX,
    parents=("b" * 64,) * 8,
    recipe="é" * (TEXT_MAX_BYTES // 2),
    notes="\x01" * TEXT_MAX_BYTES,
    figures=WeightFigures(1 / 3, 0.1, 3.9),
    probes_digest="",
)
ALIASES_MAX = 256


async def pages(call: Any, request: Any, items: str, go_on: Any) -> list[Any]:
    entries: list[Any] = []
    while True:
        page = await call(request)
        assert page.ByteSize() < LEAST_LIMIT_BYTES
        entries += getattr(page, items)
        if not go_on(request, page):
            return entries


def by_token(request: Any, page: Any) -> bool:
    request.page_token = page.next_page_token
    return bool(page.next_page_token)


@pytest.fixture
async def full(start_gateway: StartGateway) -> RunningGateway:
    """Versions with the longest texts, a module with all the aliases that it may have, long histories, a
    large audit.
    """
    gateway = await start_gateway(workers=[{}, {}], audit_max_bytes=0, max_modules_per_tenant=1000)
    store = gateway.parts.modules.store
    for number in range(60):
        await store.publish("default", "p" * 64, replace(VERSION, digest=f"{number:064x}"))
    targets = [TrafficShare(number + 1, 1 / 3) for number in range(TARGETS_MAX)]
    reason = "\x01" * REASON_MAX_BYTES
    for module in range(8):
        name = f"{'m' * 60}{module}"
        for number in range(TARGETS_MAX):
            await store.publish(
                "default",
                "p",
                replace(VERSION, module=name, digest=f"{number:064x}", sources=(), recipe="", notes=""),
            )
        for alias in range(ALIASES_MAX if module == 0 else 40):
            ref = AliasRef("default", name, f"{'a' * 60}{alias}")
            await store.set_alias(ref, targets, Change("p", reason), action="split")
    for _ in range(700):
        ref = AliasRef("default", "tone", "live")
        await store.set_alias(ref, targets, Change("p", reason), action="split")
    for _ in range(200):
        await store.record("default", "p", "note", "tone", before="x" * 30_000)
    return gateway


async def test_every_list_at_its_worst_comes_in_messages_that_any_client_takes(full: RunningGateway) -> None:
    modules = module_pb2_grpc.ModuleServiceStub(full.channel)
    names = await pages(
        modules.ListModules, module_pb2.ListModulesRequest(page_size=1000), "modules", by_token
    )
    assert len({module.name for module in names}) == len(names) == 9
    versions = await pages(
        modules.ListVersions,
        module_pb2.ListVersionsRequest(name="tone", page_size=1000),
        "versions",
        by_token,
    )
    assert [version.version for version in versions] == list(range(60, 0, -1))

    def by_revision(request: Any, page: Any) -> bool:
        if page.changes:
            request.after_revision = page.changes[-1].revision
        return bool(page.changes)

    request = module_pb2.ListAliasHistoryRequest(name="tone", page_size=1000)
    changes = await pages(modules.ListAliasHistory, request, "changes", by_revision)
    assert [change.revision for change in changes] == list(range(1, 701))

    def by_event(request: Any, page: Any) -> bool:
        if page.events:
            request.after_event_id = page.events[-1].event_id
        return bool(page.events)

    events = await pages(
        modules.ListAuditEvents, module_pb2.ListAuditEventsRequest(page_size=1000), "events", by_event
    )
    assert (
        len(events)
        == len({event.event_id for event in events})
        == 60 + 8 * TARGETS_MAX + ALIASES_MAX + 7 * 40 + 700 + 200
    )
    biggest = await modules.GetModule(module_pb2.GetModuleRequest(name=f"{'m' * 60}0"))
    assert len(biggest.module.aliases) == ALIASES_MAX
    for reply in (biggest, await modules.GetVersion(module_pb2.GetVersionRequest(reference="tone@1"))):
        assert reply.ByteSize() < LEAST_LIMIT_BYTES
    watched = modules.WatchModules(module_pb2.WatchModulesRequest(after_event_id="0-0"))
    for event in events:
        assert (await watched.read()).event.event_id == event.event_id
    watched.cancel()


async def test_a_status_tells_how_many_modules_it_leaves_out(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    held = [
        worker_pb2.ModuleResidency(digest=f"{number:064x}", place=worker_pb2.MODULE_PLACE_HOST)
        for number in range(2500)
    ]
    for module in held[:300]:
        await gateway.parts.modules.store.publish(
            "default", "p", replace(VERSION, digest=module.digest, sources=(), recipe="", notes="")
        )
    gateway.workers[0].now(modules=held)
    await until(lambda: len(gateway.parts.pool.workers["w0"].state.modules) == len(held))
    (worker,) = (
        await status_pb2_grpc.StatusServiceStub(gateway.channel).GetStatus(status_pb2.GetStatusRequest())
    ).workers
    assert (len(worker.modules), worker.modules_left_out) == (256, 44)


async def test_searches_and_namespaces_at_their_worst_fit(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await asyncio.gather(
        *(
            gateway.client.remember(
                "notes", f"{number} " + "é" * 4090, source="s" * 512, keywords=["k" * 64] * 16
            )
            for number in range(64)
        )
    )
    stub = memory_pb2_grpc.MemoryServiceStub(gateway.channel)
    answer = await stub.Search(memory_pb2.SearchRequest(namespaces=["notes"], query="é", limit=64))
    assert len(answer.results) == 64
    assert answer.ByteSize() < LEAST_LIMIT_BYTES


async def test_an_export_goes_on_where_it_ended_and_releases_what_it_has(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    store, file = gateway.parts.modules.store, tmp_path / "audit.jsonl"

    async def export(*options: str) -> str:
        command = ["audit", "export", str(file), "--address", gateway.address, *options]
        ended = await asyncio.to_thread(CliRunner().invoke, app, command)
        return "" if ended.exit_code == 0 else str(ended.exception)

    for number in range(3):
        await store.record("default", "p", "note", str(number))
    assert await export() == ""
    file.write_bytes(file.read_bytes()[:-20])  # cut off in the last line
    for number in range(3, 5):
        await store.record("default", "p", "note", str(number))
    assert await export("--release") == ""
    written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [event["module"] for event in written] == ["0", "1", "2", "3", "4"]
    assert [
        event.action
        for event in [event async for event in gateway.client.modules.audit(written[-1]["event_id"])]
    ] == ["release_audit"]
    file.write_text("something else\n", encoding="utf-8")
    assert "is no export" in await export()
    assert file.read_text(encoding="utf-8") == "something else\n"
