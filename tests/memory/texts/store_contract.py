"""What every store of records does, wherever it keeps them: `RecordStore` in clauses.

An implementation has one fixture `kept` with a store of vectors of `store_records.DIM` numbers, and one test:

    @each_clause
    def test_a_store_of_this_kind_keeps_the_contract(kept: Kept, clause: Clause) -> None:
        clause(kept)

Every clause has tenants of its own, so that all of them may share one store.
"""

from __future__ import annotations

import numpy as np
import pytest

from memserve.domain import Link, LinkKind, MemoryKind, MemoryState, Place
from memserve.memory.texts.records import Record
from memserve.memory.texts.store import ListOrder, WordHits
from tests.memory.texts.store_kept import ALL_STATES, TIMEOUT_S, Clause, Kept
from tests.memory.texts.store_list_clauses import LIST_CLAUSES
from tests.memory.texts.store_records import (
    CREATED_S,
    DIM,
    changed,
    ids,
    memory_of,
    record_of,
    scope_of,
    unit,
    vector_of,
)

KEYS_MAX = 1000
HOSTILE = ['x" or tenant_key != "', "x' OR '1'='1", "%", "_", "*", "a\\", "a\nb", '"]', "{x}", "x;--"]
"""Texts that would change a filter if they stood in it as they are."""
SCRIPTS = {
    "latin": ("Der Kühlschrank steht im Keller", "kühlschrank"),
    "chinese": ("北京烤鸭的餐厅在三楼", "烤鸭"),
    "japanese": ("会議室の鍵は受付にあります", "会議室"),
    "thai": ("กุญแจอยู่ในลิ้นชัก", "กุญแจ"),
    "arabic": ("المفتاح في الدرج الثاني", "المفتاح"),
}


def a_record_is_read_as_it_was_put(kept: Kept) -> None:
    first = memory_of("kept", "the first text", keywords=("alpha", "β"))
    now = memory_of(
        "kept", "the text\nof now", keywords=("gamma",), source="a “source”", kind=MemoryKind.REFLECTION,
        metadata={"n": 1, "x": 1.0, "yes": True, "tags": ("a", "b"), "word": "1"}, author="ann",
        valid_from_s=1.25, valid_until_s=2.5e9, applies_when='city == "Ulm"', strength=2.5,
        links=(Link(LinkKind.CAUSED_BY, "cause"), Link(LinkKind.NEXT, "next", "other")),
        place=Place("handbook", 7, "Title", ("Part", "Chapter")), pinned=True, version=2,
        updated_s=CREATED_S + 0.125, superseded_by=Link(LinkKind.SUPERSEDES, "newer"),
        state=MemoryState.SUPERSEDED,
    )  # fmt: skip
    record = record_of(kept.tenant, now, vector_of(1), before=[first])
    kept.store.put([record], timeout_s=TIMEOUT_S)
    read = kept.get(record.key)
    assert read is not None
    assert read == record.without_vector()
    metadata = read.memory.metadata
    assert {key: type(value) for key, value in metadata.items()} == {
        "n": int, "x": float, "yes": bool, "tags": tuple, "word": str
    }  # fmt: skip


def a_vector_is_read_only_when_it_is_asked_for(kept: Kept) -> None:
    (record,) = kept.put(memory_of("one"), vectors=[vector_of(1)])
    plain, full = kept.get(record.key), kept.get(record.key, with_vectors=True)
    assert plain is not None and full is not None
    assert plain.vector is None
    assert full.vector is not None and full.vector.dtype == np.float32
    np.testing.assert_allclose(full.vector, vector_of(1), atol=1e-6)
    assert all(found.vector is None for found in kept.page(ListOrder.CREATED))


