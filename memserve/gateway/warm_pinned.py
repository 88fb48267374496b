"""Keeps the beginnings of prompts computed that end in pinned passages, so that the next request finds them.

1. A request that recalls notes how its prompt begins: its system text, its namespaces, its functions, and the
   module that changes the KV. What stands behind the pinned passages does not count.
2. When pinned memories change, when a namespace is recalled from in a new way, and every CHECK_EVERY_S, the
   beginnings of the last RECENT_S are looked up in Redis. One that is not there is computed on a worker.
3. One is computed at a time, in the lowest band, and for each tenant one in TENANT_EVERY_S. Its tokens count
   for the tenant's quota. One that does not stay in Redis is looked at ever more rarely.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from memserve.domain import GenerationRequest, Memory, Message, ModuleVersion, Role, ScoredMemory, Tenant
from memserve.domain.lineage import MemoryVersionName
from memserve.errors import MemserveError
from memserve.gateway.access.callers import Access
from memserve.gateway.layout import PromptLayout
from memserve.gateway.pinned import Pinned
from memserve.gateway.prefixes import Prefixes
from memserve.memory.texts.records import tenant_key
from memserve.metrics.instruments import GatewayMetrics
from memserve.turns import FairThreads

PRINCIPAL = "memserve warm prefixes"
CHECK_EVERY_S = 10.0
PAUSE_MAX_S = 320.0
RECENT_S = 600.0
TENANT_EVERY_S = 2.0
COMPUTING_MAX_S = 60.0
BEGINNINGS_MAX = 256
TENANT_BEGINNINGS_MAX = 8
"""Of one tenant. The one that was asked for longest ago leaves."""
BEGINNING_MAX_BYTES = 64 << 10
"""A longer system text, with its functions, is not kept warm."""
LOOK_S = 0.25

log = logging.getLogger("memserve.gateway.warm_pinned")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What decides how a prompt begins, but for the pinned passages themselves."""

    tenant: str
    namespaces: tuple[str, ...]
    system: str = ""
    tools: str = ""
    raw: bool = False
    module_digest: str = ""


@dataclass(frozen=True, slots=True)
class KeptBeginning:
    """A beginning that is kept warm."""

    namespaces: tuple[str, ...]
    passages: tuple[MemoryVersionName, ...]
    tokens: int


@dataclass(slots=True)
class _Kept:
    """What is known of a beginning."""

    tenant: Tenant
    module: ModuleVersion | None
    asked_s: float
    passages: tuple[tuple[str, str, int], ...] = ()
    """Namespace, id and version of those that `token_ids` are made of."""
    token_ids: tuple[int, ...] = ()
    pause_s: float = CHECK_EVERY_S
    """Until the next look after one that did not find it in Redis."""
    not_before_s: float = 0.0

    def forget(self) -> None:
        """The passages have changed, or there are none."""
        self.passages, self.token_ids = (), ()
        self.pause_s, self.not_before_s = CHECK_EVERY_S, 0.0

    def looked(self, outcome: str, now_s: float) -> None:
        """What Redis does not keep, or a worker does not compute, is looked at ever more rarely."""
        if outcome in ("computed", "failed"):
            self.not_before_s = now_s + self.pause_s
            self.pause_s = min(2 * self.pause_s, PAUSE_MAX_S)
        else:
            self.pause_s = CHECK_EVERY_S


