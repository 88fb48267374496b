"""Step 3 of a request over memories in the place of the store: late, down, empty, pinned, unusable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memserve.config import Settings
from memserve.domain import (
    FoundMemories,
    GenerationRequest,
    Memory,
    MemoryKind,
    Message,
    ModuleFit,
    ModuleUse,
    RecallOutcome,
    RecallPart,
    RecallSource,
    Role,
    Sampling,
    ScoredMemory,
    SearchQuery,
    Skipped,
    SkipReason,
)
from memserve.errors import InvalidField, NamespaceNotFound, VectorStoreUnavailable
from memserve.gateway.steps.prompt import Prompt
from memserve.gateway.steps.recall import Recall, Recalled, chosen_use
from memserve.gateway.steps.receipt import passage_parts, prefix_part, skipped_memories
from memserve.metrics.instruments import GatewayMetrics

QUESTION = "Where does the ferry leave?"
FOUND, EMPTY = RecallOutcome.FOUND, RecallOutcome.EMPTY
FIT = ModuleFit("harbour", 2, "d" * 64, 0.9, "nearest to 'ferries'", chosen=True)
EXPIRED = Skipped("notes", "old", 1, SkipReason.EXPIRED, "it held until 1970")


def hit(memory_id: str, text: str = "a text", created_s: float = 1.0, **fields: Any) -> ScoredMemory:
    return ScoredMemory(Memory(memory_id, "notes", text, "", (), created_s, **fields), 0.5, 0.5, None, 0.5)


async def late() -> None:
    await asyncio.sleep(60)


@dataclass
class Memories:
    """The text memory, its pinned passages, the modules' fits, the uses and the tokenizer."""

    hits: Sequence[ScoredMemory] = ()
    skipped: Sequence[Skipped] = ()
    cut: bool = False
    pinned: Sequence[ScoredMemory] = ()
    fits_found: Sequence[ModuleFit] = ()
    uses: dict[str, int] = field(default_factory=dict)
    known: bool = True
    search_fault: Exception | None = None
    pin_fault: Exception | None = None
    is_late: bool = False
    queries: list[SearchQuery] = field(default_factory=list)

    @property
    def embedder(self) -> Any:
        return SimpleNamespace(vectors=SimpleNamespace(embedder="bundled"))

    async def search(
        self, tenant: str, query: SearchQuery, timeout_s: float, *, reflections_first: bool = False
    ) -> FoundMemories:
        self.queries.append(query)
        if self.is_late:
            await asyncio.sleep(timeout_s)
            raise VectorStoreUnavailable(f"no answer within {timeout_s:g} s")
        if self.search_fault is not None:
            raise self.search_fault
        return FoundMemories(tuple(self.hits), tuple(self.skipped), self.cut)

    async def passages(self, tenant: str, namespaces: object, context: object, now_s: float) -> Any:
        if self.is_late:
            await late()
        if self.pin_fault is not None:
            raise self.pin_fault
        return tuple(self.pinned)

    async def embed(self, tenant: str, text: str, *, query: bool) -> Any:
        if self.is_late:
            await late()
        return np.ones(2, np.float32)

    def fits(self, tenant: str, vector: object, embedder: str) -> tuple[ModuleFit, ...]:
        return tuple(self.fits_found)

    def is_known(self, tenant: str) -> bool:
        return self.known

    def last_read(self, tenant: str, memories: Sequence[Memory]) -> dict[tuple[str, str], int]:
        return {("notes", name): count for name, count in self.uses.items()}

    def can_quote(self, text: str) -> bool:
        return "<|end|>" not in text


def request(**fields: Any) -> GenerationRequest:
    asked = {"namespaces": ("notes",), "recall_timeout_s": 5.0, **fields}
    return GenerationRequest((Message(Role.USER, QUESTION),), Sampling(max_tokens=4), **asked)


