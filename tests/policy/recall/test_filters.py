"""Filters over a memory's fields, and what columns can answer of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain.memories import Memory, MemoryKind, Place
from memserve.errors import InvalidField
from memserve.policy.recall.expression_nodes import (
    Comparison,
    Constant,
    Has,
    Membership,
    Name,
    Node,
    Operator,
    Truthful,
)
from memserve.policy.recall.expressions import (
    FILTER_NAMES,
    column_bounds,
    filter_values,
    parse_filter,
)
from tests.policy.recall.condition_strategies import expression_of, nested

MEMORY = Memory(
    "m1", "notes", "text", "mail", ("travel",), 100.0,
    kind=MemoryKind.EPISODE, metadata={"year": 2024, "lang": "de"}, author="ops", valid_until_s=500.0,
    strength=2.0, place=Place("trip-1", 3), version=2, updated_s=200.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('kind == "episode" and created_s == 100 and updated_s > 100', True),
        ('metadata.year >= 2024 and metadata.lang == "de" and not has(metadata.other)', True),
        ('within == "trip-1" and position == 3 and version == 2 and strength > 1 and not pinned', True),
        ('contains(keywords, "travel") and source == "mail" and author == "ops" and memory_id == "m1"', True),
        ("valid_until_s > 400 and not has(valid_from_s)", True),
        ("valid_from_s <= 400", False),
    ],
)
def test_a_filter_reads_the_fields_of_a_memory(text: str, holds: bool) -> None:
    assert parse_filter("filter", text).evaluate(filter_values(MEMORY)).holds == holds


def test_every_name_of_a_filter_can_have_a_value() -> None:
    assert filter_values(MEMORY).keys() | {"valid_from_s"} >= FILTER_NAMES
    outside = filter_values(Memory("m", "n", "t", "", (), 0.0, valid_from_s=1.0))
    assert outside["valid_from_s"] == 1.0
    assert not {"within", "position"} & outside.keys()


def test_a_filter_over_a_name_that_no_memory_has_is_refused() -> None:
    with pytest.raises(InvalidField, match="knid is no field of a memory"):
        parse_filter("filter", 'knid == "fact"')
    with pytest.raises(InvalidField, match="is no field"):
        parse_filter("filter", "has(metadata.)")


SORTS = st.builds(
    Comparison,
    st.sampled_from(["created_s", "updated_s"]).map(Name),
    st.sampled_from(Operator),
    st.one_of(st.integers(0, 4), st.booleans(), st.just("x")).map(Constant),
)
FILTERS: st.SearchStrategy[Node] = st.recursive(
    st.one_of(
        SORTS,
        SORTS.map(lambda test: Comparison(test.right, test.operator, test.left)),
        st.builds(
            Comparison,
            st.just(Name("kind")),
            st.sampled_from(Operator),
            st.sampled_from(["fact", "episode", 3]).map(Constant),
        ),
        st.builds(
            Membership,
            st.sampled_from(["kind", "created_s"]).map(Name),
            st.lists(st.sampled_from(["fact", "episode", 1, 3]).map(Constant), min_size=1, max_size=2).map(
                tuple
            ),
        ),
        st.sampled_from(
            [Truthful(Constant(True)), Truthful(Constant(False)), Has(Name("kind")), Truthful(Name("pinned"))]
        ),
    ),
    nested,
    max_leaves=6,
)


@given(
    FILTERS,
    st.sampled_from([MemoryKind.FACT, MemoryKind.EPISODE, MemoryKind.PASSAGE]),
    st.integers(0, 4),
    st.integers(0, 4),
    st.booleans(),
)
def test_columns_never_leave_out_what_a_filter_lets_through(
    node: Node, kind: MemoryKind, created_s: int, updated_s: int, pinned: bool
) -> None:
    memory = Memory(
        "m", "n", "t", "", (), float(created_s), kind=kind, updated_s=float(updated_s), pinned=pinned
    )
    expression = expression_of(node)
    bounds = column_bounds(expression)
    if expression.evaluate(filter_values(memory)).holds:
        assert bounds.kinds is None or kind.value in bounds.kinds
        assert bounds.created_from_s <= created_s <= bounds.created_until_s
        assert bounds.updated_from_s <= updated_s <= bounds.updated_until_s


def test_columns_answer_kinds_and_times() -> None:
    bounds = column_bounds(
        parse_filter(
            "filter",
            '(kind == "fact" or kind in ["episode"]) and 5 < created_s and not (created_s > 9 or pinned)'
            " and (updated_s >= 2 and updated_s < 4 or updated_s == 7) and metadata.a == 1",
        )
    )
    assert bounds.kinds == {"fact", "episode"}
    assert (bounds.created_from_s, bounds.created_until_s) == (5, 9)
    assert (bounds.updated_from_s, bounds.updated_until_s) == (2, 7)
    assert column_bounds(parse_filter("filter", 'kind != "fact"')).kinds is None
    assert column_bounds(parse_filter("filter", 'kind == "fact" and false')).kinds == frozenset()
    assert column_bounds(parse_filter("filter", 'kind == "fact" or pinned')).kinds is None
