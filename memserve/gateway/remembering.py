"""Writes of text memories that need more than their store: the model's tokens, its surprise, documents.

Reads, and writes that need nothing else, go to `VectorMemory` at once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from memserve.domain import (
    NamespaceErasure,
    NewDocument,
    NewMemory,
    Remembered,
    SearchQuery,
    SurpriseScore,
    Tenant,
    WritePolicy,
)
from memserve.domain.lineage import Erasure
from memserve.errors import InvalidField, MemserveError, NamespaceNotFound, VectorStoreUnavailable
from memserve.gateway.documents import DocumentKeeper, DocumentProgress
from memserve.gateway.erasures.erasures import Erasures
from memserve.gateway.surprise import NEAR_MAX, SurpriseGate
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import ItemOutcome, LineOutcome, MemoryChanges, MemoryName
from memserve.memory.texts.rules import QUERY_MAX_BYTES

SURPRISE_TIMEOUT_S = 20.0
NEAR_TIMEOUT_S = 2.0
LINE_DEPTH_MAX = 16
"""Of the JSON of an imported line."""


class Remembering:
    """For all tenants."""

    def __init__(
        self,
        texts: VectorMemory,
        tokenizer: ChatTokenizer,
        surprise: SurpriseGate,
        documents: DocumentKeeper,
        erasures: Erasures,
    ) -> None:
        self._erasures = erasures
        self._texts = texts
        self._tokenizer = tokenizer
        self.surprise = surprise
        self._documents = documents

    async def remember(self, tenant: Tenant, new: NewMemory, policy: WritePolicy) -> Remembered:
        """Raises as `VectorMemory.remember`, and InvalidField for a text with the model's control tokens."""
        self.check_text("text", new.text)
        surprise = await self._judge(tenant, new) if policy.surprise_gate else None
        if surprise is not None and not surprise.stored:
            return Remembered(None, False, (), surprise)
        if surprise is not None:
            new = replace(new, strength=new.strength * surprise.strength)
        remembered = await self._texts.remember(tenant.name, new, tenant.principal, policy)
        return replace(remembered, surprise=surprise)

    async def update(self, tenant: Tenant, changes: MemoryChanges, policy: WritePolicy) -> Remembered:
        """Raises as `VectorMemory.update`, and InvalidField for a text with the model's control tokens."""
        if "text" in changes.fields:
            self.check_text("content.text", changes.content.text)
        if policy.surprise_gate:
            raise InvalidField("policy.surprise_gate", "is for new memories; an update is always written")
        return await self._texts.update(tenant.name, changes, tenant.principal, policy)

    async def remember_many(
        self, tenant: Tenant, items: AsyncIterator[NewMemory | MemserveError], policy: WritePolicy
    ) -> AsyncGenerator[ItemOutcome, None]:
        """What became of each item, in order. An item that is a refusal already stays one."""

        async def checked() -> AsyncIterator[NewMemory | MemserveError]:
            async for item in items:
                yield item if isinstance(item, MemserveError) else self._fault(item) or item

        outcomes = self._texts.remember_many(tenant.name, checked(), tenant.principal, policy)
        async with contextlib.aclosing(outcomes):
            async for outcome in outcomes:
                yield outcome

    async def import_lines(
        self, tenant: Tenant, lines: AsyncIterator[str]
    ) -> AsyncGenerator[LineOutcome, None]:
        """What became of each line, in order. A line that is no JSON object, or whose texts have the model's
        control tokens, is refused by itself.
        """

        async def checked() -> AsyncIterator[Mapping[str, Any] | MemserveError]:
            async for line in lines:
                try:
                    yield self._line(line)
                except InvalidField as fault:
                    yield fault

        outcomes = self._texts.import_lines(tenant.name, checked())
        async with contextlib.aclosing(outcomes):
            async for outcome in outcomes:
                yield outcome

    def _line(self, line: str) -> Mapping[str, Any]:
        """Raises InvalidField."""
        try:
            read = json.loads(line)
        except (ValueError, RecursionError):
            raise InvalidField("line", "must be a JSON object on one line") from None
        if not isinstance(read, dict):
            raise InvalidField("line", "must be a JSON object on one line")
        for text in _texts(read):
            self.check_text("line", text)
        return read

    async def erase(self, tenant: Tenant, name: MemoryName, reason: str, *, dry_run: bool = False) -> Erasure:
        """As `Erasures.erase`, or `Erasures.plan`."""
        if dry_run:
            return await self._erasures.plan(tenant, name)
        return await self._erasures.erase(tenant, name, reason)

    async def delete_namespace(
        self, tenant: Tenant, namespace: str
    ) -> AsyncGenerator[NamespaceErasure, None]:
        """As `Erasures.delete_namespace`."""
        async with contextlib.aclosing(self._erasures.delete_namespace(tenant, namespace)) as erasures:
            async for erasure in erasures:
                yield erasure

    async def remember_document(
        self, tenant: Tenant, document: NewDocument, content: bytes
    ) -> AsyncGenerator[DocumentProgress, None]:
        """Raises InvalidField for a document that cannot be read, and as `VectorMemory`'s writes."""
        async for report in self._documents.keep(tenant, document, content):
            yield report

    def check_text(self, field: str, text: str) -> None:
        """Raises InvalidField for a text that the model's prompt cannot show as text."""
        token = self._tokenizer.special_token_in(text)
        if token:
            raise InvalidField(field, f"must not contain the model's control token {token!r}")

    def _fault(self, item: NewMemory) -> InvalidField | None:
        try:
            self.check_text("text", item.text)
        except InvalidField as fault:
            return fault
        return None

    async def _judge(self, tenant: Tenant, new: NewMemory) -> SurpriseScore:
        deadline_s = time.monotonic() + SURPRISE_TIMEOUT_S
        query = new.text.strip().encode()[:QUERY_MAX_BYTES].decode(errors="ignore")
        try:
            found = await self._texts.search(
                tenant.name, SearchQuery((new.namespace,), query, NEAR_MAX), timeout_s=NEAR_TIMEOUT_S
            )
            near = found.hits
        except (NamespaceNotFound, VectorStoreUnavailable):
            near = ()
        return await self.surprise.judge(tenant, new.text, near, deadline_s=deadline_s)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value. Raises InvalidField where it is nested deeper than a memory is."""
    waiting = [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        if depth > LINE_DEPTH_MAX:
            raise InvalidField("line", f"must not be nested deeper than {LINE_DEPTH_MAX} levels")
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, Mapping):
            waiting += [(each, depth + 1) for each in (*inner.keys(), *inner.values())]
        elif isinstance(inner, list):
            waiting += [(each, depth + 1) for each in inner]