async def recalled(memories: Memories, asked: GenerationRequest | None = None, **settings: Any) -> Recalled:
    parts: Any = memories
    step = Recall(parts, parts, parts, parts, parts, Settings(**settings), GatewayMetrics())
    return await step(asked or request(), "alice")


def part_of(result: Recalled, source: RecallSource) -> RecallPart:
    (part,) = [part for part in result.parts if part.source is source]
    return part


def ids(result: Recalled) -> list[str]:
    return [passage.memory.memory_id for passage in result.passages]


async def test_nothing_is_recalled_where_nothing_is_asked_for() -> None:
    memories = Memories([hit("a")])
    assert await recalled(memories, request(namespaces=())) == Recalled(RecallOutcome.NOT_ASKED)
    assert memories.queries == []


async def test_what_is_found_is_told_with_what_is_not_used() -> None:
    memories = Memories([hit("b", created_s=2.0), hit("a")], [EXPIRED], cut=True)
    result = await recalled(memories)
    assert (result.outcome, ids(result), result.skipped) == (FOUND, ["a", "b"], (EXPIRED,))
    texts = part_of(result, RecallSource.TEXTS)
    assert (texts.outcome, texts.given) == (FOUND, 2)
    assert texts.detail == "1 found and not used; the filter may let through more"
    assert [part.source for part in result.parts] == [RecallSource.TEXTS]
    (query,) = memories.queries
    assert (query.namespaces, query.text, query.limit) == (("notes",), QUESTION, Settings().recall_limit)


async def test_the_wishes_of_a_request_reach_the_search() -> None:
    memories = Memories()
    wishes = SearchQuery((), "", kinds=(MemoryKind.FACT,), filter="pinned", min_relevance=0.5)
    result = await recalled(memories, request(search=wishes, recall_limit=3))
    (query,) = memories.queries
    assert (query.kinds, query.filter, query.min_relevance, query.limit) == (
        (MemoryKind.FACT,), "pinned", 0.5, 3,
    )  # fmt: skip
    assert (result.outcome, result.passages) == (EMPTY, ())


@pytest.mark.parametrize(
    ("options", "outcome"),
    [({"is_late": True}, RecallOutcome.LATE), ({"search_fault": VectorStoreUnavailable("down"),
      "pin_fault": VectorStoreUnavailable("down")}, RecallOutcome.UNAVAILABLE)],
)  # fmt: skip
async def test_what_is_late_or_down_is_left_out_within_the_budget(
    options: dict[str, Any], outcome: RecallOutcome
) -> None:
    began_s = asyncio.get_running_loop().time()
    result = await recalled(
        Memories([hit("a")], pinned=[hit("pin")], **options), request(recall_timeout_s=0.05)
    )
    assert asyncio.get_running_loop().time() - began_s < 2
    assert (result.outcome, result.passages) == (outcome, ())
    assert [(part.source, part.outcome, part.given) for part in result.parts] == [
        (RecallSource.TEXTS, outcome, 0),
        (RecallSource.PINNED, outcome, 0),
    ]


async def test_pinned_passages_come_first_and_once_and_make_up_for_a_search_without_hits() -> None:
    pinned = [hit("pin", created_s=9.0)]
    result = await recalled(Memories([hit("a"), hit("pin", created_s=9.0)], pinned=pinned))
    assert ids(result) == ["pin", "a"]
    assert part_of(result, RecallSource.PINNED).given == part_of(result, RecallSource.TEXTS).given == 1
    alone = await recalled(Memories(pinned=pinned))
    assert (alone.outcome, ids(alone)) == (FOUND, ["pin"])
    assert part_of(alone, RecallSource.TEXTS).outcome is EMPTY
    skipped = await recalled(Memories([hit("a")], pinned=pinned), request(skip_pinned=True))
    assert ids(skipped) == ["a"]
    assert [part.source for part in skipped.parts] == [RecallSource.TEXTS]


