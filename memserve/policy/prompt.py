"""Put recalled passages and a conversation together, so that equal beginnings stay equal token for token."""

from __future__ import annotations

from collections.abc import Sequence

from memserve.domain import Message, Role, ScoredMemory


def order_passages(found: Sequence[ScoredMemory]) -> list[ScoredMemory]:
    """Order by creation, then by id: the same set of passages gives the same prompt whatever its scores."""
    return sorted(found, key=lambda hit: (hit.memory.created_s, hit.memory.memory_id))


def assemble_messages(messages: Sequence[Message], passages: Sequence[ScoredMemory]) -> list[Message]:
    """Put the passages, numbered from 1, one a line, behind the leading system message (or into a new one)."""
    if not passages:
        return list(messages)
    lines = [f"[{number}] {' '.join(hit.memory.text.split())}" for number, hit in enumerate(passages, start=1)]
    rest = list(messages)
    if rest and rest[0].role is Role.SYSTEM:
        lines.insert(0, rest.pop(0).content)
    return [Message(Role.SYSTEM, "\n".join(lines)), *rest]
