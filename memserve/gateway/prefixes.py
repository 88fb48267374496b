"""What `ActivationService` does: looks up, warms, pins, unpins and evicts a prefix.

A prefix's tokens are computed as a request's tokens are, so that both get the same keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from memserve.domain import (
    CacheLayout,
    HeldPrefix,
    Message,
    ModuleVersion,
    Priority,
    Sampling,
    Tenant,
    Warmth,
)
from memserve.domain.kinds import KINDS, origin_of
from memserve.domain.worker_calls import (
    AppliedModule,
    WorkerDied,
    WorkerFailure,
    WorkerFull,
    WorkerLate,
    WorkerRequest,
)
from memserve.errors import DeadlineExceeded, InvalidField, NoWorker, Overloaded, PrefixNotStored, WorkerLost
from memserve.gateway.access.token_quota import TokenQuota
from memserve.gateway.steps.check import RequestCheck
from memserve.gateway.steps.lookup import prompt_block_keys
from memserve.gateway.steps.prompt import PromptFitting
from memserve.gateway.workers.pool import WorkerPool
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.kv.keys import chunk_keys, member
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.prefixes.memory import ActivationMemory

# Tokens that a warm-up prefills in one step. Between two steps it reports its progress, and other requests
# get their turn.
STEP_TOKENS = 2048
# A prefix is stored while it is computed. When the stored part has not grown for this long, a warm-up ends.
STORE_PATIENCE_S = 3.0
POLL_S = 0.05
LOOKUP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A prefix as the workers of one layout name it."""

    layout: CacheLayout
    blocks: list[bytes]
    """[full blocks] keys."""
    chunks: list[bytes]
    """[full chunks] keys."""

    @property
    def members(self) -> list[str]:
        return [member(self.layout.namespace, chunk) for chunk in self.chunks]

    @property
    def chunked_tokens(self) -> int:
        """How many of the prefix's tokens Redis can hold: full chunks only."""
        return len(self.chunks) * self.layout.chunk_tokens


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt."""

    token_ids: list[int]
    module: ModuleVersion | None
    """The module that the KV depends on."""
    laid_out: tuple[LaidOut, ...]
    """The prefix in each layout of the workers that share KV, at least one. The layout of most workers comes
    first."""

    @property
    def main(self) -> LaidOut:
        return self.laid_out[0]

    def of(self, worker: PooledWorker) -> LaidOut | None:
        """The prefix in the worker's layout. None: the layout was not known when this prefix was built."""
        return next((laid_out for laid_out in self.laid_out if laid_out.layout == worker.lease.layout), None)


