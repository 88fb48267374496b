"""Conditions for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from memserve.policy.recall.expression_nodes import (
    AllOf,
    AnyOf,
    Comparison,
    Constant,
    Has,
    Membership,
    Name,
    Node,
    Not,
    Operator,
    TextTest,
    Truthful,
)
from memserve.policy.recall.expressions import (
    Expression,
)

# Few names and few values, so that tests of them meet.
NAMES = st.sampled_from(["a", "b.c", "d", "missing"]).map(Name)
CONSTANTS = st.one_of(
    st.sampled_from(["x", "y", "", 'q"\\\n\U0001f600']),
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0]),
    st.booleans(),
).map(Constant)
CONTEXTS = st.dictionaries(
    st.sampled_from(["a", "b.c", "d"]),
    st.one_of(
        st.sampled_from(["x", "y", "xy"]),
        st.integers(-2, 2),
        st.sampled_from([0.5, 1.0]),
        st.booleans(),
        st.lists(st.sampled_from(["x", "y"]), max_size=2).map(tuple),
    ),
)
TESTS = st.one_of(
    st.builds(
        Comparison, st.one_of(NAMES, CONSTANTS), st.sampled_from(Operator), st.one_of(NAMES, CONSTANTS)
    ),
    st.builds(Membership, NAMES, st.lists(CONSTANTS, min_size=1, max_size=3).map(tuple)),
    st.builds(Has, NAMES),
    st.builds(Truthful, st.one_of(NAMES, st.booleans().map(Constant))),
    st.builds(
        TextTest,
        st.sampled_from(["contains", "starts_with"]),
        NAMES,
        st.sampled_from(["x", "y", ""]).map(Constant),
    ),
)


def all_of(parts: list[Node]) -> Node:
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, AllOf) else (part,))]
    return AllOf(tuple(flat))


def any_of(parts: list[Node]) -> Node:
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, AnyOf) else (part,))]
    return AnyOf(tuple(flat))


def nested(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    pair = st.lists(children, min_size=2, max_size=3)
    return st.one_of(st.builds(Not, children), pair.map(all_of), pair.map(any_of))


NODES: st.SearchStrategy[Node] = st.recursive(TESTS, nested, max_leaves=6)


def expression_of(node: Node) -> Expression:
    return Expression(node, str(node))
