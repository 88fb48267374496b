"""What the base model says: how it goes on along an answer, and its own answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from memserve.worker.training.distil.packing import Packed, common, packed
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

    def answers(
        self, prompts: Sequence[Sequence[int]], kv: Tensor | None = None, most: int = ANSWER_TOKENS
    ) -> list[tuple[int, ...]]:
        """[prompts] greedy answers of at most so many tokens, with the token that ends each.

        kv: a cartridge's, behind which all prompts go on: as of `before`.
        """
        return [answer for answer, _ in self.said(prompts, kv, most)]

    @torch.no_grad()
    def said(
        self, prompts: Sequence[Sequence[int]], kv: Tensor | None = None, most: int = ANSWER_TOKENS
    ) -> list[tuple[tuple[int, ...], Told]]:
        """[prompts] as `answers`, each with what the model says along it."""
        order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), prompts[place]))
        found: dict[int, tuple[tuple[int, ...], Told]] = {}
        for start in range(0, len(order), ROWS_AT_ONCE):
            places = order[start : start + ROWS_AT_ONCE]
            asked = [prompts[place] for place in places]
            shared = min(common(asked[0], prompt) for prompt in asked)
            # The last token of a prompt says how the answer begins.
            shared = min(shared, len(asked[0]) - 1)
            begun = kv_of(self._model, asked[0][:shared], kv) if shared else kv
            self.tokens += shared
            said = self._greedy([prompt[shared:] for prompt in asked], begun, most)
            found |= dict(zip(places, said, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _greedy(
        self, prompts: Sequence[Sequence[int]], kv: Tensor | None, most: int
    ) -> list[tuple[tuple[int, ...], Told]]:
        first = 0 if kv is None else kv.shape[3]
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.ones(len(prompts), first + width, dtype=torch.long)
        for number, prompt in enumerate(prompts):
            ids[number, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[number, first : first + width - len(prompt)] = 0
        cache = DynamicCache() if kv is None else before(kv, len(prompts))
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, first:]
        said: list[tuple[Tensor, Tensor]] = []
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        while len(said) < most and not ended.all():
            self.tokens += int(ids.numel())
            hidden = self._model.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
            ).last_hidden_state[:, -1]
            logprobs = self._model.lm_head(hidden).float().log_softmax(-1)
            best, tokens = logprobs.topk(min(LIKELIEST, logprobs.shape[-1]))
            said.append((tokens, best))
            ids, positions = tokens[:, :1], positions[:, -1:] + 1
            ended |= torch.isin(ids[:, 0], torch.tensor(self._end_ids))
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return [self._along(said, row) for row in range(len(prompts))]

    def _along(self, said: Sequence[tuple[Tensor, Tensor]], row: int) -> tuple[tuple[int, ...], Told]:
        """A row's answer up to its end."""
        tokens = torch.stack([tokens[row] for tokens, _ in said])
        logprobs = torch.stack([best[row] for _, best in said])
        answer = tokens[:, 0].tolist()
        length = next(
            (place + 1 for place, token in enumerate(answer) if token in self._end_ids), len(answer)
        )
        return tuple(answer[:length]), Told(tokens[:length].clone(), logprobs[:length].clone(), True)


def kv_of(model: Any, token_ids: Sequence[int], kv: Tensor | None = None) -> Tensor:
    """[layers, 2, KV heads, tokens, head size] of a text that begins a prompt, or goes on behind `kv`.

    kv: as of `before`; what is returned begins with it.
    """
    cache = DynamicCache() if kv is None else before(kv, 1)
    with torch.no_grad():
        model.model(torch.tensor([list(token_ids)]), past_key_values=cache, use_cache=True)
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])


def before(kv: Tensor, rows: int) -> DynamicCache:
    """A cache that each of so many rows begins with.

    kv: [layers, 2, KV heads, tokens, head size], keys before values. Keys are rotated at positions 0 to
    tokens - 1.
    """
    cache = DynamicCache()
    for number, (keys, values) in enumerate(kv):
        cache.update(keys.expand(rows, *keys.shape), values.expand(rows, *values.shape), number)
    return cache


def answer_logits(model: Any, batch: Packed, kv: Tensor | None = None) -> Tensor:
    """[answer tokens, vocabulary] float32: only the answers reach the head.

    model: a causal model of transformers whose layers take a mask of four dimensions.
    kv: a cartridge's, behind which all rows go on: as of `before`.
    """
    mask, positions, cache = batch.mask, batch.positions, None
    if kv is not None:
        packs, _, tokens, _ = mask.shape
        seen = torch.ones(packs, 1, tokens, kv.shape[3], dtype=torch.bool)
        mask, positions, cache = torch.cat([seen, mask], dim=3), positions + kv.shape[3], before(kv, packs)
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    chosen = hidden[batch.asked[:, 0], batch.asked[:, 1]]
    logits: Tensor = model.lm_head(chosen).float()
    return logits
