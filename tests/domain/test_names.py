"""The rules for names and digests, and the one between names and aliases: no alias is a version number."""

import pytest

from memserve.domain import names

LOWER_CASE = ("a", "0", "a.b_c-d", "x" * 64)
NEVER = ("", ".", "-a", "_a", "a b", "a/b", "../a", "a\n", "ä", "a\0")


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (names.is_name, LOWER_CASE, (*NEVER, "A", "x" * 65)),
        (names.is_key_name, (*LOWER_CASE, "Alice"), (*NEVER, "x" * 65)),
        (names.is_alias, ("live", "a.b_c-d", "x" * 64), (*NEVER, "Live", "1", "x" * 65)),
        (names.is_memory_id, (*LOWER_CASE, "A:1", "x" * 128), (*NEVER, ":a", "x" * 129)),
        (names.is_plain_file_name, (*LOWER_CASE, "adapter_model.safetensors"), (*NEVER, "x" * 101)),
        (
            names.is_sha256,
            ("0123456789abcdef" * 4,),
            ("A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "g" * 64),
        ),
    ],
)
def test_a_rule_takes_the_right_names_and_refuses_the_wrong_ones(rule, right, wrong):
    assert [text for text in right if not rule(text)] == []
    assert [text for text in wrong if rule(text)] == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tone", ("tone", 0, "")),
        ("tone@3", ("tone", 3, "")),
        ("tone@999999999", ("tone", 999_999_999, "")),
        ("tone@live", ("tone", 0, "live")),
        ("3@3", ("3", 3, "")),
    ],
)
def test_a_reference_is_a_name_with_a_number_or_an_alias_or_neither(text, parts):
    assert names.split_reference(text) == parts


@pytest.mark.parametrize(
    "text", ["", "@", "tone@", "tone@0", "tone@01", "tone@1000000000", "@live", "a@b@c", "a@1x"]
)
def test_what_is_no_reference_has_no_parts(text):
    assert names.split_reference(text) is None
