"""The parts of `loadtests.memory_rules`: its pairs, and the shares that it prints."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from loadtests.texts.memory_rules.__main__ import Judged, rates
from loadtests.texts.memory_rules.frames import HELD_OUT, TUNING
from loadtests.texts.memory_rules.pairs import Pair, pairs_of
from memserve.domain.memories import FindingKind
from memserve.policy.recall.duplicates import Candidate, findings_of, word_overlap


def judged(pair: Pair) -> Judged:
    """By words alone, because a test needs no embedding model."""
    old, new = replace(pair.old, memory_id="old"), replace(pair.new, memory_id="new")
    findings = findings_of(new, [Candidate(old, None, word_overlap(old.text, new.text))])
    return Judged(pair, findings[0].kind if findings else None)


def test_the_same_seed_gives_the_same_pairs_and_another_one_others() -> None:
    assert pairs_of(HELD_OUT, 2, 1) == pairs_of(HELD_OUT, 2, 1)
    assert pairs_of(HELD_OUT, 2, 1) != pairs_of(HELD_OUT, 2, 2)


def test_tuning_and_held_out_sentences_are_others() -> None:
    assert not {frame.base for frame in TUNING} & {frame.base for frame in HELD_OUT}
    languages = {frame.language for frame in TUNING}
    assert languages == {frame.language for frame in HELD_OUT}
    assert len(languages) == 5


def test_every_kind_of_pair_is_there_with_its_answer() -> None:
    expected = Counter(pair.expected for pair in pairs_of(HELD_OUT, 1, 1))
    assert set(expected) == {FindingKind.DUPLICATE, FindingKind.CONTRADICTION, FindingKind.UPDATE, None}
    assert len({pair.kind for pair in pairs_of(HELD_OUT, 1, 1)}) >= 15


def test_the_shares_count_each_error_once() -> None:
    pairs = {pair.expected: pair for pair in pairs_of(TUNING, 1, 1)}
    duplicate, contradiction, neither = (
        pairs[kind] for kind in (FindingKind.DUPLICATE, FindingKind.CONTRADICTION, None)
    )
    shares = rates(
        [
            Judged(duplicate, FindingKind.DUPLICATE),
            Judged(duplicate, FindingKind.CONTRADICTION),
            Judged(contradiction, FindingKind.UPDATE),
            Judged(contradiction, None),
            Judged(neither, FindingKind.DUPLICATE),
            Judged(neither, None),
        ]
    )
    assert shares == pytest.approx(
        {
            "false_merges": 1 / 4,
            "missed_duplicates": 1 / 2,
            "false_contradictions": 1 / 4,
            "missed_contradictions": 1 / 2,
            "duplicate_precision": 1 / 2,
            "duplicate_recall": 1 / 2,
            "contradiction_precision": 1 / 2,
            "contradiction_recall": 1 / 2,
        }
    )


def test_the_rules_err_as_seldom_as_the_documents_say() -> None:
    shares = rates([judged(pair) for pair in pairs_of(HELD_OUT, 3, 7)])
    assert shares["false_merges"] <= 0.01
    assert shares["missed_duplicates"] <= 0.25
    assert shares["false_contradictions"] <= 0.05
    assert shares["missed_contradictions"] <= 0.25
