"""Which memories are hits: validity, order, relevance, diversity and budget."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain import FoundMemories, Link, LinkKind, Memory, MemoryKind, SkipReason
from memserve.policy.recall.choosing import (
    Candidate,
    Candidates,
    SearchWishes,
    choose_ranked,
    rank_candidates,
    usable_at,
    within_budget,
)
from memserve.policy.recall.ranking import WordStatistics, memory_words, query_terms, score_words
from memserve.policy.recall.relevance import BUNDLED, FEATURES, OTHER, RelevanceModels
from memserve.policy.recall.strength import Usage, effective_strength

NOW_S = 1_000_000.0
STATISTICS = WordStatistics(1000, 10.0, {})


def note(name: str, text: str, *, created_s: float = 0.0, links: tuple[Link, ...] = ()) -> Memory:
    return Memory(name, "n", text, "", (), created_s, links=links)


def candidates(*pairs: tuple[Memory, float | None], models: RelevanceModels = BUNDLED) -> Candidates:
    return Candidates([Candidate(memory, cosine) for memory, cosine in pairs], STATISTICS, models)


def choose_hits(known: Candidates, query: str, wishes: SearchWishes, now_s: float) -> FoundMemories:
    """As a search without a reranker."""
    ranked, skipped = rank_candidates(known, query, now_s, clock_skew_s=wishes.clock_skew_s)
    return choose_ranked(ranked, skipped, known, wishes)


def ids(found: FoundMemories) -> list[str]:
    return [hit.memory.memory_id for hit in found.hits]


def skips(found: FoundMemories) -> dict[str, SkipReason]:
    return {skipped.memory_id: skipped.reason for skipped in found.skipped}


AMBER = note("amber", "The access code of Amber Lantern is AB-1234/7.")
CEDAR = note("cedar", "The access code of Cedar Harbor is CD-5678/9.")
LUNCH = note("lunch", "Lunch is served at noon.")


@pytest.mark.parametrize("models", [BUNDLED, OTHER])
def test_what_both_halves_find_is_the_first_hit_and_has_the_greatest_relevance(
    models: RelevanceModels,
) -> None:
    found = choose_hits(
        candidates((LUNCH, 0.1), (CEDAR, 0.5), (AMBER, 0.8), models=models),
        "What is the code of Amber Lantern?",
        SearchWishes(limit=3),
        NOW_S,
    )
    assert ids(found) == ["amber", "cedar", "lunch"]
    relevances = [hit.relevance for hit in found.hits]
    assert relevances == sorted(relevances, reverse=True)
    assert relevances[0] > 0.8
    assert found.hits[2].bm25_score is None


def test_a_code_in_another_spelling_finds_its_memory() -> None:
    found = choose_hits(
        candidates((CEDAR, 0.4), (AMBER, 0.3)), "ab12347", SearchWishes(limit=2, min_relevance=0.5), NOW_S
    )
    assert ids(found) == ["amber"]
    assert skips(found) == {"cedar": SkipReason.SCORE}


def test_a_question_that_nothing_answers_has_no_hit_above_the_least_relevance() -> None:
    found = choose_hits(
        candidates((AMBER, 0.05), (CEDAR, 0.04), (LUNCH, 0.06)),
        "How many moons does Saturn have?",
        SearchWishes(limit=3, min_relevance=0.5),
        NOW_S,
    )
    assert found.hits == ()
    assert set(skips(found).values()) == {SkipReason.SCORE}


def test_what_does_not_hold_now_is_skipped_with_its_reason() -> None:
    expired = replace(AMBER, memory_id="expired", valid_until_s=NOW_S)
    future = replace(AMBER, memory_id="future", valid_from_s=NOW_S + 3600)
    bound = replace(AMBER, memory_id="bound", applies_when="never")
    known = replace(
        candidates((expired, 0.8), (future, 0.8), (bound, 0.8), (AMBER, 0.8)),
        applies=lambda memory: not memory.applies_when,
    )
    found = choose_hits(known, "code of Amber Lantern", SearchWishes(limit=5), NOW_S)
    assert ids(found) == ["amber"]
    assert skips(found) == {
        "expired": SkipReason.EXPIRED,
        "future": SkipReason.NOT_YET_VALID,
        "bound": SkipReason.CONDITION,
    }


def test_a_writers_clock_may_be_ahead_and_an_expired_memory_is_never_used() -> None:
    assert usable_at(replace(AMBER, valid_from_s=NOW_S + 1), NOW_S, clock_skew_s=2) is None
    assert (
        usable_at(replace(AMBER, valid_from_s=NOW_S + 3), NOW_S, clock_skew_s=2) is SkipReason.NOT_YET_VALID
    )
    assert usable_at(replace(AMBER, valid_until_s=NOW_S), NOW_S, clock_skew_s=2) is SkipReason.EXPIRED
    assert usable_at(replace(AMBER, valid_until_s=NOW_S + 0.1), NOW_S) is None


def test_the_newer_of_two_linked_memories_goes_first_though_it_is_less_like_the_query() -> None:
    newer = note(
        "newer",
        "Amber Lantern now opens with ZZ-1111/1.",
        created_s=9,
        links=(Link(LinkKind.CONTRADICTS, "amber"),),
    )
    found = choose_hits(
        candidates((AMBER, 0.9), (newer, 0.4), (CEDAR, 0.5)),
        "What is the access code of Amber Lantern?",
        SearchWishes(limit=3),
        NOW_S,
    )
    assert ids(found)[0] == "newer"
    assert found.hits[0].relevance >= found.hits[1].relevance


def test_the_newer_of_two_that_are_worded_alike_goes_first_without_a_link() -> None:
    newer = note("newer", "The access code of Amber Lantern is XY-9999/1.", created_s=900.0)
    found = choose_hits(
        candidates((AMBER, 0.81), (newer, 0.8), (CEDAR, 0.5)),
        "What is the code of Amber Lantern?",
        SearchWishes(limit=3),
        NOW_S,
    )
    assert ids(found)[0] == "newer"


def test_of_two_episodes_that_are_worded_alike_the_stronger_goes_first() -> None:
    """Cases: outcomes say which of them is right, and the later one undoes nothing."""
    older = replace(AMBER, kind=MemoryKind.EPISODE)
    newer = note("newer", "The access code of Amber Lantern is XY-9999/1.", created_s=900.0)
    known = candidates((older, 0.8), (replace(newer, kind=MemoryKind.EPISODE), 0.81), (CEDAR, 0.5))
    question, wishes = "What is the code of Amber Lantern?", SearchWishes(limit=3)
    assert ids(choose_hits(known, question, wishes, NOW_S))[0] == "newer"
    failed = replace(known, strengths={("n", "newer"): 0.3})
    assert ids(choose_hits(failed, question, wishes, NOW_S))[0] == "amber"


def test_a_relevant_reflection_takes_the_first_place_of_a_recall() -> None:
    question = "What is the code of Amber Lantern?"
    lesson = f"When asked: {question}\nLesson: The access code of Amber Lantern is XY-9999/1."
    reflection = replace(note("lesson", lesson), kind=MemoryKind.REFLECTION)
    known = candidates((AMBER, 0.9), (reflection, 0.6), (CEDAR, 0.3))
    wishes = SearchWishes(limit=1, task=question)
    assert ids(choose_hits(known, question, SearchWishes(limit=1), NOW_S)) == ["amber"]
    assert ids(choose_hits(known, question, wishes, NOW_S)) == ["lesson"]
    other_task = replace(reflection, text="When asked: When is lunch served?\nLesson: Ask before noon.")
    far = candidates((AMBER, 0.9), (other_task, 0.0), (CEDAR, 0.3))
    assert ids(choose_hits(far, question, wishes, NOW_S)) == ["amber"]


def test_memories_of_one_import_that_are_worded_alike_are_no_updates_of_each_other() -> None:
    other = note("other", "The access code of Amber Lantern is XY-9999/1.", created_s=1.0)
    known = candidates((AMBER, 0.81), (other, 0.8), (CEDAR, 0.5))
    found = choose_hits(known, "What is the code of Amber Lantern?", SearchWishes(limit=3), NOW_S)
    assert ids(found)[0] == "amber"


def test_validity_counts_before_creation_where_it_is_given() -> None:
    older = replace(AMBER, memory_id="older", created_s=900.0, valid_from_s=100.0)
    newer = replace(AMBER, memory_id="newer", created_s=100.0, valid_from_s=500.0)
    found = choose_hits(candidates((older, 0.8), (newer, 0.8)), "code of Amber", SearchWishes(limit=2), NOW_S)
    assert ids(found) == ["newer", "older"]


def test_strength_decides_between_memories_of_equal_relevance() -> None:
    one, other = note("a", "The north gate opens at ten."), note("b", "The south gate opens at six.")
    weak = candidates((one, 0.5), (other, 0.5))
    strong = replace(weak, strengths={("n", "b"): 3.0})
    wishes = SearchWishes(limit=2)
    assert ids(choose_hits(weak, "when does a gate open", wishes, NOW_S)) == ["a", "b"]
    found = choose_hits(strong, "when does a gate open", wishes, NOW_S)
    assert ids(found) == ["b", "a"]
    assert found.hits[0].strength == 3.0
    assert found.hits[0].relevance == pytest.approx(found.hits[1].relevance)


def test_diversity_takes_what_is_unlike_and_tells_what_it_left_out() -> None:
    vectors = {"a": (1.0, 0.0), "b": (0.99, 0.1), "c": (0.0, 1.0)}
    texts = {"a": "gate north six", "b": "gate west seven", "c": "gate south nine"}
    found = [Candidate(note(name, texts[name]), 0.5, vector=vectors[name]) for name in "abc"]
    known = Candidates(found, STATISTICS)
    assert ids(choose_hits(known, "gate", SearchWishes(limit=2), NOW_S)) == ["a", "b"]
    diverse = choose_hits(known, "gate", SearchWishes(limit=2, diversity=0.7), NOW_S)
    assert ids(diverse) == ["a", "c"]
    assert skips(diverse) == {"b": SkipReason.DIVERSITY}


def test_a_budget_of_tokens_leaves_out_what_does_not_fit_and_takes_shorter_ones() -> None:
    found = choose_hits(candidates((AMBER, 0.8), (CEDAR, 0.6), (LUNCH, 0.1)), "code", SearchWishes(3), NOW_S)
    kept, skipped = within_budget(found.hits, [10, 50, 5], 20)
    assert [hit.memory.memory_id for hit in kept] == [
        found.hits[0].memory.memory_id,
        found.hits[2].memory.memory_id,
    ]
    assert [skip.reason for skip in skipped] == [SkipReason.TOKENS]
    assert "50 tokens" in skipped[0].detail


def test_a_rare_word_of_the_whole_store_counts_more_than_a_common_one() -> None:
    rare, common = note("rare", "signal qx7741b"), note("common", "signal power")
    statistics = WordStatistics(1000, 2.0, {"power": 900, "qx7741b": 1, "signal": 950})
    scores = score_words(
        query_terms("power qx7741b"), [memory_words(memory) for memory in (common, rare)], statistics
    )
    assert scores[1].bm25 > 3 * scores[0].bm25 > 0


names = st.text("abc", min_size=1, max_size=2)
found_memories = st.lists(
    st.tuples(
        names, st.text("gate code 123 äß北", max_size=30), st.none() | st.floats(-1, 1), st.integers(0, 3)
    ),
    max_size=8,
    unique_by=lambda row: row[0],
)


@given(
    found_memories,
    st.text("gate code 123 äß北", max_size=20),
    st.integers(1, 5),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_candidate_is_a_hit_or_skipped_or_beyond_the_limit_and_never_twice(
    rows: list[tuple[str, str, float | None, int]], query: str, limit: int, least: float, diversity: float
) -> None:
    known = candidates(*((note(name, text, created_s=age), cosine) for name, text, cosine, age in rows))
    found = choose_hits(known, query, SearchWishes(limit, least, diversity), NOW_S)
    told = [*ids(found), *(skipped.memory_id for skipped in found.skipped)]
    assert len(told) == len(set(told))
    assert len(found.hits) <= limit
    assert all(least <= hit.relevance <= 1 and 0 <= hit.score <= 1 for hit in found.hits)
    if len(found.hits) < limit:
        assert len(told) == len(rows)


@given(
    st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=12),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_hits_does_not_depend_on_the_order_in_which_an_index_returns_equals(
    cosines: list[float], limit: int, shuffler: random.Random
) -> None:
    pairs = [(note(f"m{number:02d}", "the gate"), cosine) for number, cosine in enumerate(cosines)]
    shuffled = pairs.copy()
    shuffler.shuffle(shuffled)
    first, second = (
        choose_hits(candidates(*each), "gate", SearchWishes(limit), NOW_S) for each in (pairs, shuffled)
    )
    assert ids(first) == ids(second)
    assert len(first.hits) == min(limit, len(pairs))


def test_a_strong_memory_that_is_not_related_does_not_beat_a_related_one() -> None:
    """Strength multiplies the odds, and the most that a policy gives is 100."""
    question = "What is the code of Amber Lantern?"
    known = replace(candidates((AMBER, 0.8), (LUNCH, 0.05)), strengths={("n", "lunch"): 10.0})
    assert ids(choose_hits(known, question, SearchWishes(limit=2), NOW_S))[0] == "amber"


def test_outcomes_overrule_plain_similarity_among_near_neighbours() -> None:
    """What a policy makes of three outcomes each is enough to turn two cases that are worded alike."""
    misleading = replace(AMBER, memory_id="misleading", kind=MemoryKind.EPISODE)
    useful = replace(AMBER, memory_id="useful", kind=MemoryKind.EPISODE)
    known = candidates((misleading, 0.82), (useful, 0.78))
    question, wishes = "What is the code of Amber Lantern?", SearchWishes(limit=2)
    assert ids(choose_hits(known, question, wishes, NOW_S))[0] == "misleading"
    strengths = {
        ("n", name): effective_strength(1.0, MemoryKind.EPISODE, Usage(0.0, rewards=rewards, outcomes=3))
        for name, rewards in (("misleading", 0.0), ("useful", 3.0))
    }
    judged = replace(known, strengths=strengths)
    assert ids(choose_hits(judged, question, wishes, NOW_S))[0] == "useful"


@pytest.mark.parametrize("models", [BUNDLED, OTHER])
def test_models_have_a_coefficient_for_every_feature(models: RelevanceModels) -> None:
    for model in (models.known, models.spelt, models.foreign):
        assert len(model.coefficients) == 1 + len(FEATURES)


@pytest.mark.parametrize(
    ("query", "name"),
    [("Wo ist der Schlüssel?", "known"), ("4071", "known"), ("Где ключ?", "spelt"), ("密码是什么", "spelt"),
     ("ما الرمز", "foreign"), ("รหัสคืออะไร", "foreign")],
)  # fmt: skip
def test_the_model_is_chosen_by_the_letters_of_the_query(query: str, name: str) -> None:
    assert BUNDLED.of(query) is getattr(BUNDLED, name)