class WarmPinned:
    """Of all tenants. `step` is the step of one of the gateway's loops."""

    def __init__(
        self,
        pinned: Pinned,
        prefixes: Prefixes,
        layout: PromptLayout,
        tokenizing: FairThreads,
        metrics: GatewayMetrics,
        access: Access,
        *,
        enabled: bool,
    ) -> None:
        """access: its tenants are known without a request, so that what they pin is warm at once."""
        self._pinned = pinned
        self._prefixes = prefixes
        self._layout = layout
        self._tokenizing = tokenizing
        self._metrics = metrics
        self._access = access
        self._enabled = enabled
        self._kept: OrderedDict[Beginning, _Kept] = OrderedDict()
        self._due: OrderedDict[Beginning, None] = OrderedDict()
        self._computed_s: dict[str, float] = {}
        self._checked_s = 0.0
        self._wake = asyncio.Event()
        self._cooled: dict[str, frozenset[str]] = {}
        """By tenant, namespaces whose beginnings are not kept warm."""
        pinned.on_change(self.changed)

    def recalled(self, request: GenerationRequest, tenant: Tenant, module: ModuleVersion | None) -> None:
        """Note how the request's prompt begins. module: the one that its KV depends on. Returns at once."""
        if not self._enabled or not request.namespaces or request.skip_pinned:
            return
        first = request.messages[0]
        system = first.content if first.role is Role.SYSTEM and not request.raw else ""
        if len(system) + len(request.tools) > BEGINNING_MAX_BYTES:
            return
        beginning = Beginning(
            tenant.name,
            request.namespaces,
            system,
            request.tools,
            request.raw,
            "" if module is None else module.digest,
        )
        self._note(beginning, tenant, module)

    def changed(self, owner: str, namespace: str) -> None:
        """Pinned memories of a namespace have changed at this gateway. owner: the tenant's key."""
        if not self._enabled:
            return
        for name in self._access.known_tenants():
            if tenant_key(name) == owner:
                self._note(Beginning(name, (namespace,)), self._access.named(name, PRINCIPAL), None)
        for beginning, kept in self._kept.items():
            if namespace in beginning.namespaces and tenant_key(beginning.tenant) == owner:
                kept.forget()  # it may be of a text that is erased
                self._due[beginning] = None
        self._wake.set()

    def kept_of(self, tenant: str) -> list[KeptBeginning]:
        """What is kept warm for a tenant at this gateway."""
        return [
            KeptBeginning(
                beginning.namespaces,
                tuple(MemoryVersionName(*name) for name in kept.passages),
                len(kept.token_ids),
            )
            for beginning, kept in self._kept.items()
            if beginning.tenant == tenant and kept.token_ids
        ]

    async def cool(self, tenant: str, namespaces: Collection[str]) -> None:
        """Keep warm no beginning of the tenant that has one of these, and all others again."""
        before, cooled = self._cooled.get(tenant, frozenset()), frozenset(namespaces)
        if cooled == before:
            return
        self._cooled[tenant] = cooled
        for beginning, kept in list(self._kept.items()):
            if beginning.tenant != tenant or before & {*beginning.namespaces} == cooled & {
                *beginning.namespaces
            }:
                continue
            if not self._is_cooled(beginning):
                self._due[beginning] = None
                self._wake.set()
            elif kept.token_ids:
                self._due.pop(beginning, None)
                token_ids = list(kept.token_ids)
                kept.forget()
                with contextlib.suppress(MemserveError):  # what stays there leaves with its time
                    prefix = self._prefixes.of_tokens(kept.tenant, token_ids, kept.module)
                    await self._prefixes.evict(kept.tenant, prefix)

    def tokens_of(self, tenant: str, namespace: str) -> int:
        """How many tokens the beginnings of one namespace have together, as far as they are laid out."""
        return sum(
            len(kept.token_ids)
            for beginning, kept in self._kept.items()
            if beginning.tenant == tenant and beginning.namespaces == (namespace,)
        )

    def _is_cooled(self, beginning: Beginning) -> bool:
        return bool(self._cooled.get(beginning.tenant, frozenset()) & {*beginning.namespaces})

    async def step(self) -> None:
        """Bring one beginning up to date, or wait a moment for one."""
        now_s = time.monotonic()
        if now_s - self._checked_s >= CHECK_EVERY_S:
            self._begin_round(now_s)
        beginning = next((due for due in self._due if self._may_compute(due.tenant, now_s)), None)
        if beginning is None:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            return
        del self._due[beginning]
        kept = self._kept.get(beginning)
        if kept is None or self._is_cooled(beginning):
            return
        try:
            outcome = await self._bring(beginning, kept)
        except MemserveError as error:
            log.info("the pinned passages of %s are not warm: %s", ", ".join(beginning.namespaces), error)
            outcome = "failed"
        kept.looked(outcome, time.monotonic())
        if outcome:
            self._metrics.pinned_prefixes.labels(outcome).inc()

    async def _bring(self, beginning: Beginning, kept: _Kept) -> str:
        """Returns what became of it; "" where nothing is pinned."""
        passages = await self._pinned.shared(beginning.tenant, beginning.namespaces, time.time())
        names = _names(passages)
        if not passages:
            kept.forget()
            return ""
        if kept.passages != names:
            encode = partial(common_tokens, self._layout, beginning, passages)
            kept.token_ids = tuple(await self._tokenizing.run(beginning.tenant, encode))
            kept.passages = names
        prefix = self._prefixes.of_tokens(kept.tenant, list(kept.token_ids), kept.module)
        outcome = "short"
        for laid_out in prefix.laid_out:
            if not laid_out.chunks:
                continue
            stored = await self._prefixes.stored_tokens(kept.tenant, laid_out)
            if stored is None:
                return "failed"
            if stored >= laid_out.chunked_tokens:
                outcome = "stored" if outcome == "short" else outcome
                continue
            self._computed_s[beginning.tenant] = time.monotonic()
            alone = replace(prefix, laid_out=(laid_out,))
            deadline_s = time.monotonic() + COMPUTING_MAX_S
            async for warmth in self._prefixes.warm(kept.tenant, alone, "", deadline_s):
                stored = warmth.stored_tokens
            outcome = "computed" if stored >= laid_out.chunked_tokens else "failed"
            if kept.passages != names:  # changed meanwhile: the text may be erased
                await self._prefixes.evict(kept.tenant, alone)
                return outcome
        return outcome

    def _note(self, beginning: Beginning, tenant: Tenant, module: ModuleVersion | None) -> None:
        kept = self._kept.get(beginning)
        if kept is not None:
            kept.asked_s = time.monotonic()
            self._kept.move_to_end(beginning)
            return
        own = [known for known in self._kept if known.tenant == tenant.name]
        for known in own[: len(own) + 1 - TENANT_BEGINNINGS_MAX]:
            self._drop(known)
        self._kept[beginning] = _Kept(tenant, module, time.monotonic())
        if len(self._kept) > BEGINNINGS_MAX:
            self._drop(next(iter(self._kept)))
        self._due[beginning] = None
        self._wake.set()

    def _begin_round(self, now_s: float) -> None:
        self._checked_s = now_s
        for beginning, kept in list(self._kept.items()):
            if now_s - kept.asked_s > RECENT_S:
                self._drop(beginning)
            elif now_s >= kept.not_before_s and not self._is_cooled(beginning):
                self._due.setdefault(beginning, None)
        names = {beginning.tenant for beginning in self._kept}
        self._computed_s = {name: at_s for name, at_s in self._computed_s.items() if name in names}

    def _drop(self, beginning: Beginning) -> None:
        self._kept.pop(beginning, None)
        self._due.pop(beginning, None)

    def _may_compute(self, tenant: str, now_s: float) -> bool:
        return now_s - self._computed_s.get(tenant, -TENANT_EVERY_S) >= TENANT_EVERY_S


