"""How memories are printed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from memserve.cli.terminal import cell, line
from memserve.domain import (
    ErasedPlace,
    Finding,
    FoundMemories,
    Memory,
    MemoryChange,
    MemoryHistory,
    MemoryState,
    MemoryUsage,
    Remembered,
    ScoredMemory,
    Skipped,
)

TEXT_MAX = 400
"""Characters of a text in a table."""


def day(time_s: float | None) -> str:
    """A time as people read it, in UTC; empty for none."""
    if time_s is None:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_s))
    except (OverflowError, ValueError, OSError):
        return f"{time_s:g}"


def remembered_text(result: Remembered) -> RenderableType:
    if result.memory is None:
        reason = "" if result.surprise is None else f": {result.surprise.reason}"
        lines = [line(f"not stored{reason}")]
    else:
        done = "remembered" if result.created else "was there already"
        version = f", version {result.memory.version}" if result.memory.version > 1 else ""
        lines = [line(f"{done} as {result.memory.memory_id}{version}")]
        if result.surprise is not None:
            lines.append(line(f"surprise: {result.surprise.reason}"))
    return Group(*lines, *finding_lines(result.findings))


def finding_lines(findings: Iterable[Finding]) -> list[Text]:
    return [
        line(
            f"{finding.kind} of {finding.namespace}/{finding.memory_id} ({finding.score:.2f}): "
            f"{finding.reason}{'; superseded' if finding.superseded else ''}"
        )
        for finding in findings
    ]


def found_text(found: FoundMemories) -> RenderableType:
    lines = skipped_lines(found.skipped)
    if found.cut:
        lines.append(line("the filter may let through more: the search looked at a bounded number"))
    return Group(hits_table(found.hits), *lines)


def hits_table(hits: Sequence[ScoredMemory]) -> Table:
    table = Table("score", "relevance", "id", "text", "source", "via")
    for hit in hits:
        via = "" if hit.via is None else f"{hit.via.kind or 'neighbour'} of {hit.via.memory_id}"
        table.add_row(
            f"{hit.score:.4f}",
            f"{hit.relevance:.2f}",
            hit.memory.memory_id,
            cell(hit.memory.text),
            hit.memory.source,
            via,
        )
    return table


def skipped_lines(skipped: Iterable[Skipped]) -> list[Text]:
    return [
        line(f"not used: {entry.namespace}/{entry.memory_id} ({entry.reason}): {entry.detail}")
        for entry in skipped
    ]


def memory_text(memory: Memory) -> RenderableType:
    """All that is said of a memory."""
    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, object]] = [
        ("id", f"{memory.namespace}/{memory.memory_id}"),
        ("version", memory.version),
        ("state", _state(memory)),
        ("kind", memory.kind),
        ("text", cell(memory.text)),
        ("source", memory.source),
        ("author", memory.author),
        ("keywords", ", ".join(memory.keywords)),
        ("metadata", ", ".join(f"{key}={value}" for key, value in memory.metadata.items())),
        ("created", day(memory.created_s)),
        ("updated", day(memory.updated_s)),
        ("valid from", day(memory.valid_from_s)),
        ("valid until", day(memory.valid_until_s)),
        ("applies when", memory.applies_when),
        ("strength", f"{memory.strength:g}"),
        ("place", _place(memory)),
        ("links", ", ".join(_links(memory))),
        ("pinned", "yes" if memory.pinned else ""),
    ]
    for name, value in rows:
        if value != "":
            table.add_row(name, value if isinstance(value, Text) else str(value))
    return table


def memories_table(memories: Iterable[Memory]) -> Table:
    table = Table("id", "version", "kind", "text", "source", "updated", "state")
    for memory in memories:
        text = memory.text if len(memory.text) <= TEXT_MAX else memory.text[:TEXT_MAX] + "…"
        table.add_row(
            f"{memory.namespace}/{memory.memory_id}",
            str(memory.version),
            memory.kind,
            cell(text),
            memory.source,
            day(memory.updated_s),
            _state(memory),
        )
    return table


def history_text(history: MemoryHistory) -> RenderableType:
    table = Table("version", "action", "when", "author", "text", "state")
    for entry in history.versions:
        memory = entry.memory
        table.add_row(
            str(memory.version),
            entry.action,
            day(memory.updated_s),
            memory.author,
            cell(memory.text),
            _state(memory),
        )
    if not history.dropped:
        return table
    return Group(table, line(f"{history.dropped} older versions have left"))


def erased_table(places: Iterable[ErasedPlace], counted: str = "removed") -> Table:
    """counted: what the number of a place is."""
    table = Table("place", counted, "detail")
    for place in places:
        table.add_row(place.place, str(place.removed), place.detail)
    return table


def usage_text(usage: MemoryUsage) -> RenderableType:
    table = Table("namespace", "memories", "records", "bytes")
    for entry in usage.namespaces:
        table.add_row(entry.namespace, str(entry.memories), str(entry.records), str(entry.bytes))
    memories, size = (
        sum(entry.records for entry in usage.namespaces),
        sum(entry.bytes for entry in usage.namespaces),
    )
    return Group(
        table,
        line(
            f"{memories} of {usage.max_memories} memories, {len(usage.namespaces)} of {usage.max_namespaces} "
            f"namespaces, {size} of {usage.max_bytes} bytes"
        ),
    )


def change_line(change: MemoryChange) -> str:
    name = f"{change.namespace}/{change.memory_id}"
    version = f" version {change.version}" if change.version else ""
    return f"{change.sequence} {change.action} {name}{version}"


def _state(memory: Memory) -> str:
    if memory.state is MemoryState.SUPERSEDED and memory.superseded_by is not None:
        return f"{memory.state} by {memory.superseded_by.memory_id}"
    return memory.state


def _place(memory: Memory) -> str:
    place = memory.place
    if not place.within:
        return ""
    headings = " > ".join((place.title, *place.headings) if place.title else place.headings)
    return f"{place.within} at {place.position}{': ' if headings else ''}{headings}"


def _links(memory: Memory) -> list[str]:
    return [
        f"{link.kind}:{link.namespace + '/' if link.namespace else ''}{link.memory_id}"
        for link in memory.links
    ]
