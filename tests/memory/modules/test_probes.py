from __future__ import annotations

import json
from typing import Any

import pytest

from memserve.errors import InvalidModule
from memserve.memory.modules.probes import MAX_BYTES, MAX_PROBES, Probes, parse_probes
from memserve.policy.modules.gate import Match, Probe, ProbeKind, ProbeSet, Thresholds

PROBE = {"question": "What?", "answers": ["That."]}
RECALL = {"name": "recall", "kind": "recall", "probes": [PROBE]}


def _bytes(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_every_field_of_a_probes_file_is_read() -> None:
    full = {
        "question": "What?",
        "answers": ["That.", "This."],
        "system": "Be brief.",
        "passages": ["A.", "B."],
    }
    custom = {
        "name": "bias",
        "kind": "custom",
        "match": "contains",
        "at_least": 1,
        "max_loss": 0.1,
        "probes": [full],
    }
    document = {"sets": [RECALL | {"target": 0.8}, custom], "thresholds": {"forgetting": 0.01}}
    assert parse_probes(_bytes(document)) == Probes(
        (
            ProbeSet("recall", ProbeKind.RECALL, (Probe("What?", ("That.",)),), target=0.8),
            ProbeSet(
                "bias",
                ProbeKind.CUSTOM,
                (Probe("What?", ("That.", "This."), "Be brief.", ("A.", "B.")),),
                Match.CONTAINS,
                at_least=1.0,
                max_loss=0.1,
            ),
        ),
        Thresholds(forgetting=0.01),
    )


def test_equal_probes_have_one_digest_however_they_are_written() -> None:
    sets = [
        RECALL,
        {
            "name": "own",
            "kind": "custom",
            "max_loss": 0.5,
            "probes": [PROBE | {"system": "Ä", "passages": ["é"]}],
        },
    ]
    plain = parse_probes(_bytes({"sets": sets, "thresholds": {"recall": 0.5}}))
    spelt_out = [
        {
            **dict(reversed(RECALL.items())),
            "target": 1.0,
            "match": "equals",
            "probes": [PROBE | {"passages": []}],
        },
        sets[1],
    ]
    other = parse_probes(
        json.dumps(
            {"thresholds": {"recall": 0.5, "override": 0.95}, "sets": spelt_out}, indent=3, ensure_ascii=False
        ).encode()
    )
    assert plain.canonical() == other.canonical()
    assert parse_probes(plain.canonical()) == plain
    assert plain.digest == other.digest != parse_probes(_bytes({"sets": sets})).digest


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (b"[" * 100_000, "probes.json: is not JSON"),
        (b"\xff", "probes.json: is not JSON"),
        (b'{"sets": [], "sets": []}', "probes.json: is not JSON: an object has a key twice"),
        (b'{"sets": NaN}', "probes.json: is not JSON: NaN is no number of JSON"),
        (b" " * (MAX_BYTES + 1), f"probes.json: has {MAX_BYTES + 1} bytes"),
        (b"[]", "probes.json: must be an object"),
        (b"{}", "probes.json: needs sets"),
        (
            _bytes({"sets": [RECALL], "more": 1}),
            "probes.json: has no field 'more'; its fields are sets, thresholds",
        ),
        (_bytes({"sets": []}), "probes.json: sets: must be a list of 1 to 16 entries"),
        (
            _bytes({"sets": [RECALL, RECALL]}),
            "probes.json: sets[1].name: 'recall' is the name of another set too",
        ),
        (
            _bytes({"sets": [RECALL | {"probes": [PROBE] * MAX_PROBES}, RECALL | {"name": "b"}]}),
            f"sets: have {MAX_PROBES + 1} probes together, at most {MAX_PROBES}",
        ),
        (
            _bytes({"sets": [RECALL], "thresholds": {"recall": 1.5}}),
            "probes.json: thresholds.recall: must be a number from 0 to 1",
        ),
        (
            _bytes({"sets": [RECALL], "thresholds": {"recal": 0.5}}),
            "probes.json: thresholds: has no field 'recal'",
        ),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_the_rule(content: bytes, refusal: str) -> None:
    with pytest.raises(InvalidModule) as caught:
        parse_probes(content)
    assert refusal in str(caught.value)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"name": "../etc"}, "name: must be 1-64 of a-z 0-9"),
        ({"name": "calibration"}, "name: must be 1-64 of a-z 0-9"),
        ({"kind": "other"}, "kind: must be one of recall, retain, abstain, override, leak, custom"),
        ({"kind": ["recall"]}, "kind: must be one of"),
        ({"kind": "custom"}, "is a custom set and needs at_least, max_loss or both"),
        ({"kind": "retain", "target": 0.5}, "has no field 'target'"),
        ({"at_least": 0.5}, "has no field 'at_least'; its fields are kind, match, name, probes, target"),
        ({"target": True}, "target: must be a number from 0 to 1"),
        ({"match": "like"}, "match: must be one of equals, contains"),
        ({"probes": []}, "probes: must be a list of 1 to 4096 entries"),
        ({"probes": ["What?"]}, "probes[0]: must be an object"),
        ({"probes": [PROBE, {"question": "What?"}]}, "probes[1]: needs answers"),
        ({"probes": [PROBE | {"question": " "}]}, "probes[0].question: must be a text"),
        ({"probes": [PROBE | {"question": "\ud800"}]}, "probes[0].question: has half of a surrogate pair"),
        ({"probes": [PROBE | {"answers": []}]}, "probes[0].answers: must be a list of 1 to 32 entries"),
        (
            {"probes": [PROBE | {"answers": ["x" * 1025]}]},
            "probes[0].answers[0]: has 1025 bytes, at most 1024",
        ),
        ({"probes": [PROBE | {"passages": ["ok", 3]}]}, "probes[0].passages[1]: must be a text"),
    ],
)
def test_a_set_that_breaks_a_rule_is_refused_with_its_place(change: dict[str, Any], refusal: str) -> None:
    with pytest.raises(InvalidModule) as caught:
        parse_probes(_bytes({"sets": [RECALL | {"name": "first"}, RECALL | change]}))
    assert str(caught.value).startswith("probes.json: sets[1]")
    assert refusal in str(caught.value)
