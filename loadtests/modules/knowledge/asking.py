"""Asks a world's questions by each rung, and what came back."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.figures import report
from loadtests.modules.distil.worlds import Asked, World
from loadtests.modules.knowledge.rungs import NOTHING, Rung
from memserve.client import Answer, Client
from memserve.domain import Memory, Message, Role, Sampling, ScoredMemory
from memserve.model.chat import open_chat
from memserve.model.files import open_model
from memserve.model.recall_template import open_recall_template
from memserve.policy.modules.gate import Match, calibration_error, confidence, right
from memserve.policy.recall.prompt import arrange

ANSWER_TOKENS = 20
RECALL_COLUMN, TEACHER = "recall", "teacher"
# A right answer there is a value that was taught: the smaller share is the better one.
LEAKS = ("leak", "leak_own")


class Layout:
    """Conversations with passages, as the gateway lays them out."""

    def __init__(self, model: Path) -> None:
        template, _ = open_chat(open_model(model), None, None)
        self._rules = template.rules
        self._recall = open_recall_template(model, None)

    def messages(self, question: str, passages: Sequence[str]) -> tuple[Message, ...]:
        hits = [ScoredMemory(Memory("-", "-", each, "", (), 0.0), 1.0, 0.0, 0.0) for each in passages]
        asked = [Message(Role.USER, question)]
        return arrange(asked, hits, self._recall.render, self._rules).messages


@dataclass(frozen=True, slots=True)
class Replied:
    """A question of a column with its answer."""

    column: str
    right: bool
    answer: Answer

    @property
    def confidence(self) -> float:
        return confidence(self.answer.logprobs)


def ask_column(
    client: Client, layout: Layout, rung: Rung, column: str, questions: Sequence[Asked], *, teacher: bool
) -> list[Replied]:
    """Ask one after the other. teacher: the memory that answers stands in the prompt, and is not recalled."""
    replied = []
    for each in questions:
        passages = (each.with_memory,) if teacher else each.passages
        answer = client.generate(
            layout.messages(each.question, passages),
            sampling=Sampling(ANSWER_TOKENS, logprobs=True),
            **rung.options(reads=bool(passages)),
        )
        replied.append(
            Replied(TEACHER if teacher else column, right(answer.text, each.right, Match.CONTAINS), answer)
        )
    return replied


def ask(client: Client, layout: Layout, rung: Rung, world: World, most: int) -> list[Replied]:
    """Ask all columns by one rung; by no rung at all the teacher's questions too. most: of a column."""
    replied = []
    for column, questions in world.columns.items():
        some = spread(questions, most)
        replied += ask_column(client, layout, rung, column, some, teacher=False)
        if rung is NOTHING and column == RECALL_COLUMN:
            replied += ask_column(client, layout, rung, column, some, teacher=True)
    report(f"{world.name}: {rung.name}: {len(replied)} answers")
    return replied


def spread(questions: Sequence[Asked], most: int) -> Sequence[Asked]:
    """At most so many of them, from the whole of their length."""
    if len(questions) <= most:
        return questions
    return [questions[place * len(questions) // most] for place in range(most)]


@dataclass(frozen=True, slots=True)
class Figures:
    """What the answers of one rung show."""

    shares: Mapping[str, float]
    """Of answers that are right, by column. In a column of leaks: that say a value that was taught."""
    counts: Mapping[str, int]
    calibration: float
    ttft_ms: float
    tpot_ms: float
    computed_tokens: float
    """Of a prompt of the column `recall`, on average."""


def figures_of(replied: Sequence[Replied]) -> Figures:
    """One rung's figures. Times are medians over the questions for the facts."""
    columns = list(dict.fromkeys(each.column for each in replied))
    own = [each for each in replied if each.column == RECALL_COLUMN]
    judged = [(each.confidence, each.right) for each in replied if each.column not in (*LEAKS, TEACHER)]
    usages = [each.answer.usage for each in own]
    return Figures(
        {column: share([each.right for each in replied if each.column == column]) for column in columns},
        {column: sum(each.column == column for each in replied) for column in columns},
        calibration_error(judged),
        statistics.median(usage.ttft_ms for usage in usages),
        statistics.median([usage.tpot_ms for usage in usages if usage.tpot_ms is not None] or [0.0]),
        statistics.mean(usage.prompt_tokens - usage.cached.total for usage in usages),
    )


def share(truths: Sequence[bool]) -> float:
    """0 of nothing."""
    return sum(truths) / len(truths) if truths else 0.0


def interval(share_of: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not count:
        return 0.0, 1.0
    z = 1.96
    middle = (share_of + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (share_of * (1 - share_of) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)
