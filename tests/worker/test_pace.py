"""How long tokens wait for the gateways that are late."""

from __future__ import annotations

import time

import pytest

from memserve.policy.pressure import WINDOW_MAX_S
from memserve.worker import pace
from memserve.worker.pace import GATEWAYS_MAX, AnswerPace


def test_only_the_gateway_that_is_late_gets_fewer_messages() -> None:
    answers = AnswerPace()
    answers.told("ipv4:1", 0.01)
    assert answers.window_s("ipv4:1") == 0.01
    assert answers.window_s("ipv4:2") == 0.0
    answers.told("ipv4:1", 0.0)
    assert answers.window_s("ipv4:1") == 0.0


def test_no_gateway_can_make_tokens_wait_longer_than_the_limit() -> None:
    answers = AnswerPace()
    answers.told("ipv4:1", 60.0)
    assert answers.window_s("ipv4:1") == WINDOW_MAX_S


def test_a_late_worker_joins_tokens_for_all() -> None:
    answers = AnswerPace()
    answers.own.window_s = 0.02
    answers.told("ipv4:1", 0.005)
    assert answers.window_s("ipv4:1") == answers.window_s("ipv4:2") == 0.02


def test_what_a_gateway_has_said_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = AnswerPace()
    answers.told("ipv4:1", 0.01)
    later_s = time.monotonic() + pace.HOLDS_S + 0.1
    monkeypatch.setattr(pace.time, "monotonic", lambda: later_s)
    assert answers.window_s("ipv4:1") == 0.0


def test_many_gateways_take_no_more_room() -> None:
    answers = AnswerPace()
    for number in range(2 * GATEWAYS_MAX):
        answers.told(f"ipv4:{number}", 0.01)
    assert answers.window_s(f"ipv4:{GATEWAYS_MAX - 1}") == 0.01
    assert answers.window_s(f"ipv4:{GATEWAYS_MAX}") == 0.0
