"""Clauses of the contract of a store of records (`store_contract.py`): lists, places and links."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from memserve.domain import Link, LinkKind, Memory, MemoryState, Place
from memserve.memory.texts.records import Record
from memserve.memory.texts.store import ListOrder, Scope
from tests.memory.texts.store_kept import ALL_STATES, TIMEOUT_S, Clause, Kept
from tests.memory.texts.store_records import CREATED_S, ids, memory_of, scope_of


def a_page_has_the_order_that_was_asked_for(kept: Kept) -> None:
    memories = _mixed_memories()
    kept.put(*memories)
    for order, descending in itertools.product(_VALUES, (False, True)):
        expected = _in_order(memories, order, descending)
        assert _places(kept.page(order, scope=_mixed_scope(kept), descending=descending)) == expected


def pages_follow_one_another_without_gaps_or_repeats(kept: Kept) -> None:
    memories = _mixed_memories()
    kept.put(*memories)
    for order, descending, size in itertools.product(_VALUES, (False, True), (1, 4)):
        after: tuple[object, str, str] | None = None
        read: list[tuple[str, str]] = []
        while page := kept.page(order, size, _mixed_scope(kept), descending=descending, after=after):
            assert len(page) <= size
            read += _places(page)
            last = page[-1].memory
            after = (_VALUES[order](last), last.namespace, last.memory_id)
        assert read == _in_order(memories, order, descending)


def a_page_goes_on_behind_a_record_that_is_gone(kept: Kept) -> None:
    records = kept.put(*(memory_of(f"m{number}", created_s=CREATED_S + number) for number in range(4)))
    kept.store.delete([records[1].key], timeout_s=TIMEOUT_S)
    page = kept.page(ListOrder.CREATED, after=(CREATED_S + 1, "notes", "m1"))
    assert ids(page) == ["m2", "m3"]


def a_list_from_json_is_as_good_as_a_tuple_after_a_place(kept: Kept) -> None:
    kept.put(*(memory_of(f"m{number}", place=Place("book", number)) for number in range(12)))
    page = kept.page(ListOrder.PLACE, after=(["book", 9], "notes", "m9"))
    assert ids(page) == ["m10", "m11"]


def a_documents_memories_are_read_by_their_places(kept: Kept) -> None:
    records = kept.put(
        *(memory_of(f"m{number}", place=Place("book", number)) for number in (10, 2, 9, 11, 1)),
        memory_of("other", place=Place("booklet", 9)),
        memory_of("nowhere"),
    )
    assert ids(kept.at_places("book", 2, 10)) == ["m2", "m9", "m10"]
    assert ids(kept.at_places("book", 3, 8)) == []
    assert ids(kept.at_places("book", 11, 11)) == ["m11"]
    kept.replace(records[2], state=MemoryState.SUPERSEDED)
    assert ids(kept.at_places("book", 2, 10)) == ["m2", "m10"]
    scope = scope_of(kept.tenant, states=ALL_STATES)
    assert ids(kept.at_places("book", 2, 10, scope)) == ["m2", "m9", "m10"]


def links_are_followed_backwards(kept: Kept) -> None:
    first, *_ = kept.put(
        memory_of("near", links=(Link(LinkKind.PART_OF, "goal"), Link(LinkKind.NEXT, "other"))),
        memory_of("caused", links=(Link(LinkKind.CAUSED_BY, "goal"),)),
        memory_of("far", namespace="away", links=(Link(LinkKind.PART_OF, "goal", "notes"),)),
        memory_of("own", namespace="away", links=(Link(LinkKind.PART_OF, "goal"),)),
        memory_of("loser", superseded_by=Link(LinkKind.SUPERSEDES, "goal")),
        memory_of("longer", links=(Link(LinkKind.PART_OF, "goal.2"),)),
    )
    both = scope_of(kept.tenant, "notes", "away")
    assert kept.linking_to("notes", "goal") == ["caused", "near"]
    assert kept.linking_to("notes", "goal", scope=both) == ["caused", "far", "near"]
    assert kept.linking_to("away", "goal", scope=both) == ["own"]
    assert kept.linking_to("notes", "goal", LinkKind.CAUSED_BY, scope=both) == ["caused"]
    assert kept.linking_to("notes", "goal", LinkKind.CONTRADICTS, scope=both) == []
    assert len(kept.linking_to("notes", "goal", limit=2, scope=both)) == 2
    assert kept.linking_to("notes", "other") == ["near"]
    kept.replace(first, links=())
    assert kept.linking_to("notes", "goal") == ["caused"]
    assert kept.linking_to("notes", "other") == []


_VALUES: dict[ListOrder, Callable[[Memory], object]] = {
    ListOrder.CREATED: lambda memory: memory.created_s,
    ListOrder.UPDATED: lambda memory: memory.updated_s,
    ListOrder.MEMORY_ID: lambda memory: memory.memory_id,
    ListOrder.PLACE: lambda memory: (memory.place.within, memory.place.position),
}


def _mixed_scope(kept: Kept) -> Scope:
    return scope_of(kept.tenant, "notes", "away")


def _mixed_memories() -> list[Memory]:
    """Memories of two namespaces, with many equal values."""
    return [
        memory_of(
            f"{'Aa'[number % 2]}{number // 4}",
            namespace=("notes", "away")[number // 2 % 2],
            created_s=CREATED_S + number % 3 / 1024,
            updated_s=CREATED_S - number % 5,
            place=Place(("", "book", "Book")[number % 3], number % 4 * 5),
        )
        for number in range(16)
    ]


def _in_order(memories: Sequence[Memory], order: ListOrder, descending: bool) -> list[tuple[str, str]]:
    """Equal memories are in the order of namespace and id, also in a descending list."""
    by_name = sorted(memories, key=lambda memory: (memory.namespace, memory.memory_id))
    by_value = sorted(by_name, key=_VALUES[order], reverse=descending)  # type: ignore[arg-type]
    return [(memory.namespace, memory.memory_id) for memory in by_value]


def _places(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(record.memory.namespace, record.memory.memory_id) for record in records]


LIST_CLAUSES: tuple[Clause, ...] = (
    a_page_has_the_order_that_was_asked_for,
    pages_follow_one_another_without_gaps_or_repeats,
    a_page_goes_on_behind_a_record_that_is_gone,
    a_list_from_json_is_as_good_as_a_tuple_after_a_place,
    a_documents_memories_are_read_by_their_places,
    links_are_followed_backwards,
)
