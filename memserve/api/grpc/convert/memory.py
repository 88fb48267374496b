"""Converts domain values to the messages of `MemoryService`."""

from __future__ import annotations

from memserve.domain import Memory, ScoredMemory
from memserve.pb.v1 import memory_pb2


def memory(value: Memory) -> memory_pb2.Memory:
    return memory_pb2.Memory(
        memory_id=value.memory_id,
        namespace=value.namespace,
        text=value.text,
        source=value.source,
        keywords=value.keywords,
        created_s=value.created_s,
    )


def scored_memory(hit: ScoredMemory) -> memory_pb2.ScoredMemory:
    return memory_pb2.ScoredMemory(
        memory=memory(hit.memory), score=hit.score, dense_score=hit.dense_score, bm25_score=hit.bm25_score
    )
