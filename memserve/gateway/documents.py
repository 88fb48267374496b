"""Keeps documents as memories, a passage each, and brings a document up to date that comes again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from memserve.domain import (
    Memory,
    MemoryKind,
    MemoryState,
    NewDocument,
    NewMemory,
    Tenant,
    WritePolicy,
)
from memserve.domain.names import is_memory_id
from memserve.errors import InvalidField, NamespaceNotFound
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.memory.documents.memories import (
    PassageFate,
    PassageOrigin,
    changed_passages,
    kept_passages,
    passages_to_new_memories,
)
from memserve.memory.documents.passages import DocumentPassage
from memserve.memory.documents.reader import DocumentReader
from memserve.memory.documents.wire import Upload
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import CHANGEABLE, ItemOutcome, ListQuery, MemoryChanges
from memserve.memory.texts.store import ListOrder

PAGE = 256
DOCUMENT_ID_MAX = 120
_QUIET = WritePolicy(skip_relations=True)


@dataclass(frozen=True, slots=True)
class DocumentProgress:
    """How far a document is."""

    passages: int
    stored: int
    unchanged: int
    updated: int
    forgotten: int
    """Passages of the document as it was before, which it has no more."""
    title: str
    done: bool = False
    refused: tuple[ItemOutcome, ...] = ()


class DocumentKeeper:
    """For all tenants."""

    def __init__(self, texts: VectorMemory, reader: DocumentReader, tokenizer: ChatTokenizer) -> None:
        self._texts = texts
        self._reader = reader
        self._tokenizer = tokenizer

    async def keep(
        self, tenant: Tenant, document: NewDocument, content: bytes
    ) -> AsyncGenerator[DocumentProgress, None]:
        """Store what is new, update what has changed, forget what is gone. Yields progress.

        Repeating it after a failure goes on. Raises InvalidField, QuotaExceeded, and as the writes of
        `VectorMemory`.
        """
        # It stands in a filter below, so that it must not end the filter's text.
        if not is_memory_id(document.document_id) or len(document.document_id) > DOCUMENT_ID_MAX:
            raise InvalidField(
                "header.document_id", f"must be as a memory's id, of at most {DOCUMENT_ID_MAX} characters"
            )
        read = await self._reader.read(
            tenant.name,
            Upload(content, document.media_type, document.file_name, document.title),
            control_token=self._tokenizer.special_token_in,
        )
        kept, taken = await self._stored(tenant.name, document)
        changes = changed_passages(document.document_id, kept_passages(kept), read.passages, taken)
        wanted = _wanted(document, read.passages, changes.memory_ids)
        report = DocumentProgress(len(wanted), 0, 0, 0, 0, read.document.title)
        known = {memory.memory_id: memory for memory in kept}
        fresh: list[NewMemory] = []
        places: list[int] = []
        refused: list[ItemOutcome] = []
        for place, (new, fate) in enumerate(zip(wanted, changes.fates, strict=True)):
            if fate is PassageFate.NEW:
                fresh.append(new)
                places.append(place)
            elif fate is PassageFate.UNCHANGED and _says_the_same(known[new.memory_id], new):
                report = replace(report, unchanged=report.unchanged + 1)
            else:
                try:
                    await self._texts.update(
                        tenant.name, MemoryChanges(new, CHANGEABLE), tenant.principal, _QUIET
                    )
                    report = replace(report, updated=report.updated + 1)
                except InvalidField as fault:
                    refused.append(ItemOutcome(place, error=fault))
                yield report
        async for outcome in self._texts.remember_many(tenant.name, fresh, tenant.principal, _QUIET):
            if outcome.error is not None:
                refused.append(replace(outcome, index=places[outcome.index]))
            else:
                report = replace(report, stored=report.stored + 1)
            if outcome.index % PAGE == PAGE - 1:
                yield report
        for memory_id in changes.gone:
            if await self._texts.forget(tenant.name, document.namespace, memory_id, tenant.principal):
                report = replace(report, forgotten=report.forgotten + 1)
        yield replace(report, done=True, refused=tuple(refused))

    async def _stored(self, tenant: str, document: NewDocument) -> tuple[list[Memory], list[str]]:
        """The document's live passages, and the ids of those that are forgotten or superseded."""
        live, taken, token = [], [], ""
        query = ListQuery(
            (document.namespace,),
            order=ListOrder.PLACE,
            limit=PAGE,
            filter=f'within == "{document.document_id}"',
            kinds=(MemoryKind.PASSAGE,),
            states=MemoryState.known(),
        )
        while True:
            try:
                page = await self._texts.list_memories(tenant, replace(query, page_token=token))
            except NamespaceNotFound:
                return [], []
            for memory in page.memories:
                if memory.state is MemoryState.LIVE:
                    live.append(memory)
                else:
                    taken.append(memory.memory_id)
            token = page.next_page_token
            if not token:
                return live, taken


def _wanted(
    document: NewDocument, passages: Sequence[DocumentPassage], memory_ids: Sequence[str]
) -> list[NewMemory]:
    """The memories of a document's passages, with what the caller says of all of them."""
    origin = PassageOrigin(document.namespace, document.source, document.keywords, document.metadata)
    return [
        replace(
            new,
            valid_from_s=document.valid_from_s,
            valid_until_s=document.valid_until_s,
            applies_when=document.applies_when,
        )
        for new in passages_to_new_memories(document.document_id, passages, origin, memory_ids=memory_ids)
    ]


def _says_the_same(memory: Memory, new: NewMemory) -> bool:
    """Whether what the caller says of the whole document is what the memory has."""
    return (
        memory.source,
        memory.keywords,
        dict(memory.metadata),
        memory.valid_from_s,
        memory.valid_until_s,
        memory.applies_when,
    ) == (
        new.source,
        new.keywords,
        dict(new.metadata),
        new.valid_from_s,
        new.valid_until_s,
        new.applies_when,
    )
