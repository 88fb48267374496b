"""`loadtests.consolidation`: its namespace, and what it calls a false merge."""

from __future__ import annotations

from loadtests.texts.consolidation.__main__ import false_merges
from loadtests.texts.consolidation.town import town
from memserve.domain import ConsolidationPlan, Memory, MemoryKind, Merge, MergedMemory, MergeKind
from memserve.policy import consolidation as policy

MADE = town("town", 4, 12)
MEMORIES = {
    new.memory_id: Memory(new.memory_id, "town", new.text, "", (), float(place), kind=new.kind)
    for place, new in enumerate(MADE.memories)
}


def merge(kind: MergeKind, memory_id: str, text: str, *sources: str) -> ConsolidationPlan:
    named = tuple(MergedMemory(each, 1) for each in sources)
    version = int(kind is MergeKind.DUPLICATES)
    return ConsolidationPlan("town", 9, (Merge(kind, memory_id, text, named, "", version),))


def test_the_same_seed_gives_the_same_namespace_with_near_misses() -> None:
    assert town("town", 4, 12) == MADE
    assert MADE.duplicates > 5 and MADE.contradicted
    assert any(new.kind is MemoryKind.EPISODE for new in MADE.memories)


def test_a_merge_of_two_facts_and_a_summary_without_a_value_are_false() -> None:
    first, second = [each for each, says in MADE.stated.items() if says][:2]
    other = next(each for each, says in MADE.stated.items() if says and says != MADE.stated[first])
    wrong = merge(MergeKind.DUPLICATES, first, MEMORIES[first].text, other)
    assert false_merges(MADE, MEMORIES, wrong) == 1
    assert false_merges(MADE, MEMORIES, merge(MergeKind.SUMMARY, "s", "Nothing.", first, second)) == 1


def test_the_rules_make_no_false_merge_of_it() -> None:
    assert false_merges(MADE, MEMORIES, policy.plan("town", list(MEMORIES.values()))) == 0
