"""What an engine's steps cost, in seconds. Fitted to measurements of the real engine.

A step of continuous batching computes one token for every answer and a chunk of a prompt. It takes

    step_s + answer_s * answers + kv_token_s * their KV tokens
           + token_s * chunk + context_s * chunk * context of the chunk

Source of the form: the arithmetic of a decoder. Weights are read once a step, every prompt token costs its
matrix products, attention grows with the context, and an answer reads its KV.
"""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain.worker_calls import StepCosts

# However many answers there are, this part of a step is left to prompts.
LEAST_PREFILL_SHARE = 0.05
SPEED_TOKENS = 1024
"""The prompt whose speed stands for the engine's. How a prompt's time falls to its tokens and to their
context is measured less well than the time of the whole."""


@dataclass(frozen=True, slots=True)
class EngineCosts(StepCosts):
    """Of one engine."""

    def times(self, pace: float) -> EngineCosts:
        """Of an engine that takes so many times as long."""
        return EngineCosts(
            self.step_s * pace,
            self.token_s * pace,
            self.context_s * pace,
            self.answer_s * pace,
            self.kv_token_s * pace,
            self.step_limit_s * pace,
        )

    def prefill_s(self, cached_tokens: int, prompt_tokens: int) -> float:
        """The engine's own time for a prompt of which the first tokens are cached."""
        computed = prompt_tokens - cached_tokens
        return computed * (self.token_s + self.context_s * (prompt_tokens + cached_tokens) / 2)

    @property
    def prefill_tokens_per_s(self) -> float:
        """How fast the engine computes a prompt while it does nothing else."""
        return SPEED_TOKENS / self.prefill_s(0, SPEED_TOKENS)

    def fixed_s(self, answers: int, kv_tokens: float) -> float:
        """A step without prompt tokens."""
        return self.step_s + self.answer_s * answers + self.kv_token_s * kv_tokens

    def drain_s(self, prefill_s: float, answers: int, kv_tokens: float) -> float:
        """How long `prefill_s` takes beside the answers, whose share of every step is not its own."""
        free = max(
            self.step_limit_s - self.fixed_s(answers, kv_tokens), LEAST_PREFILL_SHARE * self.step_limit_s
        )
        return prefill_s * self.step_limit_s / free
