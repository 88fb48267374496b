"""Pinned passages as one warm prefix: a real gateway with a worker that notes what it is asked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from memserve.demo import MODEL_DIR
from memserve.domain import Memory, Message, RecallSource, Role, Sampling, ScoredMemory
from memserve.errors import NamespaceNotFound
from memserve.gateway.layout import open_layout
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.gateway.warm_pinned import Beginning, common_tokens
from memserve.model.files import open_model
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway, eventually

GREEDY = Sampling(max_tokens=4)
RULE = "Codes are read out digit by digit, and no digit is ever left out or added to them."
OTHER = "Codes are written down, two digits at a time, and are never read out to anybody at all."
SYSTEM = "You are the assistant of the harbour. Be brief."


def hit(text: str, pinned: bool = True) -> ScoredMemory:
    return ScoredMemory(Memory(text[:8], "desk", text, "", (), 0.0, pinned=pinned), 1.0, None, None)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("system", ["", SYSTEM])
def test_every_prompt_with_the_passages_begins_with_the_common_tokens(system: str, raw: bool) -> None:
    model = open_model(MODEL_DIR)
    layout = open_layout(model, ChatTokenizer(model))
    pinned = [hit(RULE), hit(OTHER)]
    beginning = Beginning("acme", ("desk",), "" if raw else system, raw=raw)
    common = common_tokens(layout, beginning, pinned)
    assert OTHER.rstrip(".") in layout.tokenizer.decode(common)
    for more, question in (((), "Who?"), ((hit("Amber Point has the gate 3."),), "What is it?")):
        messages = [Message(Role.SYSTEM, system)] * bool(system and not raw)
        arranged = layout.arrange([*messages, Message(Role.USER, question)], [*pinned, *more], raw=raw)
        assert layout.encode(arranged, raw=raw)[: len(common)] == common


async def warmed(gateway: RunningGateway, text: str, after: int = 0) -> list[int]:
    """The tokens of the first prefix with this text that the worker was asked to compute and keep."""
    decode = gateway.parts.tokenizer.decode
    found: list[list[int]] = []

    async def asked() -> bool:
        found[:] = [
            list(request.token_ids)
            for request in gateway.workers[0].requests[after:]
            if request.keep and text in decode(list(request.token_ids))
        ]
        return bool(found)

    await eventually(asked)
    return found[0]


async def prompt_of(gateway: RunningGateway, question: str | Sequence[Message]) -> list[int]:
    before = len(gateway.workers[0].requests)
    await gateway.client.generate(question, namespaces=["desk"], sampling=GREEDY)
    [asked] = [request for request in gateway.workers[0].requests[before:] if not request.keep]
    return list(asked.token_ids)


async def test_what_is_pinned_is_computed_ahead_and_again_when_it_changes(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(recall_timeout_ms=10_000)
    memories = gateway.client
    for number in range(3):
        await memories.remember("desk", f"The code of Amber {number} is {number}071.")
    assert not [request for request in gateway.workers[0].requests if request.keep]
    await memories.remember("desk", RULE, memory_id="rule", pinned=True)

    # Before any request: the way in which most prompts begin.
    first = await warmed(gateway, RULE)
    asked = await prompt_of(gateway, "What is the code of Amber 1?")
    assert asked[: len(first)] == first
    assert len(first) > 20

    # A request with a system text of its own begins in another way, which is warm for the next one.
    talk = [Message(Role.SYSTEM, SYSTEM), Message(Role.USER, "What is the code of Amber 1?")]
    await prompt_of(gateway, talk)
    own = await warmed(gateway, SYSTEM)
    talk = [Message(Role.SYSTEM, SYSTEM), Message(Role.USER, "Which code does Amber 2 have?")]
    assert (await prompt_of(gateway, talk))[: len(own)] == own

    seen = len(gateway.workers[0].requests)
    await memories.update_memory("desk", "rule", text=OTHER)
    renewed = await warmed(gateway, OTHER, seen)
    asked = await prompt_of(gateway, "What is the code of Amber 0?")
    decode = gateway.parts.tokenizer.decode
    assert asked[: len(renewed)] == renewed or SYSTEM in decode(renewed)
    assert all(RULE not in decode(list(one.token_ids)) for one in gateway.workers[0].requests[seen:])


async def test_the_receipt_shows_pinned_passages_apart_and_conditions_behind_them(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(recall_timeout_ms=10_000, warm_pinned=False)
    memories = gateway.client
    await memories.remember("desk", OTHER, memory_id="own", pinned=True, applies_when='desk == "north"')
    await memories.remember("desk", RULE, memory_id="rule", pinned=True)
    await memories.remember("desk", "The code of Amber Lantern is 4071.", memory_id="code")
    answer = await gateway.client.generate(
        "What is the code of Amber Lantern?",
        namespaces=["desk"],
        recall_options={"context": {"desk": "north"}},
        sampling=GREEDY,
    )
    assert [hit.memory.memory_id for hit in answer.route.passages] == ["rule", "own", "code"]
    parts = {part.source: part for part in answer.route.recall}
    assert parts[RecallSource.PINNED].given == 2
    assert parts[RecallSource.PINNED].prompt_tokens > parts[RecallSource.TEXTS].prompt_tokens > 5
    assert not [request for request in gateway.workers[0].requests if request.keep]

    plain = await gateway.client.generate(
        "What is the code of Amber Lantern?", namespaces=["desk"], sampling=GREEDY, skip_pinned=True
    )
    assert RecallSource.PINNED not in {part.source for part in plain.route.recall}
    with pytest.raises(NamespaceNotFound):
        await gateway.parts.texts.pinned("default", "nowhere")
