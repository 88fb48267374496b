"""Pairs of memories with known answers, made from frames."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from loadtests.texts.memory_rules.frames import SWAPS, Frame
from memserve.domain.memories import FindingKind, Memory

DAY_S = 86_400.0
NOW_S = 1_800_000_000.0


@dataclass(frozen=True, slots=True)
class Pair:
    """What is there, what is written, and what is true of the two."""

    kind: str
    language: str
    old: Memory
    new: Memory
    expected: FindingKind | None
    """None: they say different things that can both hold."""


def pairs_of(frames: Sequence[Frame], rounds: int, seed: int) -> list[Pair]:
    """Every kind of pair that a frame has, `rounds` times, with other subjects and values."""
    draw = random.Random(seed)
    return [pair for _ in range(rounds) for frame in frames for pair in _of_frame(frame, frames, draw)]


def _of_frame(frame: Frame, frames: Sequence[Frame], draw: random.Random) -> Iterator[Pair]:
    subject, other_subject = draw.sample(frame.subjects, 2)
    value, other_value = draw.sample(frame.values, 2)
    base = frame.base.format(s=subject, v=value)
    other = frame.base.format(s=subject, v=other_value)
    changed = FindingKind.CONTRADICTION if frame.single else None
    same = FindingKind.DUPLICATE
    spelt = draw.choice([base.upper(), base.rstrip(".。") + " !", f"  {base}  ".replace(" ", "  ")])
    texts: list[tuple[str, str, FindingKind | None]] = [
        ("spelling", spelt, same),
        ("paraphrase", frame.paraphrase.format(s=subject, v=value), same),
        (f"other {frame.value_kind}" if frame.single else "one more value", other, changed),
        ("negation", frame.negated.format(s=subject, v=value), FindingKind.CONTRADICTION),
        ("other value, negated", frame.negated.format(s=subject, v=other_value), None),
        ("other subject", frame.base.format(s=other_subject, v=value), None),
        ("other subject and value", frame.base.format(s=other_subject, v=other_value), None),
        ("detail", frame.detail.format(s=subject, v=value), None),
        ("other facet", frame.facet.format(s=subject, v=value), None),
    ]
    if frame.reordered:
        texts.append(("reordered", frame.reordered.format(s=subject, v=value), same))
        texts.append(("other subject, reordered", frame.reordered.format(s=other_subject, v=value), None))
    for kind, text, expected in texts:
        old, new = _memory(base), _memory(text)
        # Both orders of writing: what is said first must not matter.
        yield Pair(kind, frame.language, *((old, new) if draw.random() < 0.5 else (new, old)), expected)
    if frame.single:
        old, new = replace(_memory(base), created_s=NOW_S - 30 * DAY_S), _memory(other)
        later = replace(new, valid_from_s=NOW_S - DAY_S) if draw.random() < 0.5 else new
        yield Pair("later value", frame.language, old, later, FindingKind.UPDATE)
        ended = replace(old, valid_until_s=NOW_S - 2 * DAY_S)
        begun = replace(new, valid_from_s=NOW_S - DAY_S)
        yield Pair("value of another time", frame.language, ended, begun, None)
    swap, names = SWAPS[frame.language], {"a": subject, "b": other_subject}
    swapped = swap.format(a=other_subject, b=subject)
    yield Pair("parts exchanged", frame.language, _memory(swap.format(**names)), _memory(swapped), None)
    if frame.reordered:
        first, second = (
            _memory(frame.reordered.format(s=each, v=value)) for each in (subject, other_subject)
        )
        yield Pair("both reordered, other subject", frame.language, first, second, None)
    stranger = draw.choice([each for each in frames if each is not frame and each.language == frame.language])
    text = stranger.base.format(s=draw.choice(stranger.subjects), v=draw.choice(stranger.values))
    yield Pair("unrelated", frame.language, _memory(base), _memory(text), None)


def _memory(text: str) -> Memory:
    return Memory("", "n", text, "", (), NOW_S)
