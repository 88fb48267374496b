"""Two tenants with the same ids get what each gets alone. `loadtests.memory_isolation` makes 10,000 calls."""

from __future__ import annotations

from pathlib import Path

import grpc

from loadtests.texts.memory_isolation.calls import GENERATORS
from loadtests.texts.memory_isolation.comparing import difference, plain
from loadtests.texts.memory_isolation.running import run
from loadtests.texts.memory_isolation.worlds import Reply, World, methods
from memserve.demo import MODEL_DIR
from memserve.pb.v1 import memory_pb2 as pb

CALLS = 300


def test_every_rpc_has_a_generator() -> None:
    assert methods().keys() == GENERATORS.keys()


async def test_each_tenant_gets_what_it_gets_alone(tmp_path: Path) -> None:
    findings = await run(tmp_path, MODEL_DIR, calls=CALLS, seed=3, store="lite", crowd=8)
    assert findings.crossings == []
    assert findings.internal == []
    assert findings.calls.total() == CALLS
    assert findings.answered.total() > CALLS // 3


async def test_replies_that_differ_are_seen_and_times_and_random_ids_are_not() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        one, other = (World(channel, "key", request_ids=[number * 32]) for number in "ab")

        def of(world: World, **fields: object) -> object:
            memory = pb.Memory(memory_id="m", created_s=len(world.request_ids[0]), **fields)  # type: ignore[arg-type]
            hit = pb.ScoredMemory(memory=memory, score=0.5)
            return plain(
                world, Reply(grpc.StatusCode.OK, "", (pb.SearchResponse(results=[hit]),))
            )  # fmt: skip

        assert difference(of(one, source="a" * 32), of(other, source="b" * 32)) == ""
        assert "text" in difference(of(one, text="mine"), of(other, text="theirs"))
        assert "version" in difference(of(one, version=1), of(other, version=2))
        fault = Reply(grpc.StatusCode.NOT_FOUND, "memory 'm' does not exist", ())
        assert "code" in difference(plain(one, fault), of(other))
