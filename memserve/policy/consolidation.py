"""Which memories of a namespace become one. No language model.

1. Near-duplicates: two memories state the same value of the same property in one sentence each, or the rules
   of `duplicates.py` say that they say the same. They have the same kind, validity, condition and metadata.
   One of them stays.
2. Summaries: facts about one thing, each of one sentence, become one memory that has all their sentences.
   Only facts without a condition, of the same validity and metadata.
3. Left alone: what contradicts another memory, is pinned, has a place in a document, or is an episode or a
   reflection. What happened twice may have happened twice.

A summary is made of the sources' own sentences, so that it has each of their values; this is checked all the
same, also where a model has written it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memserve.domain.consolidating import (
    ConsolidationPlan,
    LeftAlone,
    Merge,
    MergedMemory,
    MergeKind,
)
from memserve.domain.memories import FindingKind, Memory, MemoryKind
from memserve.policy.modules.selection import contradictions
from memserve.policy.modules.self_study import wording
from memserve.policy.modules.self_study.readings import Form, Reading, readings_of, sentences
from memserve.policy.recall.duplicates import Candidate, findings_of, word_overlap
from memserve.policy.recall.words import words_of

MOST_MEMORIES = 1024
"""That one consolidation looks at: each is compared with each."""
LEAST_FACTS, MOST_FACTS = 3, 8
"""That become a summary."""
MOST_SUMMARY_CHARS = 600
MOST_SOURCES = 24
"""Of one merge: the memory that stays has a link to each."""
MOST_WRITES = 128
"""Memories that change when a consolidation is accepted: the journal takes so many in one step."""
COMPARED_SHARE = 0.4
"""Two memories with fewer common words, of those of the longer one, are not compared."""
_WORD = re.compile(r"\w+")
_SEVERAL = re.compile(r"[.!?;。！？]\s*\w")
"""A text of several sentences, also where one ends as an initial does: "Open valve A. Close it"."""
_MARKED = re.compile(r"[^\W\d_]\d|\d[^\W\d_]|[a-z][A-Z]")
MERGED_KINDS = (MemoryKind.FACT, MemoryKind.PROCEDURE)


@dataclass(frozen=True, slots=True)
class _Group:
    """A memory with those that say the same."""

    keeper: Memory
    others: tuple[Memory, ...] = ()


def plan(
    namespace: str, memories: Sequence[Memory], *, summaries: bool = True, not_looked_at: int = 0
) -> ConsolidationPlan:
    """What would become of a namespace.

    memories: live ones, at most MOST_MEMORIES. summaries: whether facts about one thing become one memory.
    """
    left_alone = _left_alone(memories)
    free = [memory for memory in memories if memory.memory_id not in left_alone]
    groups = _groups(free)
    merges: list[Merge] = []
    joined: set[str] = set()
    if summaries:
        for merge in _summaries(namespace, groups):
            merges.append(merge)
            joined |= {source.memory_id for source in merge.sources}
    merges += _duplicates([group for group in groups if group.keeper.memory_id not in joined])
    chosen = tuple(_that_fit(merges))
    return ConsolidationPlan(
        namespace,
        len(memories),
        chosen,
        tuple(LeftAlone(memory_id, reason) for memory_id, reason in sorted(left_alone.items())),
        not_looked_at,
    )


def _duplicates(groups: Sequence[_Group]) -> list[Merge]:
    return [
        Merge(
            MergeKind.DUPLICATES,
            group.keeper.memory_id,
            group.keeper.text,
            tuple(MergedMemory(each.memory_id, each.version) for each in group.others),
            f"{len(group.others) + 1} memories say the same",
            group.keeper.version,
        )
        for group in groups
        if group.others
    ]


def _left_alone(memories: Sequence[Memory]) -> dict[str, str]:
    """Memories that stay as they are although they could be near others, and why."""
    reasons: dict[str, str] = {}
    stated: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for memory in memories:
        for reading in readings_of(memory.text):
            stated[reading.key].setdefault(_spelt(reading.value), memory.memory_id)
    for memory in memories:
        for reading in readings_of(memory.text):
            others = [each for value, each in stated[reading.key].items() if value != _spelt(reading.value)]
            if others:
                reasons.setdefault(memory.memory_id, f"contradicts {others[0]}")
    for first, second in contradictions(memories):
        reasons.setdefault(first.memory_id, f"contradicts {second.memory_id}")
        reasons.setdefault(second.memory_id, f"contradicts {first.memory_id}")
    for memory in memories:
        if memory.pinned:
            reasons.setdefault(memory.memory_id, "is pinned")
    return reasons


def _groups(memories: Sequence[Memory]) -> list[_Group]:
    """Each memory once, with what says the same."""
    best_first = sorted(memories, key=lambda memory: (-memory.strength, memory.created_s, memory.memory_id))
    words = {memory.memory_id: frozenset(words_of(memory.text)) for memory in memories}
    taken: set[str] = set()
    groups = []
    for place, memory in enumerate(best_first):
        if memory.memory_id in taken:
            continue
        others: list[Memory] = []
        if _may_merge(memory):
            others = [
                other
                for other in best_first[place + 1 :]
                if other.memory_id not in taken
                and _are_alike(memory, other)
                and _is_near(words[memory.memory_id], words[other.memory_id])
                and _say_the_same(memory, other)
            ][:MOST_SOURCES]
        taken |= {other.memory_id for other in others}
        groups.append(_Group(memory, tuple(others)))
    return groups


def _may_merge(memory: Memory) -> bool:
    return memory.kind in MERGED_KINDS and not memory.place.within


def _are_alike(first: Memory, second: Memory) -> bool:
    """Whether one can stand for the other in everything but its words."""
    return (
        _may_merge(second)
        and first.kind is second.kind
        and first.applies_when == second.applies_when
        and (first.valid_from_s, first.valid_until_s) == (second.valid_from_s, second.valid_until_s)
        and _metadata_of(first) == _metadata_of(second)
    )


def _spelt(value: str) -> str:
    """In lower case, but for words whose case says something."""
    return _WORD.sub(lambda word: word[0] if _is_marked(word[0]) else word[0].casefold(), value)


def _marked(text: str) -> list[str]:
    """Words whose case says something: another spelling of a code is another code."""
    return sorted(filter(_is_marked, _WORD.findall(text)))


def _is_marked(word: str) -> bool:
    """Whether it has letters and digits, or a capital behind a small letter."""
    return bool(_MARKED.search(word))


def _metadata_of(memory: Memory) -> str:
    """JSON tells 1 from 1.0, from true and from "1"."""
    return json.dumps(dict(memory.metadata), sort_keys=True)


def _is_near(first: frozenset[str], second: frozenset[str]) -> bool:
    return len(first & second) >= COMPARED_SHARE * max(1, len(first), len(second))


def _say_the_same(first: Memory, second: Memory) -> bool:
    one, other = _fact_of(first.text), _fact_of(second.text)
    if one and other and one.key == other.key:
        return _spelt(one.value) == _spelt(other.value)
    if _marked(first.text) != _marked(second.text):
        return False
    if _SEVERAL.search(first.text) and words_of(first.text) != words_of(second.text):
        return False  # steps in another order
    overlap = word_overlap(first.text, second.text)
    found = findings_of(second, [Candidate(first, None, overlap)])
    if not any(each.kind is FindingKind.DUPLICATE for each in found):
        return False
    stated = {reading.key: _spelt(reading.value) for reading in readings_of(first.text)}
    return all(
        stated.get(reading.key, _spelt(reading.value)) == _spelt(reading.value)
        for reading in readings_of(second.text)
    )


def _summaries(namespace: str, groups: Sequence[_Group]) -> Iterator[Merge]:
    by_subject: dict[tuple[object, ...], list[tuple[_Group, Reading]]] = defaultdict(list)
    for group in groups:
        reading = _only_fact(group.keeper)
        if reading is not None:
            memory = group.keeper
            about = (
                reading.key[0],
                memory.valid_from_s,
                memory.valid_until_s,
                _metadata_of(memory),
            )
            by_subject[about].append((group, reading))
    for stated in by_subject.values():
        stated.sort(key=lambda each: (each[0].keeper.created_s, each[0].keeper.memory_id))
        for part in _parts(stated):
            if len(part) >= LEAST_FACTS:
                yield _summary(namespace, part)


def _only_fact(memory: Memory) -> Reading | None:
    """What a memory states that can be part of a summary."""
    if memory.kind is not MemoryKind.FACT or memory.place.within or memory.applies_when:
        return None
    return _fact_of(memory.text)


def _fact_of(text: str) -> Reading | None:
    """What a text of one sentence states, where a rule reads it exactly."""
    if len(sentences(text)) != 1:
        return None
    readings = readings_of(text)
    return readings[0] if len(readings) == 1 and readings[0].form is not Form.CLOZE else None


def _parts(stated: Sequence[tuple[_Group, Reading]]) -> Iterator[list[tuple[_Group, Reading]]]:
    """Parts of about the same size that fit into a summary each."""
    count = max(1, -(-len(stated) // MOST_FACTS))
    while True:
        size = -(-len(stated) // count)
        parts = [list(stated[start : start + size]) for start in range(0, len(stated), size)]
        fits = all(
            len(summary_text([group.keeper for group, _ in part])) <= MOST_SUMMARY_CHARS
            and sum(1 + len(group.others) for group, _ in part) <= MOST_SOURCES
            for part in parts
        )
        if fits or size == 1:
            yield from parts
            return
        count += 1


def _summary(namespace: str, part: Sequence[tuple[_Group, Reading]]) -> Merge:
    members = [member for group, _ in part for member in (group.keeper, *group.others)]
    text = summary_text([group.keeper for group, _ in part])
    named = ",".join(sorted(f"{member.memory_id}@{member.version}" for member in members))
    return Merge(
        MergeKind.SUMMARY,
        f"summary-{hashlib.sha256(f'{namespace}/{named}'.encode()).hexdigest()[:16]}",
        text,
        tuple(MergedMemory(member.memory_id, member.version) for member in members),
        f"{len(members)} memories state {len(part)} facts about {part[0][1].subject}",
    )


def summary_text(memories: Sequence[Memory]) -> str:
    """The sentences of all, each with its mark."""
    return " ".join(
        stripped if stripped.endswith((".", "!")) else f"{stripped}."
        for stripped in (" ".join(memory.text.split()) for memory in memories)
    )


def missing_values(text: str, sources: Sequence[Memory]) -> list[str]:
    """Values that the sources state, and the text does not say."""
    said = text.casefold()
    stated = (reading.value for source in sources for reading in readings_of(source.text))
    marked = set(_marked(text))
    return list(
        dict.fromkeys(
            value for value in stated if value.casefold() not in said or not marked.issuperset(_marked(value))
        )
    )


def says_the_same(text: str, sources: Sequence[Memory]) -> bool:
    """Whether a summary that a model has written says what its sources say, and states nothing else."""
    if not 0 < len(text) <= MOST_SUMMARY_CHARS or missing_values(text, sources):
        return False
    stated = {
        reading.key: _spelt(reading.value) for source in sources for reading in readings_of(source.text)
    }
    return all(stated.get(reading.key) == _spelt(reading.value) for reading in readings_of(text))


def _that_fit(merges: Sequence[Merge]) -> Iterator[Merge]:
    """As many as one step of the journal takes. Another consolidation does the rest."""
    writes = 0
    for merge in merges:
        writes += 1 + len(merge.sources)
        if writes > MOST_WRITES:
            return
        yield merge


OF_OTHERS = -1


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked before and after."""

    text: str
    value: str
    """A right answer contains it."""
    merge: int
    """The place of the merge whose sources state it. OF_OTHERS: memories that stay as they are state it."""


