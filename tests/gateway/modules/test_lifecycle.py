"""Versions through the gateway: promoted, split, rolled back, gated, watched, composed, deleted, and what
every answer says of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import grpc

from memserve.client import AsyncClient, CallFailed
from memserve.domain import Expert, Sampling, TrafficShare
from tests.contract.scripted_worker import Script
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import FAILS, GREEDY, PASSES, failure_of, publish
from tests.gateway.running import RunningGateway, eventually, until


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
    asked = len(progress)
    again = await failure_of(
        client.modules.promote("tone", 1, progress=lambda done, total: progress.append((done, total)))
    )
    assert again.detail == refused.detail
    assert len(progress) == asked  # the probes are not asked anew
    await client.modules.promote("tone", 1, force=True, reason="I know")
    (change,) = await client.modules.history("tone")
    assert change.forced
    assert change.reason.startswith("I know (forced: recall 0")
    events = [event async for event in client.modules.audit()]
    assert [event.action for event in events] == ["publish", "gate", "promote"]
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
