"""MemoryService on single memories: corrected, restored, erased, read by time, by place and by link."""

from __future__ import annotations

import time

import grpc
import pytest

from memserve.client import (
    CallFailed,
    Link,
    LinkKind,
    MemoryAction,
    MemoryKind,
    MemoryState,
    Place,
    WritePolicy,
)
from tests.gateway.running import RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOT_FOUND = grpc.StatusCode.NOT_FOUND


async def code_of(call: object) -> grpc.StatusCode:
    with pytest.raises(CallFailed) as failed:
        await call  # type: ignore[misc]
    return failed.value.code


async def test_all_that_is_said_of_a_memory_comes_back(gateway: RunningGateway) -> None:
    said = {
        "source": "a book",
        "keywords": ("lamp",),
        "kind": MemoryKind.PROCEDURE,
        "metadata": {"city": "Oslo", "floor": 2, "height": 2.0, "lit": True, "tags": ("a", "b")},
        "valid_from_s": 10.0,
        "valid_until_s": 4e9,
        "applies_when": 'user.role == "keeper"',
        "strength": 2.5,
        "links": (Link(LinkKind.CAUSED_BY, "other"),),
        "place": Place("log", 3, "The log", ("May", "Monday")),
        "pinned": True,
    }
    remembered = await gateway.client.remember("said", "Trim the lamp.", memory_id="m", **said)  # type: ignore[arg-type]
    memory = remembered.memory
    assert memory is not None and remembered.created
    assert {name: getattr(memory, name) for name in said} == said
    assert [type(value) for value in memory.metadata.values()] == [str, int, float, bool, tuple]
    assert await gateway.client.get_memory("said", "m") == memory


async def test_an_update_names_the_version_that_it_has_seen(gateway: RunningGateway) -> None:
    first = (await gateway.client.remember("cas", "The code is 1.", memory_id="m", source="a")).memory
    second, _ = await gateway.client.update_memory("cas", "m", expected_version=1, text="The code is 2.")
    assert (second.version, second.text, second.source) == (2, "The code is 2.", "a")
    late = gateway.client.update_memory("cas", "m", expected_version=1, text="The code is 3.")
    assert await code_of(late) is grpc.StatusCode.ABORTED
    history = await gateway.client.memory_history("cas", "m")
    assert [version.memory.text for version in history.versions] == ["The code is 1.", "The code is 2."]
    assert [version.action for version in history.versions] == [
        MemoryAction.REMEMBERED,
        MemoryAction.UPDATED,
    ]
    assert history.versions[0].memory == first
    assert [hit.memory.text for hit in await gateway.client.search("cas", "code")] == ["The code is 2."]


async def test_an_earlier_version_and_the_one_of_a_time_are_read(gateway: RunningGateway) -> None:
    await gateway.client.remember("times", "The gate is shut.", memory_id="m")
    between_s = time.time()
    await gateway.client.update_memory("times", "m", text="The gate is open.")
    assert (await gateway.client.get_memory("times", "m", version=1)).text == "The gate is shut."
    assert (await gateway.client.get_memory("times", "m", as_of_s=between_s)).text == "The gate is shut."
    assert (await gateway.client.get_memory("times", "m", as_of_s=time.time())).text == "The gate is open."
    assert await code_of(gateway.client.get_memory("times", "m", version=3)) is NOT_FOUND
    assert await code_of(gateway.client.get_memory("times", "m", as_of_s=1.0)) is NOT_FOUND


async def test_what_is_forgotten_is_restored_and_what_is_erased_is_not(gateway: RunningGateway) -> None:
    client = gateway.client
    await client.remember("brief", "The password is heliotrope.", memory_id="m")
    await client.forget("brief", "m")
    assert await code_of(client.get_memory("brief", "m")) is NOT_FOUND
    assert (await client.get_memory("brief", "m", forgotten=True)).state is MemoryState.FORGOTTEN
    assert await client.search("brief", "heliotrope") == []
    assert await code_of(client.update_memory("brief", "m", text="another")) is NOT_FOUND
    restored = await client.restore_memory("brief", "m")
    assert (restored.state, restored.version) == (MemoryState.LIVE, 3)
    assert [hit.memory for hit in await client.search("brief", "heliotrope")] == [restored]
    places = await client.erase_memory("brief", "m", reason="a person asked")
    assert {"history", "index", "journal"} <= {place.place for place in places}
    assert next(place.removed for place in places if place.place == "history") == 3
    assert await code_of(client.get_memory("brief", "m", forgotten=True)) is NOT_FOUND
    assert await code_of(client.memory_history("brief", "m")) is NOT_FOUND
    assert await code_of(client.restore_memory("brief", "m")) is NOT_FOUND
    assert await code_of(client.erase_memory("brief", "m")) is NOT_FOUND
    assert await client.search("brief", "heliotrope") == []


