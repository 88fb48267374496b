"""Export and import: memories with their histories as lines that read back exactly."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from memserve.domain import LinkKind, Memory, MemoryAction, MemoryHistory, MemoryState, NewMemory
from memserve.errors import InvalidField, MemoryConflict, MemserveError
from memserve.memory.texts.batches import Batches
from memserve.memory.texts.core import Changed, Intent
from memserve.memory.texts.erasing import ALL_STATES
from memserve.memory.texts.grouping import grouped
from memserve.memory.texts.journal import APPEND_MAX
from memserve.memory.texts.reads import PAGE_MAX, Reads, list_scope
from memserve.memory.texts.records import (
    RECORD_MAX_BYTES,
    VERSIONS_MAX,
    Record,
    decode_history,
    encode_history,
    memory_key,
    tenant_key,
)
from memserve.memory.texts.requests import CHANGEABLE, LineOutcome, ListQuery
from memserve.memory.texts.rules import (
    NAMESPACES_MAX,
    TIME_MAX_S,
    check_author,
    check_memory_id,
    check_namespace,
    checked_new,
    have_same_content,
)
from memserve.memory.texts.store import ListOrder

FORMAT = 1
"""Of the lines. A header with another one is refused."""
LINE_MAX_BYTES = 4 * RECORD_MAX_BYTES

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A record that a line has, without its vector."""

    index: int
    key: str
    history: MemoryHistory


@dataclass
class _Importing:
    """How far an import is."""

    tenant: str
    index: int = 0
    """Of the next line."""
    memories: int = 0
    is_refused: bool = False
    """The first line is no header, so nothing is imported."""
    digest: Any = field(default_factory=hashlib.sha256)

    def take(
        self, lines: Sequence[Mapping[str, Any] | MemserveError]
    ) -> tuple[list[_Wanted], dict[int, LineOutcome]]:
        """The records that the next lines have, and what is told of the other lines."""
        chunk, told = list[_Wanted](), dict[int, LineOutcome]()
        for line in lines:
            try:
                wanted = self._read(line)
                if wanted is None:
                    told[self.index] = LineOutcome(self.index)
                else:
                    chunk.append(wanted)
            except MemserveError as error:
                told[self.index] = LineOutcome(self.index, error=error)
                if self.index == 0:
                    self.is_refused = True
                    break
            self.index += 1
        return chunk, told

    def _read(self, line: Mapping[str, Any] | MemserveError) -> _Wanted | None:
        """None: of a header or a trailer."""
        if isinstance(line, MemserveError):
            raise line
        if self.index == 0:
            _check_header(line)
            return None
        if "memserve_export_end" in line:
            _check_end(line, self.memories, self.digest.hexdigest())
            return None
        self.digest.update(_canonical(line))
        self.memories += 1
        return _wanted(self.tenant, self.index, line)


class Exchange(Batches, Reads):
    """A header, a line for each memory, and a trailer with their number and digest.

    A line has the whole history. Vectors are left out: they are made again by the model of the store that
    imports.
    """

    async def export(self, tenant: str, namespaces: Sequence[str]) -> AsyncGenerator[Line, None]:
        """The tenant's memories of these namespaces, also superseded and forgotten ones, as JSON has them.

        What is written meanwhile may be in it or not. Raises NamespaceNotFound, and VectorStoreUnavailable
        while the local index is built again.
        """
        names = tuple(dict.fromkeys(namespaces))
        for name in names:
            check_namespace("namespaces", name)
        await self._within(self._call_timeout_s, partial(self._namespaces.require, tenant, names))
        usages = {usage.namespace: usage.records for usage in (await self.usage(tenant)).namespaces}
        yield {
            "memserve_export": FORMAT,
            "embedder": self.embedding.embedder.name,
            "namespaces": {name: usages.get(name, 0) for name in names},
        }
        digest, count = hashlib.sha256(), 0
        for start in range(0, len(names), NAMESPACES_MAX):
            async with aclosing(self._lines(tenant, names[start : start + NAMESPACES_MAX])) as lines:
                async for line in lines:
                    digest.update(_canonical(line))
                    count += 1
                    yield line
        yield {"memserve_export_end": FORMAT, "memories": count, "sha256": digest.hexdigest()}

    async def _lines(self, tenant: str, namespaces: tuple[str, ...]) -> AsyncGenerator[Line, None]:
        """Of all memories of at most NAMESPACES_MAX namespaces, by id."""
        query = ListQuery(namespaces, order=ListOrder.MEMORY_ID, states=ALL_STATES)
        scope, _ = list_scope(tenant, query)
        after: tuple[object, str, str] | None = None
        while True:
            page = await self._within(
                self._call_timeout_s, partial(self._page, tenant, scope, query, PAGE_MAX, after)
            )
            for _, record in page:
                if record is not None:
                    yield {"memory": json.loads(encode_history(record.history))}
            if len(page) < PAGE_MAX:
                return
            last = page[-1][0].memory
            after = last.memory_id, last.namespace, last.memory_id

    async def import_lines(
        self, tenant: str, lines: AsyncIterable[Mapping[str, Any] | MemserveError]
    ) -> AsyncGenerator[LineOutcome, None]:
        """Bring in the lines of an export. Yields what became of each, in order. A refusal among them is told
        in its place.

        Ids, versions, histories and times are kept. Importing again changes nothing. A memory that is there
        with another history is a conflict, and stays as it is.

        The first line is the header; without it nothing is imported. The last one says whether all lines
        came as they were written.
        """
        state = _Importing(tenant)
        async with contextlib.aclosing(grouped(lines, APPEND_MAX)) as groups:
            async for group in groups:
                chunk, told = state.take(group)
                for outcome in await self._import_chunk(tenant, chunk, told):
                    yield outcome
                if state.is_refused:
                    return

    async def _import_chunk(
        self, tenant: str, chunk: Sequence[_Wanted], told: dict[int, LineOutcome]
    ) -> list[LineOutcome]:
        wanted = {item.key: item for item in chunk}
        for item in chunk:
            if wanted[item.key] is not item:
                conflict = InvalidField("memory", "is in the lines twice")
                told[item.index] = LineOutcome(item.index, error=conflict)
        if wanted:
            try:
                told |= await self._within(
                    self._call_timeout_s * len(wanted) ** 0.5,
                    partial(self._import, tenant, wanted),
                    writes=True,
                )
            except MemserveError as error:
                told |= {item.index: LineOutcome(item.index, error=error) for item in wanted.values()}
        return [told[index] for index in sorted(told)]

    async def _import(self, tenant: str, wanted: Mapping[str, _Wanted]) -> dict[int, LineOutcome]:
        texts = [item.history.current.text for item in wanted.values()]
        vectors = dict(zip(wanted, await self.embedding.embed(tenant, texts, query=False), strict=True))
        owner = tenant_key(tenant)

        def decide(key: str, before: Record | None) -> Intent | None:
            history = wanted[key].history
            if before is None:
                return Intent(Record(key, owner, history, vectors[key]), True)
            if before.history == history:
                return None
            raise MemoryConflict(history.current.memory_id)

        namespaces = {key: item.history.current.namespace for key, item in wanted.items()}
        changed = await self._change_many(tenant, owner, namespaces, decide)
        return {item.index: _told(item.index, changed[key]) for key, item in wanted.items()}


