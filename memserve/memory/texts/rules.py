"""What a memory and a search may be. Pure, and without numpy or Milvus: the edges import it too."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Sequence

from memserve.domain import Link, LinkKind, Memory, MemoryKind, NewMemory, Place
from memserve.domain.names import is_memory_id, is_name
from memserve.errors import InvalidField
from memserve.policy.recall.expressions import parse
from memserve.policy.recall.metadata import checked_metadata

TEXT_MAX_BYTES = 8192
SOURCE_MAX_BYTES = 512
KEYWORDS_MAX = 16
KEYWORD_MAX_BYTES = 64
QUERY_MAX_BYTES = 4096
LIMIT_MAX = 64
NAMESPACES_MAX = 16
STRENGTH_MAX = 10.0
LINKS_MAX = 32
HEADINGS_MAX = 16
HEADING_MAX_BYTES = 512
POSITION_MAX = 2**31 - 1
AUTHOR_MAX_BYTES = 256
TIME_MAX_S = 1e11
NEIGHBOURS_MAX = 8
LINK_DEPTH_MAX = 4
# Links of these kinds come from memserve too: they are no part of what a caller said.
_FOUND_LINKS = (LinkKind.DUPLICATES, LinkKind.CONTRADICTS, LinkKind.SUPERSEDES)


def checked_new(new: NewMemory, author: str, now_s: float) -> Memory:
    """The memory as it is kept: its texts in NFC. An accent typed in one piece or in two is the same memory.

    The limits are the constants above. now_s: by the gateway's clock.
    Raises InvalidField.
    """
    check_namespace("namespace", new.namespace)
    text, source = _composed(new.text), _composed(new.source)
    keywords = tuple(_composed(keyword) for keyword in new.keywords)
    _check_text("text", text, TEXT_MAX_BYTES)
    _check_bytes("source", source, SOURCE_MAX_BYTES)
    if len(keywords) > KEYWORDS_MAX:
        raise InvalidField("keywords", f"must be at most {KEYWORDS_MAX}")
    for keyword in keywords:
        _check_text("keywords", keyword, KEYWORD_MAX_BYTES)
    memory_id = new.memory_id or content_id(text, source, keywords)
    check_memory_id(memory_id)
    if new.kind not in MemoryKind.known():
        raise InvalidField("kind", f"must be one of {', '.join(MemoryKind.known())}")
    _check_validity(new.valid_from_s, new.valid_until_s)
    if new.applies_when:
        parse("applies_when", new.applies_when)
    if not (math.isfinite(new.strength) and 0 <= new.strength <= STRENGTH_MAX):
        raise InvalidField("strength", f"must be 0 to {STRENGTH_MAX:g}")
    return Memory(
        memory_id, new.namespace, text, source, keywords, now_s,
        kind=new.kind,
        metadata=checked_metadata("metadata", new.metadata),
        author=author,
        valid_from_s=new.valid_from_s,
        valid_until_s=new.valid_until_s,
        applies_when=_composed(new.applies_when),
        strength=float(new.strength),
        links=_checked_links(new.links, new.namespace, memory_id),
        place=_checked_place(new.place),
        pinned=new.pinned,
        updated_s=now_s,
    )  # fmt: skip


def check_author(author: str) -> None:
    """Raises InvalidField."""
    _check_bytes("author", author, AUTHOR_MAX_BYTES)


def _check_validity(from_s: float | None, until_s: float | None) -> None:
    for field, time_s in (("valid_from_s", from_s), ("valid_until_s", until_s)):
        if time_s is not None and not (math.isfinite(time_s) and abs(time_s) <= TIME_MAX_S):
            raise InvalidField(field, f"must be seconds since the epoch, at most {TIME_MAX_S:g}")
    if from_s is not None and until_s is not None and from_s >= until_s:
        raise InvalidField("valid_until_s", "must be after valid_from_s")


def _checked_links(links: Sequence[Link], namespace: str, memory_id: str) -> tuple[Link, ...]:
    if len(links) > LINKS_MAX:
        raise InvalidField("links", f"must be at most {LINKS_MAX}, are {len(links)}")
    checked = []
    for link in links:
        if link.kind not in LinkKind.known():
            raise InvalidField("links", f"kind must be one of {', '.join(LinkKind.known())}")
        if link.namespace:
            check_namespace("links", link.namespace)
        if not is_memory_id(link.memory_id):
            raise InvalidField("links", "memory_id must be an id of a memory")
        # One spelling for a memory of the same namespace, so that equal links are equal.
        target = "" if link.namespace == namespace else link.namespace
        if not target and link.memory_id == memory_id:
            raise InvalidField("links", "must not lead to the memory itself")
        checked.append(Link(link.kind, link.memory_id, target))
    return tuple(dict.fromkeys(checked))


def _checked_place(place: Place) -> Place:
    if not place.within:
        if place != Place(""):
            raise InvalidField("place.within", "must be the id of a document or session")
        return place
    if not is_memory_id(place.within):
        raise InvalidField("place.within", "must be like the id of a memory")
    if not 0 <= place.position <= POSITION_MAX:
        raise InvalidField("place.position", f"must be 0 to {POSITION_MAX}")
    if len(place.headings) > HEADINGS_MAX:
        raise InvalidField("place.headings", f"must be at most {HEADINGS_MAX}")
    title, headings = _composed(place.title), tuple(_composed(heading) for heading in place.headings)
    for field, text in (("place.title", title), *(("place.headings", heading) for heading in headings)):
        _check_bytes(field, text, HEADING_MAX_BYTES)
    return Place(place.within, place.position, title, headings)


def checked_query(namespaces: Sequence[str], query: str, limit: int) -> tuple[tuple[str, ...], str]:
    """The namespaces, each once, and the query in NFC. Raises InvalidField."""
    scope = tuple(dict.fromkeys(namespaces))
    if not 1 <= len(scope) <= NAMESPACES_MAX:
        raise InvalidField("namespaces", f"must be 1 to {NAMESPACES_MAX}")
    for namespace in scope:
        check_namespace("namespaces", namespace)
    query = _composed(query)
    _check_text("query", query, QUERY_MAX_BYTES)
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidField("limit", f"must be 1 to {LIMIT_MAX}")
    return scope, query


def check_namespace(field: str, namespace: str) -> None:
    """Raises InvalidField."""
    if not is_name(namespace):
        raise InvalidField(
            field, "must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and begin with a letter or a digit"
        )


def check_memory_id(memory_id: str) -> None:
    """Raises InvalidField."""
    if not is_memory_id(memory_id):
        raise InvalidField(
            "memory_id",
            "must be 1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-', and begin with a letter or a digit",
        )


def content_id(text: str, source: str, keywords: Sequence[str]) -> str:
    """The id of a memory that came without one: 32 hex digits of a sha256 over its content."""
    return hashlib.sha256(json.dumps([text, source, list(keywords)]).encode()).hexdigest()[:32]


def have_same_content(kept: Memory, said: Memory) -> bool:
    """Whether a caller says what is kept under the same id. An older store has its texts as they came."""
    if _content_of(kept) != _content_of(said):
        return False
    more = set(kept.links) - set(said.links)
    return set(said.links) <= set(kept.links) and all(link.kind in _FOUND_LINKS for link in more)


def _content_of(memory: Memory) -> tuple[object, ...]:
    texts = tuple(_composed(text) for text in (memory.text, memory.source, *memory.keywords))
    # JSON tells 1 from 1.0 and from true.
    metadata = json.dumps(memory.metadata, sort_keys=True)
    return (
        texts, memory.kind, metadata, memory.valid_from_s, memory.valid_until_s,
        _composed(memory.applies_when), memory.strength, memory.place, memory.pinned,
    )  # fmt: skip


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _check_text(field: str, value: str, max_bytes: int) -> None:
    if not value.strip():
        raise InvalidField(field, "must not be blank")
    _check_bytes(field, value, max_bytes)


def _check_bytes(field: str, value: str, max_bytes: int) -> None:
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidField(field, "must be valid Unicode") from None
    if size_bytes > max_bytes:
        raise InvalidField(field, f"must be at most {max_bytes} bytes of UTF-8, is {size_bytes}")
