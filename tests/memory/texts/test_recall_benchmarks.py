"""The parts of `loadtests.memory_recall` and `loadtests.memory_feedback`: worlds, ways, tasks and figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtests.texts.memory_feedback.cases import ON, Try, case_figures, families
from loadtests.texts.memory_feedback.reflections import MISLED, NOTHING_KNOWN, demo_tasks, plain_tasks
from loadtests.texts.memory_recall.demo_world import demo_world
from loadtests.texts.memory_recall.measuring import abstention_figures, changed_figures, ways_figures
from loadtests.texts.memory_recall.plain_world import MODULE, module_facts, plain_world
from loadtests.texts.memory_recall.teaching import PROBED
from loadtests.texts.memory_recall.ways import CHOSEN, LINKED, NONE, RECALL, Asked, is_asked
from loadtests.texts.memory_recall.worlds import (
    CHANGED,
    EXPIRED,
    HOP,
    KNOWN,
    NEAR_MISS,
    NEWER,
    NOT_YET,
    UNANSWERABLE,
    UNKNOWN,
    Question,
    World,
    contains,
    is_right,
)
from memserve.client import Answer
from memserve.domain import (
    CachedTokens,
    FinishReason,
    Memory,
    RecallOutcome,
    RecallPart,
    RecallSource,
    Route,
    ScoredMemory,
    Usage,
)


@pytest.fixture
def demo(tmp_path: Path) -> World:
    return demo_world(tmp_path, seed=1, questions=5)


def answer(text: str, *hits: ScoredMemory) -> Answer:
    recall = (RecallPart(RecallSource.TEXTS, RecallOutcome.FOUND, 12.0, len(hits)),)
    route = Route("r", "m", "w", "", 0.0, 40, 0, (), RecallOutcome.FOUND, hits, recall=recall if hits else ())
    usage = Usage(40, 5, CachedTokens(device=8), 30.0, 1.0, True, FinishReason.STOP)
    return Answer(text, (), (), route, usage)


def hit(memory_id: str, score: float, relevance: float) -> ScoredMemory:
    return ScoredMemory(Memory(memory_id, "facts", "", "", (), 0.0), score, None, None, relevance)


@pytest.mark.parametrize(
    ("reply", "value", "found"),
    [
        ("It is 18.", "8", False),
        ("It is 8.", "8", True),
        ("the MILL street", "Mill", True),
        ("Millard", "Mill", False),
        ("at 10:30", "10:30", True),
    ],
)
def test_an_answer_stands_in_a_reply_as_whole_words(reply: str, value: str, found: bool) -> None:
    assert contains(reply, value) is found


def test_a_question_without_an_answer_is_right_when_the_reply_says_so() -> None:
    nothing = Question("?", "", UNKNOWN)
    assert is_right(nothing, "I do not know.", "I do not know.")
    assert not is_right(nothing, "It is 46.", "I do not know.")
    assert not is_right(nothing, "anything", "")


def test_the_demo_world_asks_for_what_its_memories_and_modules_say(demo: World, tmp_path: Path) -> None:
    ids = {memory.memory_id for memory in demo.memories}
    ids |= {change.later.memory_id for change in demo.changes}
    assert len({memory.memory_id for memory in demo.memories}) == len(demo.memories)
    assert all(question.memory_id in ids for question in demo.questions if question.answer)
    assert Counter(question.kind for question in demo.questions) == {
        KNOWN: 15, UNKNOWN: 5, NEAR_MISS: 5, **dict.fromkeys(CHANGED, 1),
    }  # fmt: skip
    assert Counter(question.module for question in demo.questions if question.kind == KNOWN) == {
        "harbour": 5, "observatory": 5, "archive": 5,
    }  # fmt: skip
    asked = {question.text for question in demo.questions}
    for folder in demo.modules.values():
        [probes] = json.loads((folder / "probes.json").read_text(encoding="utf-8"))["sets"]
        assert not asked & {probe["question"] for probe in probes["probes"]}
    again = demo_world(tmp_path / "again", seed=1, questions=5)
    assert (again.memories, again.questions) == (demo.memories, demo.questions)


def test_what_has_no_answer_is_said_by_no_memory(demo: World) -> None:
    for world in (demo, plain_world({}, seed=1, questions=10)):
        texts = [memory.text for memory in (*world.memories, *(change.later for change in world.changes))]
        for question in world.questions:
            assert bool(question.answer) is (question.kind not in UNANSWERABLE)
            if question.kind == HOP:
                assert sum(contains(text, question.answer) for text in texts) == 1


def test_a_change_says_another_value_and_only_a_valid_one_is_right(demo: World) -> None:
    plain = plain_world({}, seed=1, questions=10)
    for world in (demo, plain):
        right = {question.memory_id: question for question in world.questions if question.kind in CHANGED}
        for change in world.changes:
            later = str(change.later.metadata["value"])
            assert contains(change.later.text, later)
            if change.kind in (EXPIRED, NOT_YET):
                assert right[change.memory_id].answer != later
            else:
                assert right[change.later.memory_id].answer == later
            assert change.kind != NEWER or change.later.memory_id != change.memory_id


def test_the_module_of_plain_english_is_not_trained_on_what_is_asked() -> None:
    world = plain_world({MODULE: Path("town")}, seed=3, questions=5)
    known = [question for question in world.questions if question.module == MODULE]
    trained = {phrasing for fact in module_facts(3) for phrasing in map(fact.question, (0, PROBED))}
    assert len(known) == 2 * len(module_facts(3))
    assert not any(question.text in trained for question in known)


def test_two_hops_are_asked_with_and_without_links_and_nothing_else_is_asked_with_links() -> None:
    hop, known = Question("?", "pipe", HOP, "cause-0"), Question("?", "4071", KNOWN, "gate")
    ways = (NONE, RECALL, CHOSEN, LINKED)
    assert [way for way in ways if is_asked(hop, way)] == [RECALL, LINKED]
    assert [way for way in ways if is_asked(known, way)] == [NONE, RECALL, CHOSEN]


def test_the_figures_count_answers_receipts_and_tokens() -> None:
    known, changed = Question("?", "4071", KNOWN, "gate"), Question("?", "red", NEWER, "later")
    nothing = Question("?", "", UNKNOWN)
    asked = [
        Asked(RECALL, known, answer("It is 4071.", hit("gate", 0.9, 0.95), hit("other", 0.2, 0.4))),
        Asked(RECALL, known, answer("It is 4071.", hit("other", 0.2, 0.4))),
        Asked(RECALL, known, answer("It is 12.", hit("gate", 0.9, 0.6))),
        Asked(RECALL, changed, answer("It is red.", hit("first", 0.9, 0.9), hit("later", 0.8, 0.9))),
        Asked(RECALL, nothing, answer("It is 5.", hit("other", 0.2, 0.4))),
    ]
    figures = ways_figures(asked)[RECALL.name]
    assert figures["right"] == pytest.approx(2 / 3)
    assert figures["right_and_named"] == 0.5
    assert (figures["prompt_tokens"], figures["computed_tokens"], figures["recall_p50_ms"]) == (40, 32, 12)
    assert changed_figures(asked)[NEWER] == {
        "questions": 1, "right": 1.0, "newest_first": 0.0, "without_memory": 0.0,
    }  # fmt: skip
    abstention = abstention_figures(asked)
    assert abstention["0.3"]["unknown_silent"] == 0.0
    assert abstention["0.5"] == {
        "unknown_silent": 1.0, "near_miss_silent": 0.0, "known_with_its_memory": pytest.approx(2 / 3),
    }  # fmt: skip
    assert abstention["0.9"]["known_with_its_memory"] == pytest.approx(1 / 3)


def by_letters(cases: Sequence[str], tasks: Sequence[str]) -> list[float]:
    """A case is nearer the shorter it is."""
    return [1 - len(case) / 200 for case in cases]


def test_the_nearer_case_of_a_misleading_family_has_the_wrong_action() -> None:
    made = families(5, 12, 4, 3, by_letters)
    assert made == families(5, 12, 4, 3, by_letters)
    assert [family.misleading for family in made] == [True] * 12 + [False] * 4
    for family in made:
        assert len(family.near) < len(family.far)
        assert contains(family.near, family.action) is not family.misleading
        assert contains(family.far, family.action) is family.misleading
        assert family.right_id in {case.memory_id for case in family.cases(ON, 0.0)}
        assert len(set(family.questions)) == 3


def test_the_rounds_of_cases_are_counted_apart() -> None:
    [family] = families(5, 1, 0, 2, by_letters)
    near, far = (hit(f"{family.number}-{name}", 0.5, 0.5) for name in ("near", "far"))
    tries = [
        Try(0, ON, family, answer("wrong", near)),
        Try(1, ON, family, answer(f"It is {family.action}.", far)),
    ]
    figures = case_figures(tries, misleading=True)
    assert [row["right_on"] for row in figures.values()] == [0.0, 1.0]
    assert [row["right_case_first_on"] for row in figures.values()] == [0.0, 1.0]


@pytest.mark.parametrize("tasks_of", [demo_tasks, plain_tasks])
def test_a_misled_task_has_a_memory_that_is_wrong_and_a_lesson_that_is_right(tasks_of: object) -> None:
    assert callable(tasks_of)
    tasks, others = tasks_of(2, 4)
    assert Counter(task.kind for task in tasks) == {NOTHING_KNOWN: 4, MISLED: 4}
    for task in tasks:
        assert contains(task.lesson, task.answer)
        assert bool(task.memory) is (task.kind == MISLED)
        assert not contains(task.memory, task.answer)
        assert task.question != task.other_words
    assert len(others) > 10