def keys_that_do_not_exist_are_passed_over(kept: Kept) -> None:
    (record,) = kept.put(memory_of("one"))
    kept.store.delete(["0" * 64], timeout_s=TIMEOUT_S)
    kept.store.delete([], timeout_s=TIMEOUT_S)
    kept.store.put([], timeout_s=TIMEOUT_S)
    assert kept.store.get_many(["0" * 64], timeout_s=TIMEOUT_S) == {}
    assert kept.store.get_many([], timeout_s=TIMEOUT_S) == {}
    assert set(kept.store.get_many([record.key, "0" * 64], timeout_s=TIMEOUT_S)) == {record.key}


def a_record_takes_the_place_of_the_one_with_its_key(kept: Kept) -> None:
    (record,) = kept.put(memory_of("one", "the harbour opens at six"), vectors=[vector_of(1)])
    before = kept.store.row_count(timeout_s=TIMEOUT_S)
    after = changed(record, text="the museum closes at nine")
    kept.store.put([Record(after.key, after.tenant_key, after.history, vector_of(2))], timeout_s=TIMEOUT_S)
    assert kept.store.row_count(timeout_s=TIMEOUT_S) == before
    assert kept.worded("harbour") == []
    assert kept.worded("museum") == ["one"]
    (hit,) = kept.nearest(vector_of(2))
    assert hit.cosine == pytest.approx(1.0, abs=1e-4)
    assert hit.memory == after.memory


def of_two_records_of_one_key_in_a_batch_the_later_one_counts(kept: Kept) -> None:
    first, second = memory_of("one", "the harbour"), memory_of("one", "the museum", version=2)
    kept.put(first, memory_of("two"), second)
    assert kept.worded("museum") == ["one"]
    assert kept.worded("harbour") == []
    assert kept.listed() == ["one", "two"]
    assert sorted(ids(kept.nearest(vector_of(1)))) == ["one", "two"]


def what_is_superseded_or_forgotten_frees_its_place_in_both_halves_at_once(kept: Kept) -> None:
    for state in (MemoryState.SUPERSEDED, MemoryState.FORGOTTEN):
        near, far = unit(np.eye(DIM)[0]), unit(np.eye(DIM)[0] + np.eye(DIM)[1])
        best, second = kept.put(
            memory_of("best", "lighthouse lighthouse"),
            memory_of("second", "a lighthouse and many other words beside it"),
            vectors=[near, far],
        )
        assert ids(kept.nearest(near, 1)) == ids([best.memory])
        assert kept.worded("lighthouse", 1) == ["best"]
        gone = kept.replace(best, state=state)
        assert ids(kept.nearest(near, 1)) == ids([second.memory])
        assert kept.worded("lighthouse", 1) == ["second"]
        assert kept.by_words("lighthouse").rows == 1
        assert kept.listed() == ["second"]
        assert kept.listed(scope_of(kept.tenant, states=ALL_STATES)) == ["best", "second"]
        assert kept.listed(scope_of(kept.tenant, states=frozenset({state}))) == ["best"]
        assert kept.get(gone.key) == gone.without_vector()
        kept.replace(gone, state=MemoryState.LIVE)
        assert ids(kept.nearest(near, 1)) == ["best"]
        assert kept.worded("lighthouse", 1) == ["best"]


def what_is_not_live_is_found_by_no_content_whatever_the_scope(kept: Kept) -> None:
    (record,) = kept.put(memory_of("one", "lighthouse"), vectors=[vector_of(1)])
    kept.replace(record, state=MemoryState.SUPERSEDED)
    scope = scope_of(kept.tenant, states=ALL_STATES)
    assert kept.nearest(vector_of(1), scope=scope) == []
    assert kept.worded("lighthouse", scope=scope) == []


def a_scope_without_live_ones_is_searched_in_vain(kept: Kept) -> None:
    kept.put(memory_of("one", "lighthouse"), vectors=[vector_of(1)])
    scope = scope_of(kept.tenant, states=frozenset({MemoryState.FORGOTTEN}))
    assert kept.nearest(vector_of(1), scope=scope) == []
    assert kept.worded("lighthouse", scope=scope) == []
    assert kept.listed(scope) == []