class Prefixes:
    """Prefixes of any tenant."""

    def __init__(
        self,
        check: RequestCheck,
        fit: PromptFitting,
        modules: ParametricMemory,
        activation: ActivationMemory,
        pool: WorkerPool,
        tokens: TokenQuota,
    ) -> None:
        self._check = check
        self._fit = fit
        self._modules = modules
        self._activation = activation
        self._pool = pool
        self._tokens = tokens

    async def prefix(self, tenant: Tenant, messages: Sequence[Message], model: str, module: str) -> Prefix:
        """The prefix that these messages begin, with the module that the reference names.

        Raises InvalidField and ModelNotFound, as `ParametricMemory.heaviest` for the module, and NoWorker
        while no worker that shares KV is known.
        """
        self._check(model, messages, field="prefix.messages")
        version = await self._modules.heaviest("prefix.module", tenant.name, module) if module else None
        if version is not None and not KINDS[version.kind].changes_kv:
            raise InvalidField("prefix.module", f"a {version.kind} does not change the KV; leave it out")
        if version is not None and KINDS[version.kind].is_prefix:
            rule = f"a {version.kind} stands before the prompt, and what follows it is not warmed ahead"
            raise InvalidField("prefix.module", rule)
        token_ids = await self._fit.encode(messages, tenant.name)
        if len(token_ids) >= self._fit.context_tokens:
            raise InvalidField(
                "prefix.messages",
                f"make {len(token_ids)} tokens; the model takes {self._fit.context_tokens - 1}",
            )

        return self.of_tokens(tenant, token_ids, version)

    def of_tokens(self, tenant: Tenant, token_ids: list[int], module: ModuleVersion | None) -> Prefix:
        """The prefix that these tokens are. module: the one that the KV depends on.

        Raises NoWorker while no worker that shares KV is known.
        """

        origin = origin_of([(module.digest, module.kind)] if module else [])

        def laid_out(layout: CacheLayout) -> LaidOut:
            blocks = prompt_block_keys(token_ids, layout, tenant, origin)
            return LaidOut(layout, blocks, chunk_keys(blocks, layout.blocks_per_chunk))

        layouts = self._pool.layouts(sharing=True)
        if not layouts:
            raise NoWorker("none that shares KV has registered")
        return Prefix(token_ids, module, tuple(map(laid_out, layouts)))

    async def stored_tokens(self, tenant: Tenant, laid_out: LaidOut) -> int | None:
        """How many leading tokens are in Redis. None: Redis does not answer."""
        chunks = await self._activation.present(tenant.name, laid_out.members)
        return None if chunks is None else chunks * laid_out.layout.chunk_tokens

    async def held(self, prefix: Prefix) -> list[HeldPrefix]:
        """What each ready worker has of the prefix in its own memory, by worker id.

        A worker that does not answer is left out.
        """

        async def ask(worker: PooledWorker) -> HeldPrefix | None:
            laid_out = prefix.of(worker)
            if laid_out is None:
                return HeldPrefix(worker.lease.worker_id, 0, 0)
            try:
                with worker.calling() as calls:
                    blocks = await calls.lookup_blocks(laid_out.blocks, LOOKUP_TIMEOUT_S)
            except WorkerFailure:
                return None
            tokens = laid_out.layout.block_tokens
            return HeldPrefix(worker.lease.worker_id, blocks.device * tokens, blocks.held * tokens)

        answers = await asyncio.gather(*map(ask, self._pool.ready(time.monotonic())))
        return sorted((held for held in answers if held is not None), key=lambda held: held.worker_id)

    async def pin(self, tenant: Tenant, prefix: Prefix, seconds: float) -> tuple[int, int]:
        """Pin the prefix in every layout in which all of it is in Redis.

        Returns the tokens pinned, of the layout with the most, and the tenant's pinned bytes.
        Raises PrefixNotStored when no layout is complete, PinLimitReached and CacheUnavailable.
        """
        pinned_tokens = pinned_bytes = 0
        missing: PrefixNotStored | None = None
        for laid_out in prefix.laid_out:
            try:
                usage = await self._activation.pin(tenant.name, laid_out.members, seconds)
            except PrefixNotStored as error:
                missing = missing or error
            else:
                pinned_tokens, pinned_bytes = max(pinned_tokens, laid_out.chunked_tokens), usage.pinned_bytes
        if missing is not None and not pinned_tokens:
            raise missing
        return pinned_tokens, pinned_bytes

    async def unpin(self, tenant: Tenant, prefix: Prefix) -> int:
        """Unpin the prefix in every layout.

        Returns the tokens that were pinned, of the layout with the most.
        """
        unpinned = [
            await self._activation.unpin(tenant.name, laid_out.members) * laid_out.layout.chunk_tokens
            for laid_out in prefix.laid_out
        ]
        return max(unpinned)

    async def evict(self, tenant: Tenant, prefix: Prefix) -> tuple[int, int]:
        """Remove the prefix from Redis, in every layout.

        Returns how many chunks of all layouts were removed, and how many stay because they are pinned.
        """
        evicted = [
            await self._activation.evict_prefix(tenant.name, laid_out.members) for laid_out in prefix.laid_out
        ]
        return sum(removed for removed, _ in evicted), sum(pinned for _, pinned in evicted)

    async def warm(
        self, tenant: Tenant, prefix: Prefix, worker_id: str, deadline_s: float | None
    ) -> AsyncGenerator[Warmth, None]:
        """Compute the prefix on one worker and wait until Redis has it.

        Ends early when the stored part stops growing. Only the last Warmth is `done`.

        worker_id: empty for the least loaded worker that the tenant may use.
        deadline_s: on the monotonic clock, or None. It holds for the computing only.
        Raises NoWorker, WorkerLost, DeadlineExceeded, Overloaded and QuotaExceeded.
        """
        worker, laid_out = self._worker(tenant, worker_id, prefix)
        tokens, stored = len(prefix.token_ids), 0
        for start in range(0, tokens, STEP_TOKENS):
            end = min(start + STEP_TOKENS, tokens)
            async with self._tokens.answer(tenant.name, end - start, 1) as spent:
                await self._compute(worker, tenant, prefix, start, end, deadline_s)
                spent.tokens = end - start + 1
            stored = max(stored, await self.stored_tokens(tenant, laid_out) or 0)
            yield Warmth(worker.lease.worker_id, tokens, end, stored)
        wanted = laid_out.chunked_tokens
        last_growth_s = time.monotonic()
        while stored < wanted and time.monotonic() - last_growth_s < STORE_PATIENCE_S:
            await asyncio.sleep(POLL_S)
            now_stored = await self.stored_tokens(tenant, laid_out) or 0
            if now_stored > stored:
                stored, last_growth_s = now_stored, time.monotonic()
                yield Warmth(worker.lease.worker_id, tokens, tokens, stored)
        yield Warmth(worker.lease.worker_id, tokens, tokens, stored, done=True)

    def _worker(self, tenant: Tenant, worker_id: str, prefix: Prefix) -> tuple[PooledWorker, LaidOut]:
        """The worker that computes the prefix, and the prefix in that worker's layout.

        A worker of the main layout is preferred, then the least loaded worker. Raises NoWorker.
        """
        pool, now_s = self._pool, time.monotonic()
        ready = [
            (worker, laid_out)
            for worker in (pool.ready(now_s) if worker_id else pool.open_to(tenant.name, now_s))
            if worker.lease.shares_kv
            and worker_id in ("", worker.lease.worker_id)
            and (laid_out := prefix.of(worker)) is not None
        ]
        if not ready:
            raise NoWorker(
                f"worker {worker_id} is not ready, or shares no KV"
                if worker_id
                else "none is ready that shares KV"
            )
        return min(
            ready,
            key=lambda candidate: (candidate[1] is not prefix.main, candidate[0].load),
        )

    async def _compute(
        self,
        worker: PooledWorker,
        tenant: Tenant,
        prefix: Prefix,
        start: int,
        end: int,
        deadline_s: float | None,
    ) -> None:
        """Have the worker compute the tokens up to `end`.

        start: how many leading tokens are computed already.
        """
        now_s = time.monotonic()
        if deadline_s is not None and deadline_s <= now_s:
            raise DeadlineExceeded
        module = prefix.module
        request = WorkerRequest(
            request_id=uuid.uuid4().hex,
            token_ids=prefix.token_ids[:end],
            tenant=tenant.name,
            cache_salt=tenant.cache_salt,
            sampling=Sampling(max_tokens=1),
            modules=(AppliedModule(module.digest, module.kind),) if module else (),
            store_whole_prompt=True,
            priority=Priority.BACKGROUND,
            cached_tokens=start,
        )
        timeout_s = None if deadline_s is None else deadline_s - now_s
        try:
            sent = worker.own_question(end - start)
            with worker.serving(tenant.name, request.request_id, sent), worker.calling() as calls:
                async with contextlib.aclosing(calls.generate(request, timeout_s)) as parts:
                    async for _ in parts:
                        pass
        except WorkerLate:
            raise DeadlineExceeded from None
        except WorkerDied as error:
            raise WorkerLost(error.worker_id) from None
        except WorkerFull as error:
            raise Overloaded(error.reason, error.detail, error.retry_after_s) from None
        except WorkerFailure as error:
            raise NoWorker(error.detail) from None
