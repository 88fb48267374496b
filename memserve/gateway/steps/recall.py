"""Step 3 of a request: one recall over text memories and modules, within one time budget.

Pinned passages, the search and the choice of a module run beside each other. What is late or down is left
out, and the receipt says so. What is computed already is the look-up's part (step 5).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from memserve.config import Settings
from memserve.domain import (
    FoundMemories,
    GenerationRequest,
    ModuleFit,
    ModuleUse,
    OutdatedFact,
    RecallOutcome,
    RecallPart,
    RecallSource,
    Role,
    ScoredMemory,
    SearchQuery,
    Skipped,
    SkipReason,
)
from memserve.errors import (
    InvalidField,
    MemserveError,
    ModuleNotFound,
    ModuleNotLive,
    NamespaceNotFound,
    OtherBase,
    UnreadableRecord,
    VectorStoreUnavailable,
)
from memserve.gateway.module_fit import ModuleFits
from memserve.gateway.pinned import Pinned
from memserve.gateway.steps.resolve import AnsweringModules, resolve_modules
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import fault_of_options
from memserve.memory.texts.rules import QUERY_MAX_BYTES
from memserve.memory.texts.uses import UseLedger
from memserve.metrics.instruments import GatewayMetrics
from memserve.policy.recall.choosing import skipped_as
from memserve.policy.recall.prompt import one_line, order_passages, reflections_first

WARN_EVERY_S = 10.0
SKIPPED_MAX = 64
NO_ROOM = "the conversation does not fit behind it"

log = logging.getLogger("memserve.gateway.steps.recall")


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the prompt and the answer are made with, and what became of each part."""

    outcome: RecallOutcome
    """Of the passages."""
    passages: tuple[ScoredMemory, ...] = ()
    """In the prompt's order: pinned ones first."""
    skipped: tuple[Skipped, ...] = ()
    """What was found and is not used."""
    parts: tuple[RecallPart, ...] = ()
    module_fits: tuple[ModuleFit, ...] = ()
    outdated: tuple[OutdatedFact, ...] = ()
    """Facts of the request's modules that the passages correct."""

    @property
    def module(self) -> ModuleFit | None:
        """The module that was chosen for the question."""
        return next((fit for fit in self.module_fits if fit.chosen), None)

    def without_module(self, why: str) -> Recalled:
        """As where none was chosen. why: for a person."""
        return replace(
            self,
            module_fits=tuple(
                replace(fit, chosen=False, reason=why) if fit.chosen else fit for fit in self.module_fits
            ),
            parts=tuple(
                replace(part, outcome=RecallOutcome.EMPTY, given=0)
                if part.source is RecallSource.MODULES
                else part
                for part in self.parts
            ),
        )


