"""How much a memory counts when it is found: by its writer, its age, its use and its outcomes.

Each of the three is a factor around 1, bounded by itself, and their product with the writer's strength is
bounded again.

1. Age: 2 ** (-t / half-life), where t is the time since its last use, and since it was written when it has
   not been used. It never falls below a floor: an old fact is still a fact. Source: Ebbinghaus 1885 for the
   exponential, "retention falls from the last repetition on".
2. Use: 1 + gain * ln(1 + uses). Source: base-level activation of ACT-R (Anderson and Schooler 1991), whose
   activation grows with the logarithm of the number of uses.
3. Outcomes: the mean of a Beta posterior over rewards from 0 to 1, with a prior of two outcomes at 1/2. With
   a mean of 1/2 the factor is 1. Few outcomes move it little. Source: Beta-Bernoulli; the ranking by learned
   value is that of case memories (Memento, Zhou et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from memserve.domain.memories import MemoryKind

STRENGTH_LEAST, STRENGTH_MOST = 0.01, 100.0
WRITER_MOST = 10.0
_DAY_S = 86_400.0
_PRIOR_OUTCOMES = 2.0


def _half_lives_s() -> dict[MemoryKind, float]:
    return {
        MemoryKind.EPISODE: 14 * _DAY_S,
        MemoryKind.FACT: 180 * _DAY_S,
        MemoryKind.REFLECTION: 365 * _DAY_S,
        MemoryKind.PROCEDURE: 365 * _DAY_S,
    }


@dataclass(frozen=True, slots=True)
class StrengthPolicy:
    """What changes a memory's strength after it has been written."""

    half_lives_s: Mapping[MemoryKind, float] = field(default_factory=_half_lives_s)
    """Of the kinds that fade. A kind that is not there does not: passages of a document."""
    faded: float = 0.5
    """The least factor of age, 0 to 1. At 1 nothing fades."""
    use_gain: float = 0.1
    """At 0 use does not count."""
    used_most: float = 1.6
    """The largest factor of use."""
    outcome_reach: float = 32.0
    """The factor of outcomes lies between 1 / reach and reach. At 1 outcomes do not count."""

    @staticmethod
    def off() -> StrengthPolicy:
        """A memory's strength is what its writer said."""
        return StrengthPolicy({}, faded=1.0, use_gain=0.0, outcome_reach=1.0)


DEFAULT_POLICY = StrengthPolicy()


@dataclass(frozen=True, slots=True)
class Usage:
    """What has become of a memory since it was written."""

    age_s: float
    """Since this version was written. Below 0, by clocks that differ, counts as 0."""
    uses: int = 0
    """How often it went into a prompt."""
    last_used_ago_s: float | None = None
    """None: never."""
    rewards: float = 0.0
    """The sum of the rewards of its outcomes. Each is from 0, failed, to 1."""
    outcomes: int = 0
    """How many rewards were added."""


def effective_strength(
    memory_strength: float, kind: MemoryKind, usage: Usage, policy: StrengthPolicy = DEFAULT_POLICY
) -> float:
    """The strength of a memory now, 0.01 to 100. A new memory without outcomes has its writer's.

    It falls with the time since its last use, and rises with uses and with the mean of its rewards.
    memory_strength: by its writer, 0 to 10.
    """
    written = min(max(memory_strength, 0.0), WRITER_MOST)
    strength = written * _age(kind, usage, policy) * _use(usage, policy) * _outcomes(usage, policy)
    return min(max(strength, STRENGTH_LEAST), STRENGTH_MOST)


def _age(kind: MemoryKind, usage: Usage, policy: StrengthPolicy) -> float:
    half_life_s = policy.half_lives_s.get(kind)
    if half_life_s is None:
        return 1.0
    idle_s = usage.age_s if usage.last_used_ago_s is None else min(usage.age_s, usage.last_used_ago_s)
    kept = math.exp2(-max(idle_s, 0.0) / half_life_s)
    return policy.faded + (1 - policy.faded) * kept


def _use(usage: Usage, policy: StrengthPolicy) -> float:
    return min(1 + policy.use_gain * math.log1p(max(usage.uses, 0)), policy.used_most)


def _outcomes(usage: Usage, policy: StrengthPolicy) -> float:
    outcomes = max(usage.outcomes, 0)
    rewards = min(max(usage.rewards, 0.0), float(outcomes))
    mean = (rewards + _PRIOR_OUTCOMES / 2) / (outcomes + _PRIOR_OUTCOMES)
    return float(policy.outcome_reach ** (2 * mean - 1))
