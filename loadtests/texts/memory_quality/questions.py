"""Memories and questions about them, generated from a seed."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from loadtests.texts.memory_quality.tongues import Relation, Tongue
from memserve.domain import Link, LinkKind, Memory

NOW_S = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
CHANGES = ("linked", "worded alike", "worded otherwise")
"""How the memories of a subject that has changed belong together: by a link, or by their words alone."""
_LACKING = 0.2
_CHANGED = 0.3
_LETTERS = "ABCDEFGHKLMNPRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Question:
    """A question and what answers it."""

    text: str
    kind: str
    """`direct`, `paraphrase`, `misspelt`, `code`, `date`, `unknown name`, `unknown relation`, `unrelated`."""
    right: str | None
    """The id of the memory that answers: the newest that holds. None: none answers."""
    subject: frozenset[str] = frozenset()
    """The ids of all memories that say what is asked for, also of outdated ones."""
    changed: str = ""
    """One of CHANGES when the subject has several memories."""


@dataclass(slots=True)
class QuestionSet:
    """What one tongue has."""

    tongue: Tongue
    memories: list[Memory] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Fact:
    """A subject with all its memories, and the value that holds."""

    name: str
    relation: Relation
    right: str
    ids: frozenset[str]
    value: str
    asked_value: str
    """In another spelling, for codes and dates."""
    changed: str


def generate(tongue: Tongue, *, seed: int, names: int, held_out: bool) -> QuestionSet:
    """A set of questions.

    names: how many names have memories.
    held_out: whether the questions are those that nothing was fitted to.
    """
    chance = random.Random(f"{tongue.name} {seed}")
    every = [tongue.joint.join(pair) for pair in itertools.product(tongue.first, tongue.second)]
    if tongue.name in ("Arabic", "Thai", "Japanese"):
        every = [_named(tongue, first, second) for first in tongue.first for second in tongue.second]
    chance.shuffle(every)
    known, unknown = every[:names], every[names:]
    made = QuestionSet(tongue)
    form = 1 if held_out else 0
    lacking: list[tuple[str, Relation]] = []
    for name in known:
        for relation in tongue.relations:
            if chance.random() < _LACKING:
                lacking.append((name, relation))
            else:
                fact = _remember(made, name, relation, chance)
                made.questions.extend(_questions(fact, form, chance))
    chance.shuffle(lacking)
    for place, name in enumerate(unknown[: names // 2]):
        relation = chance.choice(tongue.relations)
        text = (relation.direct if place % 2 else relation.paraphrases)[form].format(e=name)
        made.questions.append(Question(text, "unknown name", None))
    for place, (name, relation) in enumerate(lacking[: names // 2]):
        text = (relation.direct if place % 2 else relation.paraphrases)[form].format(e=name)
        made.questions.append(Question(text, "unknown relation", None))
    for text in tongue.unrelated[form::2]:
        made.questions.append(Question(text, "unrelated", None))
    return made


def _named(tongue: Tongue, first: str, second: str) -> str:
    """The name in the order of the tongue: what it is comes first in Arabic and Thai."""
    if tongue.name == "Japanese":
        return first + tongue.joint + second
    return second + tongue.joint + first


def _remember(made: QuestionSet, name: str, relation: Relation, chance: random.Random) -> _Fact:
    """Add a subject's memories: one, or several of which the newest valid one holds."""
    tongue = made.tongue
    versions = chance.choice((2, 3)) if chance.random() < _CHANGED else 1
    changed = chance.choice(CHANGES) if versions > 1 else ""
    statements = chance.sample(relation.statements, 2)
    created_s = NOW_S - chance.uniform(200, 400) * DAY_S
    ids: list[str] = []
    value = asked = ""
    for version in range(versions):
        value, asked = _value(tongue, relation, chance)
        links = (Link(LinkKind.CONTRADICTS, ids[-1]),) if ids and changed == "linked" else ()
        statement = statements[version % 2 if changed != "worded alike" else 0]
        _add(made, ids, statement.format(e=name, v=value), created_s, links)
        created_s += chance.uniform(5, 60) * DAY_S
    right = ids[-1]
    if versions > 1 and chance.random() < 0.5:
        # A newer one that does not hold: it has expired, or is still to come.
        later, _ = _value(tongue, relation, chance)
        text = chance.choice(relation.statements).format(e=name, v=later)
        if chance.random() < 0.5:
            _add(made, ids, text, NOW_S - 5 * DAY_S, (), until_s=NOW_S - DAY_S)
        else:
            _add(made, ids, text, NOW_S - 5 * DAY_S, (), from_s=NOW_S + 30 * DAY_S)
    return _Fact(name, relation, right, frozenset(ids), value, asked, changed)


def _add(
    made: QuestionSet,
    ids: list[str],
    text: str,
    created_s: float,
    links: tuple[Link, ...],
    *,
    from_s: float | None = None,
    until_s: float | None = None,
) -> None:
    memory_id = f"m{len(made.memories)}"
    ids.append(memory_id)
    made.memories.append(
        Memory(
            memory_id,
            made.tongue.name.lower(),
            text,
            "",
            (),
            created_s,
            valid_from_s=from_s,
            valid_until_s=until_s,
            links=links,
        )
    )


def _questions(fact: _Fact, form: int, chance: random.Random) -> list[Question]:
    asked = [
        ("direct", fact.relation.direct[form].format(e=fact.name)),
        ("paraphrase", fact.relation.paraphrases[form].format(e=fact.name)),
    ]
    if chance.random() < 0.2:
        asked.append(("misspelt", fact.relation.direct[form].format(e=_misspelt(fact.name, chance))))
    if fact.relation.values in ("code", "date") and not fact.changed:
        asked.append((fact.relation.values, fact.asked_value))
    return [Question(text, kind, fact.right, fact.ids, fact.changed) for kind, text in asked]


def _value(tongue: Tongue, relation: Relation, chance: random.Random) -> tuple[str, str]:
    """A value, and another spelling of it."""
    match relation.values:
        case "code":
            letters = "".join(chance.choices(_LETTERS, k=2))
            number, last = chance.randint(1000, 9999), chance.randint(1, 9)
            return f"{letters}-{number}/{last}", chance.choice(
                (
                    f"{letters.lower()}{number}{last}",
                    f"{letters}{number}-{last}",
                    f"{letters}_{number}_{last}",
                )
            )
        case "date":
            day = datetime(2026, 7, 1, tzinfo=UTC) + timedelta(days=chance.randint(0, 1500))
            return day.strftime(tongue.date), day.strftime(tongue.asked_date)
        case "number":
            number = chance.randint(1000, 99_999)
            return f"{number:,}", str(number)
        case "time":
            return (f"{chance.randint(5, 11):02d}:{chance.choice((0, 10, 15, 30, 45)):02d}",) * 2
        case values:
            return (chance.choice(tongue.values[values]),) * 2


def _misspelt(name: str, chance: random.Random) -> str:
    """Two letters inside the longest word change places. A word of less than five letters loses one."""
    word = max(name.split(" "), key=len)
    place = chance.randint(1, len(word) - 3) if len(word) > 4 else 0
    if len(word) > 4:
        wrong = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    else:
        lost = chance.randrange(len(word))
        wrong = word[:lost] + word[lost + 1 :]
    return name.replace(word, wrong, 1)
