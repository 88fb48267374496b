"""What a tenant sees of what was made of what, in both directions."""

from __future__ import annotations

from pathlib import Path

import grpc

from memserve.client import AsyncClient, Lineage, LineageKind, LineageState
from memserve.domain import Link, LinkKind, Sampling
from memserve.kv.ledger.records import Owner
from tests.gateway.erasures.test_erasures import FACTS, made_of, town
from tests.gateway.modules.publishing import failure_of
from tests.gateway.running import RunningGateway, eventually
from tests.gateway.test_prefixes import TEXT, members, store

GREEDY = Sampling(max_tokens=2)


def steps(lineage: Lineage) -> set[tuple[str, str, str]]:
    return {(edge.source, edge.made, edge.how) for edge in lineage.edges}


def states(lineage: Lineage) -> dict[str, LineageState]:
    return {node.name: node.state for node in lineage.nodes}


async def test_a_memory_a_version_and_an_answer_are_followed_both_ways(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    first = await made_of(gateway, tmp_path, 1, "m0", "m1")
    await client.modules.promote("handbook", 1)
    await made_of(gateway, tmp_path, 2, "m2", name="codes")
    await client.modules.compose("both", "linear", {"handbook@1": 1.0, "codes@1": 1.0})
    answer = await client.generate(
        "Who is the founder?", module="handbook", namespaces="town", recall_timeout_ms=10_000, sampling=GREEDY
    )
    request_id = answer.route.request_id
    store(gateway.redis, members(gateway, TEXT), Owner("default", first.digest))

    async def kept() -> bool:
        return (await client.explain_answer(request_id)).answer is not None

    await eventually(kept)
    of_memory = await client.lineage.show("town/m0")
    assert of_memory.root == "memory:town/m0"
    assert {
        ("memory:town/m0", "memory:town/m0@1", "version"),
        ("memory:town/m0@1", "module:handbook@1", "distilled"),
        ("module:handbook@1", "module:both@1", "composed"),
        ("module:handbook@1", f"answer:{request_id}", "answered"),
        ("module:handbook@1", f"kv:module/{first.digest[:12]}", "computed"),
        ("memory:town/m0@1", f"answer:{request_id}", "recalled"),
    } <= steps(of_memory)
    # What else the version was made of is not part of it.
    assert "memory:town/m1@1" not in states(of_memory)

    of_module = await client.lineage.show("both@1")
    assert {
        ("module:handbook@1", "module:both@1", "composed"),
        ("memory:town/m1@1", "module:handbook@1", "distilled"),
        ("memory:town/m2@1", "module:codes@1", "distilled"),
    } <= steps(of_module)
    upwards = await client.lineage.show(f"answer:{request_id}", depth=1)
    assert ("module:handbook@1", f"answer:{request_id}", "answered") in steps(upwards)
    assert any("beyond the depth of 1" in line for line in upwards.cut)
    only = await client.lineage.show("both@1", sources=False)
    assert not any(node.kind is LineageKind.MEMORY for node in only.nodes)
    few = await client.lineage.show("both@1", limit=2)
    assert len(few.nodes) == 2 and "more than 2 nodes" in few.cut[-1]


async def test_it_shows_what_an_erasure_reaches(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    """Memories derived in several steps, what was distilled of those, and equal contents."""
    await town(client)
    for source, derived in (("m0", "d1"), ("d1", "d2"), ("d2", "d3")):
        links = [Link(LinkKind.DERIVED_FROM, source)]
        await client.remember("town", f"It is said of {derived}.", memory_id=derived, links=links)
    await client.update_memory(
        "town", "d1", links=[Link(LinkKind.DERIVED_FROM, each) for each in ("m0", "d3")]
    )
    await made_of(gateway, tmp_path, 1, "d3")
    await client.modules.publish("copy", tmp_path / "handbook-1")
    plan = await client.lineage.plan_erasure("town", "m0")
    shown = states(await client.lineage.show("town/m0"))
    assert set(plan.derived) == {"town/d1", "town/d2", "town/d3"}
    assert set(plan.retired) == {"handbook@1", "copy@1"}
    reached = {*(f"module:{each}" for each in plan.retired), "memory:town/d1@2", "memory:town/d3@1"}
    assert reached <= shown.keys()


async def test_a_memory_that_changes_makes_what_was_made_of_it_out_of_date(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0", "m1")
    await made_of(gateway, tmp_path, 2, "m2", name="codes")
    assert set(states(await client.lineage.show("handbook@1")).values()) == {LineageState.CURRENT}
    await client.update_memory("town", "m0", text="The founder of the Velmora Institute is Ada Lund.")
    await client.forget("town", "m2")
    found = await client.lineage.show("handbook@1")
    assert states(found) == {
        "module:handbook@1": LineageState.OUT_OF_DATE,
        "memory:town/m0@1": LineageState.OUT_OF_DATE,
        "memory:town/m1@1": LineageState.CURRENT,
    }
    assert any("version 2 is current" in node.detail for node in found.nodes)
    forgotten = await client.lineage.show("town/m2")
    assert states(forgotten)["module:codes@1"] is LineageState.OUT_OF_DATE
    assert (await client.modules.version("codes@1")).version == 1


async def test_memories_that_were_derived_from_others_are_followed(client: AsyncClient) -> None:
    await town(client)
    links = [Link(LinkKind.DERIVED_FROM, "m0", "town")]
    await client.remember("sums", "It was founded by Ida Kern.", memory_id="sum", links=links)
    down = await client.lineage.show("town/m0")
    assert ("memory:town/m0@1", "memory:sums/sum@1", "derived") in steps(down)
    up = await client.lineage.show("sums/sum")
    assert ("memory:town/m0@1", "memory:sums/sum", "derived") in steps(up)


async def test_what_is_no_thing_or_not_there_is_refused_by_its_rule(client: AsyncClient) -> None:
    await client.remember("town", FACTS["m0"], memory_id="m0")
    for of, code in (
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("TOWN/m0", grpc.StatusCode.INVALID_ARGUMENT),
        ("town/../m0", grpc.StatusCode.INVALID_ARGUMENT),
        ("town/gone", grpc.StatusCode.NOT_FOUND),
        ("nowhere/m0", grpc.StatusCode.NOT_FOUND),
        ("tone@3", grpc.StatusCode.NOT_FOUND),
        ("answer:" + "0" * 32, grpc.StatusCode.NOT_FOUND),
    ):
        assert (await failure_of(client.lineage.show(of))).code is code, of
    for bounds in ({"depth": 17}, {"limit": 2001}, {"depth": -1}):
        assert "must be 1 to" in (await failure_of(client.lineage.show("town/m0", **bounds))).detail
