"""The ladder of knowledge in a gateway: what it advises, what it does, and what it says of it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from memserve.config import Settings
from memserve.domain import ModuleVersion
from memserve.domain.ladder import LadderAction, LadderReport, Rung
from memserve.errors import InvalidField, NoWorker, UnreadableRecord
from memserve.gateway.ladder.controller import order_of, refused_s
from memserve.gateway.ladder.hands import module_name
from memserve.gateway.ladder.record import LadderRecord, NamespaceRecord, decode
from memserve.gateway.ladder.standing import NAMESPACES_MAX
from memserve.kv.keys import block_keys, chunk_keys, member
from memserve.registry.ladder import LadderRecords
from tests.contract.fake_worker import NAMESPACE
from tests.contract.scripted_worker import BLOCK_TOKENS
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.test_distillation import town
from tests.gateway.running import RunningGateway, eventually, until
from tests.gateway.test_prefixes import DEFAULT, store
from tests.kv.redis_server import RedisServer

RULE = "Codes are read out digit by digit, and no digit is ever left out or added to them. " * 4
QUICK: dict[str, Any] = {
    "knowledge_ladder_interval_s": 1,
    "knowledge_ladder_dwell_s": 1,
    "knowledge_ladder_settle_s": 0,
    "recall_timeout_ms": 10_000,
}


async def use(gateway: RunningGateway, namespace: str, memory_id: str, times: int = 2000) -> None:
    """As so many answers with the memory would."""
    memory = await gateway.client.get_memory(namespace, memory_id)
    for _ in range(times):
        gateway.parts.ledger.used("default", [memory], time.time())


async def reported(gateway: RunningGateway, is_there: Any) -> LadderReport:
    """The first report of which this is true."""
    reports: list[LadderReport] = []

    async def there() -> bool:
        reports.append(await gateway.client.ladder())
        return bool(is_there(reports[-1]))

    await eventually(there)
    return reports[-1]


def stands(namespace: str, rung: Rung) -> Any:
    return lambda report: any(
        step.decision.subject == namespace
        and step.decision.to_rung is rung
        and step.decision.action is LadderAction.KEEP
        for step in report.steps
    )


async def events(gateway: RunningGateway, action: str) -> list[dict[str, Any]]:
    return [
        json.loads(event.after) async for event in gateway.client.modules.audit() if event.action == action
    ]


async def live(gateway: RunningGateway, folder: Path) -> ModuleVersion:
    """A LoRA whose sources are the first memories of `town`, promoted."""
    files = write_files(folder / "handbook", lora_files(gateway.parts.model.tensor_shapes(), seed=5))
    sources = ["memory:town/m0@1 memory:town/m1@1"]
    version = await gateway.client.modules.publish("handbook", files, sources=sources)
    for alias in ("live", "canary"):
        await gateway.client.modules.promote("handbook", version.version, alias=alias, force=True)
    return version


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert order_of(Settings()).mode == "off"


async def test_advice_is_explained_and_not_carried_out(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway(knowledge_ladder="advise", **QUICK)
    await town(gateway, tmp_path)
    await use(gateway, "town", "m0")
    report = await reported(
        gateway, lambda report: any(step.decision.action is LadderAction.PROMOTE for step in report.steps)
    )
    (step,) = report.steps
    assert (step.decision.subject, step.decision.from_rung) == ("town", Rung.TEXT)
    assert "it pays: " in step.decision.reason and "s of making" in step.decision.reason
    assert step.outcome == ""
    assert report.use.make_s == 0
    (noted,) = await events(gateway, "ladder_advise")
    assert (noted["namespace"], noted["decision"]) == ("town", "promote")
    assert not gateway.workers[0].distillations


async def test_a_hot_namespace_is_distilled_and_the_candidate_waits(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(knowledge_ladder="act", **QUICK)
    await town(gateway, tmp_path)
    await use(gateway, "town", "m0")
    # The fake worker's files are a LoRA's: what it makes for a cartridge is refused, and the LoRA is next.
    report = await reported(
        gateway, lambda report: any("town-lora@1 waits for" in step.outcome for step in report.steps)
    )
    assert 90 <= report.use.make_s <= report.budget.make_s
    module = await gateway.client.modules.get("town-lora")
    assert (module.versions, module.aliases) == (1, ())
    assert [noted["outcome"] for noted in await events(gateway, "ladder")] == [
        "the distillation of town-cartridge has begun",
        "the distillation of town-lora has begun",
    ]
    metrics = gateway.parts.metrics
    assert metrics.ladder_namespaces.labels(Rung.TEXT)._value.get() == 1


async def test_a_live_module_is_loaded_ahead_and_a_changed_memory_takes_it_down_at_once(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # What it does between two intervals: after the promotion, and after the change.
    gateway = await start_gateway(knowledge_ladder="act", **{**QUICK, "knowledge_ladder_interval_s": 600})
    await town(gateway, tmp_path)
    await use(gateway, "town", "m0")
    version = await live(gateway, tmp_path)
    store = gateway.parts.modules.store
    await reported(gateway, lambda report: report.steps)
    await asyncio.sleep(1.5)  # it has been there for as long as it has to
    await store.record("default", "test", "note", "")
    report = await reported(gateway, stands("town", Rung.LORA))
    assert report.use.resident_bytes >= version.size_bytes
    assert version.digest in {preload.digest for preload in await store.preloads()}

    # A version that says the same changes nothing.
    await gateway.client.update_memory("town", "m0", keywords=["velmora"])
    before_s = report.at_s
    report = await reported(gateway, lambda report: report.at_s > before_s)
    assert stands("town", Rung.LORA)(report)
    assert (await gateway.client.modules.get("handbook")).aliases

    await gateway.client.update_memory("town", "m1", text="The motto of the Velmora Institute is Dusk.")

    async def gone() -> bool:
        return (await gateway.client.modules.get("handbook")).aliases == ()

    await eventually(gone)
    await reported(gateway, lambda report: report.use.resident_bytes == 0)
    assert not await store.preloads()
    noted = (await events(gateway, "ladder"))[-1]
    assert noted["decision"] == "demote"
    assert noted["reason"] == "a fact has changed since this was made of it"
    assert noted["outcome"] == "handbook@canary is dropped, handbook@live is dropped, handbook@1 is unloaded"


async def test_a_pinned_prefix_that_is_not_used_is_left_cold_and_warmed_again_when_it_is(
    start_gateway: StartGateway,
) -> None:
    slower = {"knowledge_ladder_cpu_s": 60, "knowledge_ladder_dwell_s": 3}
    gateway = await start_gateway(knowledge_ladder="act", **{**QUICK, **slower})

    def computed_ahead() -> int:
        return sum(request.keep for request in gateway.workers[0].requests)

    await gateway.client.remember("desk", RULE, memory_id="rule", pinned=True)
    await until(computed_ahead)
    token_ids = list(gateway.workers[0].requests[-1].token_ids)
    keys = block_keys(token_ids, BLOCK_TOKENS, lora=None, cache_salt=gateway.cache_salt)
    stored = [member(NAMESPACE, key) for key in chunk_keys(keys, 1)]
    store(gateway.redis, stored, DEFAULT)
    assert (await gateway.client.activation.usage()).stored_bytes > 0
    await reported(gateway, stands("desk", Rung.TEXT))

    async def freed() -> bool:
        return (await gateway.client.activation.usage()).stored_bytes == 0

    await eventually(freed)
    before = computed_ahead()
    assert "its pinned prefix is not kept warm" in {
        noted["outcome"] for noted in await events(gateway, "ladder")
    }
    await gateway.client.update_memory("desk", "rule", text=RULE + "Twice.")
    await asyncio.sleep(0.5)
    assert computed_ahead() == before
    await use(gateway, "desk", "rule")
    await reported(gateway, stands("desk", Rung.PREFIX))
    await until(lambda: computed_ahead() > before)


async def test_a_pinned_text_of_three_letters_is_a_prefix(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(knowledge_ladder="advise", **QUICK)
    await gateway.client.remember("desk", "No.", memory_id="rule", pinned=True)
    report = await reported(gateway, lambda report: report.steps)
    assert report.steps[0].decision.from_rung is Rung.PREFIX


async def test_more_namespaces_than_it_looks_at_leave_out_none_that_a_module_was_made_of(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(knowledge_ladder="act", **QUICK)
    for number in range(NAMESPACES_MAX):
        await gateway.client.remember(f"a{number}", f"The code of Amber {number} is 4821.")
    await town(gateway, tmp_path)
    await live(gateway, tmp_path)
    await gateway.client.update_memory("town", "m1", text="The motto of the Velmora Institute is Dusk.")

    async def gone() -> bool:
        return (await gateway.client.modules.get("handbook")).aliases == ()

    await eventually(gone)


def test_no_two_namespaces_have_one_module() -> None:
    long = "n" * 63
    names = {module_name(namespace, Rung.CARTRIDGE) for namespace in (f"{long}a", f"{long}b", "n")}
    assert len(names) == 3 and all(len(name) <= 64 for name in names)
    assert module_name("town", Rung.LORA) == "town-lora"


def test_what_comes_back_is_waited_for_minutes_and_what_was_refused_a_day() -> None:
    assert refused_s(NoWorker("no worker is ready")) == 600
    assert refused_s(InvalidField("memories", "state 2 facts")) == 86_400


async def test_a_full_audit_stops_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(knowledge_ladder="act", audit_max_bytes=1, **QUICK)
    await reported(gateway, lambda report: report.at_s > 0)
    await gateway.parts.modules.store.record("default", "test", "note", "")
    await asyncio.sleep(0.2)
    stopped_s = (await gateway.client.ladder()).at_s
    await asyncio.sleep(1.5)
    assert (await gateway.client.ladder()).at_s == stopped_s


async def test_one_of_a_fleet_has_the_turn(shared_redis_server: RedisServer) -> None:
    one, other = LadderRecords(shared_redis_server.url), LadderRecords(shared_redis_server.url)
    try:
        assert await one.take_turn("acme", "a", 60)
        assert not await other.take_turn("acme", "b", 60)
        assert await other.take_turn("globex", "b", 60)
        await other.end_turn("acme", "b")
        assert not await other.take_turn("acme", "b", 60)
        await one.end_turn("acme", "a")
        assert await other.take_turn("acme", "b", 60)
        await one.write("acme", "{}")
        assert await other.read(["acme", "nobody"]) == {"acme": "{}"}
    finally:
        await one.aclose()
        await other.aclose()


def test_a_record_is_read_as_it_was_written() -> None:
    record = LadderRecord(
        5.0, 7, namespaces={"town": NamespaceRecord(rung=Rung.LORA, begun={Rung.LORA: 3.0})}
    )
    record.namespaces["town"].refused[Rung.CARTRIDGE] = (9.0, "too few")
    assert decode(record.encode()) == record
    for broken in ("{", "[]", '{"namespaces": {"town": {"rung": "cellar"}}}', '{"steps": [3]}'):
        with pytest.raises(UnreadableRecord):
            decode(broken)
