"""The newest of memories that say different things of one subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memserve.domain import LinkKind, Memory, ScoredMemory

_SAME_SUBJECT = frozenset({LinkKind.SUPERSEDES, LinkKind.CONTRADICTS, LinkKind.DUPLICATES})
_NEAR_LOG_ODDS = 1.0


@dataclass(frozen=True, slots=True)
class RankedHit:
    """A hit, and what its order comes from."""

    hit: ScoredMemory
    log_odds: float
    """Of its score."""
    matched: frozenset[str]
    """The terms of the query that it has."""


def newest_first(hits: Sequence[RankedHit]) -> list[ScoredMemory]:
    """Order hits of one subject by age, the newest first. They share out the places that they have.

    1. Two hits are of one subject when one links to the other as its update, contradiction or duplicate.
    2. So are two that have the same terms of the query, and at least one, with nearly the same score: the
       query cannot tell them apart, and the later one is what holds.
    3. The relevance of a newer one is at least that of the older ones, because what it updates was asked for.

    hits: best first.
    """
    subjects = _subjects(hits)
    places_by_subject: dict[int, list[int]] = {}
    for place, subject in enumerate(subjects):
        places_by_subject.setdefault(subject, []).append(place)
    ordered = [ranked.hit for ranked in hits]
    for places in places_by_subject.values():
        if len(places) < 2:
            continue
        group = sorted(places, key=lambda place: (_age_key(hits[place].hit.memory), -place), reverse=True)
        scores = sorted((hits[place].hit.score for place in places), reverse=True)
        least = 0.0
        for place, member, score in zip(reversed(places), reversed(group), reversed(scores), strict=True):
            hit = hits[member].hit
            least = max(least, hit.relevance)
            ordered[place] = replace(hit, relevance=least, score=score)
    return ordered


def holds_from_s(memory: Memory) -> float:
    """Since when the memory says what it says."""
    return memory.created_s if memory.valid_from_s is None else memory.valid_from_s


def _age_key(memory: Memory) -> tuple[float, float]:
    return holds_from_s(memory), memory.updated_s


def _subjects(hits: Sequence[RankedHit]) -> list[int]:
    """[hits] the number of the subject of each: the place of its first hit."""
    subjects = list(range(len(hits)))

    def root(place: int) -> int:
        while subjects[place] != place:
            place = subjects[place]
        return place

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        subjects[second] = first

    places = {(ranked.hit.memory.namespace, ranked.hit.memory.memory_id): p for p, ranked in enumerate(hits)}
    first_by_terms: dict[frozenset[str], int] = {}
    for place, ranked in enumerate(hits):
        memory = ranked.hit.memory
        for link in memory.links:
            linked = places.get((link.namespace or memory.namespace, link.memory_id))
            if link.kind in _SAME_SUBJECT and linked is not None:
                join(place, linked)
        if ranked.matched:
            first = first_by_terms.setdefault(ranked.matched, place)
            if hits[first].log_odds - ranked.log_odds <= _NEAR_LOG_ODDS:
                join(first, place)
    return [root(place) for place in range(len(hits))]
