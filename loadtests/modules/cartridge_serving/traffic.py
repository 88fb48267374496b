"""The mixed traffic: cartridges, adapters, the base and another tenant, while blocks are short."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loadtests.harness.figures import report
from loadtests.modules.cartridge_serving.world import ADAPTER, ANSWER_TOKENS, Question
from memserve.client import Answer, AsyncClient, CallFailed
from memserve.demo import facts
from memserve.domain import Sampling

ASKERS = 8
SAMPLING = Sampling(max_tokens=ANSWER_TOKENS)
FLOOD_SHARE = 0.25
FLOOD_TOKENS = 700
OTHER_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and its result."""

    question: Question | None
    """None: a prompt that only takes blocks."""
    tenant: str
    first: bool
    """The tenant has not asked this before."""
    answer: Answer | None
    """None: the request failed."""
    failure: str = ""

    @property
    def wrong(self) -> bool:
        return (
            self.answer is not None
            and self.question is not None
            and tuple(self.answer.token_ids) != self.question.right
        )

    @property
    def foreign(self) -> bool:
        """KV was found behind the cartridge although this tenant has never asked the question."""
        if self.answer is None or self.question is None or not self.first:
            return False
        cached = self.answer.usage.cached
        return cached.total > cached.cartridge


@dataclass
class Traffic:
    """Askers that draw what they ask."""

    clients: dict[str, AsyncClient]
    """By tenant. The second tenant asks what the first one asks too."""
    questions: Sequence[Question]
    seed: int
    asked: list[Asked] = field(default_factory=list)
    known: set[tuple[str, str]] = field(default_factory=set)
    """Tenants, and texts with modules that they have asked."""
    turns: dict[tuple[str, str], asyncio.Lock] = field(default_factory=dict)

    async def run(self, requests: int, on_request: Callable[[int], None] = lambda number: None) -> None:
        """on_request: called with the number of each request before it is sent."""
        rng = random.Random(self.seed)
        numbers = iter(range(requests))

        async def asker() -> None:
            for number in numbers:
                on_request(number)
                await self._one(rng)
                if len(self.asked) % 50 == 0:
                    report(f"  {len(self.asked)} of {requests} asked")

        await asyncio.gather(*(asker() for _ in range(ASKERS)))

    async def _one(self, rng: random.Random) -> None:
        own, other = self.clients
        if rng.random() < FLOOD_SHARE:
            text = facts.handbook(rng.randrange(1 << 30), FLOOD_TOKENS).text
            self.asked.append(await self.ask(own, None, text))
            return
        tenant = other if rng.random() < OTHER_SHARE else own
        self.asked.append(await self.ask(tenant, rng.choice(self.questions)))

    async def ask(self, tenant: str, question: Question | None, text: str = "") -> Asked:
        """text: of a prompt that only takes blocks."""
        text = text if question is None else question.text
        modules = [] if question is None else named(question)
        mark = tenant, f"{modules} {text}"
        # Else a request could find what the same tenant's request beside it has just computed.
        async with self.turns.setdefault(mark, asyncio.Lock()):
            first = mark not in self.known
            self.known.add(mark)
            try:
                answer = await self.clients[tenant].generate(text, modules=modules, sampling=SAMPLING)
            except CallFailed as error:
                return Asked(question, tenant, first, None, str(error))
            return Asked(question, tenant, first, answer)


def named(question: Question) -> list[str]:
    """The references of a question's modules."""
    return [*([question.cartridge] if question.cartridge else []), *([ADAPTER] if question.adapter else [])]


@dataclass(frozen=True, slots=True)
class Counts:
    """What the traffic came to."""

    requests: int
    with_cartridge: int
    wrong_with_cartridge: int
    wrong_others: int
    foreign_hits: int
    failed: int
    failures: tuple[str, ...]
    cached_from_redis: int
    """Prompt tokens behind cartridges that came from Redis."""


def counted(asked: Sequence[Asked]) -> Counts:
    behind = [each for each in asked if each.question is not None and each.question.cartridge]
    failures = Counter(each.failure for each in asked if each.failure)
    return Counts(
        requests=len(asked),
        with_cartridge=len(behind),
        wrong_with_cartridge=sum(each.wrong for each in behind),
        wrong_others=sum(each.wrong for each in asked) - sum(each.wrong for each in behind),
        foreign_hits=sum(each.foreign for each in asked),
        failed=sum(each.answer is None for each in asked),
        failures=tuple(text for text, _ in failures.most_common(5)),
        cached_from_redis=sum(each.answer.usage.cached.redis for each in behind if each.answer is not None),
    )


async def ready_again(client: AsyncClient, workers: int, within_s: float) -> float:
    """Wait until so many workers are ready. Returns the seconds. Raises TimeoutError."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < within_s:
        status = await client.status()
        if sum(worker.ready for worker in status.workers) >= workers:
            return time.monotonic() - started_s
        await asyncio.sleep(0.5)
    raise TimeoutError(f"not {workers} workers within {within_s:g} s")
