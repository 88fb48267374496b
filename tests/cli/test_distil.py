"""What `memserve modules distil` says while it trains, and at its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memserve.cli.distil import LINE_S, Told, TrainingOptions, next_lines, progress_line
from memserve.domain import DistilProgress, GateReport, ModuleKind
from memserve.errors import StartupError
from tests.client.examples import VERSION

STEP = DistilProgress("training", 20, 90, 61.2, 12_345, 0.0421)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (STEP, "training 20 of 90, median loss 0.042, 61 processor seconds, 12,345 tokens trained"),
        (DistilProgress("reading", 0, 0), "reading"),
        (DistilProgress("gate", 30, 456, 200.0, 12_345), "gate 30 of 456, 200 processor seconds, 12,345 "
                                                         "tokens trained"),
    ],
)  # fmt: skip
def test_a_line_has_the_stage_how_far_it_is_and_its_cost(event: DistilProgress, text: str) -> None:
    assert progress_line(event) == text


def test_a_stage_is_told_when_it_begins_and_every_few_seconds() -> None:
    bars: list[tuple[int, int]] = []
    told = Told(lambda done, total: bars.append((done, total)))
    said = [
        bool(told.of(event, now_s))
        for event, now_s in (
            (STEP, 0.0),
            (STEP, LINE_S - 0.1),
            (STEP, LINE_S),
            (replace(STEP, stage="gate"), LINE_S + 0.1),
        )
    ]
    assert said == [True, False, True, True]
    assert len(bars) == 4


@pytest.mark.parametrize(
    ("kind", "option"), [(ModuleKind("lora"), "--module"), (ModuleKind("cartridge"), "--cartridge")]
)
def test_at_the_end_stands_how_to_ask_the_candidate(kind: ModuleKind, option: str) -> None:
    ask, promote = (str(each) for each in next_lines(replace(VERSION, kind=kind)))
    assert f"{option} {VERSION.reference}" in ask
    assert f"memserve modules promote {VERSION.module} {VERSION.version}" in promote
    assert "--force" not in promote


def test_who_has_a_version_that_the_gate_refuses_is_told_what_to_do() -> None:
    refused = GateReport(False, (), "w-1", 0.0, "")
    _, why, promote = (str(each) for each in next_lines(replace(VERSION, gate=refused)))
    assert "--seed" in why
    assert promote.endswith(f"memserve modules promote {VERSION.module} {VERSION.version} --force")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("steps=99999999999", "recipe.steps: must be from 0 to 5000"),
        ("rows=-1", "recipe.rows: must be from 0 to 64"),
        ("rate=nan", "recipe.rate: must be from 0 to 0.5, not nan"),
        ("rank=1e3", "'1e3' is no int"),
        ("depth=3", "a recipe has steps"),
    ],
)
def test_a_recipe_that_no_message_can_carry_is_refused_by_its_field(given: str, told: str) -> None:
    with pytest.raises(StartupError) as refused:
        TrainingOptions(recipe=[given]).chosen_recipe()
    assert told in str(refused.value)
