"""How a memory that is written stands to those that are there: duplicate, contradiction, update, or neither.

No language model. The rules look at how such sentences are made: a frame that both share, and one place, the
slot, in which they differ.

1. The same units (words, numbers, letters of scripts without spaces) in the same order: a duplicate.
2. One says no where the other does not, and their words of content are the same: a contradiction.
3. The same words of content, with other words of grammar, or with a part moved as a whole: a duplicate. When
   two words have only changed places ("Anna pays Ben"), it is neither.
4. One slot differs, and it stands where the value stands: at the end, or behind the verb. A contradiction.
   Where the slot is the subject ("the north gate"), it is neither. So are two values of a verb that has many
   ("likes tea").
5. One says what the other says and more: neither.
6. Two memories whose validity does not overlap have nothing to do with each other.
7. A contradiction by a memory that holds from a later date is an update.

Numbers, negations and names are never near: nothing that differs in one of them is a duplicate.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memserve.domain.memories import Finding, FindingKind, Memory, MemoryKind, MemoryState
from memserve.policy.recall.relation_words import (
    ARTICLES,
    COPULAS,
    NEGATIONS,
    OF_WHAT,
    PAST,
    POSSESSIVE,
    PREPOSITIONS,
    Unit,
    has_many_values,
    is_having,
    is_hiragana,
    is_unspaced,
    negations_in,
    plain,
    units_of,
)
from memserve.policy.recall.words import words_of

# Longer texts are compared by rule 1 alone: they are no single statement.
_STATEMENT_CHARS = 1024
_STATEMENT_UNITS = 96


class Candidate(NamedTuple):
    """A memory that is there, found near the new one."""

    memory: Memory
    cosine: float | None
    """Of both texts' embeddings. None: not known."""
    word_overlap: float
    """`word_overlap` of both texts."""


@dataclass(frozen=True, slots=True)
class RelationRules:
    """Which rules are applied, and how far."""

    exact_duplicates: bool = True
    near_duplicates: bool = True
    contradictions: bool = True
    """Another value of the same subject."""
    negations: bool = True
    """The opposite of what is there."""
    updates: bool = True
    """False: an update is called a contradiction."""
    update_after_s: float = 86_400.0
    """How much later a memory must hold from to be an update."""
    least_overlap: float = 0.2
    """Below it, and below the least cosine, two texts are not compared."""
    least_cosine: float = 0.5
    """The bundled embedding model knows English only, so the cosine alone shuts nothing out."""
    slot_units: int = 8
    """The longest slot: words, or letters of a script without spaces."""
    findings_most: int = 16

    @staticmethod
    def off() -> RelationRules:
        return RelationRules(False, False, False, False, False)


DEFAULT_RULES = RelationRules()


class Relation(NamedTuple):
    """How a new memory stands to one that is there."""

    kind: FindingKind
    score: float
    """How sure the rule is, 0 to 1."""
    reason: str
    """One line for a person."""


def word_overlap(first: str, second: str) -> float:
    """The share of the shorter text's different words that the longer one has too, 0 to 1."""
    words, others = set(words_of(first)), set(words_of(second))
    return len(words & others) / max(1, min(len(words), len(others)))


def findings_of(
    new: Memory,
    candidates: Sequence[Candidate],
    rules: RelationRules = DEFAULT_RULES,
    statements: Statements | None = None,
) -> tuple[Finding, ...]:
    """What the rules see, the surest first. A memory that is not live, or is itself, is passed over.

    statements: of a caller that compares many memories with each other.
    """
    findings = []
    statements = Statements() if statements is None else statements
    written = statements.of(new.text)
    for memory, cosine, overlap in candidates:
        itself = memory.name == new.name
        near = overlap >= rules.least_overlap or (cosine is not None and cosine >= rules.least_cosine)
        if itself or memory.state is not MemoryState.LIVE or not near or not _hold_together(memory, new):
            continue
        relation = _relation(statements.of(memory.text), written, rules)
        if relation is None:
            continue
        if relation.kind is FindingKind.CONTRADICTION:
            if MemoryKind.EPISODE in (memory.kind, new.kind):
                continue  # What happened twice may have been different twice.
            if rules.updates and _holds_from_s(new) - _holds_from_s(memory) >= rules.update_after_s:
                relation = Relation(
                    FindingKind.UPDATE, relation.score, f"{relation.reason}, from a later date"
                )
        findings.append(Finding(relation.kind, memory.namespace, memory.memory_id, *relation[1:]))
    findings.sort(key=lambda finding: (-finding.score, finding.namespace, finding.memory_id))
    return tuple(findings[: rules.findings_most])


