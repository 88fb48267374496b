"""Which memories can be distilled.

1. Live ones that hold now, without a condition: weights know no context.
2. Stable ones. A fact that has changed twice stays text.
3. None that contradict each other. Those are named, and nothing is distilled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from memserve.policy.recall.duplicates import Candidate, Statements, findings_of
from memserve.policy.recall.words import words_of

LEAST_FACTS = 4
"""With fewer the probes say nothing. One memory may state them all, as a passage of a document does."""
MOST_MEMORIES = 512
MOST_TEXT_BYTES = 8 << 10
MOST_BYTES = 256 << 10
MOST_FACTS = 2048
"""Each is asked in dozens of phrasings, and all of them are laid out before the first step."""
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


def select(
    histories: Sequence[MemoryHistory],
    now_s: float,
    chains: Mapping[tuple[str, str], int],
    control_token: Callable[[str], str | None] = lambda text: None,
) -> Selection:
    """Sort out what can be distilled.

    chains: by namespace and id, how many memories it has superseded, one after the other.
    control_token: the control token of the served model that a text spells, if it does. A memory may be older
    than the model.
    Raises InvalidField for too few, too many or too long memories, and for those that contradict each other.
    """
    chosen: list[Memory] = []
    left_out: list[MemoryLeftOut] = []
    for history in histories:
        memory = history.current
        reason = unfit(memory, now_s, control_token) or _unstable(history, chains.get(memory.name, 0))
        if reason:
            left_out.append(MemoryLeftOut(memory.namespace, memory.memory_id, reason))
        else:
            chosen.append(memory)
    why = f"; {len(left_out)} are left out, the first because it {left_out[0].reason}" if left_out else ""
    if not 1 <= len(chosen) <= MOST_MEMORIES:
        raise InvalidField("memories", f"1 to {MOST_MEMORIES} can be distilled, not {len(chosen)}{why}")
    check_texts([memory.text for memory in chosen])
    stated = len({reading.key for memory in chosen for reading in readings_of(memory.text)})
    if stated > MOST_FACTS:
        raise InvalidField("memories", f"state {stated} facts, at most {MOST_FACTS} are distilled at once")
    if stated < LEAST_FACTS:
        raise InvalidField(
            "memories",
            f"state {stated} facts that can be asked for by themselves, at least {LEAST_FACTS} are "
            f'needed{why}; a sentence such as "The founder of Velmora is Ida Kern." states one',
        )
    if pairs := list(itertools.islice(contradictions(chosen), NAMED)):
        named = ", ".join(_named(first, second) for first, second in pairs)
        raise InvalidField(
            "memories", f"contradict each other: {named}; forget, supersede or mend one of each"
        )
    return Selection(tuple(chosen), tuple(left_out))


def check_texts(texts: Sequence[str]) -> None:
    """Raises InvalidField for more, or longer, texts than can be distilled."""
    size = sum(len(text.encode()) for text in texts)
    if not 1 <= len(texts) <= MOST_MEMORIES or size > MOST_BYTES:
        raise InvalidField(
            "memories", f"are {len(texts)} of {size} bytes, at most {MOST_MEMORIES} of {MOST_BYTES}"
        )


def _named(first: Memory, second: Memory) -> str:
    if second is first:
        return f"two sentences of {first.memory_id}"
    if first.namespace == second.namespace:
        return f"{first.memory_id} and {second.memory_id}"
    return f"{first.namespace}/{first.memory_id} and {second.namespace}/{second.memory_id}"


def unfit(memory: Memory, now_s: float, control_token: Callable[[str], str | None]) -> str:
    """Why what the memory says now is not trained on; "" for no reason. control_token: as of `select`."""
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
    if token := control_token(memory.text):
        return f"spells the model's control token {token!r}"
    return ""


def _unstable(history: MemoryHistory, superseded: int) -> str:
    texts = [version.memory.text for version in history.versions]
    changes = history.dropped + sum(before != after for before, after in itertools.pairwise(texts))
    return f"has changed {changes + superseded} times" if changes + superseded > MOST_CHANGES else ""


def contradictions(memories: Sequence[Memory]) -> Iterator[tuple[Memory, Memory]]:
    """Pairs that cannot both be true: by their links, by what they state, and by their wording."""
    by_id = {(memory.namespace, memory.memory_id): memory for memory in memories}
    stated: dict[tuple[str, str], tuple[str, Memory]] = {}
    words = [frozenset(words_of(memory.text)) for memory in memories]
    statements = Statements()
    for place, memory in enumerate(memories):
        for link in memory.links:
            other = by_id.get((link.namespace or memory.namespace, link.memory_id))
            if other is not None and link.kind is LinkKind.CONTRADICTS:
                yield other, memory
        against: set[object] = set()
        for reading in all_readings_of(memory.text):
            for key in dict.fromkeys((reading.key, reading.agent_key)):
                value, first = (
                    stated.setdefault(key, (reading.said, memory)) if key else (reading.said, memory)
                )
                if value != reading.said and first.name not in against:
                    against.add(first.name)
                    yield first, memory
        own = words[place]
        alike = [
            Candidate(other, None, len(own & theirs) / max(1, min(len(own), len(theirs))))
            for other, theirs in zip(memories[:place], words, strict=False)
            if other.name not in against and len(own & theirs) >= COMPARED_OVERLAP * max(1, len(own | theirs))
        ]
        for finding in findings_of(memory, alike, statements=statements):
            if finding.kind in (FindingKind.CONTRADICTION, FindingKind.UPDATE):
                yield by_id[(finding.namespace, finding.memory_id)], memory
