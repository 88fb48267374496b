"""A call of each method of `client.lineage`."""

from __future__ import annotations

from memserve.client import (
    ErasedPlace,
    Erasure,
    ErasureState,
    Lineage,
    LineageEdge,
    LineageKind,
    LineageNode,
    LineageState,
    MovedAlias,
    Retraining,
    TrafficShare,
)
from memserve.pb.v1 import erasure_pb2, lineage_pb2, memory_pb2, module_pb2
from tests.client.case import Case

ERASURE = Erasure(
    "e", "n", "m", ErasureState.PENDING, 1.5, (ErasedPlace("kv", 2, "chunks", True),), ("n/d",), ("tone@2",),
    (MovedAlias("tone", "live", (TrafficShare(2, 1.0),), (TrafficShare(1, 1.0),), "back", 4),),
    (Retraining("tone", "lora", "tone@2", (("n", "o"),), 2.5, 7, 30.0, "tone@3"),), ("worker w1 is away",),
    0.5,
)  # fmt: skip
PLACES_PB = [memory_pb2.ErasedPlace(place="kv", removed=2, detail="chunks", pending=True)]
ERASURE_PB = erasure_pb2.Erasure(
    erasure_id="e", namespace="n", memory_id="m", state=erasure_pb2.ERASURE_STATE_PENDING, at_s=1.5,
    derived=["n/d"], retired=["tone@2"],
    aliases=[
        erasure_pb2.MovedAlias(
            module="tone", alias="live", why="back", revision=4,
            before=[module_pb2.TrafficShare(version=2, weight=1.0)],
            after=[module_pb2.TrafficShare(version=1, weight=1.0)],
        )
    ],
    retraining=[
        erasure_pb2.Retraining(
            module="tone", kind="lora", retired="tone@2", queued_s=2.5, seed=7, budget_s=30.0, made="tone@3",
            memories=[erasure_pb2.MemoryName(namespace="n", memory_id="o")],
        )
    ],
    pending=["worker w1 is away"], seconds=0.5,
)  # fmt: skip
LINEAGE = [
    Case(
        "lineage.show", ("n/m",), {"sources": False, "depth": 2, "limit": 9},
        lineage_pb2.ShowLineageRequest(of="n/m", skip_sources=True, depth=2, limit=9),
        [
            lineage_pb2.ShowLineageResponse(
                root="memory:n/m", cut=["3 more"],
                nodes=[
                    lineage_pb2.LineageNode(
                        name="memory:n/m", kind=lineage_pb2.LINEAGE_KIND_MEMORY,
                        state=lineage_pb2.LINEAGE_STATE_OUT_OF_DATE, detail="d",
                    )
                ],
                edges=[lineage_pb2.LineageEdge(source="memory:n/m@1", made="module:t@1", how="distilled")],
            )
        ],
        Lineage(
            "memory:n/m",
            (LineageNode("memory:n/m", LineageKind.MEMORY, LineageState.OUT_OF_DATE, "d"),),
            (LineageEdge("memory:n/m@1", "module:t@1", "distilled"),), ("3 more",),
        ),
    ),
    Case(
        "lineage.plan_erasure", ("n", "m"), {},
        memory_pb2.EraseMemoryRequest(namespace="n", memory_id="m", dry_run=True),
        [memory_pb2.EraseMemoryResponse(places=PLACES_PB, erasure=ERASURE_PB)], ERASURE,
    ),
    Case(
        "lineage.erase", ("n", "m"), {"reason": "asked for"},
        memory_pb2.EraseMemoryRequest(namespace="n", memory_id="m", reason="asked for"),
        [memory_pb2.EraseMemoryResponse(places=PLACES_PB, erasure=ERASURE_PB)], ERASURE,
    ),
    Case(
        "lineage.erasures", (3,), {}, lineage_pb2.ListErasuresRequest(limit=3),
        [
            lineage_pb2.ListErasuresResponse(
                erasures=[lineage_pb2.ErasureReport(erasure=ERASURE_PB, places=PLACES_PB)]
            )
        ],
        [ERASURE],
    ),
    Case(
        "lineage.check_erasure", ("e",), {}, lineage_pb2.CheckErasureRequest(erasure_id="e"),
        [lineage_pb2.CheckErasureResponse(erasure=ERASURE_PB, places=PLACES_PB)], ERASURE,
    ),
]  # fmt: skip