def _holds_from_s(memory: Memory) -> float:
    return memory.created_s if memory.valid_from_s is None else memory.valid_from_s


def _hold_together(first: Memory, second: Memory) -> bool:
    """Whether there is a time at which both hold."""
    from_s = max(
        -math.inf if memory.valid_from_s is None else memory.valid_from_s for memory in (first, second)
    )
    until_s = min(
        math.inf if memory.valid_until_s is None else memory.valid_until_s for memory in (first, second)
    )
    return from_s < until_s


class _Role(NamedTuple):
    """A word of content, or a run of letters in a script without spaces, and what marks its part."""

    text: str
    marker: str
    """The preposition before it, or the particles behind it. "": none."""


@dataclass(frozen=True, slots=True)
class _Statement:
    text: str
    """As `plain` gives it."""
    units: list[Unit]
    content: list[str]
    """The units of content, in order."""
    negated: bool

    @staticmethod
    def of(text: str) -> _Statement:
        spelt = plain(text)
        if len(spelt) > _STATEMENT_CHARS:
            return _Statement(spelt, [Unit(word) for word in spelt.split()], [], False)
        units = units_of(spelt)
        content = [unit.text for unit in units if unit.is_content]
        return _Statement(spelt, units, content, negations_in(spelt, units) > 0)


class Statements:
    """Texts as the rules read them, each read once."""

    def __init__(self) -> None:
        self._read: dict[str, _Statement] = {}

    def of(self, text: str) -> _Statement:
        if text not in self._read:
            self._read[text] = _Statement.of(text)
        return self._read[text]


def _relation(old: _Statement, new: _Statement, rules: RelationRules) -> Relation | None:
    if [unit.text for unit in old.units] == [unit.text for unit in new.units] and old.units:
        return Relation(FindingKind.DUPLICATE, 1.0, "the same words") if rules.exact_duplicates else None
    if not old.content or not new.content or max(len(old.units), len(new.units)) > _STATEMENT_UNITS:
        return None
    same_content = sorted(old.content) == sorted(new.content)
    if old.negated != new.negated:
        if rules.negations and same_content:
            return Relation(FindingKind.CONTRADICTION, 0.9, "the same words, and only one says no")
        return None
    if same_content:
        if rules.near_duplicates and _say_the_same(old, new):
            return Relation(FindingKind.DUPLICATE, 0.9, "the same words of content with the same parts")
        return None
    return _other_value(old, new, rules) if rules.contradictions else None


def _say_the_same(old: _Statement, new: _Statement) -> bool:
    """Whether two texts of the same words of content give every word the same part."""
    if _has_past(old) != _has_past(new) or (old.negated and _scopes(old) != _scopes(new)):
        return False
    roles, others = _roles(old.units), _roles(new.units)
    if [role.text for role in roles] == [role.text for role in others]:
        return all(
            not role.marker or not other.marker or role.marker == other.marker
            for role, other in zip(roles, others, strict=True)
        )
    if sorted(roles) != sorted(others):
        return False
    # A marker keeps the part of its word. Words without one have their parts by their order.
    bare, other_bare = ([role.text for role in side if not role.marker] for side in (roles, others))
    return bare == other_bare or len(bare) <= 2 or _is_moved_as_a_whole(bare, other_bare)


def _scopes(statement: _Statement) -> list[str]:
    """The words of content and of negation in order: what is denied depends on where the negation stands."""
    return [unit.text for unit in statement.units if unit.is_content or unit.text in NEGATIONS]


def _has_past(statement: _Statement) -> bool:
    return any(unit.text in PAST for unit in statement.units)


def _is_moved_as_a_whole(words: list[str], others: list[str]) -> bool:
    """Whether one part of two words or more and its neighbour have changed places, and nothing else."""
    start = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(words, others, strict=True))))
    backwards = zip(reversed(words), reversed(others), strict=True)
    end = len(words) - len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], backwards)))
    middle, other = words[start:end], others[start:end]
    return len(middle) > 2 and any(middle[cut:] + middle[:cut] == other for cut in range(1, len(middle)))


