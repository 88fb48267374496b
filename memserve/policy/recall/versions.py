"""Memories that say different things of one subject, and the newest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memserve.domain import LinkKind, Memory, MemoryKind, ScoredMemory
from memserve.policy.recall.ranking import WordScore

_SAME_SUBJECT = frozenset({LinkKind.SUPERSEDES, LinkKind.CONTRADICTS, LinkKind.DUPLICATES})
_OLDER = 0.5
_LATER_S = 60.0
"""What is remembered within a minute comes from one import, and is no update."""
_SAME_WORDING = 0.5
"""The least share of common words (Jaccard) of two memories that differ in a value."""
_COMPARED_WORDS, _COMPARED_WORDINGS = 256, 8


@dataclass(frozen=True, slots=True)
class RankedHit:
    """A hit, and what its order comes from."""

    hit: ScoredMemory
    subject: int
    """As `subjects_of` numbers it."""


def subjects_of(
    memories: Sequence[Memory], scores: Sequence[WordScore], words: Sequence[Sequence[str]]
) -> list[int]:
    """Number the memories of a search by their subjects: equal numbers say that two are of one.

    1. One links to the other as its update, contradiction or duplicate.
    2. Or both have the same terms of the query, at least one, and are worded alike, and one is later.
       Episodes are left out: what happened later does not undo what happened before, and outcomes say which
       is right.

    scores, words: [memories], as of `score_words`.
    Returns [memories].
    """
    groups = _Groups(len(memories))
    places = {memory.name: place for place, memory in enumerate(memories)}
    places_by_terms: dict[frozenset[str], list[int]] = {}
    for place, (memory, score) in enumerate(zip(memories, scores, strict=True)):
        for link in memory.links:
            linked = places.get((link.namespace or memory.namespace, link.memory_id))
            if link.kind in _SAME_SUBJECT and linked is not None:
                groups.join(place, linked)
        if score.matched and memory.kind is not MemoryKind.EPISODE:
            places_by_terms.setdefault(score.matched, []).append(place)
    for alike in places_by_terms.values():
        if len(alike) > 1:
            _join_worded_alike(groups, alike, memories, words)
    return [groups.of(place) for place in range(len(memories))]


def _join_worded_alike(
    groups: _Groups, places: Sequence[int], memories: Sequence[Memory], words: Sequence[Sequence[str]]
) -> None:
    """places: of memories that have the same terms of the query."""
    wordings: list[tuple[int, frozenset[str]]] = []
    for place in places:
        compared = frozenset(words[place][:_COMPARED_WORDS])
        for first, other in wordings:
            apart_s = abs(holds_from_s(memories[place]) - holds_from_s(memories[first]))
            common, whole = len(compared & other), len(compared | other)
            if apart_s >= _LATER_S and common >= _SAME_WORDING * whole:
                groups.join(first, place)
                break
        else:
            if len(wordings) < _COMPARED_WORDINGS:
                wordings.append((place, compared))


def newest_first(hits: Sequence[RankedHit]) -> list[ScoredMemory]:
    """Order hits of one subject by age, the newest first. They share out the places that they have.

    1. The relevance of a newer one is at least that of the older ones, because what it updates was asked for.
    2. The older ones then have half of their score, so that they do not take the places of other subjects.

    hits: best first.
    """
    places_by_subject: dict[int, list[int]] = {}
    for place, ranked in enumerate(hits):
        places_by_subject.setdefault(ranked.subject, []).append(place)
    ordered = [ranked.hit for ranked in hits]
    for places in places_by_subject.values():
        newest = sorted(places, key=lambda place: (_age_key(hits[place].hit.memory), -place), reverse=True)
        least = 0.0
        for place, member in zip(reversed(places), reversed(newest), strict=True):
            hit, score = hits[member].hit, hits[place].hit.score
            least = max(least, hit.relevance)
            older = place != places[0]
            ordered[place] = replace(hit, relevance=least, score=score * _OLDER if older else score)
    return sorted(ordered, key=lambda hit: -hit.score)


def holds_from_s(memory: Memory) -> float:
    """Since when the memory says what it says."""
    return memory.created_s if memory.valid_from_s is None else memory.valid_from_s


def _age_key(memory: Memory) -> tuple[float, float]:
    return holds_from_s(memory), memory.updated_s


class _Groups:
    """Places that belong together, directly or through others."""

    def __init__(self, places: int) -> None:
        self._before = list(range(places))

    def of(self, place: int) -> int:
        """The first place of its group."""
        while self._before[place] != place:
            self._before[place] = self._before[self._before[place]]
            place = self._before[place]
        return place

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.of(one), self.of(other)))
        self._before[second] = first
