from __future__ import annotations

import pytest

from memserve.kv.transport.breaker import Circuit, CircuitBreaker


def test_a_single_failure_does_not_open_the_circuit() -> None:
    breaker = CircuitBreaker(failures_to_open=2, pause_s=1)
    assert not breaker.failed(0)
    breaker.succeeded()
    assert not breaker.failed(0)
    assert breaker.allows(0)


def test_failures_in_a_row_open_it_and_one_call_tries_after_the_pause() -> None:
    breaker = CircuitBreaker(failures_to_open=2, pause_s=1)
    assert [breaker.failed(10), breaker.failed(10)] == [False, True]
    assert breaker.state is Circuit.OPEN
    assert not breaker.allows(10.9)
    assert breaker.allows(11)
    assert breaker.state is Circuit.TRYING
    assert not breaker.allows(11.5)


def test_a_failed_trial_opens_it_again_and_a_good_one_closes_it() -> None:
    breaker = CircuitBreaker(failures_to_open=1, pause_s=1)
    breaker.failed(0)
    assert breaker.allows(1)
    assert not breaker.failed(1)
    assert not breaker.allows(1.5)
    assert breaker.allows(2)
    breaker.succeeded()
    assert breaker.state is Circuit.CLOSED
    assert breaker.allows(2)


def test_a_trial_that_never_reports_does_not_keep_it_shut() -> None:
    breaker = CircuitBreaker(failures_to_open=1, pause_s=1)
    breaker.failed(0)
    assert breaker.allows(1)
    assert breaker.allows(2)


def test_a_breaker_that_could_never_open_is_refused() -> None:
    with pytest.raises(ValueError, match="failures_to_open"):
        CircuitBreaker(failures_to_open=0, pause_s=1)