def _told(index: int, changed: Changed | MemserveError | None) -> LineOutcome:
    if isinstance(changed, MemserveError):
        return LineOutcome(index, error=changed)
    return LineOutcome(index, created=changed is not None)


def _canonical(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode()


def _check_header(line: Mapping[str, Any]) -> None:
    if line.get("memserve_export") != FORMAT:
        raise InvalidField("header", f"the first line must be the header of an export of format {FORMAT}")


def _check_end(line: Mapping[str, Any], count: int, digest: str) -> None:
    if line.get("memories") != count or line.get("sha256") != digest:
        raise InvalidField(
            "trailer",
            f"the export has {line.get('memories')} memories, and {count} came, or some are changed",
        )


def _wanted(tenant: str, index: int, line: Mapping[str, Any]) -> _Wanted:
    """Raises InvalidField."""
    encoded = json.dumps(line.get("memory"))
    if len(encoded) > LINE_MAX_BYTES:
        raise InvalidField("memory", f"must be at most {LINE_MAX_BYTES} bytes")
    try:
        history = decode_history(encoded)
        versions = [version.memory for version in history.versions]
        first = versions[0]
        check_namespace("namespace", first.namespace)
        check_memory_id(first.memory_id)
        _check_history(history, versions)
        for memory in versions:
            _check_version(memory)
    except MemserveError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise InvalidField("memory", f"is no memory of an export ({type(error).__name__})") from None
    return _Wanted(index, memory_key(tenant, *first.name), history)


def _check_history(history: MemoryHistory, versions: Sequence[Memory]) -> None:
    first = versions[0]
    if len(versions) > VERSIONS_MAX:
        raise InvalidField("memory", f"must have at most {VERSIONS_MAX} versions")
    if type(history.dropped) is not int or history.dropped != first.version - 1:
        raise InvalidField("memory", "must have as many dropped versions as come before its first one")
    if any(version.action not in _ACTIONS for version in history.versions):
        raise InvalidField("memory", f"action must be one of {', '.join(_ACTIONS)}")
    before = replace(first, version=first.version - 1, updated_s=-TIME_MAX_S)
    for memory in versions:
        same = (memory.namespace, memory.memory_id, memory.created_s) == (
            first.namespace, first.memory_id, first.created_s
        )  # fmt: skip
        if not same or memory.version != before.version + 1 or memory.updated_s < before.updated_s:
            raise InvalidField("memory", "versions must be of one memory, one after the other")
        before = memory


def _check_version(memory: Memory) -> None:
    """A version must be what a write could have made of it."""
    if memory.state not in MemoryState.known():
        raise InvalidField("state", f"must be one of {', '.join(MemoryState.known())}")
    check_author(memory.author)
    by = memory.superseded_by
    if by is not None:
        check_memory_id(by.memory_id)
        check_namespace("superseded_by", by.namespace or memory.namespace)
        if by.kind is not LinkKind.SUPERSEDES:
            raise InvalidField("superseded_by", "must be a link of the kind supersedes")
    for name in ("created_s", "updated_s"):
        time_s = getattr(memory, name)
        if type(time_s) not in (int, float) or not math.isfinite(time_s) or abs(time_s) > TIME_MAX_S:
            raise InvalidField(name, "must be seconds since the epoch")
    said = NewMemory(
        namespace=memory.namespace,
        memory_id=memory.memory_id,
        **{name: getattr(memory, name) for name in CHANGEABLE},
    )
    checked = checked_new(said, memory.author, memory.created_s)
    kept = replace(
        checked, version=memory.version, updated_s=memory.updated_s, state=memory.state, superseded_by=by
    )
    if type(memory.pinned) is not bool or not have_same_content(memory, kept):
        raise InvalidField("memory", "must have fields as an export has them")


_ACTIONS = tuple(action for action in MemoryAction.known() if action is not MemoryAction.ERASED)