def what_is_deleted_is_nowhere(kept: Kept) -> None:
    before = kept.store.row_count(timeout_s=TIMEOUT_S)
    record, other = kept.put(
        memory_of("one", "lighthouse", place=Place("book", 1), links=(Link(LinkKind.PART_OF, "two"),)),
        memory_of("two", "lighthouse"),
    )
    assert kept.store.row_count(timeout_s=TIMEOUT_S) == before + 2
    kept.store.delete([record.key], timeout_s=TIMEOUT_S)
    assert kept.store.row_count(timeout_s=TIMEOUT_S) == before + 1
    assert kept.get(record.key) is None
    assert ids(kept.nearest(vector_of(1))) == ["two"]
    assert kept.worded("lighthouse") == ["two"]
    assert kept.listed(scope_of(kept.tenant, states=ALL_STATES)) == ["two"]
    assert kept.at_places("book", 0, 9) == []
    assert kept.linking_to("notes", "two") == []
    kept.store.put([record], timeout_s=TIMEOUT_S)
    assert kept.worded("lighthouse") == ["one", "two"] or kept.worded("lighthouse") == ["two", "one"]
    assert other.key != record.key


def a_forgotten_record_is_counted(kept: Kept) -> None:
    before = kept.store.row_count(timeout_s=TIMEOUT_S)
    (record,) = kept.put(memory_of("one"))
    kept.replace(record, state=MemoryState.FORGOTTEN)
    assert kept.store.row_count(timeout_s=TIMEOUT_S) == before + 1


def tenants_with_the_same_ids_see_their_own(kept: Kept) -> None:
    other = Kept(kept.store)
    for owner, word in ((kept, "mine"), (other, "yours")):
        owner.put(
            memory_of(
                "one", f"lighthouse {word}", place=Place("book", 1), links=(Link(LinkKind.PART_OF, "two"),)
            ),
            vectors=[vector_of(1)],
        )
    for owner, word in ((kept, "lighthouse mine"), (other, "lighthouse yours")):
        assert [hit.memory.text for hit in owner.nearest(vector_of(1))] == [word]
        found = owner.by_words("lighthouse")
        assert [memory.text for _, memory in found.memories] == [word]
        assert found.document_frequency["lighthouse"] == 1
        assert [record.memory.text for record in owner.page(ListOrder.CREATED)] == [word]
        assert [memory.text for memory in owner.at_places("book", 0, 9)] == [word]
        assert owner.linking_to("notes", "two") == ["one"]
    kept.store.delete([record.key for record in other.page(ListOrder.CREATED)], timeout_s=TIMEOUT_S)
    assert ids(kept.nearest(vector_of(1))) == ["one"]
    assert kept.worded("lighthouse") == ["one"]


def only_the_scopes_namespaces_are_looked_at(kept: Kept) -> None:
    names = ("a", "a.b", "a-b", "a_b", "ab", "axb", "b")
    kept.put(
        *(
            memory_of(f"in-{name}", "lighthouse", namespace=name, place=Place("book", place))
            for place, name in enumerate(names)
        )
    )
    for chosen in (*((name,) for name in names), ("a", "b"), ("a_b", "a.b", "ab"), names, ("none",)):
        scope = scope_of(kept.tenant, *chosen)
        expected = sorted(f"in-{name}" for name in chosen if name in names)
        assert sorted(ids(kept.nearest(vector_of(1), scope=scope))) == expected
        assert sorted(kept.worded("lighthouse", scope=scope)) == expected
        assert sorted(kept.listed(scope)) == expected
        assert sorted(ids(kept.at_places("book", 0, 9, scope))) == expected


def ids_of_other_cases_are_other_ids(kept: Kept) -> None:
    kept.put(*(memory_of(name, place=Place(name)) for name in ("Note", "note", "NOTE")))
    assert kept.listed() == ["NOTE", "Note", "note"]
    assert ids(kept.at_places("Note", 0, 0)) == ["Note"]


