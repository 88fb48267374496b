"""The prompts of recall traffic as the gateway assembles them, by the order of the recalled passages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from loadtests.texts.memory_reuse.traffic import NAMESPACE, Request
from memserve.demo import MODEL_DIR
from memserve.domain import Memory, Message, Role, ScoredMemory
from memserve.gateway.layout import PromptLayout, open_layout
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import open_model
from memserve.policy.recall.prompt import Render, arrange, order_passages

Uses = Mapping[tuple[str, str], int]
Order = Callable[[Sequence[ScoredMemory], Uses], list[ScoredMemory]]
"""From the hits, best first, and how often each went into a prompt."""

ORDERS: Mapping[str, Order] = {
    "by score": lambda hits, uses: list(hits),
    "by creation": lambda hits, uses: order_passages(hits),
    "canonical": lambda hits, uses: order_passages(hits, uses),
}
LEDGER_LAG = 20
"""Requests after which uses are counted: the ledger is written once a second."""
PINNED_TEXTS = (
    "Answer in one short sentence, and repeat the name that was asked for.",
    "Codes and phone numbers are read out digit by digit, and nothing is left out or added.",
    "Stations, ships and farms are in the north, and all times are those of the harbour.",
    "Say that you do not know when the notes do not have the answer. Never guess a code, a name or a colour.",
)


@dataclass(frozen=True, slots=True)
class Prompted:
    """A request's prompt."""

    token_ids: list[int]
    request: Request


def demo_layout() -> PromptLayout:
    """Of the demo model, with the deployment's own template of passages."""
    model = open_model(MODEL_DIR)
    return open_layout(model, ChatTokenizer(model))


def pinned_passages() -> list[ScoredMemory]:
    return [
        ScoredMemory(
            Memory(f"pinned{number}", NAMESPACE, text, "", (), float(number), pinned=True), 1.0, None, None
        )
        for number, text in enumerate(PINNED_TEXTS)
    ]


def prompts(
    layout: PromptLayout,
    requests: Sequence[Request],
    order: Order,
    *,
    pinned: Sequence[ScoredMemory] = (),
    systems: Sequence[str] = ("",),
    render: Render | None = None,
) -> Iterator[Prompted]:
    """systems: the requests' own system texts, in turns. render: another template of passages."""
    uses: Counter[tuple[str, str]] = Counter()
    waiting: list[tuple[str, str]] = []
    for number, request in enumerate(requests):
        passages = [*pinned, *order(request.hits, uses)]
        system = systems[number % len(systems)]
        messages = [Message(Role.SYSTEM, system)] * bool(system) + [Message(Role.USER, request.question.text)]
        arranged = arrange(messages, passages, render or layout.recall.render, layout.tokenizer.rules)
        yield Prompted(layout.encode(arranged), request)
        waiting += [(hit.memory.namespace, hit.memory.memory_id) for hit in request.hits]
        if number % LEDGER_LAG == LEDGER_LAG - 1:
            uses.update(waiting)
            waiting.clear()
