"""Given tokens instead of sampled ones: how the log-probabilities of a text are read from a running engine.

`ForcedTokens` is a vLLM logits processor. It leaves a request the next given token alone, and so the engine
samples the text that was given, a token a step. vLLM takes the log-probabilities that it returns before any
logits processor runs, so that they are the model's own. A prefill with `prompt_logprobs` would take one step,
but on an engine with LoRA vLLM 0.32 dies of it on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from memserve.domain.worker_calls import SCORED_TOKENS_MAX

PARAMETERS = "memserve_forced"
"""Key of SamplingParams.extra_args: a list of token ids."""
PROCESSOR = "memserve.worker.engine.forced:ForcedTokens"
"""For AsyncEngineArgs.logits_processors."""


@dataclass(eq=False, slots=True)
class Forced:
    """A request in the batch whose tokens are given."""

    tokens: list[int]
    outputs: list[int]
    """vLLM's running list of the request's output tokens. Its length alone counts: the newest token may be
    a placeholder."""

    @property
    def next_token(self) -> int:
        """vLLM may have a row for a request that has ended: the last token again, which nobody reads."""
        return self.tokens[min(len(self.outputs), len(self.tokens) - 1)]


class ForcedTokens(LogitsProcessor):
    """Lets requests with given tokens sample those alone. Other rows stay as they are.

    vLLM drops the sample of a row whose prompt is not computed to its end, and takes tokens back that it
    sampled on KV that failed to load. The place in the text is therefore counted from its list of outputs.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._forced: dict[int, Forced] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check a request's parameters. Raises ValueError, upon which the engine refuses the request."""
        tokens = (sampling_params.extra_args or {}).get(PARAMETERS)
        if tokens is None:
            return
        if not isinstance(tokens, list) or not 0 < len(tokens) <= SCORED_TOKENS_MAX:
            raise ValueError(f"{PARAMETERS} must be a list of 1 to {SCORED_TOKENS_MAX} token ids")
        if not all(type(token) is int and token >= 0 for token in tokens):
            raise ValueError(f"{PARAMETERS} must be token ids")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the changes of vLLM's batch: removals, then additions, then moves.

        An addition may take an occupied row.
        """
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._forced.pop(row, None)
        for row, params, _, outputs in batch_update.added:
            self._forced.pop(row, None)
            if tokens := (params.extra_args or {}).get(PARAMETERS):
                self._forced[row] = Forced(tokens, outputs)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._forced.pop(source, None), self._forced.pop(target, None)
            if moved is not None:
                self._forced[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._forced[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """logits: float32 [requests in the batch, vocab_size]. They are changed in place."""
        if self._forced:
            rows = list(self._forced)
            logits[rows] = -math.inf
            logits[rows, [each.next_token for each in self._forced.values()]] = 0.0
        return logits
