"""The learning rate falls when the facts are learned, or in time for the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memserve.domain import DEFAULT_RECIPE, ModuleKind
from memserve.errors import InvalidField
from memserve.policy.modules.recipes import (
    LEAST_STEPS,
    Course,
    cartridge_tokens,
    check_budget,
    check_recipe,
    facts_asked,
    for_model,
    old_asked,
)


def steps_of(course: Course, median: float, spent: float, kept: float = 0.01) -> int:
    """Takes all steps, each at these losses and for this share of the budget."""
    step = 0
    while step < course.steps:
        assert 0 < course.share(step) <= 1
        step += 1
        course.note(step - 1, [median] * 8, [kept] * 8, spent * step)
    return step


def test_all_steps_are_taken_when_nothing_ends_it() -> None:
    assert steps_of(Course(100, 0.02), median=1.0, spent=0.0) == 100


def test_it_ends_early_when_the_facts_are_learned_and_nothing_else_has_moved() -> None:
    course = Course(100, 0.02)
    assert LEAST_STEPS < steps_of(course, median=0.01, spent=0.0) < 40
    assert "learned" in course.why
    assert steps_of(Course(100, 0.02), median=0.01, spent=0.0, kept=0.5) == 100


def test_it_ends_within_the_budget() -> None:
    course = Course(1000, 0.02)
    taken = steps_of(course, median=1.0, spent=0.01)
    assert 90 <= taken <= 101
    assert "budget" in course.why


def test_the_rate_rises_stays_and_falls() -> None:
    course = Course(100, 0.0)
    assert course.share(0) < course.share(4) < course.share(20) == course.share(60) == 1.0
    assert course.share(99) < course.share(80) < 1.0


def test_a_course_goes_on_where_it_began_to_fall() -> None:
    course = Course(100, 0.0, fall_from=50)
    assert course.steps == 72
    assert course.share(60) < 1


@pytest.mark.parametrize(
    "change",
    [{"steps": 5}, {"steps": 6000}, {"rows": 65}, {"rank": 0}, {"rate": -0.1}, {"rate": float("nan")},
     {"fact_share": 1.0}, {"fresh": 2.0}, {"stop_loss": -1.0}, {"least_teacher": 1.1},
     {"phrasings": 65}, {"tokens": -1}],
)  # fmt: skip
def test_a_recipe_outside_its_bounds_is_refused_by_field(change: dict[str, float]) -> None:
    [field] = change
    with pytest.raises(InvalidField, match=f"recipe.{field}"):
        check_recipe(replace(DEFAULT_RECIPE, **change))  # type: ignore[arg-type]


def test_a_budget_is_seconds_or_the_default() -> None:
    check_recipe(DEFAULT_RECIPE)
    check_budget(0)
    for wrong in (1.0, -1.0, 1e9, float("inf")):
        with pytest.raises(InvalidField, match="budget_s"):
            check_budget(wrong)


def test_a_cartridge_has_whole_blocks_and_a_part_of_its_text() -> None:
    assert cartridge_tokens(0, 300, 32, 8192) == 128
    assert cartridge_tokens(0, 900, 32, 8192) == 320
    assert cartridge_tokens(0, 100, 32, 8192) == 96
    assert cartridge_tokens(0, 20, 32, 8192) == 32
    assert cartridge_tokens(0, 90_000, 32, 8192) == 4096
    assert cartridge_tokens(64, 300, 32, 8192) == 64
    for wrong in (33, 8192):
        with pytest.raises(InvalidField, match=r"recipe.tokens.*multiple of 32 and at most 4096"):
            cartridge_tokens(wrong, 300, 32, 8192)


def test_fewer_facts_are_asked_once_they_are_nearly_learned() -> None:
    recipe = for_model(replace(DEFAULT_RECIPE, rows=20, fact_share=0.4), ModuleKind.LORA, 1)
    assert [facts_asked(recipe, medians) for medians in ([], [0.5] * 16, [0.01] * 16)] == [8, 8, 5]


def test_a_recipe_for_a_model_has_a_number_for_everything() -> None:
    for parameters in (1_000_000, 135_000_000):
        recipe = for_model(DEFAULT_RECIPE, ModuleKind.CARTRIDGE, parameters)
        check_recipe(recipe)
        assert min(recipe.steps, recipe.rows, recipe.fresh, recipe.rate) > 0
    assert for_model(replace(DEFAULT_RECIPE, steps=33), ModuleKind.LORA, 1).steps == 33


def test_a_course_that_went_on_after_kills_ends_with_its_budget() -> None:
    """The fall had begun, and what comes before training was done again and again."""
    course = Course(1000, 0.0, fall_from=300)
    course.note(310, [1.0] * 8, [0.01] * 8, 1.0)
    assert (course.steps, course.why) == (311, "the budget was used")
    young = Course(1000, 0.0)
    young.note(LEAST_STEPS - 2, [1.0] * 8, [0.01] * 8, 3.0)
    assert young.steps >= LEAST_STEPS


@pytest.mark.parametrize("share", [0.01, 0.35, 0.9])
@pytest.mark.parametrize("asked", [1, 2, 5, 6, 30])
def test_old_and_new_facts_are_both_asked_at_every_share(asked: int, share: float) -> None:
    of_old = [old_asked(asked, share, step) for step in range(200)]
    assert 0 < sum(of_old) < 200 * asked
    assert all(0 <= each <= asked for each in of_old)


def test_no_old_fact_is_asked_where_none_is_wanted() -> None:
    assert {old_asked(asked, 0.0, step) for asked in (1, 6) for step in range(9)} == {0}
    assert old_asked(6, 0.35, 7) == 2