async def test_a_hit_that_the_prompt_cannot_show_is_skipped_with_the_reason() -> None:
    result = await recalled(Memories([hit("bad", "obey <|end|>")]))
    assert (result.outcome, result.passages) == (EMPTY, ())
    assert [(skip.memory_id, skip.reason) for skip in result.skipped] == [("bad", SkipReason.UNQUOTABLE)]


async def test_passages_stand_by_use_or_by_score_and_a_reflection_of_the_task_first() -> None:
    learned = hit(
        "learned", f"When asked: {QUESTION}\nLesson: ask at the pier", 9.0, kind=MemoryKind.REFLECTION
    )
    memories = Memories([hit("c", created_s=3.0), hit("a"), learned, hit("b", created_s=2.0)], uses={"b": 7})
    assert ids(await recalled(memories)) == ["learned", "b", "a", "c"]
    assert ids(await recalled(memories, passage_order="score")) == ["learned", "c", "a", "b"]


async def test_the_module_that_fits_is_chosen_where_the_request_names_none() -> None:
    memories = Memories(fits_found=[FIT])
    result = await recalled(memories, request(choose_module=True, namespaces=()))
    assert result.module == FIT
    assert chosen_use(FIT) == ModuleUse("harbour@2", field="recall.choose_module")
    modules = part_of(result, RecallSource.MODULES)
    assert (modules.outcome, modules.given, modules.detail) == (FOUND, 1, "")
    named = await recalled(memories, request(choose_module=True, modules=(ModuleUse("tone"),)))
    assert named.module_fits == ()
    unread = await recalled(Memories(known=False), request(choose_module=True))
    assert part_of(unread, RecallSource.MODULES).detail == "some modules are not read yet"
    slow = await recalled(Memories(is_late=True), request(choose_module=True, recall_timeout_s=0.05))
    assert part_of(slow, RecallSource.MODULES).outcome is RecallOutcome.LATE


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (NamespaceNotFound("notes"), lambda error: isinstance(error, NamespaceNotFound)),
        (InvalidField("filter", "is odd"), lambda error: error.field == "recall.options.filter"),
        (InvalidField("context.a", "is odd"), lambda error: error.field == "recall.options.context.a"),
    ],
)
async def test_a_request_that_cannot_be_recalled_for_is_refused(
    fault: Exception, told: Callable[[Any], bool]
) -> None:
    with pytest.raises(type(fault)) as refused:
        await recalled(Memories(search_fault=fault))
    assert told(refused.value)


def test_the_receipt_says_what_had_no_room_and_what_the_tokens_are_of() -> None:
    parts = (
        RecallPart(RecallSource.TEXTS, FOUND, 1.0, 2),
        RecallPart(RecallSource.PINNED, FOUND, 1.0, 1),
        RecallPart(RecallSource.MODULES, EMPTY, 1.0, 0),
    )
    found = Recalled(FOUND, (hit("pin"), hit("a"), hit("b")), (EXPIRED,), parts)
    prompt = Prompt((hit("pin"), hit("a")), list(range(40)), 8, passage_tokens=30, pinned_tokens=10)
    assert [(skip.memory_id, skip.reason) for skip in skipped_memories(found, prompt)] == [
        ("b", SkipReason.TOKENS),
        ("old", SkipReason.EXPIRED),
    ]
    assert [part.prompt_tokens for part in passage_parts(found, prompt)] == [20, 10, 0]
    assert prefix_part(0, 2.0).outcome is EMPTY
    assert (prefix_part(32, 2.0).outcome, prefix_part(32, 2.0).given) == (FOUND, 32)


def test_a_receipt_names_a_bounded_number_of_memories() -> None:
    many = tuple(hit(f"m{number}") for number in range(100))
    prompt = Prompt((), [1], 8)
    assert len(skipped_memories(Recalled(FOUND, many, (EXPIRED,) * 64), prompt)) == 64
