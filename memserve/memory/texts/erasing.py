"""What takes memories away: erase, forget by a filter, delete a namespace, purge."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from memserve.domain import ErasedPlace, ForgottenWhere, Memory, MemoryState, NamespaceErasure
from memserve.errors import (
    InvalidField,
    MatchesChanged,
    MemoryNotFound,
    MemserveError,
    NamespaceNotFound,
)
from memserve.memory.texts import histories
from memserve.memory.texts.applied import FlushNotVerified
from memserve.memory.texts.core import Changed, Intent
from memserve.memory.texts.index import MILVUS_ERRORS, OWN_WORK, one_line
from memserve.memory.texts.journal import APPEND_MAX
from memserve.memory.texts.reads import PAGE_MAX, Reads, list_scope, matches
from memserve.memory.texts.records import Record, tenant_key
from memserve.memory.texts.requests import ListQuery, MemoryName
from memserve.memory.texts.rules import NAMESPACES_MAX, check_namespace
from memserve.memory.texts.scrubbing import files_with, trace_of
from memserve.memory.texts.store import ListOrder, Scope
from memserve.memory.texts.writes import Writes
from memserve.turns import on_own_thread

ERASE_TIMEOUT_S = 120.0
REWRITE_TIMEOUT_S = 30.0
FORGET_MAX = 100_000
"""Memories that one filter may forget."""
EXAMPLES = 20
ALL_STATES = tuple(MemoryState.known())
PURGE_EVERY_S = 3600.0
PURGE_MAX = 10_000
"""Memories that one round purges. The others wait for the next one."""
DAY_S = 86_400.0

NOT_REMOVED = "not removed"

Eraser = Callable[[str, Record], Awaitable[ErasedPlace]]
"""Removes what another place has of a tenant's record: the gateway's keys and values, kept answers."""

log = logging.getLogger(__name__)


class Erasing(Writes, Reads):
    """What is erased leaves for good, with its history. What is forgotten can be restored."""

    erasers: list[Eraser]
    folders: Mapping[str, Path]
    """Folders of this machine that an erasure looks through, by what they are."""

    async def erase(self, tenant: str, name: MemoryName, reason: str = "") -> list[ErasedPlace]:
        """Remove a memory with its history, everywhere. It cannot be restored.

        On return the memory is in no search and no read, durably. The report says place by place what was
        removed, and what was not within the time: that is removed later, or must be removed by hand.

        reason: for the log, which has no text of the memory.
        Raises NamespaceNotFound, MemoryNotFound, JournalFull.
        """
        self._check_name(name)
        started_s = time.monotonic()

        async def journal_it() -> Record:
            await self._namespaces.require(tenant, [name.namespace])
            changed = await self._change(
                tenant, self._named(tenant, name), lambda before: None if before is None else Intent(None)
            )
            if changed is None or changed.before is None:
                raise MemoryNotFound(name.memory_id)
            return changed.before

        record = await self._within(self._call_timeout_s, journal_it, writes=True)
        log.info("erased a memory of namespace %s%s", name.namespace, f": {reason}" if reason else "")
        versions = len(record.history.versions)
        scrubbed = await self._scrubbed(tenant, [record], started_s + ERASE_TIMEOUT_S)
        places = [
            ErasedPlace("history", versions, f"{versions} versions"),
            self._index_place(1, scrubbed),
            *scrubbed,
        ]
        for eraser in self.erasers:
            places.append(await _erased_by(eraser, tenant, record))
        return places

    async def forget_where(
        self, tenant: str, query: ListQuery, author: str = "", *, dry_run_token: str = ""
    ) -> ForgottenWhere:
        """Forget what a filter lets through. Without the token of a dry run nothing is forgotten.

        query: its order, limit and page do not count.
        Raises MatchesChanged when the filter matches other memories than in the dry run, and InvalidField
        when it matches more than FORGET_MAX.
        """
        if not query.filter:
            raise InvalidField("filter", "must say which memories; `true` stands for all")
        matched = await self._matching(tenant, query)
        token = _token(tenant, query, matched)
        examples = tuple(record.memory for record in matched[:EXAMPLES])
        if not dry_run_token:
            return ForgottenWhere(len(matched), 0, examples, token)
        if dry_run_token != token:
            raise MatchesChanged(len(matched))
        versions = {record.key: record.memory.version for record in matched}

        def decide(key: str, before: Record | None) -> Intent | None:
            if before is None or before.memory.version != versions[key]:
                return None  # changed since it was matched: it was not meant
            return Intent(replace(before, history=histories.forgotten(before.history, author, self._now_s())))

        forgotten = 0
        for start in range(0, len(matched), APPEND_MAX):
            page = matched[start : start + APPEND_MAX]
            forgotten += len(await self._take_away(tenant, tenant_key(tenant), page, decide))
        return ForgottenWhere(len(matched), forgotten, examples)

    async def delete_namespace(
        self, tenant: str, namespace: str, *, until_s: float | None = None
    ) -> AsyncGenerator[NamespaceErasure, None]:
        """Erase all memories of a namespace, and then the namespace. Yields progress.

        Repeated after a failure it goes on. What is written meanwhile is erased too, or keeps the namespace.
        until_s: leave what was created then or later.
        Raises NamespaceNotFound.
        """
        check_namespace("namespace", namespace)
        await self._within(self._call_timeout_s, partial(self._namespaces.require, tenant, [namespace]))
        owner, erased = tenant_key(tenant), 0
        scope = Scope(owner, (namespace,), frozenset(ALL_STATES), created_until_s=until_s)
        removed: list[Record] = []
        outside: dict[str, ErasedPlace] = {}
        while page := await self._within(self._call_timeout_s, partial(self._some, tenant, scope)):
            gone = await self._take_away(tenant, owner, page, _erase_it)
            erased += len(gone)
            removed += [changed.before.without_vector() for changed in gone if changed.before is not None]
            del removed[:-PAGE_MAX]
            for changed in gone:
                for eraser in self.erasers:
                    if changed.before is not None:
                        merged(outside, await _erased_by(eraser, tenant, changed.before))
            yield NamespaceErasure(erased, await self._records_of(tenant, namespace))
            if not gone:
                break
        places = await self._scrubbed(tenant, removed, time.monotonic() + ERASE_TIMEOUT_S)
        is_gone = await self._journal.drop_namespace(owner, namespace)
        if is_gone:
            self._namespaces.discard(owner, namespace)
        yield NamespaceErasure(
            erased, await self._records_of(tenant, namespace), is_gone,
            (self._index_place(erased, places), *places, *outside.values()),
        )  # fmt: skip

    async def count_until(self, tenant: str, namespace: str, until_s: float) -> int:
        """How many memories of a namespace, in whatever state, were created before a time: at most APPEND_MAX
        are counted. A namespace that is not there has none.
        """
        check_namespace("namespace", namespace)
        scope = Scope(tenant_key(tenant), (namespace,), frozenset(ALL_STATES), created_until_s=until_s)
        try:
            await self._within(self._call_timeout_s, partial(self._namespaces.require, tenant, [namespace]))
        except NamespaceNotFound:
            return 0
        return len(await self._within(self._call_timeout_s, partial(self._some, tenant, scope)))

    async def purge(self, forgotten_s: float) -> int:
        """Erase what was forgotten that long ago, at most PURGE_MAX memories. Returns how many."""
        cutoff_s, purged = self._now_s() - forgotten_s, 0

        def decide(_: str, before: Record | None) -> Intent | None:
            return Intent(None) if before is not None and _is_old(before.memory, cutoff_s) else None

        async for owner, namespaces in self._journal.all_namespaces():
            names = sorted(name for name, records in namespaces.items() if records)
            for start in range(0, len(names), NAMESPACES_MAX):
                scope = Scope(
                    owner, tuple(names[start : start + NAMESPACES_MAX]), frozenset({MemoryState.FORGOTTEN})
                )
                while purged < PURGE_MAX:
                    page = await self._within(self._call_timeout_s, partial(self._some, OWN_WORK, scope))
                    old = [record for record in page if _is_old(record.memory, cutoff_s)]
                    gone = await self._take_away(OWN_WORK, owner, old, decide)
                    purged += len(gone)
                    if len(old) < APPEND_MAX or not gone:
                        break
        if purged:
            log.info("purged %d memories that were forgotten %g days ago", purged, forgotten_s / DAY_S)
        return purged

    async def run_purges(self, forgotten_s: float) -> None:
        """Purge every PURGE_EVERY_S, until cancelled. First finish what an erasure that was killed left."""
        await self._clean_log()
        while True:
            await asyncio.sleep(PURGE_EVERY_S)
            try:
                await self.purge(forgotten_s)
            except (*MILVUS_ERRORS, MemserveError) as error:
                log.warning("forgotten memories are purged later: %s", one_line(error))
            await self._clean_log()

    async def _clean_log(self) -> None:
        """Have erased texts leave the registry's append-only file, where none was written since."""
        try:
            if await self._journal.has_erased_in_log():
                await self._journal.rewrite_log(REWRITE_TIMEOUT_S)
        except MemserveError as error:
            log.warning("the registry's append-only file is written anew later: %s", one_line(error))

    async def _some(self, tenant: str, scope: Scope) -> list[Record]:
        """Some records, those that were written first before the others."""
        self._require_complete()
        return await self._searched.read(
            tenant,
            lambda store: store.page(scope, ListOrder.UPDATED, APPEND_MAX, timeout_s=self._call_timeout_s),
        )

    async def _matching(self, tenant: str, query: ListQuery) -> list[Record]:
        """All that a filter lets through, in the order of ids."""
        query = replace(query, order=ListOrder.MEMORY_ID, descending=False)
        scope, expression = list_scope(tenant, query)
        await self._within(self._call_timeout_s, partial(self._namespaces.require, tenant, scope.namespaces))
        matched: list[Record] = []
        after: tuple[object, str, str] | None = None
        while True:
            page = await self._within(
                self._call_timeout_s, partial(self._page, tenant, scope, query, PAGE_MAX, after)
            )
            for _, current in page:
                if current is not None and matches(current.memory, scope, expression):
                    matched.append(current.without_vector())
            if len(matched) > FORGET_MAX:
                raise InvalidField("filter", f"must match at most {FORGET_MAX} memories")
            if len(page) < PAGE_MAX:
                return matched
            last = page[-1][0].memory
            after = last.memory_id, last.namespace, last.memory_id

    async def _take_away(
        self,
        tenant: str,
        owner: str,
        page: Sequence[Record],
        decide: Callable[[str, Record | None], Intent | None],
    ) -> list[Changed]:
        """Forget or erase a page. Raises the first refusal."""
        if not page:
            return []
        names = {record.key: record.memory.namespace for record in page}
        outcomes = await self._within(
            ERASE_TIMEOUT_S, partial(self._change_many, tenant, owner, names, decide), writes=True
        )
        for outcome in outcomes.values():
            if isinstance(outcome, MemserveError):
                raise outcome
        return [outcome for outcome in outcomes.values() if isinstance(outcome, Changed)]

    async def _records_of(self, tenant: str, namespace: str) -> int:
        try:
            return (await self.namespace_usage(tenant, namespace)).records
        except NamespaceNotFound:
            return 0

    async def _scrubbed(self, tenant: str, records: Sequence[Record], end_s: float) -> list[ErasedPlace]:
        """Take erased texts out of caches, files and logs. end_s: on the monotonic clock."""
        texts = [version.memory.text for record in records for version in record.history.versions]
        dropped = self.embedding.forget(tenant, texts)
        places = [ErasedPlace("embeddings", dropped, "cached vectors")]
        try:
            async with asyncio.timeout(max(0.0, end_s - time.monotonic())):
                await self.settling.settle_now()
        except (*MILVUS_ERRORS, MemserveError, FlushNotVerified) as error:  # TimeoutError is an OSError
            places.append(ErasedPlace("milvus", 0, f"follows later, and its files too: {one_line(error)}"))
        else:
            later = "" if self._index.is_local else "; the server's files follow when it collects garbage"
            places.append(ErasedPlace("milvus", len(records), f"deleted, flushed and compacted{later}"))
            places.append(ErasedPlace("journal", len(records), "its entries have no text any more"))
        why_not = await self._journal.rewrite_log(min(REWRITE_TIMEOUT_S, max(1.0, end_s - time.monotonic())))
        places.append(
            ErasedPlace(
                "registry_log", 0 if why_not else 1, why_not or "the append-only file is written anew"
            )
        )
        return [*places, *await self._remaining(records)]

    def _index_place(self, records: int, scrubbed: Sequence[ErasedPlace]) -> ErasedPlace:
        """A Milvus server is the index: while it does not answer, the journal hides what it still has."""
        follows = any(place.place == "milvus" and not place.removed for place in scrubbed)
        if records and follows and not self._index.is_local:
            return ErasedPlace("index", 0, "no read gives it any more; it leaves Milvus when that answers")
        return ErasedPlace("index", records, "records with their histories, words and vectors")

    async def _remaining(self, records: Sequence[Record]) -> list[ErasedPlace]:
        """What a look through this machine's files still finds.

        The report does not tell whether another memory has the same text, which may be another tenant's, nor
        a file's name, which counts all tenants' writes. The log names the files.
        """
        traces, places = [], []
        for record in records:
            texts = [version.memory.text for version in record.history.versions]
            trace = trace_of(record.key, texts)
            if trace.needles:
                traces.append(trace)
        for name, folder in self.folders.items() if traces else ():
            found = await on_own_thread(partial(files_with, folder, traces))
            if files := (*found.own, *found.others):
                shown = ", ".join(files[:3])
                log.warning("an erased text, or the same text of another memory, is in %s", shown)
            if found.own:
                detail = f"the text still stands in {len(found.own)} files; the gateway's log names them"
            else:
                whole = "the text stands in no file with its memory's key"
                detail = whole if found.is_whole else "too large to look through to its end"
            places.append(ErasedPlace(f"files of {name}", 0, detail))
        return places


