"""Which memories can be distilled.

1. Live ones that hold now, without a condition: weights know no context.
2. Stable ones. A fact that has changed twice stays text.
3. None that contradict each other. Those are named, and nothing is distilled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memserve.domain.distilling import MemoryLeftOut
from memserve.domain.memories import (
    FindingKind,
    LinkKind,
    Memory,
    MemoryHistory,
    MemoryState,
)
from memserve.errors import InvalidField
from memserve.policy.modules.self_study.readings import all_readings_of, readings_of
from memserve.policy.recall.duplicates import Candidate, findings_of, word_overlap
from memserve.policy.recall.words import words_of

LEAST_FACTS = 4
"""With fewer the probes say nothing. One memory may state them all, as a passage of a document does."""
MOST_MEMORIES = 512
MOST_TEXT_BYTES = 8 << 10
MOST_BYTES = 256 << 10
MOST_CHANGES = 1
"""A memory whose text changed more often is not stable."""
COMPARED_OVERLAP = 0.6
"""Two memories with fewer common words are not compared."""
NAMED = 4
"""Pairs that an error names."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is distilled."""

    memories: tuple[Memory, ...]
    left_out: tuple[MemoryLeftOut, ...]


def select(histories: Sequence[MemoryHistory], now_s: float, chains: Mapping[str, int]) -> Selection:
    """Sort out what can be distilled.

    chains: by memory id, how many memories it has superseded, one after the other.
    Raises InvalidField for too few, too many or too long memories, and for those that contradict each other.
    """
    chosen: list[Memory] = []
    left_out: list[MemoryLeftOut] = []
    for history in histories:
        memory = history.current
        reason = _unfit(history, now_s, chains.get(memory.memory_id, 0))
        if reason:
            left_out.append(MemoryLeftOut(memory.namespace, memory.memory_id, reason))
        else:
            chosen.append(memory)
    why = f"; {len(left_out)} are left out, the first because it {left_out[0].reason}" if left_out else ""
    if not 1 <= len(chosen) <= MOST_MEMORIES:
        raise InvalidField("memories", f"1 to {MOST_MEMORIES} can be distilled, not {len(chosen)}{why}")
    check_texts([memory.text for memory in chosen])
    stated = len({reading.key for memory in chosen for reading in readings_of(memory.text)})
    if stated < LEAST_FACTS:
        raise InvalidField(
            "memories",
            f"state {stated} facts that can be asked for by themselves, at least {LEAST_FACTS} are "
            f'needed{why}; a sentence such as "The founder of Velmora is Ida Kern." states one',
        )
    if pairs := list(itertools.islice(contradictions(chosen), NAMED)):
        named = ", ".join(
            f"{first.memory_id} and {'itself' if second is first else second.memory_id}"
            for first, second in pairs
        )
        raise InvalidField("memories", f"contradict each other: {named}; forget or supersede one of each")
    return Selection(tuple(chosen), tuple(left_out))


def check_texts(texts: Sequence[str]) -> None:
    """Raises InvalidField for more, or longer, texts than can be distilled."""
    size = sum(len(text.encode()) for text in texts)
    if not 1 <= len(texts) <= MOST_MEMORIES or size > MOST_BYTES:
        raise InvalidField(
            "memories", f"are {len(texts)} of {size} bytes, at most {MOST_MEMORIES} of {MOST_BYTES}"
        )


def _unfit(history: MemoryHistory, now_s: float, superseded: int) -> str:
    """Why the memory is not distilled; "" for no reason."""
    memory = history.current
    if memory.state is not MemoryState.LIVE:
        return f"is {memory.state}"
    if memory.valid_from_s is not None and memory.valid_from_s > now_s:
        return "does not hold yet"
    if memory.valid_until_s is not None:
        return "does not hold any more" if memory.valid_until_s <= now_s else "holds for a time only"
    if memory.applies_when:
        return "has a condition"
    if len(memory.text.encode()) > MOST_TEXT_BYTES:
        return f"is longer than {MOST_TEXT_BYTES} bytes"
    texts = [version.memory.text for version in history.versions]
    changes = history.dropped + sum(before != after for before, after in itertools.pairwise(texts))
    if changes + superseded > MOST_CHANGES:
        return f"has changed {changes + superseded} times"
    return ""


def contradictions(memories: Sequence[Memory]) -> Iterator[tuple[Memory, Memory]]:
    """Pairs that cannot both be true: by their links, by what they state, and by their wording."""
    by_id = {(memory.namespace, memory.memory_id): memory for memory in memories}
    stated: dict[tuple[str, str], tuple[str, Memory]] = {}
    words = [frozenset(words_of(memory.text)) for memory in memories]
    for place, memory in enumerate(memories):
        for link in memory.links:
            other = by_id.get((link.namespace or memory.namespace, link.memory_id))
            if other is not None and link.kind is LinkKind.CONTRADICTS:
                yield other, memory
        against: set[str] = set()
        for reading in all_readings_of(memory.text):
            value, first = stated.setdefault(reading.key, (reading.value.casefold(), memory))
            if value != reading.value.casefold():
                against.add(first.memory_id)
                yield first, memory
        alike = [
            Candidate(other, None, word_overlap(other.text, memory.text))
            for other, theirs in zip(memories[:place], words, strict=False)
            if other.memory_id not in against
            and len(words[place] & theirs) >= COMPARED_OVERLAP * max(1, len(words[place] | theirs))
        ]
        for finding in findings_of(memory, alike):
            if finding.kind in (FindingKind.CONTRADICTION, FindingKind.UPDATE):
                yield by_id[(finding.namespace, finding.memory_id)], memory
