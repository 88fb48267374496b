"""What `memserve demo` prints of its acts on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memserve.cli.demo import real_model
from memserve.cli.demo_handbook import ACTS, act_text, closing
from memserve.cli.terminal import PlainConsole
from memserve.errors import StartupError
from memserve.model.known import PackagedModel
from memserve.plain import plain
from tests.embedded.handbook_figures import figures
from tests.hostile_server import HOSTILE


def printed(capsys: pytest.CaptureFixture[str], change: dict[str, Any] | None = None) -> str:
    of = figures(change)
    console = PlainConsole(width=4000)
    for act in ACTS:
        console.print(act_text(act, of[act]))
    console.print(closing(of))
    return capsys.readouterr().out


def test_each_act_says_what_came_and_what_it_cost(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys)
    for words in (
        "Started in 41 s: 2 vLLM workers",
        "Remembered 24 sentences",
        "0 of 24",
        "22 of 24",
        "32 + 64 of the cartridge",
        "250 CPU s",
        "0.00 → 0.90",
        "leak 0.90, at most 0.30 wanted",
        "Composed to rank 4, 2.5 MB, it passed",
        "token for token the same",
        "4,044 tokens",
        "9.0 s",
        "200 ms",
        "The restart itself took 38 s.",
        "each of 31 entries of the cache: 0 tokens were served from them",
        "201 s in all",
        "memserve modules distil mine",
    ):
        assert words in text, words
    assert "missed" not in text


def test_a_forced_composition_says_why_it_was_refused(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, {"composed": {"refusal": "recall 0.40", "same_after": False}})
    assert "was refused by the gate (recall 0.40) and forced" in text
    assert "ANOTHER ANSWER" in text


def test_generated_text_is_text_and_missed_bars_are_the_last_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = [{"question": "Who?", "answer": HOSTILE}]
    text = printed(capsys, {"recall": {"with": {"examples": example}}, "failed": ["warm: late"]})
    assert plain(HOSTILE)[:40] in text
    assert text.splitlines()[-1] == "missed: warm: late"


def test_without_the_real_model_the_small_one_is_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEMSERVE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    name = "no_package_of_memserve"
    model = PackagedModel(name, "", f"{name}==1", f"{name}/model.gguf", "0" * 64, 1, name)
    with pytest.raises(
        StartupError, match=r"pip cannot fetch .*memserve demo --model demo` needs no network"
    ):
        real_model(model)
