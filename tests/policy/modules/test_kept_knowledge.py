"""What a version that is trained on must still know."""

from __future__ import annotations

import pytest

from memserve.errors import InvalidField
from memserve.policy.modules.gate import Probe, ProbeKind, ProbeSet
from memserve.policy.modules.kept_knowledge import MOST_KEPT, what_it_knew

RECALL = ProbeSet("recall", ProbeKind.RECALL, (Probe("Who?", ("Ida",)),), target=0.9)
RETAIN = ProbeSet("forgetting", ProbeKind.RETAIN, (Probe("What?", ("It",)),))


def test_a_parents_recall_is_held_to_95_percent_of_what_it_answered() -> None:
    [kept] = what_it_knew("handbook", 3, (RECALL, RETAIN), {"recall": 0.8})
    assert (kept.name, kept.kind, kept.at_least) == ("kept.handbook.3.recall", ProbeKind.CUSTOM, 0.76)
    assert kept.probes == RECALL.probes
    [unmeasured] = what_it_knew("handbook", 3, (RECALL,), {})
    assert unmeasured.at_least == round(0.95 * 0.9, 4)


def test_what_a_parent_had_to_know_itself_is_asked_as_before() -> None:
    [first] = what_it_knew("a", 1, (RECALL,), {"recall": 1.0})
    kept = what_it_knew("a", 2, (RECALL, first), {"recall": 0.5})
    assert [(each.name, each.at_least) for each in kept] == [
        ("kept.a.1.recall", 0.95),
        ("kept.a.2.recall", 0.475),
    ]
    named = what_it_knew("n" * 64, 1, (RECALL,), {})
    assert len(named[0].name) <= 64


def test_more_versions_behind_one_another_than_can_be_asked_are_refused() -> None:
    sets = [RECALL]
    for number in range(1, MOST_KEPT + 1):
        sets = [RECALL, *what_it_knew("a", number, sets, {})]
    with pytest.raises(InvalidField, match="from_reference"):
        what_it_knew("a", MOST_KEPT + 1, sets, {})