def questions(merges: Sequence[Merge], memories: Mapping[str, Memory], most: int) -> list[Question]:
    """Questions over what the sources state, in each held-out phrasing: first each fact in one.

    memories: the sources, and those that stay, by id.
    """
    by_merge: list[list[Question]] = []
    for place, merge in enumerate(merges):
        ids = [source.memory_id for source in merge.sources] + ([merge.memory_id] if merge.version else [])
        readings: dict[tuple[str, str], Reading] = {}
        for memory_id in ids:
            for reading in readings_of(memories[memory_id].text):
                readings.setdefault(reading.key, reading)
        by_merge.append(_asked(list(readings.values()), place))
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_merge))
    return [question for question in in_turn if question is not None][:most]


def questions_of_others(merges: Sequence[Merge], memories: Mapping[str, Memory], most: int) -> list[Question]:
    """Questions over the memories that stay as they are: what is found beside them changes too."""
    merged = {source.memory_id for merge in merges for source in merge.sources}
    merged |= {merge.memory_id for merge in merges}
    others = [memory for memory_id, memory in memories.items() if memory_id not in merged]
    return _asked([fact for memory in others if (fact := _fact_of(memory.text))], OF_OTHERS)[:most]


def _asked(readings: Sequence[Reading], merge: int) -> list[Question]:
    """Each in one phrasing, then each in the next one."""
    phrased = [wording.questions(reading, held_out=True) for reading in readings]
    return [
        Question(each[number], reading.value, merge)
        for number in range(max(map(len, phrased), default=0))
        for each, reading in zip(phrased, readings, strict=True)
        if number < len(each)
    ]


def without(
    plan: ConsolidationPlan, dropped: Mapping[int, str], memories: Mapping[str, Memory]
) -> ConsolidationPlan:
    """The plan without merges that lose something. Duplicates within a summary still become one.

    dropped: reasons by the places of the merges. memories: those that were looked at, by id.
    """
    merges = [merge for place, merge in enumerate(plan.merges) if place not in dropped]
    left = list(plan.left_alone)
    for place, reason in sorted(dropped.items()):
        sources = [memories[source.memory_id] for source in plan.merges[place].sources]
        again = _duplicates(_groups(sources)) if plan.merges[place].kind is MergeKind.SUMMARY else []
        merges += again
        merged = {each.memory_id for merge in again for each in merge.sources}
        left += [LeftAlone(each.memory_id, reason) for each in sources if each.memory_id not in merged]
    return ConsolidationPlan(plan.namespace, plan.memories, tuple(merges), tuple(left), plan.not_looked_at)