def hostile_texts_are_content_and_no_filter(kept: Kept) -> None:
    other = Kept(kept.store)
    other.put(memory_of("theirs", "lighthouse", place=Place("book")))
    for number, text in enumerate(HOSTILE):
        memory = memory_of(
            f"h{number}", f"lighthouse {text}", source=text, author=text, keywords=(text,),
            metadata={"note": text}, applies_when=text, place=Place(text, number, text, (text,)),
        )  # fmt: skip
        (record,) = kept.put(memory)
        assert kept.get(record.key) == record.without_vector()
        assert ids(kept.at_places(text, 0, 99)) == [memory.memory_id]
        assert kept.at_places(text, number + 1, 99) == []
    assert len(kept.listed()) == len(HOSTILE)
    assert sorted(kept.worded("lighthouse", 100)) == sorted(f"h{number}" for number in range(len(HOSTILE)))


def kinds_and_times_narrow_every_search(kept: Kept) -> None:
    kinds = (MemoryKind.FACT, MemoryKind.EPISODE, MemoryKind.REFLECTION, MemoryKind.PASSAGE)
    kept.put(
        *(
            memory_of(
                f"m{number}",
                "lighthouse",
                kind=kind,
                created_s=CREATED_S + number,
                place=Place("book", number),
                links=(Link(LinkKind.PART_OF, "book"),),
            )
            for number, kind in enumerate(kinds)
        )
    )
    cases: list[tuple[dict[str, object], list[str]]] = [
        ({"kinds": frozenset({MemoryKind.EPISODE})}, ["m1"]),
        ({"kinds": frozenset({MemoryKind.FACT, MemoryKind.PASSAGE})}, ["m0", "m3"]),
        ({"kinds": frozenset({MemoryKind.PROCEDURE})}, []),
        ({"created_from_s": CREATED_S + 2}, ["m2", "m3"]),
        ({"created_until_s": CREATED_S + 2}, ["m0", "m1"]),
        ({"created_from_s": CREATED_S + 1, "created_until_s": CREATED_S + 2}, ["m1"]),
        ({"created_from_s": CREATED_S + 1, "kinds": frozenset({MemoryKind.PASSAGE})}, ["m3"]),
    ]
    for fields, expected in cases:
        scope = scope_of(kept.tenant, **fields)
        assert sorted(ids(kept.nearest(vector_of(1), 2, scope))) == expected
        assert sorted(kept.worded("lighthouse", 2, scope)) == expected
        assert kept.listed(scope) == expected
        assert ids(kept.at_places("book", 0, 9, scope)) == expected
        assert kept.linking_to("notes", "book", scope=scope) == expected


def the_nearest_are_the_exact_ones_in_order(kept: Kept) -> None:
    rows = 300
    vectors = [vector_of(number) for number in range(rows)]
    kept.put(*(memory_of(f"m{number:03}") for number in range(rows)), vectors=vectors)
    for number in range(1000, 1005):
        query = vector_of(number)
        exact = np.stack(vectors).astype(np.float64) @ query
        best = np.argsort(-exact)[:20]
        hits = kept.nearest(query, 20)
        assert ids(hits) == [f"m{place:03}" for place in best]
        np.testing.assert_allclose([hit.cosine for hit in hits], exact[best], atol=1e-4)


def a_limit_is_kept_and_few_rows_are_all_found(kept: Kept) -> None:
    kept.put(*(memory_of(f"m{number}", "lighthouse") for number in range(5)))
    assert len(kept.nearest(vector_of(1), 3)) == 3
    assert len(kept.worded("lighthouse", 3)) == 3
    assert len(kept.nearest(vector_of(1), 1024)) == 5
    assert len(kept.worded("lighthouse", 1024)) == 5


