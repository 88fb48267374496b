"""What `ActivationService` does: a prefix is looked up, warmed, pinned, freed. Its tokens are made as a
request's are.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

import grpc

from memserve.domain import CacheLayout, HeldPrefix, Message, ModuleKind, ModuleVersion, Tenant, Warmth
from memserve.errors import DeadlineExceeded, InvalidField, NoWorker, PrefixNotStored, WorkerLost
from memserve.gateway.pipeline import LOST, Pipeline, prompt_block_keys
from memserve.gateway.workers.pool import PooledWorker
from memserve.kv.keys import chunk_keys, member
from memserve.pb.worker.v1 import worker_pb2 as worker_pb
from memserve.policy.recall.prompt import assemble_messages

# Prefilled at a time: progress is told between, and other requests get their turn.
STEP_TOKENS = 2048
# A prefix is stored while it is computed; what has not come to Redis so long after the last growth will not.
STORE_PATIENCE_S = 3.0
POLL_S = 0.05
LOOKUP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A prefix as the workers of one layout name it. blocks: [full blocks] keys. chunks: [full chunks]
    keys.
    """

    layout: CacheLayout
    blocks: list[bytes]
    chunks: list[bytes]

    @property
    def members(self) -> list[str]:
        return [member(self.layout.namespace, chunk) for chunk in self.chunks]

    @property
    def chunked_tokens(self) -> int:
        """Its tokens that Redis can hold: full chunks only."""
        return len(self.chunks) * self.layout.chunk_tokens


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt's beginning. laid_out: for each layout of the workers that share KV, that of most workers
    first; at least one.
    """

    token_ids: list[int]
    module: ModuleVersion | None
    laid_out: tuple[LaidOut, ...]

    @property
    def main(self) -> LaidOut:
        return self.laid_out[0]

    def of(self, worker: PooledWorker) -> LaidOut | None:
        """None for a worker whose layout was not known when the prefix was made."""
        return next((laid_out for laid_out in self.laid_out if laid_out.layout == worker.lease.layout), None)


class Prefixes:
    """Prefixes of any tenant."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def prefix(self, tenant: Tenant, messages: Sequence[Message], model: str, module: str) -> Prefix:
        """Raises InvalidField, ModelNotFound, ModuleNotFound, and NoWorker before the first worker has said
        how it lays KV out.
        """
        pipeline = self._pipeline
        pipeline.check(model, messages, field="prefix.messages")
        found = await pipeline.modules.heaviest("prefix.module", tenant.name, module) if module else None
        if found is not None and found.kind is not ModuleKind.LORA:
            raise InvalidField("prefix.module", f"a {found.kind} does not change the KV; leave it out")
        token_ids = await pipeline.tokenizing.run(
            tenant.name, partial(pipeline.tokenizer.encode, assemble_messages(messages, []))
        )
        if len(token_ids) >= pipeline.model.max_context_tokens:
            raise InvalidField(
                "prefix.messages",
                f"make {len(token_ids)} tokens; the model takes {pipeline.model.max_context_tokens - 1}",
            )

        def laid_out(layout: CacheLayout) -> LaidOut:
            blocks = prompt_block_keys(token_ids, layout, tenant, found)
            return LaidOut(layout, blocks, chunk_keys(blocks, layout.blocks_per_chunk))

        layouts = pipeline.pool.layouts(sharing=True)
        if not layouts:
            raise NoWorker("none that shares KV has registered")
        return Prefix(token_ids, found, tuple(map(laid_out, layouts)))

    async def stored_tokens(self, tenant: Tenant, laid_out: LaidOut) -> int | None:
        """Leading tokens in Redis; None when it does not answer."""
        chunks = await self._pipeline.activation.present(tenant.name, laid_out.members)
        return None if chunks is None else chunks * laid_out.layout.chunk_tokens

    async def held(self, prefix: Prefix) -> list[HeldPrefix]:
        """What each worker that answers has in its own memory."""

        async def ask(worker: PooledWorker) -> HeldPrefix | None:
            laid_out = prefix.of(worker)
            if laid_out is None:
                return HeldPrefix(worker.lease.worker_id, 0, 0)
            try:
                answer = await worker.stub.LookupBlocks(
                    worker_pb.LookupBlocksRequest(keys=laid_out.blocks), timeout=LOOKUP_TIMEOUT_S
                )
            except grpc.aio.AioRpcError:
                return None
            tokens = laid_out.layout.block_tokens
            return HeldPrefix(
                worker.lease.worker_id, answer.device_blocks * tokens, answer.held_blocks * tokens
            )

        answers = await asyncio.gather(
            *(ask(worker) for worker in self._pipeline.pool.ready(time.monotonic()))
        )
        return sorted((held for held in answers if held is not None), key=lambda held: held.worker_id)

    async def pin(self, tenant: Tenant, prefix: Prefix, seconds: float) -> tuple[int, int]:
        """Pin it in every layout in which all of it is in Redis. Returns the tokens pinned (of the longest)
        and the tenant's pinned bytes.

        Raises PrefixNotStored when that is none, PinLimitReached and CacheUnavailable.
        """
        pinned_tokens = pinned_bytes = 0
        missing: PrefixNotStored | None = None
        for laid_out in prefix.laid_out:
            try:
                usage = await self._pipeline.activation.pin(tenant.name, laid_out.members, seconds)
            except PrefixNotStored as error:
                missing = missing or error
            else:
                pinned_tokens, pinned_bytes = max(pinned_tokens, laid_out.chunked_tokens), usage.pinned_bytes
        if missing is not None and not pinned_tokens:
            raise missing
        return pinned_tokens, pinned_bytes

    async def unpin(self, tenant: Tenant, prefix: Prefix) -> int:
        """Returns the tokens that were pinned, of the layout with the most."""
        unpinned = [
            await self._pipeline.activation.unpin(tenant.name, laid_out.members)
            * laid_out.layout.chunk_tokens
            for laid_out in prefix.laid_out
        ]
        return max(unpinned)

    async def evict(self, tenant: Tenant, prefix: Prefix) -> tuple[int, int]:
        """Returns how many chunks were removed, of all layouts, and how many stay because they are pinned."""
        evicted = [
            await self._pipeline.activation.evict_prefix(tenant.name, laid_out.members)
            for laid_out in prefix.laid_out
        ]
        return sum(removed for removed, _ in evicted), sum(pinned for _, pinned in evicted)

    async def warm(
        self, tenant: Tenant, prefix: Prefix, worker_id: str, deadline_s: float | None
    ) -> AsyncGenerator[Warmth, None]:
        """Compute the prefix on one worker and wait until Redis has it. Ends early when it comes no further:
        the last Warmth is done.

        deadline_s: on the monotonic clock, or None.
        Raises NoWorker, WorkerLost, DeadlineExceeded.
        """
        worker, laid_out = self._worker(tenant, worker_id, prefix)
        tokens, stored = len(prefix.token_ids), 0
        for start in range(0, tokens, STEP_TOKENS):
            end = min(start + STEP_TOKENS, tokens)
            await self._compute(worker, tenant, prefix, start, end, deadline_s)
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
        """The worker that computes it, and the prefix in its layout: of the main layout, unless another is
        asked for or all there is.
        """
        pool, now_s = self._pipeline.pool, time.monotonic()
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
            key=lambda each: (each[1] is not prefix.main, each[0].pending_prefill_tokens, each[0].running),
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
        """Compute the tokens from `start`, which is computed, to `end`."""
        request_id = uuid.uuid4().hex
        now_s = time.monotonic()
        if deadline_s is not None and deadline_s <= now_s:
            raise DeadlineExceeded
        async with self._pipeline.pool.place(tenant.name):
            with worker.serving(tenant.name, request_id, end - start):
                call = worker.stub.Generate(
                    worker_pb.GenerateRequest(
                        request_id=request_id,
                        token_ids=prefix.token_ids[:end],
                        cache_salt=tenant.cache_salt,
                        module_digest=prefix.module.digest if prefix.module else "",
                        max_tokens=1,
                        top_p=1.0,
                        tenant=tenant.name,
                        keep=True,
                    ),
                    timeout=None if deadline_s is None else deadline_s - now_s,
                )
                try:
                    async for _ in call:
                        pass
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                        raise DeadlineExceeded from None
                    if error.code() in LOST:
                        self._pipeline.pool.lost(worker)
                        raise WorkerLost(worker.lease.worker_id) from None
                    raise NoWorker(error.details() or error.code().name) from None
                finally:
                    call.cancel()
