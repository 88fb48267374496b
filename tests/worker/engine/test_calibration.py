"""The arithmetic of a calibration. A real engine is measured in `tests/contract/test_real_worker.py`."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of vLLM, which it imports
    from memserve.worker.engine.calibration import LEAST_S, LEAST_TOKEN, _prompt_costs


def taken(tokens: int, token_s: float = 1e-3, context_s: float = 1e-6) -> tuple[int, float]:
    return tokens, 0.02 + token_s * tokens + context_s * tokens**2 / 2


def test_three_lengths_give_the_cost_of_a_token_and_of_its_context() -> None:
    token_s, context_s = _prompt_costs(taken(16), taken(256), taken(2048))
    assert token_s == pytest.approx(1e-3, rel=1e-6)
    assert context_s == pytest.approx(1e-6, rel=1e-6)


def test_where_the_context_has_room_for_two_lengths_only_all_is_the_token() -> None:
    token_s, context_s = _prompt_costs(
        taken(16, context_s=0), taken(200, context_s=0), taken(200, context_s=0)
    )
    assert token_s == pytest.approx(1e-3)
    assert context_s == 0.0


def test_noise_makes_no_cost_less_than_nothing() -> None:
    token_s, context_s = _prompt_costs((16, 0.5), (256, 0.4), (2048, 0.3))
    assert token_s >= LEAST_S
    assert context_s >= 0.0


@pytest.mark.parametrize("stalled_s", [(0.2, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 2.0), (0.3, 0.0, 1.0)])
def test_a_stall_in_one_prompt_leaves_a_token_a_cost_and_the_longest_prompt_its_time(
    stalled_s: tuple[float, float, float],
) -> None:
    lengths = [taken(16), taken(256), taken(2048)]
    short, middle, long = [(n, s + late) for (n, s), late in zip(lengths, stalled_s, strict=True)]
    token_s, context_s = _prompt_costs(short, middle, long)
    whole_s = long[1] - short[1]
    assert token_s * (2048 - 16) >= 0.99 * LEAST_TOKEN * whole_s
    assert token_s * (2048 - 16) + context_s * (2048**2 - 16**2) / 2 == pytest.approx(whole_s)
