"""What all calls of the vector memory share: its parts, and the change of one memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from memserve.domain import MemoryState
from memserve.errors import (
    EmbedderChanged,
    MemoryNotFound,
    MemserveError,
    RegistryUnavailable,
    VectorStoreUnavailable,
)
from memserve.memory.texts.encoders.cached import CachedEmbedding
from memserve.memory.texts.gate import Gate
from memserve.memory.texts.index import MILVUS_ERRORS, VectorIndex, one_line
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Draft, Look, Write, erasure, growth, pinned_bytes, put
from memserve.memory.texts.records import Record, memory_key
from memserve.memory.texts.relating import Relate
from memserve.memory.texts.searched import LocalStore, Searched
from memserve.memory.texts.settling import Settling
from memserve.memory.texts.writing import JournalWriter, KnownNamespaces

REBUILDING = "its local index is being built again; searches and reads by id work meanwhile"
DRAFTS_AT_ONCE = 8
"""Of a batch, made before other calls have a turn on the event loop."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a vector memory is made of."""

    index: VectorIndex
    local: LocalStore | None
    """None: Milvus itself is searched."""
    journal: Journal
    settling: Settling
    embedding: CachedEmbedding
    now_s: Callable[[], float]
    relate: Relate | None
    """Finds duplicates and contradictions when a memory is written. None: nothing looks for them."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a change makes of a memory."""

    record: Record | None
    """With its vector. None: it is erased."""
    within_quotas: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """A record before and after a change. None: there was none, or it is erased."""

    before: Record | None
    after: Record | None


Decide = Callable[[Record | None], Intent | None]
"""From the record as it is, with its vector, or None. Returns None to leave it; may raise the refusal."""