async def test_a_superseded_memory_is_read_and_not_found(gateway: RunningGateway) -> None:
    client = gateway.client
    await client.remember("moves", "Anna lives in Oslo.", memory_id="old")
    remembered = await client.remember("moves", "Anna lives in Bergen.", memory_id="new")
    assert [finding.memory_id for finding in remembered.findings] == ["old"]
    old = await client.supersede_memory("moves", "old", "new")
    assert (old.state, old.superseded_by) == (
        MemoryState.SUPERSEDED,
        Link(LinkKind.SUPERSEDES, "new", "moves"),
    )
    assert [hit.memory.memory_id for hit in await client.search("moves", "where does Anna live")] == ["new"]
    assert (await client.get_memory("moves", "old")).text == "Anna lives in Oslo."
    led_to = await client.follow_links("moves", "new", kinds=[LinkKind.SUPERSEDES])
    assert [(hit.memory.memory_id, hit.via and hit.via.kind) for hit in led_to] == [("old", "supersedes")]
    assert await code_of(client.supersede_memory("moves", "new", "nothing")) is NOT_FOUND


async def test_a_write_supersedes_what_it_updates_and_skips_what_is_said_where_it_is_told_to(
    gateway: RunningGateway,
) -> None:
    client = gateway.client
    await client.remember("policy", "Anna works in Oslo.", memory_id="old", valid_from_s=100.0)
    update = await client.remember(
        "policy",
        "Anna works in Bergen.",
        memory_id="new",
        valid_from_s=4e8,
        policy=WritePolicy(supersede_updates=True),
    )
    assert [(finding.memory_id, finding.superseded) for finding in update.findings] == [("old", True)]
    assert update.memory == await client.get_memory("policy", "new")
    again = await client.remember(
        "policy", "Anna works in Bergen.", source="elsewhere", valid_from_s=4e8,
        policy=WritePolicy(skip_duplicates=True),
    )  # fmt: skip
    assert (again.memory_id, again.created) == ("new", False)
    quiet = await client.remember("policy", "Anna works in Moss.", policy=WritePolicy(skip_relations=True))
    assert quiet.findings == ()


async def test_a_session_is_read_in_its_order_and_around_a_hit(gateway: RunningGateway) -> None:
    client = gateway.client
    turns = ("The storm begins.", "The lamp goes out.", "The keeper lights it again.")
    for position, text in enumerate(turns):
        place = Place("night", position)
        await client.remember("session", text, memory_id=f"t{position}", kind=MemoryKind.EPISODE, place=place)
    assert [memory.text for memory in await client.read_places("session", "night")] == list(turns)
    assert [memory.text for memory in await client.read_places("session", "night", 1, 1)] == [turns[1]]
    found = await client.find("session", "lamp goes out", 1, neighbours=1)
    assert found.hits[0].memory.memory_id == "t1"
    assert {hit.memory.memory_id for hit in found.hits[1:]} == {"t0", "t2"}
    assert all(hit.via is not None and hit.via.memory_id == "t1" for hit in found.hits[1:])


async def test_a_search_says_what_it_does_not_use(gateway: RunningGateway) -> None:
    client = gateway.client
    await client.remember("wishes", "The key of the archive is red.", memory_id="old", valid_until_s=50.0)
    await client.remember(
        "wishes", "The key of the archive is with the nurse.", memory_id="nurse",
        applies_when='user.role == "nurse"',
    )  # fmt: skip
    await client.remember("wishes", "The key of the archive hangs on the wall.", metadata={"floor": 2})
    asked = "Where is the key of the archive?"
    found = await client.find("wishes", asked, context={"user.role": "cook"})
    assert {(entry.memory_id, entry.reason) for entry in found.skipped} == {
        ("old", "expired"),
        ("nurse", "condition"),
    }
    assert len(found.hits) == 1 and 0 < found.hits[0].relevance <= 1
    nurse = await client.find("wishes", asked, context={"user.role": "nurse"})
    assert "nurse" in {hit.memory.memory_id for hit in nurse.hits}
    floor = await client.find("wishes", asked, filter="metadata.floor == 2")
    assert [hit.memory.metadata for hit in floor.hits] == [{"floor": 2}]
    early = await client.find("wishes", asked, as_of_s=10.0)
    assert "old" in {hit.memory.memory_id for hit in early.hits}
    nothing = await client.find("wishes", "the price of tea in another town", min_relevance=0.99)
    assert nothing.hits == () and {entry.reason for entry in nothing.skipped} >= {"score"}
