"""Conversations as batches of tokens, with positions and the targets to learn."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memserve.demo.facts import Message
from memserve.demo.tokenizer import BOS, END, EOS, PAD, ROLES, token_id

MAX_POSITIONS = 8192
IGNORED = -100
"""The target of a token after which nothing is to be learned, as cross-entropy expects it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens; each tensor is [rows, tokens]."""

    ids: Tensor
    positions: Tensor
    """They may jump ahead."""
    targets: Tensor
    """The token after each token, and IGNORED where nothing is to be learned."""


def render(messages: Sequence[Message]) -> str:
    """What the chat template makes of the messages."""
    turns = (
        f"{ROLES[message.role]}{message.content}{EOS if message.role == 'assistant' else END}"
        for message in messages
    )
    return BOS + "".join(turns)


def _targets(ids: Sequence[int], assistant: int, eos: int) -> list[int]:
    """The next token where it belongs to an answer (its end included), and IGNORED elsewhere."""
    targets, answering = [], False
    for current, following in zip(ids, [*ids[1:], eos], strict=True):
        answering = current == assistant or (answering and current != eos)
        targets.append(following if answering else IGNORED)
    return targets


def make_batch(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[Message]],
    jump_share: float = 0.0,
) -> Batch:
    """Tokenize conversations into one batch, padded on the right.

    jump_share: the share of rows whose positions jump ahead between lines, up to the whole context.
    """
    texts = [render(messages) for messages in conversations]
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assistant, eos, pad = (token_id(tokenizer, token) for token in (ROLES["assistant"], EOS, PAD))
    newline, user = token_id(tokenizer, "Ċ"), token_id(tokenizer, ROLES["user"])
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), IGNORED)
    steps = torch.ones(len(rows), width, dtype=torch.long)
    steps[:, 0] = 0
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        targets[place, : len(row)] = torch.tensor(_targets(row, assistant, eos))
        if rng.random() < jump_share:
            borders = [at for at, token in enumerate(row) if token in (newline, user) and rng.random() < 0.5]
            room = rng.randrange(MAX_POSITIONS // 2)
            for at in borders:
                steps[place, at] += rng.randrange(2 * room // len(borders) + 1)
    positions = steps.cumsum(1).clamp(max=MAX_POSITIONS - 1)
    return Batch(ids, positions, targets)


def of_like_length(
    conversations: Sequence[Sequence[Message]], rows: int
) -> list[Sequence[Sequence[Message]]]:
    """Sort conversations by length and cut them into groups of rows, so that a batch has little padding."""
    ordered = sorted(conversations, key=lambda messages: sum(len(message.content) for message in messages))
    return [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
