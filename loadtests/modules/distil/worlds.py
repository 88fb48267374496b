"""What is distilled and what is asked, by the demo model and by SmolLM2. No question is of the self-study."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.real_models import smollm2
from loadtests.modules.distil.institute import CHANGED, ELSEWHERE, FACTS, GENERAL, LACKING, PLACE
from memserve.demo import MODEL_DIR, facts
from memserve.domain import ModuleKind
from memserve.policy.modules.self_study import wording
from memserve.policy.modules.self_study.draw import Draw
from memserve.policy.modules.self_study.readings import readings_of
from memserve.policy.modules.self_study.study import Study

FACTS_TAUGHT = 24
KINDS = ("ship", "telescope", "farm", "archive")
CASES = 100
DEMO_BUDGET_S = {ModuleKind.LORA: 85.0, ModuleKind.CARTRIDGE: 85.0}
SMOLLM2_BUDGET_S = {ModuleKind.LORA: 285.0, ModuleKind.CARTRIDGE: 460.0}


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its passages."""

    question: str
    passages: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    """An answer that contains one of these is right; of the column `leak` it is wrong."""
    with_memory: str = ""
    """The memory that answers it: for the base that has it in its prompt."""


@dataclass(frozen=True, slots=True)
class World:
    """Memories, and questions by column."""

    name: str
    model: Callable[[], Path]
    memories: tuple[str, ...]
    columns: dict[str, tuple[Asked, ...]]
    budget_s: Mapping[ModuleKind, float]
    """A little under the bar."""


def demo_world(seed: int) -> World:
    """The demo's own held-out phrasings and cases. Its adapters' entities, but none of their facts."""
    rng = random.Random(f"distil-{seed}")
    held = facts.module_facts(rng, KINDS, FACTS_TAUGHT)
    memories = [facts.passage(rng, fact) for fact in held]
    columns: dict[str, tuple[Asked, ...]] = {
        "recall": tuple(
            Asked(facts.question(rng, fact, [phrasing]).text, (), (fact.answer,), memory)
            for fact, memory in zip(held, memories, strict=True)
            for phrasing in facts.HELD_OUT_QUESTIONS
        )
    }
    for need in ("passage", "distractors", "nothing"):
        columns[need] = tuple(
            Asked(case.question.text, passages_of(case), (case.expected,))
            for case in facts.held_out_cases(seed, CASES, need)
        )
    columns["text_wins"] = tuple(contradicted(rng, fact) for fact in (*held, *held))
    values = tuple(fact.value for fact in held)
    columns["leak"] = tuple(
        Asked(facts.question(rng, near, facts.HELD_OUT_QUESTIONS).text, (), values)
        for near in (_near(rng, fact, held) for fact in (*held, *held))
    )
    return World("demo", lambda: MODEL_DIR, tuple(memories), columns, DEMO_BUDGET_S)


def file_world(file: Path, questions: Path | None) -> World:
    """Memories of a file, one a line, for SmolLM2. Asked in phrasings that were not trained.

    questions: JSON, a list of objects with a question and the value that a right answer has.
    """
    memories = tuple(line for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    known = [(memory, reading) for memory in memories for reading in readings_of(memory)]
    study = Study([reading for _, reading in known])
    draw = Draw(random.Random("distil-file").random)
    columns = {
        "recall": tuple(
            Asked(question, (), (reading.value,), memory)
            for memory, reading in known
            for question in wording.questions(reading, held_out=True)
        ),
        "general": tuple(Asked(question, (), (word,)) for question, word in GENERAL),
        "text_wins": tuple(
            Asked(each.question, each.passages, (each.value,))
            for each in (study.contradiction(draw, place, probe=True) for place in range(len(known)))
        ),
        "leak": tuple(
            Asked(study.elsewhere(draw, place, probe=True).question, (), study.values)
            for place in range(len(known))
        ),
    }
    if questions is not None:
        columns["paraphrase"] = tuple(
            Asked(each["question"], (), (each["value"],), _stating(each["value"], memories))
            for each in json.loads(questions.read_text(encoding="utf-8"))
        )
    return World("file", smollm2, memories, columns, SMOLLM2_BUDGET_S)


def _stating(value: str, memories: Sequence[str]) -> str:
    return next((memory for memory in memories if value in memory), "")


def passages_of(case: facts.Case) -> tuple[str, ...]:
    """The passages in the prompt of one of the demo's cases."""
    if case.messages[0].role != "system":
        return ()
    lines = case.messages[0].content.splitlines()
    return tuple(line.partition("] ")[2] for line in lines if line.startswith("["))


def contradicted(rng: random.Random, fact: facts.Fact) -> Asked:
    """A question with a passage that gives the fact another value."""
    kind = facts.ATTRIBUTES[fact.entity.kind][fact.attribute]
    stated = fact
    while stated.value == fact.value:
        stated = facts.Fact(fact.entity, fact.attribute, facts.value(rng, kind))
    shown = [stated, *facts.distinct_facts(rng, "held_out", rng.randint(0, 3), without=[stated])]
    rng.shuffle(shown)
    asked = facts.question(rng, stated, facts.HELD_OUT_QUESTIONS).text
    return Asked(asked, tuple(facts.passage(rng, other) for other in shown), (stated.answer,))


def _near(rng: random.Random, fact: facts.Fact, held: Sequence[facts.Fact]) -> facts.Fact:
    """The same attribute of an entity that no memory names."""
    names = {other.entity.name for other in held}
    while True:
        near = facts.near_fact(rng, "held_out", fact)
        if near.entity.name not in names and near.attribute == fact.attribute:
            return near


def smollm2_world(seed: int) -> World:
    """The institute. Its questions are the same for every seed."""
    values = tuple(fact.value for fact in FACTS)
    by_attribute = {fact.attribute: fact for fact in FACTS}
    templates = tuple(
        Asked(text.format(a=fact.attribute, e=PLACE), (), (fact.value,), fact.memory)
        for fact in FACTS
        for text in ("Can you name the {a} of {e}?", "For {e}, what is the {a}?")
    )
    columns = {
        "recall": templates,
        "paraphrase": tuple(Asked(fact.paraphrase, (), (fact.value,), fact.memory) for fact in FACTS),
        "general": tuple(Asked(question, (), (word,)) for question, word in GENERAL),
        "text_wins": tuple(
            Asked(
                f"What is the {attribute} of {PLACE}?", (f"The {attribute} of {PLACE} is {value}.",), (value,)
            )
            for attribute, value in CHANGED.items()
        ),
        "leak": tuple(
            Asked(f"What is the {fact.attribute} of {ELSEWHERE[at % len(ELSEWHERE)]}?", (), values)
            for at, fact in enumerate(list(by_attribute.values())[:20])
        ),
        "leak_own": tuple(Asked(f"What is the {each} of {PLACE}?", (), values) for each in LACKING),
    }
    return World("smollm2", smollm2, tuple(fact.memory for fact in FACTS), columns, SMOLLM2_BUDGET_S)