def _roles(units: list[Unit]) -> list[_Role]:
    """The words of content in order. Letters of a script without spaces are joined to runs."""
    roles: list[_Role] = []
    preposition, behind = "", ""
    after_content, joins = False, False
    compound = 0  # Where the words begin that stand together without a word of grammar between them.
    for unit in units:
        if unit.is_content:
            if joins and is_unspaced(unit):
                roles[-1] = _Role(roles[-1].text + unit.text, roles[-1].marker)
            else:
                _mark(roles, behind)
                roles.append(_Role(unit.text, preposition))
            preposition = _OF if preposition == _OF else ""
            after_content, joins, behind = True, is_unspaced(unit), ""
            continue
        if unit.text == POSSESSIVE:
            roles[compound:] = [_Role(role.text, _OF) for role in roles[compound:]]
        if after_content:
            preposition = ""
        after_content, joins, compound = False, False, len(roles)
        if unit.text in PREPOSITIONS or unit.text == _OF:
            preposition = unit.text
        elif is_hiragana(unit) or unit.text in _POSSESSIVES:
            behind += unit.text
    return roles


_POSSESSIVES = frozenset("的")
# "The code of the north gate" is "the north gate's code": both words of the gate are marked.
_OF = "of"
# Particles of the topic and the subject, and the copula: their words change places freely.
_UNMARKED_ENDING = re.compile("(?:は|が|も|です|だ|である)$")


def _mark(roles: list[_Role], behind: str) -> None:
    if roles and behind:
        roles[-1] = _Role(roles[-1].text, roles[-1].marker + _UNMARKED_ENDING.sub("", behind))


def _other_value(old: _Statement, new: _Statement, rules: RelationRules) -> Relation | None:
    """Whether two texts share a frame, and give the same subject another value."""
    pairs = list(zip(old.units, new.units, strict=False))
    start = len(list(itertools.takewhile(lambda pair: pair[0].text == pair[1].text, pairs)))
    rest, other_rest = old.units[start:], new.units[start:]
    backwards = zip(reversed(rest), reversed(other_rest), strict=False)
    shared = len(list(itertools.takewhile(lambda pair: pair[0].text == pair[1].text, backwards)))
    slot, other_slot = rest[: len(rest) - shared], other_rest[: len(other_rest) - shared]
    before, after = old.units[:start], rest[len(rest) - shared :]
    if not _are_values(slot, other_slot, rules) or has_many_values(old.text, old.units):
        return None
    if is_having(before) and not any(unit.is_number for unit in slot):
        return None
    if not _is_behind_the_subject(before, after, numbers=any(unit.is_number for unit in slot)):
        return None
    shown, other_shown = (_shown(side) for side in (slot, other_slot))
    return Relation(FindingKind.CONTRADICTION, 0.8, f"the same subject, {other_shown} instead of {shown}")


def _are_values(slot: list[Unit], other: list[Unit], rules: RelationRules) -> bool:
    if not slot or not other or max(len(slot), len(other)) > rules.slot_units:
        return False
    if any(unit.text in COPULAS or is_hiragana(unit) for unit in (*slot, *other)):
        return False
    if not slot[0].is_content or not other[0].is_content:
        return False
    if any(unit.is_number for unit in slot) != any(unit.is_number for unit in other):
        return False
    words, others = ({unit.text for unit in side if unit.is_content} for side in (slot, other))
    return not (words <= others or others <= words)


def _is_behind_the_subject(before: list[Unit], after: list[Unit], *, numbers: bool) -> bool:
    """Whether a slot stands where a value stands."""
    content = [unit for unit in before if unit.is_content]
    last = next((unit.text for unit in reversed(before) if unit.text not in ARTICLES), "")
    if not content or content[0].is_number or last in OF_WHAT:
        return False
    copula = next((place for place, unit in enumerate(before) if unit.text in COPULAS), None)
    if copula is not None and any(unit.is_content for unit in before[:copula]):
        return True
    if len(content) < 2 or before[0].text in PREPOSITIONS:
        return False
    if any(unit.text in COPULAS for unit in after[:-1]):
        # "The code of gate 1 is 4711": what stands before the verb says of what it is told. A verb at the
        # very end, as in Hindi, says nothing of that.
        return False
    if numbers:
        # The rest of a date, or the unit of a measure.
        after = after[next((place for place, unit in enumerate(after) if not unit.is_number), len(after)) :]
        after = list(itertools.dropwhile(lambda unit: unit.is_number, after[1:]))
    return not any(unit.is_content for unit in after)


def _shown(units: list[Unit]) -> str:
    joiner = "" if any(is_unspaced(unit) for unit in units) else " "
    return repr(joiner.join(unit.text for unit in units)[:48])
