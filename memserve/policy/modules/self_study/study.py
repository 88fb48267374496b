"""Lessons of a self-study: what a module is to learn, and what it must not lose.

1. A fact: a question for what a memory states, without the memory. At times other passages stand beside it.
2. A contradiction: a passage gives the fact another value, and the passage is right.
3. A reading: a passage about something that no memory names, and a question for it.
4. Unknown things: near misses of the facts, and what nobody has stated. The right answer is the base's own.
5. General questions. The right answer is the base's own.

All are asked in the phrasings of the facts. A phrasing that only occurred without an answer would come to
mean that there is none. Made-up names and values fall into two splits by a checksum: lessons draw from one,
and probes from the other.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from memserve.policy.modules.self_study import inventing, wording
from memserve.policy.modules.self_study.draw import Draw
from memserve.policy.modules.self_study.inventing import NO_WORDS, Lexicon
from memserve.policy.modules.self_study.readings import Form, Reading

PROBED_PARTS, PARTS = 1, 4
"""Of four parts of the made-up names one belongs to the probes."""
FAR_SHARE = 0.3
"""How many of the things that nobody has stated are of another sort than the memories'."""
BESIDE_SHARE = 0.3
"""How many facts are asked with other passages beside them."""
MOST_BESIDE = 3
TRIES = 64


