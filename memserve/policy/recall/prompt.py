"""Put recalled passages and a conversation together.

Equal beginnings stay equal token for token, so that their KV is found again.
"""

from __future__ import annotations

from collections.abc import Sequence

from memserve.domain import Message, Role, ScoredMemory


def order_passages(passages: Sequence[ScoredMemory]) -> list[ScoredMemory]:
    """Order by creation, then by id. The same set of passages gives the same prompt, whatever the scores."""
    return sorted(passages, key=lambda hit: (hit.memory.created_s, hit.memory.memory_id))


def assemble_messages(
    messages: Sequence[Message],
    passages: Sequence[ScoredMemory],
    *,
    takes_system: bool = True,
    instruction: str = "",
) -> list[Message]:
    """Put the passages behind the text of the leading system message, or into a new system message.

    The passages are numbered from 1, one a line.

    takes_system: whether the model's template takes a system message. Where it does not, the passages stand
    before the first question.
    instruction: a line before the passages that tells the model what to do with them; "" for none.
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
    """A question with a system text. The text stands where the model's template takes it."""
    messages = [Message(Role.USER, question)]
    if not system:
        return messages
    return [Message(Role.SYSTEM, system), *messages] if takes_system else _before_question(system, messages)


def _before_question(text: str, messages: list[Message]) -> list[Message]:
    """Put the text into the user's first message, before the question."""
    place = next((place for place, message in enumerate(messages) if message.role is Role.USER), None)
    if place is None:
        return [Message(Role.USER, text), *messages]
    return [
        *messages[:place],
        Message(Role.USER, f"{text}\n\n{messages[place].content}"),
        *messages[place + 1 :],
    ]


def passage_line(number: int, hit: ScoredMemory) -> str:
    """The passage's line in the prompt."""
    return f"[{number}] {' '.join(hit.memory.text.split())}"


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
