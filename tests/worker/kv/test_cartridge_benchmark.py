"""What `loadtests.cartridge_serving` counts, and which of its bars then hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtests.modules.cartridge_serving.__main__ import bars_of
from loadtests.modules.cartridge_serving.speed import Speed
from loadtests.modules.cartridge_serving.traffic import Asked, counted, named
from loadtests.modules.cartridge_serving.world import Question
from memserve.client import Answer
from memserve.domain import CachedTokens, FinishReason, RecallOutcome, Route, Usage

BEHIND = Question("When?", "north", True, (5, 6, 2))
BASE = Question("When?", "", False, (7, 2))
SPEED = Speed(110.0, 100.0, 10.0, 10.0, 40.0, 10.0)


def answer(token_ids: tuple[int, ...], cached: CachedTokens) -> Answer:
    usage = Usage(160, len(token_ids), cached, 1.0, None, True, FinishReason.STOP)
    route = Route("r", "m", "w", "", 0.0, 160, 0, (), RecallOutcome.NOT_ASKED, (), 0)
    return Answer("", token_ids, (), route, usage)


def asked(
    question: Question | None, token_ids: tuple[int, ...], cached: CachedTokens, *, first: bool = True
) -> Asked:
    return Asked(question, "one", first, answer(token_ids, cached))


RIGHT = asked(BEHIND, (5, 6, 2), CachedTokens(cartridge=128))
WRONG = asked(BEHIND, (1, 2), CachedTokens(cartridge=128))
FOREIGN = asked(BEHIND, (5, 6, 2), CachedTokens(device=32, cartridge=128))
AGAIN = replace(FOREIGN, first=False)
OTHER = asked(BASE, (8, 2), CachedTokens())
FLOOD = asked(None, (9,), CachedTokens())
FAILED = Asked(BEHIND, "one", True, None, "UNAVAILABLE")


def test_what_is_counted() -> None:
    counts = counted([RIGHT, WRONG, FOREIGN, AGAIN, OTHER, FLOOD, FAILED])
    assert (counts.requests, counts.with_cartridge, counts.failed) == (7, 5, 1)
    assert (counts.wrong_with_cartridge, counts.wrong_others, counts.foreign_hits) == (1, 1, 1)
    assert counts.failures == ("UNAVAILABLE",)


def test_the_modules_of_a_question() -> None:
    assert (named(BEHIND), named(BASE)) == (["north", "harbour"], [])


@pytest.mark.parametrize(
    ("mixed", "speed", "killed", "missed"),
    [
        ([RIGHT, AGAIN, FAILED], SPEED, 1, []),
        ([WRONG], SPEED, 1, ["the same in mixed traffic"]),
        ([FOREIGN], SPEED, 1, ["hits of another tenant's KV"]),
        ([OTHER], SPEED, 1, ["wrong answers without a cartridge"]),
        ([RIGHT], SPEED, 0, ["engines killed meanwhile"]),
        (
            [RIGHT],
            Speed(90.0, 100.0, 12.0, 10.0, 70.0, 10.0),
            1,
            [
                "tokens a second, of those with a warm prefix",
                "TTFT, of the base's",
                "ms to supply a fresh worker, over a local hit",
            ],
        ),
    ],
)
def test_each_bar_can_be_missed(mixed: list[Asked], speed: Speed, killed: int, missed: list[str]) -> None:
    bars = bars_of(counted([RIGHT]), counted(mixed), speed, killed=killed, quick=False)
    assert [bar.name for bar in bars if not bar.holds] == missed
