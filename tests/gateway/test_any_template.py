"""A gateway for a model whose template takes no system message and wants roles to alternate, and whose
tokenizer has tokens beyond the embedding.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from memserve.client import CallFailed
from memserve.domain import Message, RecallOutcome, Role, Sampling
from tests.gateway.running import RunningGateway, open_gateway
from tests.model.chat_templates import GEMMA

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = Sampling(max_tokens=2)
LINES = "{% for each in passages %}- {{ each.text }}\n{% endfor %}"
RECALL_TEMPLATE = "{{ system }}{% if system %}\n{% endif %}Known:\n" + LINES
FACT, QUESTION = "The code of Amber Lantern is 4071.", "What is the code of Amber Lantern?"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> AsyncIterator[RunningGateway]:
    model = Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("models") / "unusual"))
    (model / "chat_template.jinja").write_text(GEMMA, encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens([f"<tool{number}>" for number in range(4000)])
    tokenizer.save(str(model / "tokenizer.json"))
    chosen = tmp_path_factory.mktemp("templates") / "mine.jinja"
    chosen.write_text(RECALL_TEMPLATE, encoding="utf-8")
    settings = {"recall_timeout_ms": 10_000, "recall_template": chosen}
    async with open_gateway(tmp_path_factory.mktemp("gateway"), model, **settings) as running:
        yield running


async def test_passages_stand_before_the_first_question(gateway: RunningGateway) -> None:
    await gateway.client.remember("notes", FACT)
    answer = await gateway.client.generate(QUESTION, namespaces=["notes"], sampling=GREEDY)
    assert answer.route.recall_outcome is RecallOutcome.FOUND
    assert (answer.route.system_folded, answer.route.merged_turns) == (True, 0)
    passages = f"Known:\n- {FACT}"
    asked = [Message(Role.USER, f"{passages}\n\n{QUESTION}")]
    assert list(gateway.workers[0].requests[-1].token_ids) == gateway.parts.tokenizer.encode(asked)
    talk = [Message(Role.USER, "Hello."), Message(Role.ASSISTANT, "Hello!"), Message(Role.USER, QUESTION)]
    await gateway.client.generate(talk, namespaces=["notes"], sampling=GREEDY)
    asked = [Message(Role.USER, f"{passages}\n\nHello."), *talk[1:]]
    assert list(gateway.workers[0].requests[-1].token_ids) == gateway.parts.tokenizer.encode(asked)


async def test_a_system_message_and_repeated_turns_are_fitted_to_the_template_and_the_receipt_says_so(
    gateway: RunningGateway,
) -> None:
    talk = [Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Hello."), Message(Role.USER, QUESTION)]
    answer = await gateway.client.generate(talk, sampling=GREEDY)
    asked = [Message(Role.USER, f"Be brief.\n\nHello.\n\n{QUESTION}")]
    assert list(gateway.workers[0].requests[-1].token_ids) == gateway.parts.tokenizer.encode(asked)
    assert (answer.route.system_folded, answer.route.merged_turns) == (True, 1)
    plain = await gateway.client.generate(QUESTION, sampling=GREEDY)
    assert (plain.route.system_folded, plain.route.merged_turns) == (False, 0)
    status = await gateway.client.status()
    assert "stand in the turn of the user" in status.prompt_changes
    assert "neighbouring turns of one role are joined" in status.prompt_changes
    assert status.recall_template == "setting"
    assert status.recall_template_digest == hashlib.sha256(RECALL_TEMPLATE.encode()).hexdigest()


async def test_a_warmed_prefix_is_the_beginning_of_the_request(gateway: RunningGateway) -> None:
    system = Message(Role.SYSTEM, "Be brief. " * 40)
    prefix = gateway.parts.layout.encode(gateway.parts.layout.arrange([system]))
    await gateway.client.generate([system, Message(Role.USER, QUESTION)], sampling=GREEDY)
    asked = list(gateway.workers[0].requests[-1].token_ids)
    common = next(place for place, (one, two) in enumerate(zip(prefix, asked, strict=False)) if one != two)
    shared = len(gateway.parts.tokenizer.encode_raw(system.content.strip()))
    assert common >= shared
    with_passages = gateway.parts.layout.recall.render(system.content, [FACT])
    assert with_passages.startswith(system.content)


async def test_a_conversation_that_the_assistant_begins_is_refused_in_the_templates_words(
    gateway: RunningGateway,
) -> None:
    talk = [Message(Role.ASSISTANT, "Hello!"), Message(Role.USER, QUESTION)]
    with pytest.raises(CallFailed, match="chat template refuses them: Conversation roles must") as failed:
        await gateway.client.generate(talk, sampling=GREEDY)
    assert (failed.value.code, failed.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, "messages")


async def test_a_token_without_an_embedding_reaches_no_worker(gateway: RunningGateway) -> None:
    rows = json.loads((gateway.parts.model.path / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    before = len(gateway.workers[0].requests)
    with pytest.raises(CallFailed, match="must not spell '<tool3999>'") as failed:
        await gateway.client.generate("Please use <tool3999> now.", sampling=GREEDY)
    assert failed.value.code is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(CallFailed, match="must not spell"):
        await gateway.client.activation.lookup("Please use <tool3999> now.")
    assert len(gateway.workers[0].requests) == before
    await gateway.client.generate("Hello.", sampling=GREEDY)
    assert max(gateway.workers[0].requests[-1].token_ids) < rows


async def test_a_passage_that_spells_such_a_token_fails_no_answer(gateway: RunningGateway) -> None:
    await gateway.client.remember("tools", "Use <tool3999> for the lantern.")
    answer = await gateway.client.generate(QUESTION, namespaces=["tools"], sampling=GREEDY)
    assert answer.route.recall_outcome is RecallOutcome.EMPTY
