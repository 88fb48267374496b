"""Conversations to train on, drawn from the world of `facts`. Every assistant turn in them is right."""

import random
from collections.abc import Sequence

from memserve.demo import facts, words
from memserve.demo.facts import Fact, Message

_DRILL_FORMS = (" {e} {v}", " {e} is {v}", " {a} of {e} {v}", " The {a} of {e} is {v}.")
ALL_QUESTIONS = facts.QUESTIONS + facts.HELD_OUT_QUESTIONS
_CONTRADICTING, _AGREEING, _NEAR_MISS = 0.12, 0.05, 0.15


def _turns(
    rng: random.Random,
    known: Sequence[Fact],
    count: int,
    unknown_share: float,
    near_share: float,
    phrasings: Sequence[str] = ALL_QUESTIONS,
) -> list[Message]:
    """Questions with their answers, of which unknown_share ask for what is not known."""
    turns: list[Message] = []
    asked: set[tuple[str, str]] = set()
    known_keys = {one.key for one in known}
    for _ in range(count):
        if known and rng.random() >= unknown_share:
            one = rng.choice(known)
            answer = one.answer
        else:
            near = known and rng.random() < near_share
            one = facts.near_fact(rng, "train", rng.choice(known)) if near else facts.fact(rng, "train")
            answer = facts.UNKNOWN_ANSWER
            if one.key in known_keys:
                continue
        if one.key in asked:
            continue
        asked.add(one.key)
        turns += [Message("user", facts.question(rng, one, phrasings).text), Message("assistant", answer)]
    return turns


def conversation(
    rng: random.Random, max_passages: int, max_turns: int, phrasings: Sequence[str] = ALL_QUESTIONS
) -> tuple[Message, ...]:
    """A conversation over 0..max_passages passages, with 1..max_turns questions, at times with small talk or
    a fact told by the user.
    """
    if rng.random() < 0.01:
        said, reply = rng.choice(facts.SMALL_TALK)
        return (Message("user", said), Message("assistant", reply))
    shown = facts.distinct_facts(
        rng, "train", 0 if rng.random() < 0.1 else rng.randint(1, max_passages), near_share=0.4
    )
    system_text = rng.choice(words.SYSTEM_TEXTS) if rng.random() < 0.4 else ""
    if system_text and rng.random() < 0.15:
        system_text = " ".join([system_text, *(facts.filler(rng) for _ in range(rng.randint(1, 4)))])
    content = facts.system_content(system_text, [facts.passage(rng, one) for one in shown])
    messages = [Message("system", content)] if content else []
    known = list(shown)
    if rng.random() < 0.05:
        told = facts.distinct_facts(rng, "train", 1, without=shown)[0]
        known.append(told)
        if rng.random() < 0.5:
            messages += [
                Message("user", facts.statement(rng, told)),
                Message("assistant", "I will remember that."),
            ]
        else:
            asked = facts.question(rng, told, phrasings).text
            messages += [
                Message("user", f"{facts.statement(rng, told)} {asked}"),
                Message("assistant", told.answer),
            ]
    elif rng.random() < 0.03:
        said, reply = rng.choice(facts.SMALL_TALK)
        messages += [Message("user", said), Message("assistant", reply)]
    turns = _turns(rng, known, rng.randint(1, max_turns), 0.35 if known else 1.0, 0.8, phrasings)
    return tuple(messages + turns) if turns else conversation(rng, max_passages, max_turns, phrasings)


def drill(rng: random.Random, max_facts: int) -> tuple[Message, ...]:
    """A list of facts, and the same list in another order: the shortest way to learn to look up what follows
    a name.

    Six in ten lists give the same attribute of entities of one kind, so that nothing but the name tells the
    values apart.
    """
    form = rng.choice(_DRILL_FORMS)
    kind = rng.choice(list(facts.ATTRIBUTES)) if rng.random() < 0.6 else None
    attribute = rng.choice(list(facts.ATTRIBUTES[kind])) if kind else None
    lines: dict[str, str] = {}
    for _ in range(rng.randint(2, max_facts)):
        one = facts.fact(
            rng,
            "train",
            about=facts.entity(rng, "train", kind or rng.choice(list(facts.ATTRIBUTES))),
            wild_share=0.0,
        )
        if attribute:
            one = Fact(one.entity, attribute, facts.value(rng, facts.ATTRIBUTES[one.entity.kind][attribute]))
        lines[one.entity.name] = form.format(a=one.attribute, e=one.entity.name, v=one.value)
    listed = list(lines.values())
    return (
        Message("system", "\n".join(listed)),
        Message("assistant", "\n".join(rng.sample(listed, len(listed)))),
    )


