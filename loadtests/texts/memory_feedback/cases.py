"""Case memory: of past cases that are like a task, the most similar one may have the wrong action.

A family of tasks asks for one thing in many ways. It has two past cases, said in two ways, of which one is a
bit nearer to the tasks by the cosine of the embeddings. In a misleading family the nearer case has the wrong
action. In the others it has the right one. The nearer case is also the newer one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
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
DAY_S = 86_400.0
# How much nearer the nearer case is, in cosine, over all tasks of its family.
NEARER_LEAST, NEARER_MOST = 0.01, 0.1
Similarity = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""[cases] the mean cosine of each to the tasks."""


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

    def cases(self, namespace: str, now_s: float) -> list[NewMemory]:
        """The far one is older, so that the near one is also the newer one."""
        return [
            NewMemory(
                namespace,
                text,
                "a past case",
                memory_id=f"{self.number}-{name}",
                kind=MemoryKind.EPISODE,
                valid_from_s=now_s - age_days * DAY_S,
            )
            for name, text, age_days in (("far", self.far, 30), ("near", self.near, 1))
        ]


def families(seed: int, misleading: int, plain: int, rounds: int, similarity: Similarity) -> list[Family]:
    """Families of the demo model's world. The first `misleading` ones are such."""
    rng = random.Random(f"memory-feedback-cases-{seed}")
    made: list[Family] = []
    taken: set[tuple[str, str]] = set()
    while len(made) < misleading + plain:
        fact = facts.fact(rng, "held_out")
        if fact.key in taken:
            continue
        taken.add(fact.key)
        family = _family(rng, len(made), fact, len(made) < misleading, rounds, similarity)
        if family is not None:
            made.append(family)
    return made


def _family(
    rng: random.Random, number: int, fact: Fact, misleading: bool, rounds: int, similarity: Similarity
) -> Family | None:
    """None: no two ways to say the cases were drawn of which one is nearer to the tasks."""
    other = fact
    while other.value == fact.value:
        kind = facts.ATTRIBUTES.get(fact.entity.kind, {}).get(fact.attribute, "wild")
        other = Fact(fact.entity, fact.attribute, facts.value(rng, kind))
    wrong_or_right = (other, fact) if misleading else (fact, other)
    phrasings = [*facts.QUESTIONS, *facts.HELD_OUT_QUESTIONS]
    asked = tuple(facts.question(rng, fact, [phrasings[at % len(phrasings)]]).text for at in range(rounds))
    one, another = rng.sample(facts.STATEMENTS, 2)
    told = [_said(way, of) for way in (one, another) for of in wrong_or_right]
    cosines = dict(zip(told, similarity(told, asked), strict=True))
    for near, far in ((told[0], told[3]), (told[2], told[1])):
        if NEARER_LEAST <= cosines[near] - cosines[far] <= NEARER_MOST:
            return Family(number, asked, fact.value, near, far, misleading)
    return None


def _said(way: str, fact: Fact) -> str:
    name = fact.entity.name
    return way.format(a=fact.attribute, e=name, E=name, v=fact.value)


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
    now_s = time.time()
    for namespace in (ON, OFF):
        for family in every:
            for memory in family.cases(namespace, now_s):
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
