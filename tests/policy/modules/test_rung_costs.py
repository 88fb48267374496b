"""What each rung costs a namespace, and what a version was made of."""

from __future__ import annotations

import json
from dataclasses import replace

from memserve.domain import GateFigure, GateReport, ModuleKind, ModuleVersion, WeightFigures
from memserve.domain.ladder import Rung
from memserve.domain.lineage import MemoryVersionName, memories_of
from memserve.policy.modules.rung_costs import (
    LOAD_S,
    Engine,
    NamespaceFigures,
    costs_of,
    recall_share,
    teacher_share,
)
from memserve.policy.routing.costs import EngineCosts

ENGINE = Engine(
    EngineCosts(0.01, 0.001, 0.0, 0.0, 0.0, 1.0), 1000, 50_000, {Rung.CARTRIDGE: 480.0, Rung.LORA: 300.0}
)
TOWN = NamespaceFigures(pinned_tokens=200, passage_tokens=100, memory_tokens=1000)
VERSION = ModuleVersion(
    "town", 1, "d" * 64, ModuleKind.LORA, "b" * 64, 16, (), 70_000, 5.0, "x",
    ("memory:town/m0@1 memory:town/m1@3",), (), json.dumps({"measured": {"teacher_share": 0.6}}), "",
    WeightFigures(1.0, 0.0, 1.0), "",
    gate=GateReport(True, (GateFigure("recall", 0.0, 0.9, "", True, 9),), "w", 6.0, ""),
)  # fmt: skip


def test_pinned_passages_are_in_the_prompt_on_every_rung() -> None:
    costs = costs_of(TOWN, ENGINE)
    assert [(rung, cost.computed_tokens, cost.resident_bytes) for rung, cost in costs.items()] == [
        (Rung.TEXT, 300, 0),
        (Rung.PREFIX, 100, 200_000),
        (Rung.CARTRIDGE, 0, 700_000),
        (Rung.LORA, 0, 250_000),
    ]
    assert [round(cost.ttft_s, 3) for cost in costs.values()] == [0.31, 0.11, 0.01, 0.01]
    assert [round(cost.make_s, 3) for cost in costs.values()] == [0.0, 0.2, 480.2, 300.2]
    assert costs_of(replace(TOWN, is_warm=True), ENGINE)[Rung.LORA].make_s == 300.0
    assert Rung.PREFIX not in costs_of(replace(TOWN, pinned_tokens=0), ENGINE)


def test_a_version_that_is_there_is_loaded_and_has_measured_shares() -> None:
    costs = costs_of(replace(TOWN, is_warm=True, versions={Rung.LORA: VERSION}), ENGINE)
    assert (costs[Rung.LORA].make_s, costs[Rung.LORA].resident_bytes) == (LOAD_S, 270_000)
    assert (costs[Rung.TEXT].right, costs[Rung.LORA].right, costs[Rung.CARTRIDGE].right) == (0.6, 0.9, None)
    assert recall_share(replace(VERSION, gate=None)) is None


def test_what_is_begun_is_paid_and_what_is_refused_cannot_be_had() -> None:
    figures = replace(TOWN, is_warm=True, trained=frozenset({Rung.LORA}), refused=frozenset({Rung.CARTRIDGE}))
    costs = costs_of(figures, ENGINE)
    assert costs[Rung.LORA].make_s == 0
    assert Rung.CARTRIDGE not in costs


def test_the_memories_of_a_version_are_read_from_its_sources() -> None:
    assert memories_of([*VERSION.sources, "a book", "memory:hall/a.b:c@12"]) == (
        MemoryVersionName("town", "m0", 1),
        MemoryVersionName("town", "m1", 3),
        MemoryVersionName("hall", "a.b:c", 12),
    )


def test_a_recipe_of_somebody_else_has_no_share() -> None:
    for recipe in ("", "by hand", "[]", '{"measured": {"teacher_share": "much"}}', '{"measured": 3}'):
        assert teacher_share(replace(VERSION, recipe=recipe)) is None