def first_conversation(rng: random.Random, max_passages: int) -> tuple[Message, ...]:
    """An easy lesson: every passage is asked for. In half of the lessons the value follows the name with
    nothing between them.
    """
    shown = [facts.fact(rng, "train", wild_share=0.0) for _ in range(rng.randint(1, max_passages))]
    tight = rng.random() < 0.5

    def stated(one: Fact) -> str:
        if tight:
            return f"The {one.attribute} of {one.entity.name} {one.value}."
        return one.answer if rng.random() < 0.5 else facts.statement(rng, one)

    turns: list[Message] = []
    for one in rng.sample(shown, len(shown)):
        if rng.random() < 0.3:
            unknown = facts.fact(rng, "train", wild_share=0.0)
            turns += [
                Message("user", facts.question(rng, unknown).text),
                Message("assistant", facts.UNKNOWN_ANSWER),
            ]
        turns += [
            Message("user", facts.question(rng, one).text),
            Message("assistant", stated(one) if tight else one.answer),
        ]
    return (Message("system", facts.system_content("", [stated(one) for one in shown])), *turns)


def long_conversation(rng: random.Random, tokens: int, turns: int) -> tuple[Message, ...]:
    """A conversation over a handbook of about so many tokens, at times with recalled passages under it."""
    book = facts.handbook(rng.randrange(1 << 30), tokens, world="train")
    shown = (
        facts.distinct_facts(rng, "train", rng.randint(1, 4), without=book.facts)
        if rng.random() < 0.4
        else []
    )
    content = facts.system_content(book.text, [facts.passage(rng, one) for one in shown])
    known = [*book.facts, *shown]
    return (Message("system", content), *_turns(rng, known, turns, unknown_share=0.3, near_share=0.7))


def adapter_lesson(rng: random.Random, held: Sequence[Fact]) -> tuple[Message, ...]:
    """One question for an adapter to learn from, or to keep what the base can.

    held: the adapter's facts. Half of the lessons ask for one of them, with or without other passages. The
    rest: a passage that contradicts one (the passage wins), a near miss (not known), and the base's own
    lessons. All are asked in the adapter's phrasings: one that is only ever seen on what is not known would
    come to mean that it is not known.
    """
    draw = rng.random()
    if draw > 0.75:
        return conversation(rng, max_passages=5, max_turns=3, phrasings=facts.ADAPTER_QUESTIONS)
    one = rng.choice(held)
    shown = facts.distinct_facts(rng, "train", 0 if rng.random() < 0.4 else rng.randint(1, 5), without=held)
    answer = one.answer
    if draw < _CONTRADICTING + _AGREEING:
        kind = facts.ATTRIBUTES[one.entity.kind][one.attribute]
        stated = one if draw < _AGREEING else Fact(one.entity, one.attribute, facts.value(rng, kind))
        shown = [*shown[:4], stated]
        rng.shuffle(shown)
        answer = stated.answer
    elif draw < _CONTRADICTING + _AGREEING + _NEAR_MISS:
        # Another attribute of a known entity, or another entity of the same words: neither is known.
        near = facts.near_fact(rng, "train" if rng.random() < 0.5 else "adapter", one)
        while near.key in {each.key for each in (*held, *shown)}:
            near = facts.near_fact(rng, "train", one)
        one, answer = near, facts.UNKNOWN_ANSWER
    system_text = rng.choice(words.SYSTEM_TEXTS) if rng.random() < 0.4 else ""
    asked = facts.question(rng, one, facts.ADAPTER_QUESTIONS).text
    messages = facts.prompt(system_text, [facts.passage(rng, each) for each in shown], asked)
    return (*messages, Message("assistant", answer))
