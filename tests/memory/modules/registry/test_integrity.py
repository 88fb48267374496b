"""Each kind of contradiction in the module store is found when it is made by hand; one in use is sound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import pytest_asyncio
import redis

from memserve.domain import TrafficShare
from memserve.memory.modules.registry.aliases import AliasRef
from memserve.memory.modules.registry.check import ModuleStoreCheck
from memserve.memory.modules.registry.store import ModuleStore
from memserve.registry.leases import close_client, registry_client
from tests.kv.redis_server import RedisServer
from tests.memory.modules.registry.module_store import ANN, LIVE, REPORT, VERSION, A, B, C

P = "memserve:module:"
TONE = "5:alice4:tone"
OTHER = "d" * 64
HEAD = f"{P}head:{TONE}"
Damage = Callable[[redis.Redis], object]


@pytest_asyncio.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[ModuleStore]:
    """Two versions share an alias, the second as a canary; both have a preload; an alias was dropped."""
    store = ModuleStore(redis_server.url)
    await store.publish("alice", "ann", replace(VERSION, probes_digest=C))
    await store.publish("alice", "ann", replace(VERSION, digest=B))
    await store.keep_gate("alice", "ann", "tone", 1, replace(REPORT, passed=True))
    await store.set_alias(LIVE, [TrafficShare(1, 1.0)], ANN, action="promote")
    await store.set_alias(LIVE, [TrafficShare(1, 0.9), TrafficShare(2, 0.1)], ANN, action="split")
    old = AliasRef("alice", "tone", "old")
    await store.set_alias(old, [TrafficShare(1, 1.0)], ANN, action="promote")
    await store.drop_alias(old, ANN)
    await store.preload("alice", "ann", "tone", 1)
    await store.preload("alice", "ann", "tone", 2, "w:1")
    await store.claim([OTHER], "publisher", 60)
    yield store
    await store.close()


def edit_alias(**fields: object) -> Damage:
    """Replace fields of the alias `live` as it is kept."""

    def edit(client: redis.Redis) -> None:
        key = f"{P}aliases:{TONE}"
        record = json.loads(str(client.hget(key, "live").decode()))  # type: ignore[union-attr]
        client.hset(key, "live", json.dumps(record | fields))

    return edit


def edit_version(number: int, **fields: object) -> Damage:
    """Replace fields of a version as it is kept."""

    def edit(client: redis.Redis) -> None:
        key = f"{P}versions:{TONE}"
        record = json.loads(str(client.hget(key, f"v:{number}").decode()))  # type: ignore[union-attr]
        client.hset(key, f"v:{number}", json.dumps(record | fields))

    return edit


def event(**fields: str) -> Damage:
    """Add an event to the audit."""
    own = {"at_s": "1", "principal": "ann", "action": "", "module": "tone", "before": "", "after": ""}
    return lambda client: client.xadd(f"{P}events:5:alice", own | fields)


ENDS_WRONG = f"{HEAD}: alias live: it is not what its history ends with"
DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "a version that is not among the numbers": (
        lambda client: client.zrem(f"{P}numbers:{TONE}", 2),
        [
            f"{HEAD}: alias live: it targets version 2, which does not exist",
            f"{HEAD}: version 2 is not among the numbers",
            f"{HEAD}: version 2 is not there, and the audit says otherwise",
        ],
    ),
    "a key that is none": (
        lambda client: client.set(f"{P}head:tone", "x"),
        [f"{P}head:tone: its names cannot be told apart"],
    ),
    "a canary that cannot be read": (
        lambda client: client.hset(P + "canaries", "x", "{}"),
        [
            f"{P}canaries or {P}preloads: a record of the registry (CanaryAlias) cannot be read here: "
            "JSONDecodeError: Expecting value: line 1 column 1 (char 0); a newer memserve may have written it"
        ],
    ),
    "a number without a version": (
        lambda client: client.zadd(f"{P}numbers:{TONE}", {"7": 7}),
        [
            f"{HEAD}: a version has a number above 2, the last one that was given out",
            f"{HEAD}: number 7 has no version",
            f"{HEAD}: version 7 is there, and the audit says otherwise",
        ],
    ),
    "a report without a version": (
        lambda client: client.hset(f"{P}versions:{TONE}", "g:9", "{}"),
        [f"{HEAD}: a part of version 9 is kept, and the version is not"],
    ),
    "a version that cannot be read": (
        lambda client: client.hset(f"{P}versions:{TONE}", "v:2", "x"),
        [
            f"{HEAD}: a record of the registry (ModuleVersion) cannot be read here: JSONDecodeError: "
            "Expecting value: line 1 column 1 (char 0); a newer memserve may have written it",
            f"{P}references:{B}: version 2 of module tone of tenant alice has it not",
        ],
    ),
    "a version under another number": (
        edit_version(2, version=3),
        [f"{HEAD}: version 2 says that its number is 3"],
    ),
    "a version of another kind": (
        edit_version(2, kind="logit_expert"),
        [f"{HEAD}: version 2 is of kind logit_expert, and the module of kind lora"],
    ),
    "a module that is not listed": (
        lambda client: client.zrem(f"{P}names:5:alice", "tone"),
        [f"{HEAD}: it has 2 versions, and is not listed"],
    ),
    "a module that is not listed under its kind": (
        lambda client: client.zrem(f"{P}names:5:alice4:lora", "tone"),
        [f"{HEAD}: it has 2 versions, and is not listed under its kind"],
    ),
    "a digest without its reference": (
        lambda client: client.srem(f"{P}references:{C}", f"{TONE}1"),
        [f"{HEAD}: version 1 is not among the references of {C}"],
    ),
    "a reference of a version that does not exist": (
        lambda client: client.sadd(f"{P}references:{C}", f"{TONE}5"),
        [f"{P}references:{C}: version 5 of module tone of tenant alice has it not"],
    ),
    "a target that does not exist": (
        edit_alias(targets='[{"version": 1, "weight": 0.9}, {"version": 9, "weight": 0.1}]'),
        [
            f"{HEAD}: alias live: a canary does not share it",
            ENDS_WRONG,
            f"{HEAD}: alias live: it targets version 9, which does not exist",
        ],
    ),
    "shares of nothing": (
        edit_alias(targets='[{"version": 1, "weight": 0}, {"version": 2, "weight": 1}]'),
        [ENDS_WRONG, f"{HEAD}: alias live: its weights give no shares of the traffic"],
    ),
    "a target that is there twice": (
        edit_alias(targets='[{"version": 2, "weight": 1}, {"version": 2, "weight": 1}]'),
        [ENDS_WRONG, f"{HEAD}: alias live: it targets a version twice"],
    ),
    "an alias at another revision": (
        edit_alias(revision=5),
        [ENDS_WRONG, f"{HEAD}: alias live: its canaries are those of revision 2, at which it is not"],
    ),
    "a history with a gap": (
        lambda client: client.lpop(f"{P}history:{TONE}4:live"),
        [
            f"{HEAD}: alias live: its history has gaps",
            f"{HEAD}: alias live: the audit and its history differ at revision 1",
        ],
    ),
    "an alias that is gone": (
        lambda client: client.hdel(f"{P}aliases:{TONE}", "live"),
        [
            f"{HEAD}: alias live: it does not exist, and its history does not end with that",
            f"{HEAD}: alias live: its canaries are those of revision 2, at which it is not",
        ],
    ),
    "an alias that was dropped and is there": (
        lambda client: client.hset(
            f"{P}aliases:{TONE}",
            "old",
            json.dumps(
                {"revision": 1, "origin": 1, "targets": '[{"version": 1, "weight": 1}]', "changed_s": "1"}
            ),
        ),
        [f"{HEAD}: alias old: it is not what its history ends with"],
    ),
    "a canary that does not share its alias": (
        lambda client: client.hset(
            P + "canaries", '["alice","tone","live"]', json.dumps({"versions": [3], "revision": 2})
        ),
        [f"{HEAD}: alias live: a canary does not share it"],
    ),
    "a preload that workers do not see": (
        lambda client: client.hdel(P + "preloads", f"{TONE}2:w:1"),
        [f"{HEAD}: the preload of version 2 on w:1 is unknown to workers"],
    ),
    "a preload that only workers see": (
        lambda client: client.srem(f"{P}preloaded:{TONE}1", ""),
        [f"{HEAD}: the preload of version 1 on every worker is unknown to the version"],
    ),
    "a preload of another digest": (
        lambda client: client.hset(P + "preloads", f"{TONE}1:", json.dumps({"digest": B})),
        [f"{HEAD}: the preload of version 1 on every worker has another digest"],
    ),
    "a preload of a version that does not exist": (
        lambda client: (
            client.hset(P + "preloads", f"{TONE}8:", json.dumps({"digest": B})),
            client.sadd(f"{P}preloaded:{TONE}8", ""),
        ),
        [f"{HEAD}: the preload of version 8 on every worker is of a version that does not exist"],
    ),
    "a digest that is condemned and referenced": (
        lambda client: client.set(f"{P}condemned:{A}", "sweep", ex=60),
        [f"{P}references:{A}: it is condemned, and a version references it"],
    ),
    "a digest that is condemned and claimed": (
        lambda client: client.set(f"{P}condemned:{OTHER}", "sweep", ex=60),
        [f"{P}references:{OTHER}: it is condemned, and a publisher claims it"],
    ),
    "a claim that never ends": (
        lambda client: client.persist(f"{P}claims:{OTHER}"),
        [f"{P}references:{OTHER}: a claim or a block of it never ends"],
    ),
    "a publication that the audit has twice": (
        event(action="publish", after='{"version": 2}'),
        [f"{HEAD}: the audit's published versions are not in order, or have gaps"],
    ),
    "a change of an alias that the audit has twice": (
        event(action="split", after='{"name": "live", "targets": [], "revision": 2}'),
        [f"{HEAD}: alias live: the audit's changes are not in order, or there twice"],
    ),
    "a deletion that was not made": (
        event(action="delete", before='{"version": 2}'),
        [f"{HEAD}: version 2 is there, and the audit says otherwise"],
    ),
    "deletions that the audit has twice": (
        lambda client: [event(action="delete", before='{"version": 9}')(client) for _ in range(2)],
        [f"{HEAD}: the audit has a version deleted twice"],
    ),
    "a change of an alias that is not in its history": (
        event(action="promote", after='{"name": "live", "targets": [], "revision": 3}'),
        [f"{HEAD}: alias live: the audit and its history differ at revision 3"],
    ),
}


@pytest.mark.damages_state
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_contradiction_is_found(store: ModuleStore, redis_server: RedisServer, damage: str) -> None:
    make, sentences = DAMAGES[damage]
    make(redis_server.client)
    client = registry_client(redis_server.url)
    contradictions = await ModuleStoreCheck(client, pause_s=0.01).contradictions()
    await close_client(client)
    assert contradictions == sentences


async def test_a_sound_store_has_no_contradictions(store: ModuleStore) -> None:
    assert await store.check_integrity() == []


@pytest.mark.damages_state
async def test_what_is_right_when_it_is_read_again_is_no_contradiction(
    store: ModuleStore, redis_server: RedisServer
) -> None:
    redis_server.client.zrem(f"{P}names:5:alice", "tone")
    redis_server.client.sadd(f"{P}references:{C}", f"{TONE}5")
    checking = asyncio.create_task(store.check_integrity())
    await asyncio.sleep(0.3)
    redis_server.client.zadd(f"{P}names:5:alice", {"tone": 0})
    redis_server.client.srem(f"{P}references:{C}", f"{TONE}5")
    assert await checking == []


async def test_a_store_in_use_is_sound(store: ModuleStore) -> None:
    is_over = asyncio.Event()

    async def change() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            version = replace(VERSION, module="busy", digest=f"{number:064}")
            published = await store.publish("alice", "ann", version)
            ref = AliasRef("alice", "busy", "live")
            await store.set_alias(ref, [TrafficShare(published.version, 1.0)], ANN, action="promote")
            if published.version > 1:
                await store.delete_version("alice", "ann", "busy", published.version - 1)

    changing = asyncio.create_task(change())
    contradictions = [sentence for _ in range(5) for sentence in await store.check_integrity()]
    is_over.set()
    await changing
    assert contradictions == []
