"""Put recalled passages and a conversation together, so that equal beginnings stay equal token for token."""

from __future__ import annotations

from collections.abc import Sequence

from memserve.domain import Message, Role, ScoredMemory


def order_passages(found: Sequence[ScoredMemory]) -> list[ScoredMemory]:
    """Order by creation, then by id: the same set of passages gives the same prompt whatever its scores."""
    return sorted(found, key=lambda hit: (hit.memory.created_s, hit.memory.memory_id))


def assemble_messages(
    messages: Sequence[Message],
    passages: Sequence[ScoredMemory],
    *,
    takes_system: bool = True,
    instruction: str = "",
) -> list[Message]:
    """Put the passages, numbered from 1, one a line, behind the leading system message (or into a new one).

    instruction: a line before the passages, which tells the model what to do with them; "" for none.
    takes_system: whether the model's template takes a system message. Where it does not, they stand before
    the first question.
    """
    if not passages:
        return list(messages)
    lines = [
        *([instruction] if instruction else []),
        *(passage_line(number, hit) for number, hit in enumerate(passages, start=1)),
    ]
    rest = list(messages)
    if not takes_system:
        return _before_question("\n".join(lines), rest)
    if rest and rest[0].role is Role.SYSTEM:
        lines.insert(0, rest.pop(0).content)
    return [Message(Role.SYSTEM, "\n".join(lines)), *rest]


def with_system(system: str, question: str, *, takes_system: bool) -> list[Message]:
    """A question with a system text, wherever the model's template takes it."""
    asked = [Message(Role.USER, question)]
    if not system:
        return asked
    return [Message(Role.SYSTEM, system), *asked] if takes_system else _before_question(system, asked)


def _before_question(text: str, messages: list[Message]) -> list[Message]:
    """In the first message of the user, before what it asks."""
    place = next((place for place, message in enumerate(messages) if message.role is Role.USER), None)
    if place is None:
        return [Message(Role.USER, text), *messages]
    return [
        *messages[:place],
        Message(Role.USER, f"{text}\n\n{messages[place].content}"),
        *messages[place + 1 :],
    ]


def passage_line(number: int, hit: ScoredMemory) -> str:
    """The passage as it stands in the prompt."""
    return f"[{number}] {' '.join(hit.memory.text.split())}"


def without_worst(passages: Sequence[ScoredMemory], sizes: Sequence[int], surplus: int) -> list[ScoredMemory]:
    """Leave out the worst passages, as many as must go so that the others are smaller by `surplus`. The order
    stays.

    sizes: [passages], in the unit of `surplus`. Of equal scores the first goes first.
    """
    dropped: set[int] = set()
    for place in sorted(range(len(passages)), key=lambda place: passages[place].score):
        if surplus <= 0:
            break
        dropped.add(place)
        surplus -= sizes[place]
    return [hit for place, hit in enumerate(passages) if place not in dropped]