class LessonKind(StrEnum):
    FACT = "fact"
    CONTRADICTION = "contradiction"
    READING = "reading"
    UNKNOWN = "unknown"
    GENERAL = "general"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question with what stands in its prompt."""

    kind: LessonKind
    question: str
    passages: tuple[str, ...] = ()
    answer: str = ""
    """The right answer. "": what the base model itself says."""
    value: str = ""
    """What a right answer contains. "": not known."""
    fact: int = -1
    """Of which reading a fact asks, and a contradiction is."""


@dataclass(frozen=True, slots=True)
class Mix:
    """The shares of the kinds of lessons that keep what the base can do."""

    contradiction: float = 0.2
    reading: float = 0.25
    unknown: float = 0.5
    general: float = 0.05
    beside: float = 0.4
    """How many of the unknown things are asked with passages about others."""


def is_probed(made_up: str) -> bool:
    """Whether a made-up name or value belongs to the probes. It depends on nothing but the text."""
    return zlib.crc32(made_up.casefold().encode()) % PARTS < PROBED_PARTS


class Study:
    """Draws lessons, and what probes are made of, from readings."""

    def __init__(
        self, readings: Sequence[Reading], lexicon: Lexicon = NO_WORDS, phrasings: int | None = None
    ) -> None:
        """phrasings: in how many ways a fact is asked, at most. Raises ValueError without readings."""
        if not readings:
            raise ValueError("no statement to learn")
        self._lexicon = lexicon
        self._phrasings = phrasings
        self.readings = tuple(readings)
        self.values = tuple(dict.fromkeys(reading.value for reading in readings))
        self._subjects = tuple(dict.fromkeys(reading.subject for reading in readings))
        self._taken = frozenset(subject.casefold() for subject in self._subjects)
        self._keys = frozenset(reading.key for reading in readings)
        exact = [reading for reading in readings if reading.form is Form.ATTRIBUTE]
        self._attributes = tuple(dict.fromkeys(reading.attribute for reading in exact))
        self._exact = tuple(exact)

    def facts(self) -> list[Lesson]:
        """Every reading in every phrasing to train on, without passages."""
        return [
            Lesson(LessonKind.FACT, question, (), reading.answer, reading.value, place)
            for place, reading in enumerate(self.readings)
            for question in self._questions(reading)
        ]

    def beside(self, draw: Draw, lesson: Lesson) -> Lesson:
        """The lesson, at times with passages about other things."""
        if not draw.chance(BESIDE_SHARE):
            return lesson
        return Lesson(
            lesson.kind,
            lesson.question,
            self.others(draw, 1 + draw.below(MOST_BESIDE)),
            lesson.answer,
            lesson.value,
            lesson.fact,
        )

    def replay(self, draw: Draw, count: int, mix: Mix) -> list[Lesson]:
        """Lessons that keep what the base can do, in the shares of the mix."""
        return [self._kept(draw, mix) for _ in range(count)]

    def contradiction(self, draw: Draw, place: int, *, probe: bool = False) -> Lesson:
        """A passage that gives the reading's fact another value."""
        reading = self.readings[place]
        value = self._other_value(draw, reading, probe)
        stated = wording.with_value(reading, value)
        if reading.form is Form.ATTRIBUTE and draw.chance(0.7):
            stated = draw.choice(wording.statements(reading.subject, reading.attribute, value))
        changed = Reading(reading.form, reading.subject, reading.attribute, value, stated)
        passages = draw.shuffled((stated, *self.others(draw, draw.below(MOST_BESIDE), probe=probe)))
        asked = draw.choice(self._questions(reading, probe))
        return Lesson(LessonKind.CONTRADICTION, asked, tuple(passages), changed.answer, value, place)

    def reading(self, draw: Draw, *, probe: bool = False) -> Lesson:
        """A passage about a thing that no memory names, and a question for what it says."""
        stated, sentence = self._invented(draw, probe)
        passages = draw.shuffled((sentence, *self.others(draw, draw.below(MOST_BESIDE), probe=probe)))
        asked = draw.choice(self._questions(stated, probe))
        return Lesson(LessonKind.READING, asked, tuple(passages), stated.answer, stated.value)

    def unknown(self, draw: Draw, *, probe: bool = False, passages: bool | None = None) -> Lesson:
        """A question that neither a memory nor a passage answers.

        Most are near misses: the attribute of a memory, of another thing; or another attribute of its
        subject. passages: whether others stand in the prompt; None: at times.
        """
        asked = draw.choice(self.readings)
        if draw.chance(FAR_SHARE):
            wanted = self._invented(draw, probe)[0]
        elif draw.chance(0.3):
            wanted = self._without_value(draw, asked)
        else:
            wanted = self._elsewhere(draw, asked, probe)
        question = draw.choice(self._questions(wanted, probe))
        shown = draw.chance(BESIDE_SHARE) if passages is None else passages
        beside = self.others(draw, 1 + draw.below(MOST_BESIDE), probe=probe) if shown else ()
        return Lesson(LessonKind.UNKNOWN, question, beside)

    def elsewhere(self, draw: Draw, place: int, *, probe: bool) -> Lesson:
        """The reading's question, of a thing that no memory names."""
        wanted = self._elsewhere(draw, self.readings[place], probe)
        return Lesson(LessonKind.UNKNOWN, draw.choice(self._questions(wanted, probe)), fact=place)

    def others(self, draw: Draw, count: int, *, probe: bool = False) -> tuple[str, ...]:
        """Passages about things that no memory names."""
        passages = [self._invented(draw, probe)[1] for _ in range(count)]
        return tuple(
            f"{passage} {draw.choice(inventing.FILLERS)}" if draw.chance(0.15) else passage
            for passage in passages
        )

    def _questions(self, reading: Reading, probe: bool = False) -> list[str]:
        return wording.questions(reading, held_out=probe, most=self._phrasings)

    def _kept(self, draw: Draw, mix: Mix) -> Lesson:
        at = draw.below(1_000_000) / 1_000_000 * (mix.contradiction + mix.reading + mix.unknown + mix.general)
        if at < mix.contradiction:
            return self.contradiction(draw, draw.below(len(self.readings)))
        if at < mix.contradiction + mix.reading:
            return self.reading(draw)
        if at < mix.contradiction + mix.reading + mix.unknown:
            return self.unknown(draw, passages=draw.chance(mix.beside))
        return Lesson(LessonKind.GENERAL, draw.choice(inventing.GENERAL[::2])[0])

    def _invented(self, draw: Draw, probe: bool) -> tuple[Reading, str]:
        """A fact that nobody has stated, and a sentence that states it."""
        like = draw.choice(self._exact or self.readings)
        subject = self._subject(draw, like, probe)
        if draw.chance(FAR_SHARE) or like.form is not Form.ATTRIBUTE:
            attribute, value = draw.choice(inventing.ATTRIBUTES), inventing.any_value(draw, self._lexicon)
        else:
            attribute, value = like.attribute, self._other_value(draw, like, probe)
        stated = draw.choice(wording.statements(subject, attribute, value))
        return Reading(Form.ATTRIBUTE, subject, attribute, value, stated), stated

    def _elsewhere(self, draw: Draw, like: Reading, probe: bool) -> Reading:
        """The same of another thing, which no memory names."""
        subject = self._subject(draw, like, probe)
        attribute = like.attribute
        if like.form is Form.CLOZE:
            attribute = attribute.replace(like.subject, subject).replace(
                like.subject[:1].upper() + like.subject[1:], subject
            )
            if attribute == like.attribute:
                return Reading(Form.ATTRIBUTE, subject, draw.choice(inventing.ATTRIBUTES), "", "")
        return Reading(like.form, subject, attribute, like.value, "")

    def _without_value(self, draw: Draw, like: Reading) -> Reading:
        """Another attribute of the reading's subject, one that no memory states."""
        pool = [*self._attributes, *inventing.ATTRIBUTES]
        for _ in range(TRIES):
            wanted = Reading(Form.ATTRIBUTE, like.subject, draw.choice(pool), "", "")
            if wanted.key not in self._keys:
                return wanted
        return self._elsewhere(draw, like, False)

    def _subject(self, draw: Draw, like: Reading, probe: bool) -> str:
        for _ in range(TRIES):
            if draw.chance(FAR_SHARE):
                subject = inventing.subject(draw, self._lexicon)
            else:
                subject = inventing.other_subject(
                    draw, like.subject, self._subjects, self._taken, self._lexicon
                )
            if is_probed(subject) == probe and subject.casefold() not in self._taken:
                return subject
        return inventing.name(draw)

    def _other_value(self, draw: Draw, like: Reading, probe: bool) -> str:
        alike = tuple(reading.value for reading in self._exact if reading.attribute == like.attribute)
        for attempt in range(TRIES):
            value = inventing.other_value(
                draw, like.value, alike if attempt < 8 else self.values, self._lexicon
            )
            if is_probed(f"{like.subject}: {value}") == probe and value != like.value:
                return value
        return inventing.name(draw)
