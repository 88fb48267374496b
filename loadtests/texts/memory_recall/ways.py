"""The ways to answer that are compared, and what each answer took."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loadtests.texts.memory_recall.worlds import CHANGED, HOP, NAMESPACE, Question, World, is_right
from memserve.client import Answer, Client
from memserve.domain import LinkKind, ModuleFit, RecallOutcome, RecallSource, Sampling, ScoredMemory

BUDGET_MS, SHORT_BUDGET_MS = 500, 50
LEAST_RELEVANCE = 0.5


@dataclass(frozen=True, slots=True)
class Way:
    """A way to answer."""

    name: str
    tenant: str
    """Of its own where prompts are long enough to be cached: no way finds what another one has computed."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `Client.generate`."""
    names_module: bool = False
    """Whether the request names the module that holds the answer. Other questions are not asked then."""


_RECALL = {"namespaces": NAMESPACE, "recall_timeout_ms": BUDGET_MS}
NONE = Way("without memory", "modules")
RECALL = Way("recall", "recall", _RECALL)
RECALL_SOON = Way(
    f"recall in {SHORT_BUDGET_MS} ms", "soon", {**_RECALL, "recall_timeout_ms": SHORT_BUDGET_MS}
)
MODULE = Way("module, named", "modules", names_module=True)
CHOSEN = Way("module, chosen", "modules", {"choose_module": True, "recall_timeout_ms": BUDGET_MS})
ABSTAINING = Way(
    f"recall from relevance {LEAST_RELEVANCE}",
    "abstaining",
    {**_RECALL, "recall_options": {"min_relevance": LEAST_RELEVANCE}},
)
LINKED = Way(
    "recall with links",
    "linked",
    {**_RECALL, "recall_options": {"link_depth": 1, "link_kinds": (LinkKind.CAUSED_BY,)}},
)
PLAIN_WAYS = (NONE, RECALL, RECALL_SOON, ABSTAINING, LINKED)
MODULE_WAYS = (MODULE, CHOSEN)
ALL_WAYS = (*PLAIN_WAYS, *MODULE_WAYS)
REMEMBERING = tuple(dict.fromkeys(way.tenant for way in PLAIN_WAYS if way.options))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was asked in one way, with its answer."""

    way: Way
    question: Question
    answer: Answer
    unknown_reply: str = ""

    @property
    def right(self) -> bool:
        return is_right(self.question, self.answer.text, self.unknown_reply)

    @property
    def computed_tokens(self) -> int:
        """Of the prompt."""
        return self.answer.usage.prompt_tokens - self.answer.usage.cached.total

    @property
    def recall_ms(self) -> float | None:
        """The longest of the parts of its recall, which run beside each other. None: none was asked."""
        took = [
            part.took_ms
            for part in self.answer.route.recall
            if part.source is not RecallSource.PREFIX and part.outcome is not RecallOutcome.NOT_ASKED
        ]
        return max(took, default=None)

    @property
    def best(self) -> ScoredMemory | None:
        """The best passage by score. None: the answer was made without passages."""
        return max(self.answer.route.passages, key=lambda hit: hit.score, default=None)

    @property
    def chosen(self) -> ModuleFit | None:
        return next((fit for fit in self.answer.route.module_fits if fit.chosen), None)

    @property
    def choice(self) -> str:
        """What `choose_module` did: right, wrong or none. Where no module holds the answer, none is right."""
        if self.chosen is None:
            return "none"
        return "right" if self.chosen.name == self.question.module else "wrong"


def is_asked(question: Question, way: Way) -> bool:
    """Two hops are asked with links and without, and nothing else is asked with links. What changed is asked
    where the change can show, and with `choose_module`, which has no module to choose.
    """
    if question.kind == HOP or way is LINKED:
        return question.kind == HOP and way in (RECALL, LINKED)
    if question.kind in CHANGED:
        return way in (NONE, RECALL, CHOSEN)
    return not way.names_module or bool(question.module)


def ask(
    clients: Mapping[str, Client],
    world: World,
    ways: Sequence[Way],
    sampling: Sampling,
    rng: random.Random,
) -> list[Asked]:
    """Ask every question in every way, one after the other, with the ways in another order each time.

    clients: by tenant.
    """
    asked = []
    for question in world.questions:
        for way in rng.sample(ways, len(ways)):
            if not is_asked(question, way):
                continue
            options = {"modules": question.module} if way.names_module else {}
            # A model that never says that it does not know is judged by its passages alone.
            is_judged = question.answer or world.unknown_reply
            answer = clients[way.tenant].generate(
                question.text,
                sampling=sampling if is_judged else replace(sampling, max_tokens=1),
                **{**way.options, **options},
            )
            asked.append(Asked(way, question, answer, world.unknown_reply))
    return asked