class Recall:
    """Recalls for a request's last question."""

    def __init__(
        self,
        texts: VectorMemory,
        pinned: Pinned,
        fits: ModuleFits,
        ledger: UseLedger,
        tokenizer: ChatTokenizer,
        settings: Settings,
        metrics: GatewayMetrics,
    ) -> None:
        """ledger: the one that the search reads the uses of its hits from."""
        self._texts = texts
        self._ledger = ledger
        self._pinned = pinned
        self._fits = fits
        self._tokenizer = tokenizer
        self._settings = settings
        self._metrics = metrics
        self._warned_s = -WARN_EVERY_S

    async def __call__(self, request: GenerationRequest, tenant: str) -> Recalled:
        """Raises NamespaceNotFound and InvalidField."""
        chooses = request.choose_module and not request.modules
        if not request.namespaces and not chooses:
            return Recalled(RecallOutcome.NOT_ASKED)
        started_s = time.monotonic()
        timeout_s = request.recall_timeout_s or self._settings.recall_timeout_ms / 1000
        question = _question(request)
        try:
            async with asyncio.TaskGroup() as group:
                searching = group.create_task(self._search(request, tenant, question, timeout_s))
                pinning = group.create_task(self._pin(request, tenant, timeout_s))
                choosing = group.create_task(self._choose(tenant, question, timeout_s)) if chooses else None
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        (found, search_part), (pinned, pinned_part) = searching.result(), pinning.result()
        fits, fits_part = choosing.result() if choosing is not None else ((), None)
        hits, unusable = self._quotable(found.hits, {hit.memory.name for hit in pinned})
        outcome = search_part.outcome
        if outcome is RecallOutcome.FOUND and not hits:
            outcome = RecallOutcome.EMPTY
        if pinned and outcome in (RecallOutcome.EMPTY, RecallOutcome.NOT_ASKED):
            outcome = RecallOutcome.FOUND
        parts = [replace(search_part, given=len(hits)), pinned_part, fits_part]
        if request.namespaces:
            self._metrics.recall.labels(outcome).observe(time.monotonic() - started_s)
        return Recalled(
            outcome,
            (*pinned, *reflections_first(self._ordered(tenant, hits), question)),
            (*found.skipped, *unusable)[:SKIPPED_MAX],
            tuple(part for part in parts if part is not None),
            fits,
        )

    def _ordered(self, tenant: str, hits: list[ScoredMemory]) -> list[ScoredMemory]:
        if self._settings.passage_order == "score":
            return hits
        return order_passages(hits, self._ledger.last_read(tenant, [hit.memory for hit in hits]))

    async def _search(
        self, request: GenerationRequest, tenant: str, question: str, timeout_s: float
    ) -> tuple[FoundMemories, RecallPart]:
        started_s = time.monotonic()
        if not request.namespaces or not question:
            return FoundMemories(()), RecallPart(RecallSource.TEXTS, RecallOutcome.NOT_ASKED, 0.0, 0)
        query = replace(
            request.search or SearchQuery((), "", rerank=True),
            namespaces=request.namespaces,
            text=question,
            limit=request.recall_limit or self._settings.recall_limit,
        )
        found, detail = FoundMemories(()), ""
        try:
            found = await self._texts.search(tenant, query, timeout_s=timeout_s, reflections_first=True)
            outcome = RecallOutcome.FOUND if found.hits else RecallOutcome.EMPTY
        except InvalidField as fault:
            raise fault_of_options("recall.options", fault) from None
        except VectorStoreUnavailable as error:
            late = time.monotonic() - started_s >= timeout_s
            outcome = RecallOutcome.LATE if late else RecallOutcome.UNAVAILABLE
            detail = str(error)
            self._warn(error)
        if found.skipped:
            detail = f"{len(found.skipped)} found and not used"
        if found.cut:
            detail = f"{detail}; " * bool(detail) + "the filter may let through more"
        return found, RecallPart(RecallSource.TEXTS, outcome, _ms(started_s), len(found.hits), detail=detail)

    def _warn(self, error: VectorStoreUnavailable) -> None:
        """Once in WARN_EVERY_S: a busy gateway has many requests while a store is away."""
        now_s = time.monotonic()
        if now_s - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now_s
            log.warning("answering without passages: %s", error)

    async def _pin(
        self, request: GenerationRequest, tenant: str, timeout_s: float
    ) -> tuple[tuple[ScoredMemory, ...], RecallPart | None]:
        if not request.namespaces or request.skip_pinned:
            return (), None
        started_s = time.monotonic()
        context = request.search.context if request.search is not None else {}
        detail = ""
        try:
            async with asyncio.timeout(timeout_s):
                hits = await self._pinned.passages(tenant, request.namespaces, context, time.time())
            outcome = RecallOutcome.FOUND
        except NamespaceNotFound:
            raise
        except (TimeoutError, MemserveError) as error:
            late = isinstance(error, TimeoutError)
            hits, detail = (), "" if late else str(error)
            outcome = RecallOutcome.LATE if late else RecallOutcome.UNAVAILABLE
        if not hits and outcome is RecallOutcome.FOUND:
            return (), None
        return hits, RecallPart(RecallSource.PINNED, outcome, _ms(started_s), len(hits), detail=detail)

    async def _choose(
        self, tenant: str, question: str, timeout_s: float
    ) -> tuple[tuple[ModuleFit, ...], RecallPart]:
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                embedder = self._texts.embedder.vectors.embedder
                vector = await self._texts.embed(tenant, question, query=True)
        except (TimeoutError, MemserveError) as error:
            late = isinstance(error, TimeoutError)
            outcome = RecallOutcome.LATE if late else RecallOutcome.UNAVAILABLE
            return (), RecallPart(RecallSource.MODULES, outcome, _ms(started_s), 0)
        fits = self._fits.fits(tenant, vector, embedder)
        chosen = any(fit.chosen for fit in fits)
        detail = "" if self._fits.is_known(tenant) else "some modules are not read yet"
        return fits, RecallPart(
            RecallSource.MODULES,
            RecallOutcome.FOUND if chosen else RecallOutcome.EMPTY,
            _ms(started_s),
            int(chosen),
            detail=detail,
        )

    def _quotable(
        self, hits: tuple[ScoredMemory, ...], pinned: set[tuple[str, str]]
    ) -> tuple[list[ScoredMemory], list[Skipped]]:
        """The hits that the prompt can show and that are not pinned anyway."""
        usable, skipped = [], []
        for hit in hits:
            memory = hit.memory
            if memory.name in pinned:
                continue
            if self._tokenizer.can_quote(one_line(memory.text)):
                usable.append(hit)
                continue
            detail = "it has one of the model's control tokens"
            skipped.append(skipped_as(memory, SkipReason.UNQUOTABLE, detail))
        return usable, skipped


async def with_chosen(
    memory: ParametricMemory,
    request: GenerationRequest,
    modules: AnsweringModules,
    recalled: Recalled,
    tenant: str,
) -> tuple[GenerationRequest, AnsweringModules, Recalled]:
    """All three with the module that was chosen for the question, or as they are where none was.

    A module that is gone since it was looked at is left out: the caller did not ask for it.
    modules: those that the request names. Raises as `resolve_modules` otherwise.
    """
    if recalled.module is None:
        return request, modules, recalled
    chosen = replace(request, modules=(chosen_use(recalled.module),))
    try:
        return chosen, await resolve_modules(memory, chosen, tenant), recalled
    except (ModuleNotFound, ModuleNotLive, OtherBase, UnreadableRecord):
        return request, modules, recalled.without_module("it was deleted a moment ago")


def chosen_use(fit: ModuleFit) -> ModuleUse:
    """The use of a module that was chosen for a question."""
    return ModuleUse(f"{fit.name}@{fit.version}", field="recall.choose_module")


def _question(request: GenerationRequest) -> str:
    """The user's last message, as much of it as a search takes."""
    text = next((one.content for one in reversed(request.messages) if one.role is Role.USER), "")
    return text.strip().encode()[:QUERY_MAX_BYTES].decode(errors="ignore")


def _ms(started_s: float) -> float:
    return (time.monotonic() - started_s) * 1000
