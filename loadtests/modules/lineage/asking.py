"""Facts of the demo model, and by which rungs they are answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memserve.client import CallFailed, Client
from memserve.demo.adapters import held_facts
from memserve.domain import Sampling

NAMESPACE, PINNED, HANDBOOK = "handbook", "pinned", "handbook"
RUNGS = ("text", "warm prefix", "module")
ANSWER = Sampling(max_tokens=24)


@dataclass(frozen=True, slots=True)
class Fact:
    """A memory, and a question for it."""

    memory_id: str
    text: str
    question: str
    value: str


def shipped_facts() -> list[Fact]:
    """Those that the demo's adapter `harbour` holds."""
    return [
        Fact(f"fact-{number}", fact.answer, fact.held_out_questions[0], fact.value)
        for number, fact in enumerate(held_facts("harbour"))
    ]


def distilled_facts(seed: int) -> list[Fact]:
    """24 facts of the demo model's world, for a distillation."""
    from loadtests.modules.distil.worlds import demo_world

    facts: dict[str, Fact] = {}
    for asked in demo_world(seed).columns["recall"]:
        if asked.with_memory not in facts:
            number = len(facts)
            facts[asked.with_memory] = Fact(
                f"fact-{number}", asked.with_memory, asked.question, asked.right[0]
            )
    return list(facts.values())


def answered(client: Client, rung: str, fact: Fact) -> bool | None:
    """Whether the answer has the fact's value. None: the rung is not there any more."""
    try:
        if rung == "module":
            answer = client.generate(fact.question, module=HANDBOOK, sampling=ANSWER)
        elif rung == "text":
            answer = client.generate(
                fact.question, namespaces=NAMESPACE, recall_timeout_ms=10_000, sampling=ANSWER
            )
        else:
            answer = client.generate(
                fact.question, namespaces=PINNED, recall_limit=1, recall_timeout_ms=10_000, sampling=ANSWER
            )
    except CallFailed as failed:
        if rung == "module" and failed.code.name in ("NOT_FOUND", "FAILED_PRECONDITION"):
            return None
        raise
    return fact.value in answer.text


def shares(client: Client, facts: Sequence[Fact]) -> dict[str, float | None]:
    """By rung: the share of the facts that are answered. None: the rung is not there."""
    found: dict[str, float | None] = {}
    for rung in RUNGS:
        right = [answered(client, rung, fact) for fact in facts]
        found[rung] = None if None in right else sum(map(bool, right)) / len(right)
    return found