def any_of_the_words_finds_a_memory_and_more_of_them_find_it_first(kept: Kept) -> None:
    kept.put(
        memory_of("both", "the harbour of the museum"),
        memory_of("first", "the harbour of the town"),
        memory_of("second", "the museum of the town"),
        memory_of("none", "a street of the village"),
        memory_of("keyword", "a street and a square", keywords=("Museum",)),
    )
    found = kept.worded("harbour museum")
    assert found[0] == "both"
    assert set(found) == {"both", "first", "second", "keyword"}
    assert kept.worded("nowhere") == []
    assert set(kept.by_words("nowhere").document_frequency.values()) == {0}


def words_of_every_script_are_found(kept: Kept) -> None:
    kept.put(*(memory_of(script, text) for script, (text, _) in SCRIPTS.items()))
    for script, (_, word) in SCRIPTS.items():
        assert kept.worded(word) == [script]


def statistics_of_words_are_the_tenants_own(kept: Kept) -> None:
    """A word is rare or common by the tenant's own memories."""

    def fill(owner: Kept) -> WordHits:
        owner.put(
            *(memory_of(f"c{number}", f"common word number {number}") for number in range(9)),
            memory_of("rare", "unusual"),
        )
        return owner.by_words("common unusual nothing", 10)

    alone = fill(kept)
    assert 0 < alone.document_frequency["unusual"] < alone.document_frequency["common"] <= alone.rows == 10
    assert alone.document_frequency["nothing"] == 0
    assert 1 < alone.mean_length < 20
    assert ids(alone.memories)[0] == "rare"
    other = Kept(kept.store)
    other.put(*(memory_of(f"u{number}", "unusual " * 50) for number in range(40)))
    assert kept.by_words("common unusual nothing", 10) == alone


def a_thousand_keys_are_read_and_deleted_at_once(kept: Kept) -> None:
    records = kept.put(*(memory_of(f"m{number}", "lighthouse") for number in range(KEYS_MAX)))
    keys = [record.key for record in records]
    assert set(kept.store.get_many(keys, timeout_s=TIMEOUT_S)) == set(keys)
    assert len(kept.nearest(vector_of(1), 1024)) == KEYS_MAX
    kept.store.delete(keys[:-1], timeout_s=TIMEOUT_S)
    assert set(kept.store.get_many(keys, timeout_s=TIMEOUT_S)) == {keys[-1]}
    assert ids(kept.nearest(vector_of(1), 1024)) == [f"m{KEYS_MAX - 1}"]
    assert kept.worded("lighthouse", 1024) == [f"m{KEYS_MAX - 1}"]


CLAUSES: tuple[Clause, ...] = (
    a_record_is_read_as_it_was_put,
    a_vector_is_read_only_when_it_is_asked_for,
    keys_that_do_not_exist_are_passed_over,
    a_record_takes_the_place_of_the_one_with_its_key,
    of_two_records_of_one_key_in_a_batch_the_later_one_counts,
    what_is_superseded_or_forgotten_frees_its_place_in_both_halves_at_once,
    what_is_not_live_is_found_by_no_content_whatever_the_scope,
    a_scope_without_live_ones_is_searched_in_vain,
    what_is_deleted_is_nowhere,
    a_forgotten_record_is_counted,
    tenants_with_the_same_ids_see_their_own,
    only_the_scopes_namespaces_are_looked_at,
    ids_of_other_cases_are_other_ids,
    hostile_texts_are_content_and_no_filter,
    kinds_and_times_narrow_every_search,
    the_nearest_are_the_exact_ones_in_order,
    a_limit_is_kept_and_few_rows_are_all_found,
    any_of_the_words_finds_a_memory_and_more_of_them_find_it_first,
    words_of_every_script_are_found,
    statistics_of_words_are_the_tenants_own,
    a_thousand_keys_are_read_and_deleted_at_once,
    *LIST_CLAUSES,
)
each_clause = pytest.mark.parametrize("clause", CLAUSES, ids=[clause.__name__ for clause in CLAUSES])
