"""The figures of `loadtests.knowledge`, of answers that are written down here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from loadtests.modules.distil.worlds import Asked
from loadtests.modules.knowledge.asking import Figures, Layout, Replied, figures_of, interval, spread
from loadtests.modules.knowledge.rungs import (
    CARTRIDGE,
    LORA,
    LORA_RECALL,
    NOTHING,
    PINNED,
    RECALL,
    RUNGS,
    Costs,
)
from loadtests.modules.knowledge.table import COLUMNS, Row, bars_of, printed, write_report
from memserve.client import Answer
from memserve.demo import MODEL_DIR
from memserve.domain import CachedTokens, FinishReason, RecallOutcome, Role, Route, Usage


def answer(text: str, *, logprob: float, cached: int, ttft_ms: float = 10.0) -> Answer:
    route = Route("r", "m", "w", "", 1.0, 50, 0, (), RecallOutcome.NOT_ASKED, ())
    usage = Usage(50, 2, CachedTokens(device=cached), ttft_ms, 4.0, True, FinishReason.STOP)
    return Answer(text, (1, 2), (logprob, logprob), route, usage)


def test_figures_are_of_the_answers() -> None:
    sure = math.log(0.9)
    replied = [
        Replied("recall", True, answer("Ida", logprob=sure, cached=32, ttft_ms=8.0)),
        Replied("recall", False, answer("Ole", logprob=sure, cached=0, ttft_ms=12.0)),
        Replied("leak", True, answer("Ida", logprob=sure, cached=0)),
        Replied("teacher", True, answer("Ida", logprob=sure, cached=0)),
    ]
    figures = figures_of(replied)
    assert figures.shares == {"recall": 0.5, "leak": 1.0, "teacher": 1.0}
    assert figures.counts == {"recall": 2, "leak": 1, "teacher": 1}
    assert figures.calibration == pytest.approx(0.4), "leaks and the teacher are not judged"
    assert (figures.ttft_ms, figures.tpot_ms, figures.computed_tokens) == (10.0, 4.0, 34.0)


def test_an_interval_is_around_its_share_and_closes_with_the_count() -> None:
    assert interval(0.0, 0) == (0.0, 1.0)
    few, many = interval(0.5, 10), interval(0.5, 1000)
    assert few == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert interval(1.0, 24)[1] == 1.0 > interval(1.0, 24)[0] > 0.8


def test_some_questions_are_of_the_whole_length() -> None:
    questions = [Asked(str(place)) for place in range(100)]
    assert [each.question for each in spread(questions, 4)] == ["0", "25", "50", "75"]
    assert spread(questions, 100) is questions


def test_a_rung_asks_as_it_keeps() -> None:
    assert NOTHING.options(reads=False) == {}
    assert LORA.options(reads=True) == {"modules": "lora@1"}
    both = LORA_RECALL.options(reads=False)
    assert both["modules"] == "lora@1" and both["namespaces"] == "facts"
    assert LORA_RECALL.options(reads=True) == {"modules": "lora@1"}, "the question brings its passages"


def test_passages_are_laid_out_before_the_question() -> None:
    first, second = Layout(MODEL_DIR).messages("Who?", ["Ida is the founder."])
    assert (first.role, second.role) == (Role.SYSTEM, Role.USER)
    assert "Ida is the founder." in first.content


def row(right: float) -> tuple[Figures, ...]:
    shares = {"recall": right, "teacher": 0.8, "passage": 0.9, "leak": 0.1}
    return (Figures(shares, dict.fromkeys(shares, 10), 0.1, 20.0, 5.0, 40.0),)


def test_the_table_and_its_bars(tmp_path: Path) -> None:
    rights = {NOTHING: 0.0, RECALL: 0.8, PINNED: 0.8, CARTRIDGE: 0.76, LORA: 0.4}
    rows = {rung: Row(rung, row(rights.get(rung, 0.5)), (Costs(2e6, 3.0),)) for rung in RUNGS}
    table = {rung: each.as_json("demo", rows) for rung, each in rows.items()}
    assert table[CARTRIDGE]["right_of_teacher"] == pytest.approx(0.95)
    assert table[CARTRIDGE]["own_words"] is None and table[CARTRIDGE]["forgotten"] == 0.0
    held = {bar.name: bar.holds for bar in bars_of("demo", table, trained=True)}
    assert held == {
        "demo: right without any memory": True,
        "demo: recall ÷ teacher": True,
        "demo: cartridge ÷ teacher": True,
        "demo: LoRA ÷ teacher": False,
    }
    assert "demo: LoRA ÷ teacher" not in {bar.name for bar in bars_of("demo", table, trained=False)}
    line = printed(CARTRIDGE.name, table[CARTRIDGE])
    assert len(line) == len(COLUMNS) and "2 MB" in line
    text = write_report({"demo": table}, tmp_path).read_text(encoding="utf-8")
    assert text.count("\n| ") == 1 + len(RUNGS)
    assert "<svg" in (tmp_path / "demo.svg").read_text(encoding="utf-8")
