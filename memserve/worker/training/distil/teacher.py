"""What the base model says: how it goes on along an answer, and its own answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memserve.worker.training.distil.packing import Packed, packed
from memserve.worker.training.distil.prompts import Row

LIKELIEST = 64
ROWS_AT_ONCE = 32
ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Told:
    """The teacher's likeliest tokens along one answer."""

    tokens: Tensor
    """[answer tokens, LIKELIEST]"""
    logprobs: Tensor
    """[answer tokens, LIKELIEST], float32."""
    is_right: bool
    """Whether each token of the value, or of the answer where no value is known, was the likeliest."""


class Teacher:
    """The base model, without what is trained on it."""

    def __init__(self, model: Any, pad: int, end_ids: Sequence[int]) -> None:
        """model: a causal model of transformers."""
        self._model = model
        self.pad = pad
        """A token id that stands where nothing does."""
        self._end_ids = tuple(end_ids)
        self.tokens = 0
        """That were computed."""

    @torch.no_grad()
    def told(self, rows: Sequence[Row]) -> list[Told]:
        """[rows] what the teacher says along each answer."""
        found: dict[int, Told] = {}
        # Rows that begin alike come together, so that their beginning is computed once.
        order = sorted(range(len(rows)), key=lambda place: rows[place].prompt)
        for start in range(0, len(order), ROWS_AT_ONCE):
            places = order[start : start + ROWS_AT_ONCE]
            batch = packed([rows[place] for place in places], self.pad)
            self.tokens += batch.tokens
            logprobs = answer_logits(self._model, batch).log_softmax(-1)
            best, tokens = logprobs.topk(min(LIKELIEST, logprobs.shape[-1]))
            hits = (tokens[:, 0] == batch.wanted).tolist()
            for place, (first, end) in zip(places, itertools.pairwise(batch.starts), strict=True):
                judged = rows[place].value or range(end - first)
                right = all(hits[first + token] for token in judged)
                found[place] = Told(tokens[first:end].clone(), best[first:end].clone(), right)
        return [found[place] for place in range(len(rows))]

    @torch.no_grad()
    def answers(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """[prompts] greedy answers, with the token that ends each, at most ANSWER_TOKENS."""
        by_length = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        found: dict[int, tuple[int, ...]] = {}
        for start in range(0, len(by_length), ROWS_AT_ONCE):
            places = by_length[start : start + ROWS_AT_ONCE]
            width = max(len(prompts[place]) for place in places)
            ids = torch.full((len(places), width), self.pad)
            mask = torch.zeros_like(ids)
            for number, place in enumerate(places):
                ids[number, width - len(prompts[place]) :] = torch.tensor(list(prompts[place]))
                mask[number, width - len(prompts[place]) :] = 1
            made = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                pad_token_id=self.pad,
                eos_token_id=list(self._end_ids) or None,
            )[:, width:]
            self.tokens += int(ids.numel() + made.numel())
            for place, answer in zip(places, made.tolist(), strict=True):
                found[place] = self._ended(answer)
        return [found[place] for place in range(len(prompts))]

    def _ended(self, answer: list[int]) -> tuple[int, ...]:
        for place, token in enumerate(answer):
            if token in self._end_ids:
                return tuple(answer[: place + 1])
        return tuple(answer)


def answer_logits(model: Any, batch: Packed) -> Tensor:
    """[answer tokens, vocabulary] float32: only the answers reach the head.

    model: a causal model of transformers whose layers take a mask of four dimensions.
    """
    body = model.model
    hidden = body(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    chosen = hidden[batch.asked[:, 0], batch.asked[:, 1]]
    logits: Tensor = model.lm_head(chosen).float()
    return logits
