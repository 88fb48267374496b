"""What is near a memory that is written, and what the rules say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from memserve.domain import Finding, FindingKind, Link, LinkKind, Memory
from memserve.memory.texts.rules import LINKS_MAX
from memserve.memory.texts.store import RecordStore, Scope
from memserve.policy.recall.duplicates import Candidate, findings_of, word_overlap
from memserve.policy.recall.ranking import query_words

NEAR_MAX = 8
"""Memories that each half of the search brings."""

Near = tuple[Memory, float | None]
"""A live memory of the namespace, and its cosine to the new one. None: only its words are near."""
Relate = Callable[[Memory, Sequence[Near]], Sequence[Finding]]
"""The rules. Pure."""

_LINKS = {
    FindingKind.DUPLICATE: LinkKind.DUPLICATES,
    FindingKind.CONTRADICTION: LinkKind.CONTRADICTS,
    FindingKind.UPDATE: LinkKind.CONTRADICTS,
}


def near_memories(
    store: RecordStore, scope: Scope, memory: Memory, vector: npt.NDArray[np.float32], timeout_s: float
) -> list[Near]:
    """At most 2 x NEAR_MAX memories. The memory itself is not among them."""
    found: dict[str, Near] = {
        hit.key: (hit.memory, hit.cosine)
        for hit in store.nearest(scope, vector, NEAR_MAX + 1, timeout_s=timeout_s)
    }
    words = query_words(memory.text)
    if words:
        for key, other in store.by_words(scope, words, NEAR_MAX + 1, timeout_s=timeout_s).memories:
            found.setdefault(key, (other, None))
    return [near for near in found.values() if near[0].name != memory.name]


def linked(memory: Memory, findings: Sequence[Finding]) -> Memory:
    """The memory with links to what was found, as far as there is room."""
    links = dict.fromkeys(memory.links)
    for finding in findings:
        kind = _LINKS.get(finding.kind)
        if kind is not None and len(links) < LINKS_MAX:
            namespace = "" if finding.namespace == memory.namespace else finding.namespace
            links[Link(kind, finding.memory_id, namespace)] = None
    return replace(memory, links=tuple(links))


def relate_by_rules(memory: Memory, near: Sequence[Near]) -> Sequence[Finding]:
    """The rules of `policy/recall/duplicates.py`."""
    candidates = [Candidate(other, cosine, word_overlap(memory.text, other.text)) for other, cosine in near]
    return findings_of(memory, candidates)
