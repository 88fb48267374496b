"""`loadtests.continual`: its documents, and what its bars look at."""

from __future__ import annotations

from pathlib import Path

from loadtests.modules.continual.__main__ import Version, bars_of, kept_share
from loadtests.modules.continual.documents import documents
from memserve.domain import GateFigure
from memserve.memory.modules.probes import Probes


def test_documents_share_no_value_and_their_questions_name_it() -> None:
    asked, reading = documents(3, 3, 4)
    assert [each.name for each in asked] == ["A", "B", "C"]
    texts = [text for each in asked for text in each.memories]
    assert len(set(texts)) == 12
    for each in asked:
        answers = {question.right[0] for question in each.recall}
        assert len(answers) == 4
        others = [other for other in asked if other is not each]
        assert all(question.right[0] not in answers for other in others for question in other.recall)
    assert set(reading.columns) == {"passage", "distractors", "nothing", "text_wins"}
    assert documents(3, 3, 4)[0] == asked


def version(*kept: bool) -> Version:
    figures = tuple(GateFigure("kept.a", 0.0, 0.5, "at least 0.9", holds, 9) for holds in kept)
    return Version(Path("-"), 1.0, Probes(()), figures)


def test_what_is_kept_is_measured_against_what_was_learned() -> None:
    asked, _ = documents(3, 2, 4)
    ways = {
        "a module each": {"A": 0.8, "B": 1.0},
        "one LoRA, replay": {"A": 0.78, "B": 0.97},
        "A, then B, no replay": {"A": 0.2, "B": 1.0},
        "merged, svd": {"A": 0.4, "B": 0.5},
    }
    assert round(kept_share(ways, "one LoRA, replay", asked), 3) == 0.975
    versions = {"A": version(), "B-replay": version(True), "B-no-replay": version(False)}
    assert [bar.holds for bar in bars_of(ways, versions, asked)] == [True] * 4
    versions["B-no-replay"] = version(True)
    ways["one LoRA, replay"]["A"] = 0.7
    assert [bar.holds for bar in bars_of(ways, versions, asked)] == [False, True, False, True]
