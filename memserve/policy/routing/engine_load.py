"""What an engine has to do, as its own worker keeps count of it. The clock is an argument."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from memserve.policy.routing.costs import EngineCosts

MEMORY = 0.95
"""Of what was measured, this part still counts after the next first token."""
KNOWN_S = 0.5
"""The calibration of the start counts as so many seconds of measuring."""
FASTEST, SLOWEST = 0.25, 16.0
LONGEST_FACTOR = 5.0
"""One prompt that took longer than so many times its forecast waited for something else."""
SMOOTHING = 0.2
FORGOTTEN_S = 30.0
"""What the last first tokens have taught does not count after so long without one."""
SAME_STEP_S = 1e-3


@dataclass(slots=True)
class _Request:
    """In the engine."""

    tenant: str
    band: int
    kv_tokens: int
    """Of its own: what it computes and what it answers, at most."""
    context_tokens: int
    """Its prompt, and its answer so far."""
    answers: bool = False
    """It has its first token."""


class EngineLoad:
    """The prompts and answers of an engine, and how fast it is compared with its calibration."""

    def __init__(self, costs: EngineCosts, seats: int, kv_tokens: int) -> None:
        """costs: as calibrated. seats: how many answers the engine gives at the same time. kv_tokens: that
        its memory has room for."""
        self._calibrated = costs
        self.seats = seats
        self.kv_tokens = kv_tokens
        self._requests: dict[str, _Request] = {}
        # Prompts without a first token, in the order in which they came: seconds of the calibrated engine.
        self._prompts: dict[str, float] = {}
        self._since_s = 0.0
        self._forecast_s = self._took_s = KNOWN_S
        self.answers = 0
        self.answers_kv_tokens = 0
        self.tenants: Counter[str] = Counter()
        self.bands: Counter[int] = Counter()
        self.prompts_of_band: Counter[int] = Counter()
        self._seat_s = 0.0
        self._full_since_s = 0.0

    def __len__(self) -> int:
        return len(self._requests)

    def is_prompt(self, key: str) -> bool:
        """Whether the request waits for its first token in the engine."""
        return key in self._prompts

    @property
    def pace(self) -> float:
        """How long the engine takes lately, in times of its calibration. Other processes slow it."""
        return min(max(self._took_s / self._forecast_s, FASTEST), SLOWEST)

    @property
    def costs(self) -> EngineCosts:
        """As it is lately."""
        return self._calibrated.times(self.pace)

    @property
    def free_kv_tokens(self) -> int:
        return self.kv_tokens - sum(each.kv_tokens for each in self._requests.values())

    @property
    def prompt_tokens(self) -> int:
        """Of the prompts that are yet to be computed."""
        return sum(self._requests[key].context_tokens for key in self._prompts)

    def rest(self, now_s: float) -> None:
        """Where nothing was measured for long, the calibration counts again.

        What a stall of the machine has taught would refuse long prompts, and nothing would teach better.
        """
        if not self._prompts and now_s - self._since_s > FORGOTTEN_S:
            self._forecast_s = self._took_s = KNOWN_S

    def own_s(self, cached_tokens: int, prompt_tokens: int) -> float:
        """What a prompt takes of the engine beside what it answers, and of its seats where they are all
        taken."""
        costs = self.costs
        alone_s = costs.prefill_s(cached_tokens, prompt_tokens)
        own_s = costs.drain_s(alone_s, self.answers, self.answers_kv_tokens)
        return max(own_s, self._seat_s if len(self) >= self.seats else 0.0)

    def prefill_s(self, now_s: float) -> float:
        """The engine's time for the prompts that it has not computed yet."""
        if not self._prompts:
            return 0.0
        pace = self.pace
        alone_s = sum(self._prompts.values())
        first_s = next(iter(self._prompts.values()))
        slowed = self._calibrated.drain_s(1.0, self.answers, self.answers_kv_tokens)
        done_s = (now_s - self._since_s) / (pace * slowed)
        # The first prompt is not computed before its token comes, however long that takes.
        return pace * (alone_s - min(max(done_s, 0.0), first_s))

    def busy_s(self, now_s: float) -> float:
        """For how long nothing more could begin: prompts, or answers that have all the seats."""
        busy_s = self.costs.drain_s(self.prefill_s(now_s), self.answers, self.answers_kv_tokens)
        return max(busy_s, self.seat_s)

    @property
    def seat_s(self) -> float:
        """How long it takes until an answer leaves its seat, where all are taken."""
        return self._seat_s if len(self) >= self.seats else 0.0

    def began(
        self,
        key: str,
        now_s: float,
        *,
        tenant: str,
        band: int,
        cached_tokens: int,
        prompt_tokens: int,
        output_tokens: int,
    ) -> None:
        """The engine has been given a request. output_tokens: at most."""
        if not self._prompts:
            self._since_s = now_s
        self._prompts[key] = self._calibrated.prefill_s(cached_tokens, prompt_tokens)
        self._requests[key] = _Request(
            tenant, band, prompt_tokens - cached_tokens + output_tokens, prompt_tokens
        )
        self.tenants[tenant] += 1
        self.bands[band] += 1
        self.prompts_of_band[band] += 1
        if len(self) == self.seats:
            self._full_since_s = now_s

    def advanced(self, key: str, now_s: float, tokens: int) -> None:
        """Tokens of its answer have come."""
        request = self._requests[key]
        if not request.answers:
            self._first_token(key, request, now_s)
        request.context_tokens += tokens
        self.answers_kv_tokens += tokens

    def ended(self, key: str, now_s: float) -> None:
        """The engine is done with it, or has dropped it."""
        if len(self) >= self.seats:
            self._seat_s += SMOOTHING * (now_s - self._full_since_s - self._seat_s)
            self._full_since_s = now_s
        request = self._requests.pop(key)
        if request.answers:
            self.answers -= 1
            self.answers_kv_tokens -= request.context_tokens
        else:
            self._computed(key, request, now_s)
        self.tenants -= Counter([request.tenant])
        self.bands -= Counter([request.band])

    def _first_token(self, key: str, request: _Request, now_s: float) -> None:
        costs = self._calibrated
        took_s = now_s - self._since_s
        forecast_s = costs.drain_s(self._prompts[key], self.answers, self.answers_kv_tokens)
        if took_s > SAME_STEP_S:
            forecast_s += costs.fixed_s(self.answers, self.answers_kv_tokens)
        took_s = min(took_s, LONGEST_FACTOR * self.pace * forecast_s)
        self._took_s = MEMORY * self._took_s + took_s
        self._forecast_s = MEMORY * self._forecast_s + forecast_s
        request.answers = True
        self.answers += 1
        self.answers_kv_tokens += request.context_tokens
        self._computed(key, request, now_s)

    def _computed(self, key: str, request: _Request, now_s: float) -> None:
        del self._prompts[key]
        self.prompts_of_band -= Counter([request.band])
        self._since_s = now_s