def merged(places: dict[str, ErasedPlace], more: ErasedPlace) -> None:
    """Sum up what one place had of several memories. What was not removed is what is told."""
    before = places.get(more.place)
    if before is None:
        places[more.place] = more
        return
    detail = before.detail if before.detail.startswith(NOT_REMOVED) or not more.removed else more.detail
    if more.detail.startswith(NOT_REMOVED):
        detail = more.detail
    pending = before.pending or more.pending
    places[more.place] = ErasedPlace(more.place, before.removed + more.removed, detail, pending)


async def _erased_by(eraser: Eraser, tenant: str, record: Record) -> ErasedPlace:
    try:
        return await eraser(tenant, record)
    except MemserveError as error:
        return ErasedPlace(getattr(eraser, "__name__", "elsewhere"), 0, f"{NOT_REMOVED}: {one_line(error)}")


def _erase_it(_: str, before: Record | None) -> Intent | None:
    return None if before is None else Intent(None)


def _is_old(memory: Memory, cutoff_s: float) -> bool:
    return memory.state is MemoryState.FORGOTTEN and memory.updated_s < cutoff_s


def _token(tenant: str, query: ListQuery, matched: Sequence[Record]) -> str:
    """Of a dry run: the filter, and what it matched in which version."""
    asked = [tenant, sorted(set(query.namespaces)), query.filter]
    told = [asked, [(record.key, record.memory.version) for record in matched]]
    return f"{len(matched)}.{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}"
