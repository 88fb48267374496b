"""The hit ceiling: the share of the prompts that a cache without end would hold when each request comes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.bench.workload import Planned
from memserve.domain import Message
from memserve.errors import UsageError

Units = Callable[[Sequence[Message]], Sequence[Hashable]]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a cache could give at most, without passages that the server recalls."""

    share: float
    """Of all prompts' units."""
    unit: str
    """`tokens` of the model, or `words`."""


def word_units(messages: Sequence[Message]) -> list[str]:
    """The words of a prompt. A role counts as a word."""
    return [word for message in messages for word in (f"<{message.role}>", *message.content.split())]


def token_units(model: Path) -> Units:
    """The prompt's tokens by the tokenizer and the chat template of a model directory. Raises UsageError."""
    try:
        from memserve.gateway.tokenizer import ChatTokenizer
        from memserve.model.files import open_model
    except ImportError:
        raise UsageError("--model", "needs `pip install memserve[gateway]`") from None
    return ChatTokenizer(open_model(model, 0)).encode


def hit_ceiling(requests: Iterable[Planned], units: Units, unit: str) -> Ceiling:
    """Requests count as known to the cache from their intended time on.

    A prompt's last unit is always computed. Prompts with another module share nothing. A real cache holds
    whole blocks of tokens, and so a little less.
    Source: parent-hash chaining, as vLLM's prefix cache, with blocks of one unit.
    """
    known: set[int] = set()
    held, total = 0, 0
    for request in requests:
        prompt = units(request.messages)
        total += len(prompt)
        parent, hitting = hash(request.module), True
        for place, piece in enumerate(prompt, 1):
            parent = hash((parent, piece))
            hitting = hitting and parent in known and place < len(prompt)
            held += hitting
            known.add(parent)
    return Ceiling(held / max(total, 1), unit)
