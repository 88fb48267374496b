"""Versions by reference, alias and session."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest

from memserve.domain import TrafficShare
from memserve.errors import InvalidField
from memserve.policy.modules.references import Reference, check_alias_name, parse_reference
from memserve.policy.modules.traffic import check_targets, choose_version, share_of

SPLIT = (TrafficShare(1, 90), TrafficShare(2, 10))
SESSIONS = [f"session-{number}" for number in range(20_000)]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("tone", Reference("tone", "live", 0)),
        ("tone@canary", Reference("tone", "canary", 0)),
        ("tone@12", Reference("tone", "", 12)),
        ("a.b_c-d@v2", Reference("a.b_c-d", "v2", 0)),
    ],
)
def test_a_reference_is_a_name_an_alias_or_a_number(text: str, reference: Reference) -> None:
    assert parse_reference("module", text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@live",
        "tone@",
        "tone@0",
        "tone@-1",
        "tone@1234567890",
        "Tone",
        "../x",
        "a@b@c",
        "a\n",
        "a@b\n",
        "a@2b",
    ],
)
def test_any_other_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidField, match="module"):
        parse_reference("module", text)


@pytest.mark.parametrize("name", ["", "1", "2x", "Live", "a/b", "a" * 65])
def test_an_alias_is_never_taken_for_a_number(name: str) -> None:
    with pytest.raises(InvalidField):
        check_alias_name("alias", name)


def test_a_split_follows_its_weights() -> None:
    counted = Counter(choose_version(SPLIT, session) for session in SESSIONS)
    assert abs(counted[2] / len(SESSIONS) - 0.1) < 0.01
    assert share_of(SPLIT, 2) == pytest.approx(0.1)


def test_a_session_keeps_its_version_whatever_the_order_of_the_targets() -> None:
    for session in SESSIONS[:200]:
        assert (
            choose_version(SPLIT, session)
            == choose_version(SPLIT, session)
            == choose_version(SPLIT[::-1], session)
        )


def test_only_the_sessions_that_must_move_when_a_weight_changes() -> None:
    wider = (TrafficShare(1, 80), TrafficShare(2, 20))
    moved = [(choose_version(SPLIT, session), choose_version(wider, session)) for session in SESSIONS]
    assert (2, 1) not in moved
    assert abs(sum(before != after for before, after in moved) / len(SESSIONS) - 0.1) < 0.02


def test_one_target_gets_everything() -> None:
    assert {choose_version((TrafficShare(7, 0.001),), uuid.uuid4().hex) for _ in range(100)} == {7}


@pytest.mark.parametrize(
    "targets",
    [
        (),
        tuple(TrafficShare(number, 1) for number in range(1, 10)),
        (TrafficShare(0, 1),),
        (TrafficShare(1, 0),),
        (TrafficShare(1, -1),),
        (TrafficShare(1, float("nan")),),
        (TrafficShare(1, float("inf")),),
        (TrafficShare(1, 1), TrafficShare(1, 2)),
    ],
)
def test_targets_that_make_no_sense_are_refused(targets: tuple[TrafficShare, ...]) -> None:
    with pytest.raises(InvalidField, match="targets"):
        check_targets("targets", targets)
