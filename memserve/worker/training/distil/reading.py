"""What memories state: that which is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from memserve.errors import InvalidField
from memserve.policy.modules.self_study.readings import MAX_SENTENCE_CHARS, Reading, readings_of

MAX_SOURCE_CHARS = 2 * MAX_SENTENCE_CHARS


def read_memories(texts: Sequence[str]) -> tuple[list[tuple[str, list[Reading]]], list[int]]:
    """What each memory states, and the places of those that give no question.

    A fact that two memories state is asked once. Raises InvalidField when none gives a question.
    """
    found: list[tuple[str, list[Reading]]] = []
    mute: list[int] = []
    seen: set[tuple[str, str]] = set()
    for place, text in enumerate(texts):
        readings = readings_of(text)
        new = [reading for reading in readings if reading.key not in seen]
        seen.update(reading.key for reading in new)
        if new:
            found.append((text, new))
        elif not readings:
            mute.append(place)
    if not found:
        raise InvalidField("memories", "none states a fact that can be asked for by itself")
    return found, mute


def read_old_memories(
    texts: Sequence[str], new: Sequence[tuple[str, Sequence[Reading]]]
) -> list[tuple[str, list[Reading]]]:
    """What earlier memories state and no new one does."""
    seen = {reading.key for _, found in new for reading in found}
    kept = []
    for text in texts:
        own = [reading for reading in readings_of(text) if reading.key not in seen]
        seen.update(reading.key for reading in own)
        if own:
            kept.append((text, own))
    return kept


def sources_of(memories: Sequence[tuple[str, Sequence[Reading]]]) -> list[str]:
    """What the teacher of each reading has in its prompt, in the readings' order.

    It is the memory; of a memory that states several facts, or is long, the sentence: a weak base misreads a
    whole page.
    """
    return [
        text if len(found) == 1 and len(text) <= MAX_SOURCE_CHARS else reading.sentence
        for text, found in memories
        for reading in found
    ]
