"""What a memory's metadata and a request's context may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.errors import InvalidField
from memserve.policy.recall.expressions import parse
from memserve.policy.recall.metadata import checked_metadata


def test_values_keep_their_types_and_texts_are_in_nfc() -> None:
    checked = checked_metadata(
        "metadata",
        {"b.c": 1, "a": "cafe\u0301", "z-1": 1.0, "on": True, "tags": ["e\u0301", "x"], "least": -(2**63)},
    )
    assert list(checked) == ["a", "b.c", "least", "on", "tags", "z-1"]
    assert checked["a"] == "caf\u00e9"
    assert checked["tags"] == ("\u00e9", "x")
    assert type(checked["b.c"]) is int and type(checked["z-1"]) is float and checked["on"] is True
    assert len(checked_metadata("metadata", {f"k{number}": "x" * 512 for number in range(32)})) == 32


@pytest.mark.parametrize(
    ("values", "field", "rule"),
    [
        ({f"k{number}": 1 for number in range(33)}, "metadata", "must have at most 32 keys, has 33"),
        ({"A": 1}, "metadata", "must be 1 to 64 of a-z"),
        ({"": 1}, "metadata", "must be 1 to 64 of a-z"),
        ({"a\n": 1}, "metadata", "must be 1 to 64 of a-z"),
        ({"1a": 1}, "metadata", "from a letter on"),
        ({"a" * 65: 1}, "metadata", "must be 1 to 64 of a-z"),
        ({"not": 1}, "metadata", "is a word of conditions"),
        ({"a": "é" * 257}, "metadata.a", "must be at most 512 bytes of UTF-8, is 514"),
        ({"a": "\ud800"}, "metadata.a", "must be valid Unicode"),
        ({"a": ["x"] * 33}, "metadata.a", "must be a list of at most 32 texts, has 33"),
        ({"a": ["x", 1]}, "metadata.a", "must be a list of texts"),
        ({"a": float("nan")}, "metadata.a", "must be a finite number"),
        ({"a": float("inf")}, "metadata.a", "must be a finite number"),
        ({"a": 2**63}, "metadata.a", "must be a whole number of at most 64 bits"),
        ({"a": None}, "metadata.a", "must be text, a number"),
        ({"a": {"b": 1}}, "metadata.a", "must be text, a number"),
    ],
)
def test_a_refusal_names_the_key_and_the_rule(values: dict[str, object], field: str, rule: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        checked_metadata("metadata", values)
    assert refusal.value.field == field
    assert rule in refusal.value.rule


@given(
    st.dictionaries(
        st.text(max_size=5), st.one_of(st.text(max_size=9), st.integers(), st.floats(), st.none())
    )
)
def test_what_is_accepted_is_accepted_again_and_every_key_can_stand_in_a_condition(
    values: dict[str, object],
) -> None:
    try:
        checked = checked_metadata("context", values)
    except InvalidField:
        return
    assert checked_metadata("context", checked) == checked
    for key in checked:
        assert parse("applies_when", f"has({key})").evaluate(checked).holds
