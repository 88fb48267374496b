"""Versions through the gateway: promoted, split, rolled back, gated, watched, composed, deleted, and what
every answer says of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from memserve.client import AsyncClient, CallFailed
from memserve.domain import Expert, ModuleKind, ModulePlace, ModuleVersion, Sampling, TrafficShare
from tests.contract.scripted_worker import Script
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.running import TIMEOUT_S, RunningGateway, eventually, open_gateway, until

GREEDY = Sampling(max_tokens=2)
# The fake worker's one answer, to every question.
ANSWER = "t501 t502 t503"
PASSES = {
    "sets": [
        {
            "name": "recall",
            "kind": "recall",
            "probes": [
                {
                    "question": "What?",
                    "answers": [ANSWER],
                }
            ],
            "match": "contains",
        }
    ]
}
FAILS = {
    "sets": [
        {"name": "recall", "kind": "recall", "probes": [{"question": "What?", "answers": ["something else"]}]}
    ]
}


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, model_dir: Path) -> AsyncIterator[RunningGateway]:
    async with open_gateway(tmp_path, model_dir, workers=[{}, {}], canary_interval_s=0.2) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> AsyncClient:
    return gateway.client


async def publish(
    gateway: RunningGateway, tmp_path: Path, seed: int, *, name: str = "tone", probes: object = None
) -> ModuleVersion:
    files = lora_files(gateway.parts.model.tensor_shapes(), seed=seed)
    if probes is not None:
        files["probes.json"] = json.dumps(probes).encode()
    return await gateway.client.modules.publish(
        name, write_files(tmp_path / f"{name}-{seed}", files), sources=["a book"], notes=f"{seed}"
    )


async def failure_of(call: object) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await call  # type: ignore[misc]
    return failed.value


async def actions(client: AsyncClient) -> list[str]:
    return [event.action async for event in client.modules.audit()]


async def test_a_version_answers_from_its_promotion_on_and_the_receipt_says_why(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    first, second = await publish(gateway, tmp_path, 1), await publish(gateway, tmp_path, 2)
    assert (first.version, second.version, first.author, first.sources, first.notes) == (
        1,
        2,
        "anonymous",
        ("a book",),
        "1",
    )
    early = await failure_of(client.generate("hello", module="tone", sampling=GREEDY))
    assert early.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "memserve modules promote" in early.detail
    await client.modules.promote("tone", 1)
    (used,) = (await client.generate("hello", module="tone", sampling=GREEDY)).route.modules
    assert (used.version, used.digest, used.reason) == (1, first.digest, "live at revision 1")
    await client.modules.promote("tone", 2, expected_revision=1)
    (used,) = (await client.generate("hello", module="tone", sampling=GREEDY)).route.modules
    assert (used.version, used.digest, used.reason) == (2, second.digest, "live at revision 2")
    (used,) = (await client.generate("hello", module="tone@1", sampling=GREEDY)).route.modules
    assert (used.version, used.reason) == (1, "asked for by number")
    await client.modules.rollback("tone", reason="as before")
    (used,) = (await client.generate("hello", module="tone", sampling=GREEDY)).route.modules
    assert used.version == 1
    changes = await client.modules.history("tone")
    assert [
        (change.revision, change.action, change.targets[0].version, change.reason) for change in changes
    ] == [
        (1, "promote", 1, ""),
        (2, "promote", 2, ""),
        (3, "rollback", 1, "as before"),
    ]
    assert [worker.requests[-1].module_digest for worker in gateway.workers if worker.requests][-1] in (
        first.digest,
        second.digest,
    )


async def test_of_two_promotions_at_once_one_wins(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1)
    await publish(gateway, tmp_path, 2)
    results = await asyncio.gather(
        *(client.modules.promote("tone", number, expected_revision=0) for number in (1, 2)),
        return_exceptions=True,
    )
    lost = [result for result in results if isinstance(result, CallFailed)]
    assert [failed.code for failed in lost] == [grpc.StatusCode.ABORTED]
    assert len(await client.modules.history("tone")) == 1


async def test_a_split_follows_its_weights_and_a_session_keeps_its_version(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    for number in (1, 2):
        await publish(gateway, tmp_path, number)
        await client.modules.promote("tone", number)
    alias = await client.modules.split("tone", {1: 70, 2: 30})
    assert alias.targets == (TrafficShare(1, 70), TrafficShare(2, 30))

    async def version_of(session: str) -> int:
        (used,) = (
            await client.generate("hello", module="tone", session=session, sampling=Sampling(max_tokens=1))
        ).route.modules
        assert used.reason in (
            "live at revision 3, 70% of its traffic",
            "live at revision 3, 30% of its traffic",
        )
        return used.version

    sessions = [f"session-{number}" for number in range(200)]
    first = [await version_of(session) for session in sessions]
    assert abs(Counter(first)[2] / len(sessions) - 0.3) < 0.1
    assert [await version_of(session) for session in sessions[:50]] == first[:50]


async def test_a_version_whose_probes_fail_is_refused_with_its_figures_and_forced_it_is_in_the_audit(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1, probes=FAILS)
    progress: list[tuple[int, int]] = []
    refused = await failure_of(
        client.modules.promote("tone", 1, progress=lambda done, total: progress.append((done, total)))
    )
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "recall 0" in refused.detail
    assert (await client.modules.get("tone")).aliases == ()
    report = (await client.modules.version("tone@1")).gate
    assert report is not None
    assert not report.passed
    await client.modules.promote("tone", 1, force=True, reason="I know")
    (change,) = await client.modules.history("tone")
    assert change.forced
    assert change.reason.startswith("I know (forced: recall 0")
    events = [event async for event in client.modules.audit()]
    assert [event.action for event in events] == ["publish", "gate", "gate", "promote"]
    assert {event.principal for event in events} == {"anonymous"}
    assert "forced" in events[-1].after


async def test_a_version_that_passes_its_probes_keeps_the_report_and_is_not_asked_again(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1, probes=PASSES)
    report = await client.modules.gate("tone", 1)
    assert report.passed
    asked = sum(len(worker.requests) for worker in gateway.workers)
    await client.modules.promote("tone", 1)
    assert sum(len(worker.requests) for worker in gateway.workers) == asked
    assert (await client.modules.version("tone")).gate == report


async def test_a_canary_that_breaches_is_taken_out_by_itself(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1)
    await client.modules.promote("tone", 1)
    await publish(gateway, tmp_path, 2, probes=FAILS)
    await client.modules.split("tone", {1: 90, 2: 10})

    async def rolled_back() -> bool:
        return (await client.modules.get("tone")).aliases[0].targets == (TrafficShare(1, 90),)

    await eventually(rolled_back)
    last = (await client.modules.history("tone"))[-1]
    assert (last.action, last.principal) == ("canary_rollback", "memserve canary watch")
    assert "tone@2: recall 0" in last.reason
    await until(lambda: gateway.parts.metrics.module_changes.labels("canary_rollback")._value.get() == 1)


async def test_a_canary_that_passes_stays(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1)
    await client.modules.promote("tone", 1)
    await publish(gateway, tmp_path, 2, probes=PASSES)
    await client.modules.split("tone", {1: 90, 2: 10})

    async def judged() -> bool:
        report = (await client.modules.version("tone@2")).gate
        return report is not None and report.passed

    await eventually(judged)
    assert len((await client.modules.get("tone")).aliases[0].targets) == 2
    (watched,) = await gateway.parts.modules.store.canaries()
    assert (watched.alias, watched.versions) == ("live", (2,))
    await client.modules.promote("tone", 2)
    assert await gateway.parts.modules.store.canaries() == []


async def test_a_canary_that_workers_refuse_is_taken_out_though_its_probes_passed(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1)
    await client.modules.promote("tone", 1)
    version = await publish(gateway, tmp_path, 2, probes=PASSES)
    await client.modules.split("tone", {1: 50, 2: 50})
    for worker in gateway.workers:
        worker.refuses[version.digest] = "its device is on fire"

    async def taken_out() -> bool:
        with contextlib.suppress(CallFailed):
            await client.generate("hello", module="tone", sampling=GREEDY)
        return (await client.modules.get("tone")).aliases[0].targets == (TrafficShare(1, 50),)

    await eventually(taken_out)
    assert (await client.modules.history("tone"))[-1].action == "canary_rollback"


async def test_all_of_an_alias_is_not_given_to_a_version_that_has_not_passed(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1, probes=FAILS)
    await publish(gateway, tmp_path, 2)
    await client.modules.promote("tone", 2)
    for weights in ({1: 1.0}, {1: 51.0, 2: 49.0}):
        refused = await failure_of(client.modules.split("tone", weights))
        assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "targets")


async def test_a_version_in_use_is_not_deleted_and_one_that_nothing_uses_is_gone_with_its_content(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    version = await publish(gateway, tmp_path, 1)
    await client.modules.promote("tone", 1)
    aliased = await failure_of(client.modules.delete("tone", 1))
    assert aliased.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "alias live" in aliased.detail
    other = await publish(gateway, tmp_path, 2)
    await client.modules.promote("tone", 2)
    for worker in gateway.workers:
        worker.script = Script(pause_s=0.05)
    stream = client.stream("hello", module="tone@1", sampling=Sampling(max_tokens=100))
    await anext(stream)
    streaming = await failure_of(client.modules.delete("tone", 1))
    assert streaming.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "a request" in streaming.detail
    await stream.aclose()
    await until(lambda: not gateway.parts.uses)

    async def deleted() -> bool:
        await client.modules.delete("tone", 1)
        return True

    await eventually(deleted)
    root = gateway.settings.modules_root / "modules"
    assert not (root / version.digest).exists()
    assert (root / other.digest).exists()
    gone = await failure_of(client.generate("hello", module="tone@1", sampling=GREEDY))
    assert gone.code is grpc.StatusCode.NOT_FOUND
    nothing = await failure_of(client.modules.rollback("tone"))
    assert nothing.code is grpc.StatusCode.FAILED_PRECONDITION
    third = await publish(gateway, tmp_path, 3)
    assert third.version == 3


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


async def test_a_module_is_named_where_its_kind_belongs(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1)
    refused = await failure_of(client.generate("hello", expert=Expert("tone@1"), sampling=GREEDY))
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "experts[0].reference")
    far = await failure_of(client.generate("hello", expert=Expert("tone@1", float("nan")), sampling=GREEDY))
    assert far.field == "experts[0].alpha"


async def test_a_dropped_alias_lets_its_version_be_deleted(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await publish(gateway, tmp_path, 1)
    await client.modules.promote("tone", 1)
    assert (await client.modules.drop_alias("tone", "live")).targets == (TrafficShare(1, 1.0),)
    await client.modules.delete("tone", 1)
    assert [change.action for change in await client.modules.history("tone")] == ["promote", "drop"]
    assert "tone" not in [module.name for module in await client.modules.all()]


async def test_an_alias_is_not_pointed_at_what_no_worker_can_load(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    version = await publish(gateway, tmp_path, 1)
    for worker in gateway.workers:
        worker.refuses[version.digest] = "no room"
    refused = await failure_of(client.modules.promote("tone", 1))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert "no room" in refused.detail
    assert (await client.modules.get("tone")).aliases == ()


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


async def test_a_rollback_answers_once_the_alias_points_back_and_loads_afterwards(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    worker, modules = gateway.workers[0], gateway.client.modules
    for number in (1, 2):
        tensors = lora_files(gateway.parts.model.tensor_shapes(), seed=number)
        await modules.publish("tone", write_files(tmp_path / str(number), tensors))
        await modules.promote("tone", number)
    worker.loads.clear()
    worker.may_load.clear()
    assert [target.version for target in (await modules.rollback("tone")).targets] == [1], (
        "no worker is waited for"
    )
    await until(lambda: worker.loads)
    worker.may_load.set()
    await until(lambda: not gateway.parts.background._tasks)


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
