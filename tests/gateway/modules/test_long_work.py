"""Work on workers that takes long: loading, composing, publishing; what it refuses first, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import grpc
import pytest

from memserve.client import AsyncClient, CallFailed
from memserve.domain import ModuleKind, ModulePlace
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import FAILS, GREEDY, PASSES, actions, failure_of, publish
from tests.gateway.running import TIMEOUT_S, RunningGateway, until


async def test_preloads_load_on_every_worker_and_say_who_refuses(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    version = await publish(gateway, tmp_path, 1)
    gateway.workers[1].refuses[version.digest] = "no room"
    found = await client.modules.preload("tone@1")
    assert [(worker.worker_id, worker.place) for worker in found] == [
        ("w0", ModulePlace.DEVICE),
        ("w1", ModulePlace.ABSENT),
    ]
    assert "no room" in found[1].refusal
    assert (await client.modules.residency("tone@1"))[0].place is ModulePlace.DEVICE
    (preload,) = await gateway.parts.modules.store.preloads()
    assert (preload.digest, preload.worker_id) == (version.digest, "")
    used = await failure_of(client.modules.delete("tone", 1))
    assert "preload" in used.detail
    await client.modules.unload("tone@1")
    assert await gateway.parts.modules.store.preloads() == []
    nobody = await failure_of(client.modules.preload("tone@1", worker_id="nobody"))
    assert nobody.code is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_refuses_a_module_is_passed_over(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    version = await publish(gateway, tmp_path, 1)
    await client.modules.promote("tone", 1)
    gateway.workers[0].refuses[version.digest] = "no room"
    for _ in range(4):
        assert (await client.generate("hello", module="tone", sampling=GREEDY)).route.worker_id == "w1"


async def test_a_composed_version_names_its_parents_and_is_checked_like_an_upload(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    first, second = await publish(gateway, tmp_path, 1), await publish(gateway, tmp_path, 2)
    made = await client.modules.compose(
        "both", "linear", {"tone@1": 0.5, "tone@2": 0.5}, notes="half and half"
    )
    assert (made.module, made.version, made.kind) == ("both", 1, ModuleKind.LORA)
    assert made.parents == (first.digest, second.digest)
    assert made.sources == ("tone@1", "tone@2")
    assert made.recipe
    for options in (
        {"method": "magic"},
        {"parents": {}},
        {"parents": {"tone@1": 1.0}},
        {"density": 2.0},
        {"rank": -1},
    ):
        asked = {"method": "linear", "parents": {"tone@1": 1.0, "tone@2": 1.0}, **options}
        refused = await failure_of(client.modules.compose("both", **asked))  # type: ignore[arg-type]
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    missing = await failure_of(client.modules.compose("both", "linear", {"tone@1": 1.0, "tone@9": 1.0}))
    assert missing.code is grpc.StatusCode.NOT_FOUND


async def test_a_composed_version_is_asked_what_its_parents_are_asked(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1, name="left", probes=PASSES)
    await publish(gateway, tmp_path, 2, name="right", probes=FAILS)
    await client.modules.compose("both", "linear", {"left@1": 0.5, "right@1": 0.5})
    report = await client.modules.gate("both", 1)
    assert [(figure.name, figure.holds) for figure in report.figures] == [
        ("left.recall", True),
        ("right.recall", False),
    ]
    assert (await failure_of(client.modules.promote("both", 1))).code is grpc.StatusCode.FAILED_PRECONDITION


async def test_changes_are_told_as_they_happen(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    seen: list[tuple[str, str]] = []

    async def watch() -> None:
        async with AsyncClient(gateway.address, timeout_s=TIMEOUT_S) as watcher:
            async for event in watcher.modules.watch():
                seen.append((event.action, event.module))

    task = asyncio.create_task(watch())
    try:
        await asyncio.sleep(0.3)
        await publish(gateway, tmp_path, 1)
        await client.modules.promote("tone", 1)
        await until(lambda: ("promote", "tone") in seen)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert seen[0] == ("publish", "tone")
    assert await actions(client) == [action for action, _ in seen]


async def test_what_is_not_there_is_not_found(client: AsyncClient) -> None:
    for call in (
        client.modules.get("nobody"),
        client.modules.version("nobody"),
        client.modules.version("nobody@3"),
        client.modules.versions("nobody"),
        client.modules.gate("nobody", 1),
        client.modules.promote("nobody", 1),
        client.modules.rollback("nobody"),
        client.modules.split("nobody", {1: 1}),
        client.modules.history("nobody"),
        client.modules.delete("nobody", 1),
        client.modules.preload("nobody"),
        client.modules.unload("nobody"),
        client.modules.residency("nobody"),
        client.modules.drop_alias("nobody", "live"),
    ):
        assert (await failure_of(call)).code is grpc.StatusCode.NOT_FOUND


async def test_clients_that_publish_equal_content_at_once_get_the_same_version(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    folder = write_files(tmp_path / "tone", lora_files(gateway.parts.model.tensor_shapes()))
    versions = await asyncio.gather(
        *(gateway.client.modules.publish("tone", folder, notes=f"client {number}") for number in range(8))
    )
    assert {(version.version, version.digest) for version in versions} == {(1, versions[0].digest)}


async def test_long_work_is_refused_before_it_begins(start_gateway: StartGateway, tmp_path: Path) -> None:
    """Whatever is known to be wrong is said before a worker, a probe or an upload has cost anything."""
    gateway = await start_gateway()
    worker, modules = gateway.workers[0], gateway.client.modules
    folder = write_files(tmp_path / "tone", lora_files(gateway.parts.model.tensor_shapes()))
    await modules.publish("tone", folder)
    worker.loads.clear()
    for call, field in (
        (modules.compose("both", "linear", {"tone@1": 1.0, "tone": 1.0}, notes="x" * 20_000), "notes"),
        (modules.compose("both", "linear", {"tone@1": 1.0, "tone": 1.0}, rank=-1), "rank"),
        (modules.compose("x/y", "linear", {"tone@1": 1.0, "tone": 1.0}), "name"),
        (modules.promote("tone", 1, reason="x" * 5000), "reason"),
    ):
        with pytest.raises(CallFailed) as refusal:
            await call
        assert (refusal.value.code, refusal.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    with pytest.raises(CallFailed) as conflict:
        await modules.promote("tone", 1, expected_revision=5)
    assert conflict.value.code is grpc.StatusCode.ABORTED
    assert not worker.requests and not worker.loads


async def test_cancelled_long_work_leaves_no_task_behind(start_gateway: StartGateway, tmp_path: Path) -> None:
    """Of a gate, a promotion, a composition and a deletion, cancelled at many points."""
    gateway = await start_gateway()
    modules, spec = gateway.client.modules, gateway.parts.model.tensor_shapes()
    for number in (1, 2):
        await modules.publish("tone", write_files(tmp_path / str(number), lora_files(spec, seed=number)))
    await asyncio.sleep(0)
    before = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
    for number in range(40):
        calls = [
            modules.gate("tone", 1),
            modules.promote("tone", 2),
            modules.compose("both", "linear", {"tone@1": 1.0, "tone@2": 1.0}),
            modules.delete("tone", 9),
        ]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(number * 5e-4)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def left() -> set[str]:
        names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
        return {
            name for name in names - before if "Queue.get" in name or "_gated" in name or "_delete" in name
        }

    await until(lambda: not left())


async def test_an_async_client_reads_and_hashes_uploads_off_the_loop(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    folder = write_files(tmp_path / "tone", lora_files(gateway.parts.model.tensor_shapes()))
    here, seen = threading.get_ident(), []
    opened = Path.open

    class Watched(type(folder)):  # type: ignore[misc]
        def open(self, *options: object, **more: object) -> object:
            seen.append(threading.get_ident())
            return opened(self, *options, **more)  # type: ignore[arg-type]

    told: list[int] = []
    await gateway.client.modules.publish(
        "tone", Watched(folder), progress=lambda done, total: told.append(threading.get_ident())
    )
    assert seen and here not in seen
    await asyncio.sleep(0)
    assert told and set(told) == {here}, "progress is told where the caller lives"


async def test_with_a_full_audit_long_work_is_refused_before_it_begins(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(audit_max_bytes=1)
    store, modules = gateway.parts.modules.store, gateway.client.modules
    folder = write_files(tmp_path / "tone", lora_files(gateway.parts.model.tensor_shapes()))
    version = await modules.publish("tone", folder)
    worker = gateway.workers[0]
    worker.loads.clear()
    for call in (
        modules.publish("tone2", folder),
        modules.promote("tone", 1),
        modules.gate("tone", 1),
        modules.preload("tone@1"),
    ):
        with pytest.raises(CallFailed) as refusal:
            await call
        assert refusal.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "--release" in refusal.value.detail
    assert not worker.loads and not worker.requests
    last = [event async for event in modules.audit()][-1].event_id
    await modules.release_audit(last)
    assert (await store.version("default", "tone", version.version)) is not None