class Core:
    """The parts of a vector memory, and the change of one memory. It belongs to one event loop."""

    def __init__(self, parts: Parts) -> None:
        self.settling = parts.settling
        self.embedding = parts.embedding
        self.reconnect = parts.index.reconnect
        self._index = parts.index
        self._local = parts.local
        self._searched: Searched = parts.local or parts.index
        self._journal = parts.journal
        self._now_s = parts.now_s
        self._relate = parts.relate
        self._call_timeout_s = parts.index.call_timeout_s
        self._closed = False
        # Why this gateway's model does not embed the memories any more.
        self._outdated: EmbedderChanged | None = None
        # Calls that use vectors, and of them those that write. Another model takes over when none is inside.
        self._calls = Gate("calls")
        self._writing = Gate("writing")
        self._namespaces = KnownNamespaces(parts.journal, parts.settling)
        self._writer = JournalWriter(
            parts.journal, parts.settling, self._namespaces, apply_timeout_s=parts.index.call_timeout_s / 2
        )

    async def embed(self, tenant: str, text: str, *, query: bool) -> npt.NDArray[np.float32]:
        """[dim] of unit length. Off the event loop, where tenants take turns."""
        self._require_open()
        vectors = await self.embedding.embed(tenant, [text], query=query)
        row: npt.NDArray[np.float32] = vectors[0]
        return row

    async def _change(self, tenant: str, memory: tuple[str, str, str], decide: Decide) -> Changed | None:
        """Change one memory by compare-and-set: `decide` is asked again when the memory was written since.

        tenant: takes the turn. memory: its key, its tenant's key and its namespace.
        Returns None where `decide` left it. Raises what `decide` raises, JournalFull and QuotaReached.
        """
        key, owner, namespace = memory
        outcome = (
            await self._change_many(tenant, owner, {key: namespace}, lambda _, record: decide(record))
        )[key]
        if isinstance(outcome, MemserveError):
            raise outcome
        return outcome

    async def _change_many(
        self,
        tenant: str,
        owner: str,
        namespaces: Mapping[str, str],
        decide: Callable[[str, Record | None], Intent | None],
    ) -> dict[str, Changed | MemserveError | None]:
        """As `_change`, for up to APPEND_MAX memories of one tenant, in one sync of the registry's disk.

        namespaces: by the memories' keys. owner: the tenant's key.
        Returns for each its change or its refusal; None where `decide` left it.
        """
        done: dict[str, Changed | MemserveError | None] = {}
        sent: dict[str, Changed] = {}
        left = dict(namespaces)
        while left:
            looks = await self._journal.look_many(left, owner)
            twice = {
                key: sent[look.pending.author]
                for key, look in looks.items()
                if look.pending is not None and look.pending.author in sent
            }
            if twice:
                # These writes were sent twice, because the answer to the first was lost.
                done |= twice
                self.settling.be_unsure()
                await self.settling.be_sure()
            looks = {key: look for key, look in looks.items() if key not in twice}
            known = await self._known(tenant, looks)
            drafts: dict[str, Draft] = {}
            for key, look in looks.items():
                before = known.get(key)
                try:
                    intent = decide(key, before)
                except MemserveError as error:
                    done[key] = error
                    continue
                if intent is None:
                    done[key] = None
                    continue
                if len(drafts) % DRAFTS_AT_ONCE == DRAFTS_AT_ONCE - 1:
                    await asyncio.sleep(0)
                drafts[key] = draft_of(key, owner, before, intent, look)
                sent[drafts[key].write.author] = Changed(before, intent.record)
            if drafts:
                last_sequence = min(looks[key].last_sequence for key in drafts)
                outcomes = await self._writer.write(tenant, list(drafts.values()), last_sequence)
                for (key, draft), outcome in zip(drafts.items(), outcomes, strict=True):
                    if isinstance(outcome, MemserveError):
                        done[key] = outcome
                    elif outcome is not None:
                        done[key] = sent[draft.write.author]
            left = {key: name for key, name in left.items() if key not in done}
        return done

    async def _known(self, tenant: str, looks: Mapping[str, Look]) -> dict[str, Record]:
        """The records as the journal has them, or else as the store has them, with their vectors."""
        if any(look.pending is not None for look in looks.values()):
            await self.settling.be_sure()
        known = {
            key: look.pending.record
            for key, look in looks.items()
            if look.pending is not None and look.pending.record is not None
        }
        return known | await self._read_many(
            tenant, [key for key, look in looks.items() if look.pending is None], with_vectors=True
        )

    async def _read_many(
        self, tenant: str, keys: Sequence[str], *, with_vectors: bool = False
    ) -> dict[str, Record]:
        """The records that the stores have. At most a thousand keys."""
        if not keys:
            return {}

        def read(keys: Sequence[str]) -> Callable[..., dict[str, Record]]:
            return lambda store: store.get_many(
                keys, with_vectors=with_vectors, timeout_s=self._call_timeout_s
            )

        if self._local is None:
            return await self._searched.read(tenant, read(keys))
        try:
            found = await self._local.read(tenant, read(keys))
        except OSError:
            found = {}
            if not self.settling.needs_mending:
                raise
        # Until the local index is complete, Milvus Lite has what it lacks.
        if self.settling.needs_mending and (missing := [key for key in keys if key not in found]):
            found |= await self._index.read(tenant, read(missing))
        return found

    async def _current(self, tenant: str, namespace: str, memory_id: str) -> Record:
        """Also of a forgotten memory. Raises NamespaceNotFound, MemoryNotFound."""
        await self._namespaces.require(tenant, [namespace])
        key = memory_key(tenant, namespace, memory_id)
        # The journal first: a write that has left the journal is in the store.
        pending = await self._pending_of([key])
        record = pending[key].record if key in pending else (await self._read_many(tenant, [key])).get(key)
        if record is None:
            raise MemoryNotFound(memory_id)
        return record

    async def _pending_of(self, keys: Sequence[str]) -> dict[str, Write]:
        """The writes that the searched store may not have yet, by key.

        Milvus Lite has one gateway, which knows all of them. A Milvus server has several gateways, and only
        the journal knows the writes of all.
        """
        unapplied = self.settling.unapplied
        own = {key: unapplied[key] for key in keys if key in unapplied}
        if not self._index.is_local:
            with contextlib.suppress(RegistryUnavailable):
                return own | await self._journal.pending_of(keys)
        return own

    async def _within(self, timeout_s: float, work: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        self._require_open()
        try:
            async with asyncio.timeout(timeout_s), contextlib.AsyncExitStack() as passed:
                if writes:
                    await passed.enter_async_context(self._writing.inside())
                await passed.enter_async_context(self._calls.inside())
                return await work()
        except EmbedderChanged as changed:
            self._outdated = changed
            raise
        except TimeoutError as error:
            raise VectorStoreUnavailable(f"no answer within {timeout_s:g} s") from error
        except MILVUS_ERRORS as error:
            if self._local is None:
                await self._require_model()
                self._index.prepare_again()
            raise VectorStoreUnavailable(one_line(error)) from error

    async def _require_model(self) -> None:
        """Raises EmbedderChanged when another gateway has switched to another model."""
        try:
            await self._journal.pending_of([])
        except EmbedderChanged as changed:
            self._outdated = changed
            raise
        except RegistryUnavailable:
            return

    def _require_open(self) -> None:
        if self._closed:
            raise VectorStoreUnavailable("it is closed")
        if self._outdated is not None:
            raise self._outdated

    def _require_complete(self) -> None:
        """For what has to see all memories. Raises VectorStoreUnavailable while the local index is built."""
        if self.settling.needs_mending:
            raise VectorStoreUnavailable(REBUILDING)


def draft_of(key: str, owner: str, before: Record | None, intent: Intent, look: Look) -> Draft:
    record = intent.record
    if record is None:
        assert before is not None
        write = erasure(key, owner, before.memory)
    else:
        write = put(record)
    changes_pinned = bool(pinned_bytes(before) or pinned_bytes(record))
    return Draft(write, look.seen_sequence, growth(before, record), intent.within_quotas, changes_pinned)


def require_live(record: Record | None, memory_id: str) -> Record:
    """Raises MemoryNotFound for one that is not there, or forgotten."""
    if record is None or record.memory.state is MemoryState.FORGOTTEN:
        raise MemoryNotFound(memory_id)
    return record
