"""A seeded world of small facts: who has what, said in several ways, asked in several ways.

A fact is a triple of entity, attribute and value. Nothing here imports torch.
"""

from memserve.demo.facts.cases import (
    count_tokens,
    handbook,
    handbook_questions,
    held_out_cases,
    prompt,
    system_content,
)
from memserve.demo.facts.sentences import (
    ADAPTER_QUESTIONS,
    HELD_OUT_QUESTIONS,
    QUESTIONS,
    SMALL_TALK,
    STATEMENTS,
    UNKNOWN_ANSWER,
    filler,
    passage,
    question,
    statement,
)
from memserve.demo.facts.values import Case, Entity, Fact, Handbook, Message, Need, Question, World
from memserve.demo.facts.world import (
    ADAPTER_FACTS,
    ADAPTER_KINDS,
    ATTRIBUTES,
    adapter_facts,
    distinct_facts,
    entity,
    fact,
    module_facts,
    near_fact,
    value,
    world_of,
)

__all__ = [
    "ADAPTER_FACTS",
    "ADAPTER_KINDS",
    "ADAPTER_QUESTIONS",
    "ATTRIBUTES",
    "HELD_OUT_QUESTIONS",
    "QUESTIONS",
    "SMALL_TALK",
    "STATEMENTS",
    "UNKNOWN_ANSWER",
    "Case",
    "Entity",
    "Fact",
    "Handbook",
    "Message",
    "Need",
    "Question",
    "World",
    "adapter_facts",
    "count_tokens",
    "distinct_facts",
    "entity",
    "fact",
    "filler",
    "handbook",
    "handbook_questions",
    "held_out_cases",
    "module_facts",
    "near_fact",
    "passage",
    "prompt",
    "question",
    "statement",
    "system_content",
    "value",
    "world_of",
]
