"""What a memory and a search may be. Pure, and without numpy or Milvus: the edges import it too."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence

from memserve.domain import Memory
from memserve.domain.names import is_memory_id, is_name
from memserve.errors import InvalidField

TEXT_MAX_BYTES = 8192
SOURCE_MAX_BYTES = 512
KEYWORDS_MAX = 16
KEYWORD_MAX_BYTES = 64
QUERY_MAX_BYTES = 4096
LIMIT_MAX = 64
NAMESPACES_MAX = 16


def checked_memory(
    namespace: str,
    text: str,
    *,
    source: str,
    keywords: Sequence[str],
    memory_id: str | None,
    now_s: float,
) -> Memory:
    """The memory as it is kept: its texts in NFC. An accent typed in one piece or in two is the same memory.

    text: at most 8 KiB of UTF-8.
    source: at most 512 bytes.
    keywords: at most 16 of 64 bytes.
    memory_id: None takes `content_id`.
    Raises InvalidField.
    """
    check_namespace("namespace", namespace)
    text, source = _composed(text), _composed(source)
    keywords = [_composed(keyword) for keyword in keywords]
    _check_text("text", text, TEXT_MAX_BYTES)
    _check_bytes("source", source, SOURCE_MAX_BYTES)
    if len(keywords) > KEYWORDS_MAX:
        raise InvalidField("keywords", f"must be at most {KEYWORDS_MAX}")
    for keyword in keywords:
        _check_text("keywords", keyword, KEYWORD_MAX_BYTES)
    if memory_id is None:
        memory_id = content_id(text, source, keywords)
    check_memory_id(memory_id)
    return Memory(memory_id, namespace, text, source, tuple(keywords), now_s)


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


def have_same_content(first: Memory, second: Memory) -> bool:
    """Whether two memories of one id are the same memory. An older store has its texts as they came."""
    return _content_of(first) == _content_of(second)


def _content_of(memory: Memory) -> tuple[str, ...]:
    return tuple(_composed(text) for text in (memory.text, memory.source, *memory.keywords))


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
