"""What the demo on a real model calls missed."""

from __future__ import annotations

from typing import Any

import pytest

from memserve.embedded.handbook_acts import CARELESS, CARTRIDGE, LORA
from memserve.embedded.handbook_story import missed
from tests.embedded.handbook_figures import figures


def test_a_run_as_it_should_be_misses_nothing() -> None:
    assert missed(figures()) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"recall": {"with": {"right": 12}}}, "recall: 12 of 24 right, 75% wanted"),
        ({"recall": {"without": {"right": 5}}}, "without the handbook 5 of 24 are right"),
        ({"modules": {LORA: {"right": 3}}}, "handbook: 3 of 24 right, 50% wanted"),
        ({"modules": {CARTRIDGE: {"right": 0}}}, "handbook-cartridge: 0 of 24 right, 50% wanted"),
        ({"gates": {LORA: {"refusal": "leak 0.9"}}}, "handbook is refused: leak 0.9"),
        ({"gates": {CARELESS: {"refusal": ""}}}, "the careless version passed the gate"),
        ({"composed": {"same_after": False}}, "the answer after the rollback is another one than before"),
        (
            {"prefix": {"warm": {"cached_share": 0.5}}},
            "warm: 50.0% of the prompt cached, at least 95% wanted",
        ),
        (
            {"prefix": {"after restart": {"ttft_of_cold": 0.9}}},
            "after restart: TTFT 0.90 of cold's, at most 0.5 wanted",
        ),
        ({"tampered": {"cached_from_redis": 64}}, "tampered entries: 64 tokens served from them"),
        ({"tampered": {"entries": 0}}, "tampered entries: 0 tokens served from them"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_misses_its_bar_is_named(change: dict[str, Any], line: str) -> None:
    assert missed(figures(change)) == [line]
