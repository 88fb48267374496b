"""Versions and changes for the tests of the module store."""

from __future__ import annotations

from dataclasses import replace

from memserve.domain import (
    Alias,
    AliasChange,
    GateFigure,
    GateReport,
    ModuleKind,
    ModuleVersion,
    TrafficShare,
    WeightFigures,
    WorkerLease,
)
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.memory.modules.registry.store import ModuleStore
from memserve.registry.leases import Registry

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
VERSION = ModuleVersion(
    module="tone",
    version=0,
    digest=A,
    kind=ModuleKind.LORA,
    base_digest="ba" * 32,
    rank=4,
    target_modules=("q_proj", "v_proj"),
    size_bytes=2**53 - 1,
    created_s=1790000000.1234567,
    author="ann",
    sources=("a/b", 'été "x"\n'),
    parents=(B,),
    recipe='{"method": "svd", "weights": [0.1]}',
    notes="",
    figures=WeightFigures(1 / 3, 0.1, 3.9999999999999996),
    probes_digest="",
)
TEXTS_LEFT_OUT = replace(VERSION, recipe="", notes="", sources=())
EXPERT = replace(VERSION, kind=ModuleKind.LOGIT_EXPERT)
LIVE = AliasRef("alice", "tone", "live")
ANN, BERT = Change("ann"), Change("bert")
REPORT = GateReport(
    False, (GateFigure("recall", 0.1, 1 / 3, "at least 0.9", False, 12),), "w0", 1790000001.7654321, "d" * 64
)


async def publish(store: ModuleStore, *digests: str, name: str = "tone", tenant: str = "alice") -> None:
    for digest in digests:
        await store.publish(tenant, "ann", replace(VERSION, module=name, digest=digest))


async def split(
    store: ModuleStore, *shares: tuple[int, float], alias: str = "live", ungated: float | None = None
) -> Alias:
    targets = tuple(TrafficShare(*share) for share in shares)
    ref = AliasRef("alice", "tone", alias)
    return await store.set_alias(ref, targets, ANN, action="split", ungated_share_max=ungated)


async def changes(store: ModuleStore, alias: str = "live") -> list[AliasChange]:
    return await store.history(AliasRef("alice", "tone", alias), limit=100)


async def versions(store: ModuleStore) -> list[ModuleVersion]:
    found, more = await store.versions("alice", "tone", limit=100)
    assert not more
    return found


async def aliases(store: ModuleStore) -> tuple[Alias, ...]:
    module = await store.module("alice", "tone")
    assert module is not None
    return module.aliases


async def start(registry: Registry, *worker_ids: str, lease_s: float = 60) -> None:
    for worker_id in worker_ids:
        await registry.renew_lease(
            WorkerLease(worker_id, "a:1", "a:2", 1, "m", "", "", "", 16, 16, 1024, 8, 0.0), lease_s
        )


async def take_out(store: ModuleStore, number: int, expected: int | None = None) -> Alias:
    return await store.take_out(LIVE, number, Change("watch", "slow", expected_revision=expected))


async def pass_gate(store: ModuleStore, *numbers: int) -> None:
    for number in numbers:
        await store.keep_gate("alice", "ann", "tone", number, replace(REPORT, passed=True))


async def promote(
    store: ModuleStore, *numbers: int, alias: str = "live", expected: int | None = None
) -> Alias:
    shares = tuple(TrafficShare(number, 1 / 3) for number in numbers)
    ref, change = AliasRef("alice", "tone", alias), replace(ANN, expected_revision=expected)
    return await store.set_alias(ref, shares, change, action="promote")


def numbers(alias: Alias) -> list[int]:
    return [share.version for share in alias.targets]


async def audit_trail(store: ModuleStore, tenant: str = "alice") -> list[tuple[str, str, str]]:
    """Action, before and after of every event."""
    return [(event.action, event.before, event.after) for event in await store.events(tenant, limit=100)]
