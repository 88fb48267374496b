"""Case memory: of past cases that are like a task, the most similar one may have the wrong action.

A family of tasks asks for one thing in many ways. It has two past cases. The nearer one repeats how the task
is asked; the other one says it in other words, among other sentences. In a misleading family the nearer case
has the wrong action. In the others it has the right one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.harness.figures import report
from loadtests.texts.memory_recall.measuring import Figures, share
from loadtests.texts.memory_recall.serving import remember_one
from loadtests.texts.memory_recall.worlds import contains
from memserve.client import Answer, Client
from memserve.demo import facts
from memserve.demo.facts import Fact
from memserve.domain import MemoryKind, NewMemory, Sampling

ON, OFF = "feedback-on", "feedback-off"
SAMPLING = Sampling(max_tokens=20)
RECALL_TIMEOUT_MS = 2000


@dataclass(frozen=True, slots=True)
class Family:
    """Tasks that ask for one thing."""

    number: int
    questions: tuple[str, ...]
    """One for each round."""
    action: str
    near: str
    """The text of the case that is most like the tasks."""
    far: str
    misleading: bool
    """Whether the nearer case has the wrong action."""

    @property
    def right_id(self) -> str:
        return f"{self.number}-far" if self.misleading else f"{self.number}-near"

    def cases(self, namespace: str) -> list[NewMemory]:
        """The far one is remembered first, so that the near one is also the newer one."""
        return [
            NewMemory(
                namespace, text, "a past case", memory_id=f"{self.number}-{name}", kind=MemoryKind.EPISODE
            )
            for name, text in (("far", self.far), ("near", self.near))
        ]


def families(seed: int, misleading: int, plain: int, rounds: int) -> list[Family]:
    """Families of the demo model's world."""
    rng = random.Random(f"memory-feedback-cases-{seed}")
    asked = facts.distinct_facts(rng, "held_out", misleading + plain, near_share=0.0)
    return [_family(rng, number, fact, number < misleading, rounds) for number, fact in enumerate(asked)]


def _family(rng: random.Random, number: int, fact: Fact, misleading: bool, rounds: int) -> Family:
    other = fact
    while other.value == fact.value:
        kind = facts.ATTRIBUTES.get(fact.entity.kind, {}).get(fact.attribute, "wild")
        other = Fact(fact.entity, fact.attribute, facts.value(rng, kind))
    near, far = (other, fact) if misleading else (fact, other)
    phrasings = [*facts.QUESTIONS, *facts.HELD_OUT_QUESTIONS]
    asked = tuple(facts.question(rng, fact, [phrasings[at % len(phrasings)]]).text for at in range(rounds))
    usual = facts.question(rng, fact, facts.QUESTIONS[:1]).text
    return Family(
        number,
        asked,
        fact.value,
        f"When asked: {usual} Done: {near.answer}",
        f"{facts.statement(rng, far)} {facts.filler(rng)}",
        misleading,
    )


@dataclass(frozen=True, slots=True)
class Try:
    """A task that was answered."""

    round: int
    namespace: str
    family: Family
    answer: Answer

    @property
    def right(self) -> bool:
        return contains(self.answer.text, self.family.action)

    @property
    def right_first(self) -> bool:
        """Whether the right case was recalled: the request takes one."""
        return [hit.memory.memory_id for hit in self.answer.route.passages] == [self.family.right_id]


def answer_cases(client: Client, every: Sequence[Family], rounds: int) -> list[Try]:
    """Answer one task of each family in every round, once with outcomes recorded and once without."""
    for namespace in (ON, OFF):
        for family in every:
            for memory in family.cases(namespace):
                remember_one(client, memory)
    tries = []
    for number in range(rounds):
        for family in every:
            for namespace in (ON, OFF):
                answer = client.generate(
                    family.questions[number],
                    namespaces=namespace,
                    recall_limit=1,
                    recall_timeout_ms=RECALL_TIMEOUT_MS,
                    sampling=SAMPLING,
                )
                tried = Try(number, namespace, family, answer)
                tries.append(tried)
                if namespace == ON:
                    client.record_outcome(answer.route.request_id, 1.0 if tried.right else -1.0)
        report(f"round {number + 1} of {rounds}")
    return tries


def case_figures(tries: Sequence[Try], *, misleading: bool) -> Figures:
    """By round: the share of right answers, and of tasks whose right case was recalled."""
    figures = {}
    for number in sorted({one.round for one in tries}):
        row = {}
        for namespace, name in ((ON, "on"), (OFF, "off")):
            some = [
                one
                for one in tries
                if one.round == number and one.namespace == namespace and one.family.misleading is misleading
            ]
            row[f"right_{name}"] = share([one.right for one in some])
            row[f"right_case_first_{name}"] = share([one.right_first for one in some])
        figures[str(number + 1)] = row
    return figures
