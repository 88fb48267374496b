# Generated from ../_async/memories.py by `make client`; do not edit.
"""The client's calls of `MemoryService` on single memories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memserve.client._sync.memory_sets import MemorySetCalls
from memserve.client.arguments import strings
from memserve.client.wire.memories import (
    found_of,
    history_of,
    places_of,
    remember_request,
    remembered_of,
    search_query,
    search_request,
    update_request,
)
from memserve.client.wire.memory_values import LINKS, finding_of, memory_of, scored_of
from memserve.domain import (
    ErasedPlace,
    Finding,
    FoundMemories,
    Link,
    LinkKind,
    Memory,
    MemoryHistory,
    MemoryKind,
    MetadataValue,
    NewMemory,
    Place,
    Remembered,
    ScoredMemory,
    WritePolicy,
)
from memserve.pb.v1 import memory_pb2 as pb


class MemoryCalls(MemorySetCalls):
    """Memories: texts that are remembered, corrected, searched, forgotten and erased."""

    def remember(
        self,
        namespace: str,
        text: str,
        *,
        source: str = "",
        keywords: str | Sequence[str] = (),
        memory_id: str = "",
        kind: MemoryKind | str = MemoryKind.FACT,
        metadata: Mapping[str, MetadataValue] | None = None,
        valid_from_s: float | None = None,
        valid_until_s: float | None = None,
        applies_when: str = "",
        strength: float = 1.0,
        links: Sequence[Link] = (),
        place: Place = Place(""),  # noqa: B008
        pinned: bool = False,
        policy: WritePolicy = WritePolicy(),  # noqa: B008
    ) -> Remembered:
        """Keep a text. It is durable when this returns.

        source: where the text comes from.
        keywords: words that a search finds the text by, as well as its own words.
        memory_id: makes a repeated call harmless. Empty: a digest of the content.
        metadata: typed values, for filters: strings, whole numbers, numbers, truth values, lists of strings.
        valid_from_s, valid_until_s: when what it says holds, in seconds since the epoch.
        applies_when: a condition over a request's context, such as `user.role == "nurse"`.
        strength: how much it counts, 0 to 10.
        links: to other memories.
        place: where it stands in a document or session.
        pinned: keep it in its namespace's warm prefix, ahead of what is recalled.
        policy: what to do with what is near it.

        The result names what is near it already: duplicates, contradictions, updates.
        """
        stub = self._connection.stubs.memories
        memory = NewMemory(
            namespace, text, source, tuple(strings("keywords", keywords)), memory_id, MemoryKind(kind),
            metadata or {}, valid_from_s, valid_until_s, applies_when, strength, tuple(links), place, pinned,
        )  # fmt: skip
        return remembered_of(self._connection.call(stub.Remember, remember_request(memory, policy)))

    def update_memory(
        self,
        namespace: str,
        memory_id: str,
        *,
        expected_version: int = 0,
        policy: WritePolicy = WritePolicy(),  # noqa: B008
        **changes: Any,
    ) -> tuple[Memory, tuple[Finding, ...]]:
        """Write a new version. The version before stays in the history.

        changes: new values of the fields of `remember`, from text to pinned. The other fields stay.
        expected_version: fail with ABORTED where another version is current. 0: change what is current.
        """
        stub = self._connection.stubs.memories
        request = update_request(namespace, memory_id, changes, expected_version, policy)
        response = self._connection.call(stub.UpdateMemory, request)
        return memory_of(response.memory), tuple(map(finding_of, response.findings))

    def get_memory(
        self,
        namespace: str,
        memory_id: str,
        *,
        version: int = 0,
        as_of_s: float | None = None,
        forgotten: bool = False,
    ) -> Memory:
        """The current version, an earlier one, or the one that was current at a time.

        forgotten: also where it is forgotten.
        """
        stub = self._connection.stubs.memories
        request = pb.GetMemoryRequest(
            namespace=namespace, memory_id=memory_id, version=version, as_of_s=as_of_s, forgotten=forgotten
        )
        return memory_of(self._connection.call(stub.GetMemory, request).memory)

    def memory_history(self, namespace: str, memory_id: str) -> MemoryHistory:
        """All versions that are kept, also of a memory that is forgotten."""
        stub = self._connection.stubs.memories
        request = pb.GetMemoryRequest(
            namespace=namespace, memory_id=memory_id, with_history=True, forgotten=True
        )
        return history_of(self._connection.call(stub.GetMemory, request))

    def restore_memory(
        self, namespace: str, memory_id: str, *, version: int = 0, expected_version: int = 0
    ) -> Memory:
        """Make an earlier version the current one, as a new version.

        version: 0 for the last one that was live. expected_version: as of `update_memory`.
        """
        stub = self._connection.stubs.memories
        request = pb.RestoreMemoryRequest(
            namespace=namespace, memory_id=memory_id, version=version, expected_version=expected_version
        )
        return memory_of(self._connection.call(stub.RestoreMemory, request).memory)

    def supersede_memory(
        self, namespace: str, memory_id: str, by_memory_id: str, *, by_namespace: str = ""
    ) -> Memory:
        """Have another memory take its place. It stays readable, and no search finds it."""
        stub = self._connection.stubs.memories
        request = pb.SupersedeMemoryRequest(
            namespace=namespace, memory_id=memory_id, by_memory_id=by_memory_id, by_namespace=by_namespace
        )
        return memory_of(self._connection.call(stub.SupersedeMemory, request).memory)

    def forget(self, namespace: str, memory_id: str) -> None:
        """Take a memory out of every search. Its history stays for a time, for `restore_memory`."""
        stub = self._connection.stubs.memories
        self._connection.call(stub.Forget, pb.ForgetRequest(namespace=namespace, memory_id=memory_id))

    def erase_memory(self, namespace: str, memory_id: str, *, reason: str = "") -> tuple[ErasedPlace, ...]:
        """Remove a memory with its history, everywhere and for good. Returns what was removed where."""
        stub = self._connection.stubs.memories
        request = pb.EraseMemoryRequest(namespace=namespace, memory_id=memory_id, reason=reason)
        return places_of(self._connection.call(stub.EraseMemory, request).places)

    def search(self, namespaces: str | Sequence[str], query: str, limit: int = 8) -> list[ScoredMemory]:
        """Memories by meaning and by words, best first. `find` takes wishes, and says what it left out."""
        return list(self.find(namespaces, query, limit).hits)

    def find(
        self, namespaces: str | Sequence[str], query: str, limit: int = 8, **options: Any
    ) -> FoundMemories:
        """Memories by meaning and by words, best first, and those that were found and are not used.

        options: fields of SearchQuery: kinds, filter, min_relevance, diversity, max_tokens, context,
        neighbours, link_depth, link_kinds, as_of_s, rerank.
        """
        stub = self._connection.stubs.memories
        request = search_request(search_query(namespaces, query, limit, options))
        return found_of(self._connection.call(stub.Search, request))

    def follow_links(
        self,
        namespace: str,
        memory_id: str,
        *,
        depth: int = 1,
        kinds: Sequence[LinkKind] = (),
        namespaces: str | Sequence[str] = (),
    ) -> list[ScoredMemory]:
        """The memories that links lead to, forwards and backwards, nearest first. `via` says by which link.

        namespaces: where links may lead beside the memory's own namespace.
        """
        stub = self._connection.stubs.memories
        request = pb.FollowLinksRequest(
            namespace=namespace,
            memory_id=memory_id,
            depth=depth,
            kinds=[LINKS[kind] for kind in kinds],
            namespaces=strings("namespaces", namespaces),
        )
        return [scored_of(hit) for hit in self._connection.call(stub.FollowLinks, request).results]

    def read_places(self, namespace: str, within: str, first: int = 0, last: int = 255) -> list[Memory]:
        """The memories of a document or session from one position to another, in order."""
        stub = self._connection.stubs.memories
        request = pb.ReadPlacesRequest(namespace=namespace, within=within, first=first, last=last)
        return [memory_of(memory) for memory in self._connection.call(stub.ReadPlaces, request).memories]
