"""The statements of `loadtests.memory_surprise` are what their classes say."""

from __future__ import annotations

import random
from collections import Counter

from loadtests.texts.memory_surprise import Scored, bars_of, share
from loadtests.texts.surprise_statements import OTHERS, Statement, demo_statements, world_statements
from memserve.gateway.surprise import TextScores


def test_a_contradiction_says_something_else_of_what_is_remembered_beside_it() -> None:
    statements = demo_statements(random.Random(0), 4)
    assert set(Counter(statement.label for statement in statements).values()) == {4}
    for statement in statements:
        assert statement.text not in statement.near or not statement.is_news
        if statement.label == "remembered, in the model's words":
            value = statement.text.rpartition(" is ")[2].rstrip(".")
            assert len(statement.near) == OTHERS + 1
            assert any(value in text for text in statement.near)
        if statement.label.startswith("known"):
            assert statement.with_module
    for statement in world_statements():
        if "contradicts a memory" in statement.label:
            assert statement.text not in statement.near
        if statement.label == "remembered":
            assert statement.text in statement.near


def test_the_bars_count_what_is_stored_and_leave_out_what_is_only_reported() -> None:
    known, news = (-9.0, -9.0, -0.1), (-9.0, -0.1, -9.0)

    def scored(label: str, is_news: bool, logprobs: tuple[float, ...], *, expected: bool = True) -> Scored:
        scores = TextScores("a b c", ((0, 1), (1, 3), (3, 5)), logprobs, None)
        return Scored(Statement(label, scores.text, is_news, expected=expected), scores, 0.0)

    done = [
        scored("known", False, known),
        scored("known", False, news),
        scored("known, in any words", False, news, expected=False),
        scored("contradicts the model", True, news),
        scored("new", True, news),
    ]
    assert share(done) == 0.8
    assert share(done[:1], known_below=0.05) == 1.0
    left_out, contradictions, new = bars_of(done)
    assert (left_out.figure, left_out.holds) == (0.5, False)
    assert (contradictions.figure, new.figure) == (1.0, 1.0)
