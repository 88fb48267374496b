"""The run: two tenants call a shared gateway at the same time, and each calls one that it has alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from loadtests.harness.figures import report
from loadtests.texts.memory_isolation.calls import GENERATORS, Call
from loadtests.texts.memory_isolation.comparing import difference, differing_hits, looked_at, plain, unused
from loadtests.texts.memory_isolation.drawing import COMMON, NAMESPACES, Drawn
from loadtests.texts.memory_isolation.worlds import Reply, World, methods
from memserve.pb.v1 import memory_pb2 as pb
from tests.gateway.running import RunningGateway, open_gateway
from tests.memory.texts.milvus_server import running_server

TENANTS = ("alder", "birch")
CROWD = "crowd"
TRIES = 6
"""Of a read that differs: counts of uses come a second late."""
PAUSE_S = 0.7
CROWD_WORDS = 1200
"""Of one memory of the crowd."""
FILLED_AT_ONCE = 64
SHOWN = 12
CUT = frozenset({"Search", "Recall"})
"""They look at the best of both halves only, and tantivy's cut of the words hangs on the mean length of all
tenants' texts that share a part of its index."""


@dataclass
class Findings:
    """What was seen."""

    calls: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    crossings: list[str] = field(default_factory=list)
    """A reply that is another one than the tenant gets alone, or that has the other's word."""
    internal: list[str] = field(default_factory=list)
    other_candidates: int = 0
    """Replies of searches that looked at other memories than the tenant's search alone does."""


@contextlib.asynccontextmanager
async def gateways(folder: Path, model: Path, store: str) -> AsyncIterator[tuple[RunningGateway, ...]]:
    """The shared gateway, and one for each tenant. store: "lite" or "remote"."""
    keys = folder / "keys.json"
    entries = {f"{tenant}-key": tenant for tenant in (*TENANTS, CROWD)}
    keys.write_text(json.dumps(entries), encoding="utf-8")
    keys.chmod(0o600)
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for name in ("shared", *TENANTS):
            (own := folder / name).mkdir()
            uri = stack.enter_context(running_server(own / "milvus")) if store == "remote" else ""
            opened.append(
                await stack.enter_async_context(
                    open_gateway(
                        own, model, api_keys_file=keys, milvus_uri=uri, recall_timeout_ms=30_000,
                        gateway_share_per_tenant=1000.0, memory_changes_per_minute_per_tenant=10**9,
                        keep_prompts="on_request",
                    )
                )
            )  # fmt: skip
        yield tuple(opened)


async def run(folder: Path, model: Path, *, calls: int, seed: int, store: str, crowd: int) -> Findings:
    """calls: of both tenants together. crowd: memories of a third tenant at the shared gateway."""
    findings = Findings()
    async with gateways(folder, model, store) as (shared, *own):
        crowded = World(shared.channel, f"{CROWD}-key")
        await fill(crowded, crowd, seed)
        alone = dict(zip(TENANTS, own, strict=True))
        beside = {tenant: World(shared.channel, f"{tenant}-key") for tenant in TENANTS}
        for tenant, other in (TENANTS, TENANTS[::-1]):
            beside[tenant].other = beside[other]
        await asyncio.gather(
            *(
                drive(
                    (beside[tenant], World(alone[tenant].channel, f"{tenant}-key")),
                    Drawn(random.Random(f"{seed} calls"), tenant, other),
                    calls // 2,
                    findings,
                )
                for tenant, other in (TENANTS, TENANTS[::-1])
            )
        )
    return findings


async def drive(worlds: tuple[World, World], drawn: Drawn, calls: int, findings: Findings) -> None:
    """Make a tenant's calls, one after another, in both of its worlds at once."""
    weights = [weight for _, weight in GENERATORS.values()]
    names = list(GENERATORS)
    # Both tenants draw the same calls on the same ids; only their texts differ.
    for number in range(calls):
        name = names[number] if number < len(names) else drawn.draw.choices(names, weights)[0]
        call = GENERATORS[name][0](drawn)
        await make(worlds, call, drawn, findings)
        if number % 250 == 249:
            report(f"{drawn.marker}: {number + 1:,} of {calls:,}; {len(findings.crossings)} crossings")


async def make(worlds: tuple[World, World], call: Call, drawn: Drawn, findings: Findings) -> None:
    method = methods()[call.rpc]
    found = ""
    worlds[0].learn_foreign_ids()
    worlds[1].foreign_ids = [f"{number + 1:032x}" for number in range(len(worlds[0].foreign_ids))]
    for number in range(TRIES if call.repeats else 1):
        if number:
            await asyncio.sleep(PAUSE_S)
        requests = [call.build(world) for world in worlds]
        replies = await asyncio.gather(
            *(world.call(method, request) for world, request in zip(worlds, requests, strict=True))
        )
        if not number:
            for world, reply in zip(worlds, replies, strict=True):
                call.note(world, reply)
        if call.rpc in CUT and looked_at(replies[0]) != looked_at(replies[1]):
            found = differing_hits(worlds[0], replies[0], worlds[1], replies[1])
            findings.other_candidates += not found
        else:
            found = difference(*(plain(world, reply) for world, reply in zip(worlds, replies, strict=True)))
        if not found:
            shared, own = (unused(reply) for reply in replies)
            differing = [name for name in shared.keys() & own.keys() if shared[name] != own[name]]
            found = f"not used for other reasons: {differing}" if differing else ""
            break
    findings.calls[call.rpc] += 1
    findings.answered[call.rpc] += replies[0].code is grpc.StatusCode.OK
    findings.codes[replies[0].code.name] += 1
    asked = str(requests[0])[:600]
    if found:
        findings.crossings.append(f"{call.rpc}: {found} (asked: {asked})")
    elif drawn.other_marker not in str(requests[0]) and _says(replies[0], drawn.other_marker):
        findings.crossings.append(f"{call.rpc}: has {drawn.other_marker!r} (asked: {asked})")
    if any(reply.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) for reply in replies):
        findings.internal.append(f"{call.rpc}: {replies[0].detail} (asked: {asked})")
    await asyncio.sleep(call.settles_s)


async def fill(world: World, memories: int, seed: int) -> None:
    """Have a third tenant's memories full of the words that everybody uses, under the same names."""
    draw = random.Random(f"{seed} crowd")
    items = [
        pb.RememberRequest(
            namespace=draw.choice(NAMESPACES),
            memory_id=f"m{number}",
            text=" ".join(draw.choices(COMMON, k=CROWD_WORDS))[:8000],
        )
        for number in range(memories)
    ]
    for start in range(0, memories, FILLED_AT_ONCE):
        sent = [pb.BatchRememberRequest(item=item) for item in items[start : start + FILLED_AT_ONCE]]
        header = pb.BatchRememberRequest(header=pb.BatchRememberHeader())
        reply = await world.call(methods()["BatchRemember"], [header, *sent])
        stored = sum(message.HasField("remembered") for message in reply.messages)  # type: ignore[attr-defined]
        if stored != len(sent):
            raise RuntimeError(f"{stored} of {len(sent)} of the crowd's memories were stored: {reply.detail}")


def _says(reply: Reply, word: str) -> bool:
    needle = word.encode()
    return needle in reply.detail.encode() or any(
        needle in each.SerializeToString() for each in reply.messages
    )


def shown(lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        report(f"  {line}")
    if len(lines) > SHOWN:
        report(f"  and {len(lines) - SHOWN} more")
