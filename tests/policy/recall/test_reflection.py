"""A reflection is known by the task that it was learned from."""

from __future__ import annotations

import pytest

from memserve.domain import Memory, MemoryKind, ScoredMemory
from memserve.policy.recall.prompt import reflections_first
from memserve.policy.recall.reflection import reflection_text, task_likeness

TASK = "Which pump feeds tank seven?"
NOTE = "The label on the wall is wrong;\nfollow the blue pipe."


def hit(text: str, kind: MemoryKind = MemoryKind.FACT, relevance: float = 0.1) -> ScoredMemory:
    return ScoredMemory(Memory(text[:9], "n", text, "", (), 1.0, kind=kind), 1.0, None, None, relevance)


def test_a_reflection_has_the_note_as_it_came() -> None:
    assert reflection_text(TASK, f" {NOTE} ").endswith(NOTE)
    assert reflection_text("  ", NOTE) == NOTE


@pytest.mark.parametrize(
    ("question", "same"),
    [
        (TASK, True),
        ("which pump is it that feeds tank seven", True),
        ("Which valve drains tank nine?", False),
        ("Why is the label on the wall wrong?", False),
        ("", False),
    ],
)
def test_a_task_is_known_by_its_words(question: str, same: bool) -> None:
    """The lesson's own words do not count."""
    assert (task_likeness(reflection_text(TASK, NOTE), question) >= 0.5) is same


def test_a_reflection_of_the_task_goes_first_and_the_others_keep_their_order() -> None:
    facts = [hit("Pump nine feeds tank seven.", relevance=0.9), hit("Pump two feeds tank six.")]
    learned = hit(reflection_text(TASK, NOTE), MemoryKind.REFLECTION)
    other = hit(reflection_text("What is the capital of Norway?", NOTE), MemoryKind.REFLECTION)
    sure = hit(reflection_text("", NOTE), MemoryKind.REFLECTION, relevance=0.6)
    assert reflections_first([*facts, other, learned], TASK) == [learned, *facts, other]
    assert reflections_first([*facts, sure], TASK) == [sure, *facts]
    assert reflections_first([*facts, learned], "Who painted the gate?") == [*facts, learned]
