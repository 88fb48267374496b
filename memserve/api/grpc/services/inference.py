"""`InferenceService`: answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from memserve.api.entry import require_admin
from memserve.api.grpc.call import Context, Edge
from memserve.api.grpc.convert import inference as convert
from memserve.api.grpc.convert.kept import explain_answer_response
from memserve.api.rules import check_priority
from memserve.errors import InvalidField
from memserve.gateway.assembly import GatewayServices
from memserve.gateway.feedback import Outcome
from memserve.gateway.leave_one_out import LONGEST_S
from memserve.pb.v1 import inference_pb2, inference_pb2_grpc

REQUEST_ID_MAX = 64


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):  # type: ignore[misc]
    """Streams answers to the caller's tenant."""

    def __init__(self, edge: Edge, services: GatewayServices) -> None:
        self._edge = edge
        self._pipeline = services.pipeline
        self._explanations = services.explanations
        self._previews = services.previews
        self._feedback = services.feedback

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        async with self._edge.call("Generate", context) as tenant:
            remaining_s = context.time_remaining()
            deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
            if request.worker_id:
                require_admin(tenant, "worker_id")
            asked = convert.generation_request(request, tenant.highest)
            check_priority(asked.priority, tenant)
            events = self._pipeline.generate(asked, tenant, deadline_s)
            sending = self._edge.sending(context)
            async with contextlib.aclosing(events):
                async for event in events:
                    with sending:
                        yield convert.generate_response(event)

    async def Recall(
        self, request: inference_pb2.RecallRequest, context: Context
    ) -> inference_pb2.RecallResponse:
        async with self._edge.call("Recall", context) as tenant:
            return convert.recall_response(
                await self._previews.preview(convert.recall_request(request), tenant)
            )

    async def RecordOutcome(
        self, request: inference_pb2.RecordOutcomeRequest, context: Context
    ) -> inference_pb2.RecordOutcomeResponse:
        async with self._edge.call("RecordOutcome", context) as tenant:
            _check_request_id(request.request_id)
            outcome = Outcome(
                request.request_id,
                request.reward,
                request.note,
                request.reflect,
                request.task,
                request.namespace,
            )
            return convert.recorded_response(await self._feedback.record(tenant, outcome))

    async def Explain(
        self, request: inference_pb2.ExplainRequest, context: Context
    ) -> inference_pb2.ExplainResponse:
        async with self._edge.call("Explain", context) as tenant:
            _check_request_id(request.request_id)
            return convert.explain_response(await self._explanations.explain(tenant.name, request.request_id))

    async def ExplainAnswer(
        self, request: inference_pb2.ExplainAnswerRequest, context: Context
    ) -> inference_pb2.ExplainAnswerResponse:
        async with self._edge.call("ExplainAnswer", context) as tenant:
            _check_request_id(request.request_id)
            remaining_s = context.time_remaining()
            deadline_s = time.monotonic() + (LONGEST_S if remaining_s is None else remaining_s)
            found = await self._explanations.explain_answer(
                tenant, request.request_id, deadline_s, leave_one_out=request.leave_one_out
            )
            return explain_answer_response(found)


def _check_request_id(request_id: str) -> None:
    """Raises InvalidField."""
    if not 0 < len(request_id) <= REQUEST_ID_MAX:
        raise InvalidField("request_id", f"the one of a receipt, at most {REQUEST_ID_MAX} characters")
