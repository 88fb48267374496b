"""Reflexion (Shinn et al. 2023): a task failed, its lesson was kept, and the task comes again.

With nothing known no memory says what is asked for. Misled tasks have a memory that says something wrong.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.texts.memory_feedback.cases import RECALL_TIMEOUT_MS, SAMPLING
from loadtests.texts.memory_recall.measuring import Figures, share
from loadtests.texts.memory_recall.plain_world import PlainFact, plain_facts
from loadtests.texts.memory_recall.serving import remember_one
from loadtests.texts.memory_recall.worlds import contains
from memserve.client import Answer, Client
from memserve.demo import facts
from memserve.demo.facts import Fact
from memserve.domain import MemoryKind, NewMemory

NOTHING_KNOWN, MISLED = "nothing known", "misled"
FEEDBACK_ON, FEEDBACK_OFF = "on", "off"
LIMITS = (1, 4)
OTHERS = 24


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its answer, and what is learned from a failure."""

    kind: str
    question: str
    other_words: str
    """The same, asked in another way."""
    answer: str
    lesson: str
    memory: str = ""
    """A memory that says something wrong. "": there is none."""


@dataclass(frozen=True, slots=True)
class Retried:
    """A task that was tried, and tried again."""

    task: Task
    limit: int
    feedback: str
    first: Answer
    again: Answer
    other_words: Answer

    def right(self, answer: Answer) -> bool:
        return contains(answer.text, self.task.answer)

    @property
    def reflection_first(self) -> bool:
        """Whether the best passage of the second try is a reflection."""
        best = max(self.again.route.passages, key=lambda hit: hit.score, default=None)
        return best is not None and best.memory.kind is MemoryKind.REFLECTION


def demo_tasks(seed: int, count: int) -> tuple[list[Task], list[str]]:
    """Tasks of the demo model's world, `count` of each kind, and other memories."""
    rng = random.Random(f"memory-feedback-tasks-{seed}")
    drawn = facts.distinct_facts(rng, "held_out", 2 * count + OTHERS, near_share=0.0)
    tasks = [
        _demo_task(rng, fact, (NOTHING_KNOWN, MISLED)[at % 2]) for at, fact in enumerate(drawn[: 2 * count])
    ]
    return tasks, [facts.statement(rng, fact) for fact in drawn[2 * count :]]


def _demo_task(rng: random.Random, fact: Fact, kind: str) -> Task:
    wrong = fact
    while wrong.value == fact.value:
        values = facts.ATTRIBUTES.get(fact.entity.kind, {}).get(fact.attribute, "wild")
        wrong = Fact(fact.entity, fact.attribute, facts.value(rng, values))
    question, other_words = rng.sample([*facts.QUESTIONS[:4], *facts.HELD_OUT_QUESTIONS], 2)
    return Task(
        kind,
        facts.question(rng, fact, [question]).text,
        facts.question(rng, fact, [other_words]).text,
        fact.value,
        facts.statement(rng, fact),
        facts.statement(rng, wrong) if kind == MISLED else "",
    )


def plain_tasks(seed: int, count: int) -> tuple[list[Task], list[str]]:
    """The same in plain English, about invented places."""
    rng = random.Random(f"memory-feedback-plain-{seed}")
    drawn = plain_facts(seed, 2 * count + OTHERS)
    tasks = []
    for at, fact in enumerate(drawn[: 2 * count]):
        wrong = rng.choice([value for value in fact.relation.values if value != fact.value])
        kind = (NOTHING_KNOWN, MISLED)[at % 2]
        memory = PlainFact(fact.place, fact.relation, wrong).text if kind == MISLED else ""
        tasks.append(Task(kind, fact.question(0), fact.question(), fact.value, fact.text, memory))
    return tasks, [fact.text for fact in drawn[2 * count :]]


def retry_all(client: Client, tasks: Sequence[Task], others: Sequence[str]) -> list[Retried]:
    """Try each task and try it again, with a reflection between and without, by each limit of passages."""
    retried = []
    for limit in LIMITS:
        for feedback in (FEEDBACK_ON, FEEDBACK_OFF):
            namespace = f"{feedback}-{limit}"
            for text in (*others, *(task.memory for task in tasks if task.memory)):
                remember_one(client, NewMemory(namespace, text))
            retried += [_retry(client, task, limit, feedback, namespace) for task in tasks]
    return retried


def _retry(client: Client, task: Task, limit: int, feedback: str, namespace: str) -> Retried:
    def ask(question: str) -> Answer:
        return client.generate(
            question,
            namespaces=namespace,
            recall_limit=limit,
            recall_timeout_ms=RECALL_TIMEOUT_MS,
            sampling=SAMPLING,
        )

    first = ask(task.question)
    if feedback == FEEDBACK_ON and not contains(first.text, task.answer):
        client.record_outcome(
            first.route.request_id, -1.0, note=task.lesson, reflect=True, task=task.question
        )
    return Retried(task, limit, feedback, first, ask(task.question), ask(task.other_words))


def reflection_figures(retried: Sequence[Retried]) -> Figures:
    """By kind of task, limit of passages and feedback."""
    figures = {}
    for kind in (NOTHING_KNOWN, MISLED):
        for limit in LIMITS:
            for feedback in (FEEDBACK_ON, FEEDBACK_OFF):
                some = [
                    one
                    for one in retried
                    if (one.task.kind, one.limit, one.feedback) == (kind, limit, feedback)
                ]
                failed = [one for one in some if not one.right(one.first)]
                figures[row_name(kind, limit, feedback)] = {
                    "questions": len(some),
                    "right_at_first": share([one.right(one.first) for one in some]),
                    "right_again": share([one.right(one.again) for one in some]),
                    "in_other_words": share([one.right(one.other_words) for one in some]),
                    "reflection_first": share([one.reflection_first for one in failed]),
                }
    return figures


def row_name(kind: str, limit: int, feedback: str) -> str:
    return f"{kind}, best {limit}, feedback {feedback}"