def common_tokens(layout: PromptLayout, beginning: Beginning, passages: Sequence[ScoredMemory]) -> list[int]:
    """[tokens] with which every prompt begins that has these passages first, whatever follows them.

    It is what prompts with different passages and questions behind them have in common, so that it holds
    for any template. Blocks while the tokenizer works. Raises InvalidField as `PromptLayout.encode`.
    """
    tails = (((), "A"), ((_passage("b"),), "Bb?"), ((_passage("9."), _passage("c")), "9"))
    prompts = []
    for more, question in tails:
        messages = [Message(Role.SYSTEM, beginning.system)] if beginning.system else []
        messages.append(Message(Role.USER, question))
        arranged = layout.arrange(messages, [*passages, *more], raw=beginning.raw, tools=beginning.tools)
        prompts.append(layout.encode(arranged, raw=beginning.raw))
    first = prompts[0]
    for place, tokens in enumerate(zip(*prompts, strict=False)):
        if len(set(tokens)) > 1:
            return first[:place]
    return first[: min(map(len, prompts))]


def _passage(text: str) -> ScoredMemory:
    return ScoredMemory(Memory("", "", text, "", (), 0.0), 0.0, None, None)


def _names(passages: Sequence[ScoredMemory]) -> tuple[tuple[str, str, int], ...]:
    return tuple((hit.memory.namespace, hit.memory.memory_id, hit.memory.version) for hit in passages)
