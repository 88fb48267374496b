"""What a module changes of the answers to canary prompts."""

from __future__ import annotations

import math
import warnings

import pytest

from memserve.errors import InvalidModule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from memserve.worker.modules.kinds.lora import MIN_CHANGE, largest_change

BASE = {1: -0.1, 2: -2.0}


@pytest.mark.parametrize(
    ("changed", "change"),
    [(BASE, 0.0), ({1: -0.2, 2: -2.0}, 0.1), ({2: -0.1, 1: -0.1}, 1.9), ({3: -0.1, 4: -2.0}, MIN_CHANGE)],
)
def test_it_is_that_of_a_token_that_both_have_or_of_another_likeliest_one(
    changed: dict[int, float], change: float
) -> None:
    assert largest_change(BASE, changed) == pytest.approx(change)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_module_that_makes_no_numbers_is_refused(odd: float) -> None:
    """NaN is not above 0, and would count as no change; beside another change it would not count at all."""
    for changed in ({1: odd, 2: -2.0}, {1: -0.5, 2: odd}, {3: odd}):
        with pytest.raises(InvalidModule, match="no numbers"):
            largest_change(BASE, changed)
