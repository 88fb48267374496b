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
    known_keys = {fact.key for fact in known}
    for _ in range(count):
        if known and rng.random() >= unknown_share:
            fact = rng.choice(known)
            answer = fact.answer
        else:
            near = known and rng.random() < near_share
            fact = facts.near_fact(rng, "train", rng.choice(known)) if near else facts.fact(rng, "train")
            answer = facts.UNKNOWN_ANSWER
            if fact.key in known_keys:
                continue
        if fact.key in asked:
            continue
        asked.add(fact.key)
        turns += [Message("user", facts.question(rng, fact, phrasings).text), Message("assistant", answer)]
    return turns


def conversation(
    rng: random.Random, max_passages: int, max_turns: int, phrasings: Sequence[str] = ALL_QUESTIONS
) -> tuple[Message, ...]:
    """A conversation over 0..max_passages passages, with 1..max_turns questions, at times with small talk or
    a fact that the user states.
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
    content = facts.system_content(system_text, [facts.passage(rng, fact) for fact in shown])
    messages = [Message("system", content)] if content else []
    known = list(shown)
    if rng.random() < 0.05:
        news = facts.distinct_facts(rng, "train", 1, without=shown)[0]
        known.append(news)
        if rng.random() < 0.5:
            messages += [
                Message("user", facts.statement(rng, news)),
                Message("assistant", "I will remember that."),
            ]
        else:
            asked = facts.question(rng, news, phrasings).text
            messages += [
                Message("user", f"{facts.statement(rng, news)} {asked}"),
                Message("assistant", news.answer),
            ]
    elif rng.random() < 0.03:
        said, reply = rng.choice(facts.SMALL_TALK)
        messages += [Message("user", said), Message("assistant", reply)]
    turns = _turns(rng, known, rng.randint(1, max_turns), 0.35 if known else 1.0, 0.8, phrasings)
    return tuple(messages + turns) if turns else conversation(rng, max_passages, max_turns, phrasings)


def drill(rng: random.Random, max_facts: int) -> tuple[Message, ...]:
    """A list of facts, and the same list in another order. It is the shortest way to learn to look up what
    follows a name.

    Six in ten lists give the same attribute of entities of one kind, so that only the name distinguishes the
    values.
    """
    form = rng.choice(_DRILL_FORMS)
    kind = rng.choice(list(facts.ATTRIBUTES)) if rng.random() < 0.6 else None
    attribute = rng.choice(list(facts.ATTRIBUTES[kind])) if kind else None
    lines: dict[str, str] = {}
    for _ in range(rng.randint(2, max_facts)):
        entity = facts.entity(rng, "train", kind or rng.choice(list(facts.ATTRIBUTES)))
        fact = facts.fact(rng, "train", about=entity, wild_share=0.0)
        if attribute:
            fact = Fact(entity, attribute, facts.value(rng, facts.ATTRIBUTES[entity.kind][attribute]))
        lines[entity.name] = form.format(a=fact.attribute, e=entity.name, v=fact.value)
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

    def stated(fact: Fact) -> str:
        if tight:
            return f"The {fact.attribute} of {fact.entity.name} {fact.value}."
        return fact.answer if rng.random() < 0.5 else facts.statement(rng, fact)

    turns: list[Message] = []
    for fact in rng.sample(shown, len(shown)):
        if rng.random() < 0.3:
            unknown = facts.fact(rng, "train", wild_share=0.0)
            turns += [
                Message("user", facts.question(rng, unknown).text),
                Message("assistant", facts.UNKNOWN_ANSWER),
            ]
        turns += [
            Message("user", facts.question(rng, fact).text),
            Message("assistant", stated(fact) if tight else fact.answer),
        ]
    return (Message("system", facts.system_content("", [stated(fact) for fact in shown])), *turns)


def long_conversation(rng: random.Random, tokens: int, turns: int) -> tuple[Message, ...]:
    """A conversation over a handbook of about `tokens` tokens, at times with recalled passages under it."""
    book = facts.handbook(rng.randrange(1 << 30), tokens, world="train")
    shown = (
        facts.distinct_facts(rng, "train", rng.randint(1, 4), without=book.facts)
        if rng.random() < 0.4
        else []
    )
    content = facts.system_content(book.text, [facts.passage(rng, fact) for fact in shown])
    known = [*book.facts, *shown]
    return (Message("system", content), *_turns(rng, known, turns, unknown_share=0.3, near_share=0.7))


def adapter_lesson(rng: random.Random, held: Sequence[Fact]) -> tuple[Message, ...]:
    """One question for an adapter to learn from, or to keep what the base can.

    held: the adapter's facts. Half of the lessons ask for one of these facts, with or without other passages.
    The rest has a passage that contradicts a fact (the passage wins), a near miss (not known), or a lesson of
    the base. All are asked in the adapter's phrasings. A phrasing that the adapter only sees in questions
    without an answer would come to mean that there is no answer.
    """
    draw = rng.random()
    if draw > 0.75:
        return conversation(rng, max_passages=5, max_turns=3, phrasings=facts.ADAPTER_QUESTIONS)
    fact = rng.choice(held)
    shown = facts.distinct_facts(rng, "train", 0 if rng.random() < 0.4 else rng.randint(1, 5), without=held)
    answer = fact.answer
    if draw < _CONTRADICTING + _AGREEING:
        kind = facts.ATTRIBUTES[fact.entity.kind][fact.attribute]
        stated = fact if draw < _AGREEING else Fact(fact.entity, fact.attribute, facts.value(rng, kind))
        shown = [*shown[:4], stated]
        rng.shuffle(shown)
        answer = stated.answer
    elif draw < _CONTRADICTING + _AGREEING + _NEAR_MISS:
        # Another attribute of a known entity, or another entity of the same words: neither is known.
        near = facts.near_fact(rng, "train" if rng.random() < 0.5 else "adapter", fact)
        while near.key in {other.key for other in (*held, *shown)}:
            near = facts.near_fact(rng, "train", fact)
        fact, answer = near, facts.UNKNOWN_ANSWER
    system_text = rng.choice(words.SYSTEM_TEXTS) if rng.random() < 0.4 else ""
    asked = facts.question(rng, fact, facts.ADAPTER_QUESTIONS).text
    messages = facts.prompt(system_text, [facts.passage(rng, other) for other in shown], asked)
    return (*messages, Message("assistant", answer))
