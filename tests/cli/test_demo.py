"""The tables of `memserve demo`."""

from __future__ import annotations

from typing import Any

import pytest

from memserve.cli.demo import story
from memserve.cli.terminal import PlainConsole
from memserve.plain import plain
from tests.hostile_server import HOSTILE

PREFIX = {
    "prompt_tokens": 3512,
    "ttft_ms": 120.0,
    "ttft_of_cold": 0.25,
    "cached_share": 0.991,
    "cached_on_worker": 17,
    "cached_from_redis": 3488,
    "same_tokens_as_cold": True,
    "right": 4,
    "asked": 5,
}


def figures(**changes: Any) -> dict[str, Any]:
    return {
        "start_s": 31.0,
        "seconds": 118.0,
        "failed": [],
        "recall": {
            "asked": 24,
            "right_without": 0,
            "right_with": 23,
            "question": "What is the code of Amber Lantern?",
            "answer_without": "I do not know.",
            "answer_with": HOSTILE,
        },
        "modules": {
            "harbour": {
                "kind": "lora",
                "facts": 16,
                "share_base": 0.0,
                "share_module": 1.0,
                "question": "Who?",
                "answer_module": HOSTILE,
            }
        },
        "careless": {"refusal": "abstention 0.10, at least 0.90 wanted", "rolled_back_s": 4.2},
        "prefix": {"cold": PREFIX, "other worker": {**PREFIX, "same_tokens_as_cold": False}},
        "tampered": {"entries": 12, "cached_from_redis": 0, "same_tokens_as_cold": True},
        **changes,
    }


def printed(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    PlainConsole(width=4000).print(story(figures(**changes)))
    return capsys.readouterr().out


def test_every_figure_is_in_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys)
    for words in (
        "0 of 24",
        "23 of 24",
        "abstention 0.10, at least 0.90 wanted",
        "taken out after 4 s",
        "5 prompts of about 3,512 tokens",
        "NO",
        "3488",
        "each of 12 cache entries: 0 tokens served from them, the same answer",
        "Started in 31 s, 118 s in all.",
    ):
        assert words in text
    assert "missed" not in text


def test_generated_text_in_the_story_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys).count(plain(HOSTILE)) == 2


def test_a_bar_that_is_missed_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, failed=["warm: other tokens than cold"]).splitlines()[-1] == (
        "missed: warm: other tokens than cold"
    )
