"""The next history of a memory. Pure."""

from __future__ import annotations

from dataclasses import replace

from memserve.domain import (
    Link,
    LinkKind,
    Memory,
    MemoryAction,
    MemoryHistory,
    MemoryState,
    MemoryVersion,
)
from memserve.memory.texts.records import RECORD_MAX_BYTES, VERSIONS_MAX, encode_history


def with_version(history: MemoryHistory, memory: Memory, action: MemoryAction) -> MemoryHistory:
    """The history with one version more: `memory`, numbered and dated after the last one.

    The oldest versions leave when there are too many or the record becomes too large.
    """
    last = history.current
    memory = replace(
        memory,
        version=last.version + 1,
        created_s=last.created_s,
        # Another gateway's clock may be behind. Reads as of a time need versions in order.
        updated_s=max(memory.updated_s, last.updated_s),
    )
    return _bounded(MemoryHistory((*history.versions, MemoryVersion(memory, action)), history.dropped))


def updated(history: MemoryHistory, memory: Memory) -> MemoryHistory:
    """memory: the new content, with its author and its time. State and place in the world stay."""
    last = history.current
    return with_version(
        history, replace(memory, state=last.state, superseded_by=last.superseded_by), MemoryAction.UPDATED
    )


def forgotten(history: MemoryHistory, author: str, now_s: float) -> MemoryHistory:
    memory = replace(history.current, state=MemoryState.FORGOTTEN, author=author, updated_s=now_s)
    return with_version(history, memory, MemoryAction.FORGOTTEN)


def superseded(history: MemoryHistory, winner: Memory, author: str, now_s: float) -> MemoryHistory:
    by = Link(LinkKind.SUPERSEDES, winner.memory_id, winner.namespace)
    memory = replace(
        history.current, state=MemoryState.SUPERSEDED, superseded_by=by, author=author, updated_s=now_s
    )
    return with_version(history, memory, MemoryAction.SUPERSEDED)


def restored(history: MemoryHistory, version: Memory, author: str, now_s: float) -> MemoryHistory:
    """With the content of an earlier version, live again."""
    memory = replace(version, state=MemoryState.LIVE, superseded_by=None, author=author, updated_s=now_s)
    return with_version(history, memory, MemoryAction.RESTORED)


def version_of(history: MemoryHistory, version: int) -> Memory | None:
    """None: there is no such version, or it has left."""
    return next((kept.memory for kept in history.versions if kept.memory.version == version), None)


def as_of(history: MemoryHistory, as_of_s: float) -> Memory | None:
    """The version that was current then. None: there was none yet, or it has left."""
    kept = [kept.memory for kept in history.versions if kept.memory.updated_s <= as_of_s]
    return kept[-1] if kept else None


def last_live(history: MemoryHistory) -> Memory | None:
    kept = [kept.memory for kept in history.versions if kept.memory.state is MemoryState.LIVE]
    return kept[-1] if kept else None


def _bounded(history: MemoryHistory) -> MemoryHistory:
    surplus = max(0, len(history.versions) - VERSIONS_MAX)
    history = MemoryHistory(history.versions[surplus:], history.dropped + surplus)
    while len(history.versions) > 1 and len(encode_history(history).encode()) > RECORD_MAX_BYTES:
        history = MemoryHistory(history.versions[1:], history.dropped + 1)
    return history
