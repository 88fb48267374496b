"""Messages of `MemoryService`."""

from __future__ import annotations

from collections.abc import Sequence

from memserve.client.arguments import strings
from memserve.domain import Memory, ScoredMemory
from memserve.pb.v1 import memory_pb2 as pb


def remember_request(
    namespace: str, text: str, source: str, keywords: str | Sequence[str], memory_id: str
) -> pb.RememberRequest:
    """Raises UsageError."""
    return pb.RememberRequest(
        namespace=namespace,
        text=text,
        source=source,
        keywords=strings("keywords", keywords),
        memory_id=memory_id,
    )


def memory_of(value: pb.Memory) -> Memory:
    return Memory(
        memory_id=value.memory_id,
        namespace=value.namespace,
        text=value.text,
        source=value.source,
        keywords=tuple(value.keywords),
        created_s=value.created_s,
    )


def scored_of(hit: pb.ScoredMemory) -> ScoredMemory:
    return ScoredMemory(
        memory=memory_of(hit.memory),
        score=hit.score,
        dense_score=hit.dense_score if hit.HasField("dense_score") else None,
        bm25_score=hit.bm25_score if hit.HasField("bm25_score") else None,
    )
