"""`Recall` tells what an answer would be made with, and makes none."""

from __future__ import annotations

import grpc
import pytest

from memserve.domain import RecallOutcome, RecallSource
from memserve.pb.v1 import inference_pb2, inference_pb2_grpc
from tests.gateway.asking import GREEDY, failure_of
from tests.gateway.running import TIMEOUT_S, RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = "What is the code of Alder?"
WAIT_MS = 10_000


async def test_a_preview_is_what_the_answer_is_made_with(gateway: RunningGateway) -> None:
    client = gateway.client
    for memory_id, text in {
        "alder": "The code of Alder is 7731.",
        "birch": "The code of Birch is 1902.",
    }.items():
        await client.remember("previews", text, memory_id=memory_id)
    await client.remember("previews", "The code of Alder was 1.", memory_id="old", valid_until_s=9.0)
    asked = len(gateway.workers[0].requests)
    preview = await client.recall(QUESTION, namespaces="previews", timeout_ms=WAIT_MS)
    assert len(gateway.workers[0].requests) == asked, "no worker was asked"
    answer = await client.generate(
        QUESTION, namespaces=["previews"], recall_timeout_ms=WAIT_MS, sampling=GREEDY
    )
    route = answer.route
    assert preview.outcome is route.recall_outcome is RecallOutcome.FOUND
    assert [hit.memory for hit in preview.passages] == [hit.memory for hit in route.passages]
    assert [(skip.memory_id, skip.reason) for skip in preview.skipped] == [("old", "expired")]
    assert preview.skipped == route.skipped
    assert preview.prompt_tokens == route.prompt_tokens
    assert [part.source for part in preview.parts] == [RecallSource.TEXTS, RecallSource.PREFIX]
    texts = preview.parts[0]
    assert (texts.outcome, texts.given) == (RecallOutcome.FOUND, 2)
    assert 0 < texts.prompt_tokens < preview.prompt_tokens


async def test_a_preview_without_namespaces_recalls_nothing(gateway: RunningGateway) -> None:
    preview = await gateway.client.recall(QUESTION, namespaces=())
    assert (preview.outcome, preview.passages) == (RecallOutcome.NOT_ASKED, ())
    assert preview.prompt_tokens == len(gateway.token_ids(QUESTION))


async def test_a_preview_is_refused_as_the_answer_would_be(gateway: RunningGateway) -> None:
    nowhere = await failure_of(gateway.client.recall(QUESTION, namespaces="nowhere"))
    assert nowhere.code is grpc.StatusCode.NOT_FOUND
    module = await failure_of(gateway.client.recall(QUESTION, namespaces=(), module="nobody"))
    assert module.code is grpc.StatusCode.NOT_FOUND
    model = inference_pb2.RecallRequest(
        model="another", messages=[inference_pb2.Message(role=inference_pb2.ROLE_USER, content="a")]
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await inference_pb2_grpc.InferenceServiceStub(gateway.channel).Recall(model, timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
