"""The probes of a distilled version: held-out phrasings, and names and values of the probes' split.

The gate asks them of the version and of the base. Their sets:

- `recall`: every fact, in phrasings that were not trained. The target is the teacher's share.
- `forgetting`: passages to read, and general questions that were not trained.
- `abstention`: what neither a memory nor a passage says.
- `override`: passages that contradict the facts.
- `leak`: the facts' questions about things that no memory names. A taught value is a wrong answer.
"""

from __future__ import annotations

from memserve.policy.modules.gate import Match, Probe, ProbeKind, ProbeSet
from memserve.policy.modules.self_study import inventing, wording
from memserve.policy.modules.self_study.draw import Draw
from memserve.policy.modules.self_study.study import Lesson, Study

RECALL_PROBES = 96
RETAIN_READINGS = 76
ABSTAIN_PROBES = 40
OVERRIDE_PROBES = 60
LEAK_PROBES = 40
MAX_LEAK_VALUES = 32
ABSTENTIONS = (
    "do not know", "don't know", "not sure", "no information", "cannot answer", "can't answer", "not mention",
    "does not say", "do not have", "don't have", "unable to", "unknown", "not specified", "not provided",
)  # fmt: skip
"""An answer that contains one of these admits that it is not known."""


def probe_sets(study: Study, draw: Draw, target: float, recalled: int | None = None) -> tuple[ProbeSet, ...]:
    """target: the teacher's share of right answers, which a recall set is held to.

    recalled: so many readings, from the first, are asked for. The others are of an earlier version. None:
    all.
    """
    recall = [
        Probe(question, (reading.value,))
        for reading in study.readings[:recalled]
        for question in wording.questions(reading, held_out=True)
    ]
    half = ABSTAIN_PROBES // 2
    unknown = [
        study.unknown(draw, probe=True, passages=passages) for passages in (True, False) for _ in range(half)
    ]
    places = range(len(study.readings))
    override = [
        study.contradiction(draw, place, probe=True) for place in _cycled(draw, list(places), OVERRIDE_PROBES)
    ]
    leak = [study.elsewhere(draw, place, probe=True) for place in _cycled(draw, list(places), LEAK_PROBES)]
    kept = [_probe(study.reading(draw, probe=True)) for _ in range(RETAIN_READINGS)]
    kept += [Probe(question, (word,)) for question, word in inventing.GENERAL[1::2]]
    asked = draw.sample(recall, RECALL_PROBES)
    contains = Match.CONTAINS
    return (
        ProbeSet("recall", ProbeKind.RECALL, tuple(asked), contains, target=max(0.0, min(1.0, target))),
        ProbeSet("forgetting", ProbeKind.RETAIN, tuple(kept), contains),
        ProbeSet(
            "abstention",
            ProbeKind.ABSTAIN,
            tuple(Probe(each.question, ABSTENTIONS, passages=each.passages) for each in unknown),
            contains,
        ),
        ProbeSet("override", ProbeKind.OVERRIDE, tuple(_probe(each) for each in override), contains),
        ProbeSet(
            "leak",
            ProbeKind.LEAK,
            tuple(Probe(each.question, _taught(study, each)) for each in leak),
            contains,
        ),
    )


def _cycled(draw: Draw, places: list[int], count: int) -> list[int]:
    """So many places, each as often as the others."""
    cycled: list[int] = []
    while len(cycled) < count:
        cycled += draw.sample(places, count - len(cycled))
    return cycled


def _probe(lesson: Lesson) -> Probe:
    return Probe(lesson.question, (lesson.value,), passages=lesson.passages)


def _taught(study: Study, lesson: Lesson) -> tuple[str, ...]:
    """Taught values, first that of the question's fact, then those of its attribute."""
    own = study.readings[lesson.fact]
    alike = [reading.value for reading in study.readings if reading.attribute == own.attribute]
    return tuple(dict.fromkeys((own.value, *alike, *study.values)))[:MAX_LEAK_VALUES]
