"""What must always be true of the cache's ledger, as pure functions over what was read of it.

1. What is counted is never less than what is stored: every value has an entry that is as long or longer.
2. For each tenant and for all, the counters are the sums over the entries.
3. An entry is in the order of all, with the same worth in the order of its tenant, among the due, and in the
   set of its module. Nothing else is in any of them.
4. Reserved, condemned and pinned chunks are not for eviction (worth +inf); all others are.
5. An entry's generation has been given out. A chunk ends deeper in its prompt than its parent.

That a parent is worth more than its child is no invariant: a child that was settled or used while its parent
was not committed may be worth more. It costs a worse eviction, and nothing else.
"""

from __future__ import annotations

import math
from collections import Counter as Sums
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memserve.kv.ledger.names import (
    DUE,
    MODULE_PREFIX,
    TENANT_WORTH_PREFIX,
    WORTH,
    Counter,
    Field,
    State,
    entry_key,
)
from memserve.kv.ledger.records import ALL

NOT_PINNED = "0"
FIELDS = tuple(Field)


@dataclass(frozen=True, slots=True)
class EntryFields:
    """The hash of one entry."""

    state: State
    stored_bytes: int
    tenant: str
    module: str
    """"" for the base model."""
    parent: str
    """"" for the first of a chain."""
    depth_tokens: int
    generation: int
    is_pinned: bool
    has_worth_after_pin: bool


@dataclass(frozen=True, slots=True)
class MemberView:
    """All that the ledger says of one member at one moment."""

    member: str
    fields: EntryFields | None
    """None: it has no entry."""
    worth: float | None
    tenant_worth: float | None
    """In the order of the entry's tenant."""
    due_s: float | None
    is_in_module_set: bool
    parent_depth_tokens: int | None
    """None: the parent has no entry, or there is none."""
    newest_generation: int
    value_bytes: int
    """0: Redis has no value."""


def read_fields(texts: Sequence[str | None]) -> EntryFields | None:
    """texts: of FIELDS, in their order. None: there is no entry. Raises ValueError for what is no entry."""
    if all(text is None for text in texts):
        return None
    by_field = dict(zip(FIELDS, texts, strict=True))
    has_worth_after_pin = by_field.pop(Field.WORTH_AFTER_PIN) is not None
    missing = [field.name.lower() for field, text in by_field.items() if text is None]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    known = {field: text or "" for field, text in by_field.items()}
    return EntryFields(
        state=State(known[Field.STATE]),
        stored_bytes=int(known[Field.BYTES]),
        tenant=known[Field.TENANT],
        module=known[Field.MODULE],
        parent=known[Field.PARENT],
        depth_tokens=int(known[Field.DEPTH]),
        generation=int(known[Field.GENERATION]),
        is_pinned=known[Field.PINNED_UNTIL] != NOT_PINNED,
        has_worth_after_pin=has_worth_after_pin,
    )


def member_contradictions(view: MemberView) -> list[str]:
    """Rules 1, 3, 4 and 5, for one member."""
    key = entry_key(view.member)
    if view.fields is None:
        return [f"{key}: there is no such entry, but {where}" for where in _traces(view)]
    return [f"{key}: {what}" for what in _entry_contradictions(view, view.fields)]


def _traces(view: MemberView) -> Iterator[str]:
    """Where a member without an entry has left something."""
    if view.worth is not None:
        yield f"its member is in {WORTH}"
    if view.due_s is not None:
        yield f"its member is in {DUE}"
    if view.value_bytes:
        yield "its value is stored: nobody counts it"


