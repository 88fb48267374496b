"""Put recalled passages and a conversation together.

Equal beginnings stay equal token for token, so that their KV is found again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memserve.domain import MemoryKind, Message, Role, ScoredMemory, TemplateRules
from memserve.policy.recall.reflection import task_likeness

Render = Callable[[str, Sequence[str]], str]
"""Shows a system text ("" for none) and one or more passages, as a deployment's template does."""


def order_passages(
    passages: Sequence[ScoredMemory], uses: Mapping[tuple[str, str], int] | None = None
) -> list[ScoredMemory]:
    """Order by use, the most used one first, then by creation, then by name.

    The same set of passages with the same uses gives the same prompt, whatever the scores. Two sets that
    share their most used passages give prompts with one beginning. Counts only grow, and two passages change
    places only where one overtakes the other: the more they have been used, the rarer that is.

    uses: by namespace and id, how often each went into a prompt. Without an entry: never.
    Source: the order of items in an FP-tree (Han et al. 2000), which makes common beginnings long.
    """
    counted = uses or {}

    def place(hit: ScoredMemory) -> tuple[int, float, str, str]:
        memory = hit.memory
        used = counted.get(memory.name, 0)
        return -used, memory.created_s, memory.namespace, memory.memory_id

    return sorted(passages, key=place)


def reflections_first(hits: Sequence[ScoredMemory], question: str, least: float = 0.5) -> list[ScoredMemory]:
    """What was learned from an earlier try of the task goes ahead of all other hits; else the order stays.

    A reflection is of the same task where its task is worded like the question. Its relevance alone does not
    say so: the facts that the task is about answer the question better.
    least: the likeness, or the relevance, that a reflection must have for it.
    """

    def is_learned(hit: ScoredMemory) -> bool:
        return hit.memory.kind is MemoryKind.REFLECTION and (
            hit.relevance >= least or task_likeness(hit.memory.text, question) >= least
        )

    return sorted(hits, key=lambda hit: not is_learned(hit))


@dataclass(frozen=True, slots=True)
class Arranged:
    """A conversation with its passages, as the model's chat template takes it."""

    messages: tuple[Message, ...]
    system_folded: bool = False
    """Whether system text, or passages, stand in a turn of the user."""
    merged_turns: int = 0
    """Turns that were joined to the one before."""
    tools: str = ""
    """Functions that the model may call: as of GenerationRequest."""


def arrange(
    messages: Sequence[Message],
    passages: Sequence[ScoredMemory],
    render: Render,
    rules: TemplateRules,
    tools: str = "",
) -> Arranged:
    """Put the passages into the conversation, and change what the model's chat template does not take.

    1. The leading system message, or a new one, holds the passages as `render` shows them.
    2. System text that the template does not take goes before the user's next turn: all of it where there is
       no system role, all but the first message where roles must alternate.
    3. Where roles must alternate, a turn is joined to the one before, when both are of one role.
    """
    rest = list(messages)
    if passages:
        system = rest.pop(0).content if rest and rest[0].role is Role.SYSTEM else ""
        rest.insert(0, Message(Role.SYSTEM, render(system, passage_lines(passages))))
    folded = _folded(rest, rules)
    merged = folded if rules.repeats else _merged(folded)
    return Arranged(tuple(merged), folded != rest, len(folded) - len(merged), tools)


def arrange_raw(text: str, passages: Sequence[ScoredMemory], render: Render) -> Arranged:
    """A text that the model goes on with, behind the passages."""
    if passages:
        text = _joined(render("", passage_lines(passages)), text)
    return Arranged((Message(Role.USER, text),))


def passage_lines(passages: Sequence[ScoredMemory]) -> list[str]:
    """[passages] their texts, one line each, so that no passage can look like two."""
    return [one_line(hit.memory.text) for hit in passages]


def one_line(text: str) -> str:
    return " ".join(text.split())


def _folded(messages: Sequence[Message], rules: TemplateRules) -> list[Message]:
    """The conversation with system text in turns of the user, where the template does not take it."""
    folded: list[Message] = []
    waiting = ""
    for place, message in enumerate(messages):
        if message.role is Role.SYSTEM and not (rules.system and (rules.repeats or place == 0)):
            waiting = _joined(waiting, message.content)
            continue
        if waiting and message.role is Role.USER:
            message = Message(Role.USER, _joined(waiting, message.content))
        elif waiting:
            folded.append(Message(Role.USER, waiting))
        waiting = ""
        folded.append(message)
    if waiting:
        folded.append(Message(Role.USER, waiting))
    return folded


def _merged(messages: Sequence[Message]) -> list[Message]:
    """The conversation with neighbours of one role in one turn."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role is message.role and _is_text(merged[-1]) and _is_text(message):
            message = Message(message.role, _joined(merged.pop().content, message.content))
        merged.append(message)
    return merged


def _is_text(message: Message) -> bool:
    return message.role is not Role.TOOL and not message.tool_calls


def _joined(before: str, text: str) -> str:
    return f"{before}\n\n{text}" if before else text


def without_worst(passages: Sequence[ScoredMemory], sizes: Sequence[int], surplus: int) -> list[ScoredMemory]:
    """Leave out the worst passages until the passages are smaller by `surplus`. The order stays.

    Of passages with equal scores the first is left out first.

    sizes: [passages], in the unit of `surplus`.
    """
    dropped: set[int] = set()
    for place in sorted(range(len(passages)), key=lambda place: passages[place].score):
        if surplus <= 0:
            break
        dropped.add(place)
        surplus -= sizes[place]
    return [hit for place, hit in enumerate(passages) if place not in dropped]
