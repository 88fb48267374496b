"""Why a memory was found, in one line for a person."""

from __future__ import annotations

from memserve.domain import ScoredMemory


def why_found(hit: ScoredMemory) -> str:
    """By its content, or by the hit that led to it."""
    if hit.via is not None:
        steps = "1 step" if hit.via.depth == 1 else f"{hit.via.depth} steps"
        how = "a neighbour" if hit.via.kind is None else f"linked by {hit.via.kind}"
        way = ", backwards" if hit.via.backwards else ""
        return f"{how}{way}, {steps} from {hit.via.namespace}/{hit.via.memory_id}"
    halves = []
    if hit.dense_score is not None:
        halves.append(f"by meaning {hit.dense_score:.3f}")
    if hit.bm25_score is not None:
        halves.append(f"by words {hit.bm25_score:.2f}")
    if hit.rerank_score is not None:
        halves.append(f"reranked {hit.rerank_score:.3f}")
    return ", ".join(halves) or "by its content"