def _entry_contradictions(view: MemberView, fields: EntryFields) -> Iterator[str]:
    if view.value_bytes > fields.stored_bytes:
        yield f"its value has {view.value_bytes} bytes, and {fields.stored_bytes} are counted"
    if view.worth is None:
        yield f"it is not in {WORTH}"
    if view.tenant_worth is None:
        yield f"it is not in {TENANT_WORTH_PREFIX}{fields.tenant}"
    if view.worth is not None and view.tenant_worth is not None and view.worth != view.tenant_worth:
        yield f"its worth in {WORTH} is not that in {TENANT_WORTH_PREFIX}{fields.tenant}"
    if view.due_s is None or not math.isfinite(view.due_s):
        yield f"it is at no time in {DUE}"
    if fields.module and not view.is_in_module_set:
        yield f"it is not in {MODULE_PREFIX}{fields.module}"
    stays = fields.state is not State.COMMITTED or fields.is_pinned
    if view.worth is not None and stays is not (view.worth == math.inf):
        state = "pinned" if fields.is_pinned else fields.state.name.lower()
        yield f"it is {state}, and {'may' if stays else 'can never'} be evicted"
    if fields.is_pinned and not fields.has_worth_after_pin:
        yield "it is pinned, and what it is worth afterwards is not known"
    if fields.generation > view.newest_generation:
        yield "its generation was never given out"
    if view.parent_depth_tokens is not None and view.parent_depth_tokens >= fields.depth_tokens:
        yield f"it does not end deeper in its prompt than its parent {fields.parent}"


def stray_contradiction(key: str, member: str, fields: EntryFields | None) -> str | None:
    """Rule 3 for a member of the order of a tenant or of the set of a module, whose key this is."""
    if fields is None:
        return f"{key}: {member} is in it and has no entry"
    if key in (TENANT_WORTH_PREFIX + fields.tenant, MODULE_PREFIX + fields.module):
        return None
    return f"{key}: {member} is in it and belongs to tenant {fields.tenant} and module {fields.module or '-'}"


@dataclass(frozen=True, slots=True)
class Totals:
    """The counters at one moment."""

    amounts: Mapping[tuple[Counter, str], int]
    """By counter and scope: a tenant, or ALL. A scope that is not there has 0."""
    newest_generation: int
    """The last one that was given out."""

    def of(self, counter: Counter, scope: str) -> int:
        return self.amounts.get((counter, scope), 0)


class EntrySums:
    """The sums over entries that the counters must agree with."""

    def __init__(self, before: Totals) -> None:
        """before: the counters before the first entry was read."""
        self._before = before
        self._sums: Sums[tuple[Counter, str]] = Sums()
        # Of the entries that were counted when the counters were read.
        self._old_sums: Sums[tuple[Counter, str]] = Sums()

    def add(self, fields: EntryFields) -> None:
        is_old = fields.generation <= self._before.newest_generation
        for scope in (fields.tenant, ALL):
            for sums in (self._sums, self._old_sums) if is_old else (self._sums,):
                sums[Counter.BYTES, scope] += fields.stored_bytes
                sums[Counter.CHUNKS, scope] += 1
                sums[Counter.PINNED, scope] += fields.stored_bytes if fields.is_pinned else 0

    def contradictions(self, after: Totals) -> list[str]:
        """Rule 2. after: the counters after the last entry was read.

        A scope that did not change meanwhile must agree exactly. Of any other only this is certain: it had at
        least what those of its entries have that were counted before. A pin may be younger than its entry.
        """
        sentences = []
        for counter, scope in sorted({*self._sums, *self._before.amounts, *after.amounts}):
            counted = self._before.of(counter, scope)
            key = counter.key
            if self._is_unchanged(scope, after):
                if counted > self._sums[counter, scope]:
                    sentences.append(f"{key}: {scope} has more than its entries have together")
                elif counted < self._sums[counter, scope]:
                    sentences.append(f"{key}: {scope} has less than its entries have together")
            elif counter is not Counter.PINNED and counted < self._old_sums[counter, scope]:
                sentences.append(f"{key}: {scope} has less than its entries have together")
        return sentences

    def _is_unchanged(self, scope: str, after: Totals) -> bool:
        """No entry was counted meanwhile, and none dropped, which would have lowered a counter."""
        return self._before.newest_generation == after.newest_generation and all(
            self._before.of(counter, scope) == after.of(counter, scope) for counter in Counter
        )
