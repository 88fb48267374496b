"""A gateway over gRPC, through memserve's own client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from memserve.bench.rows import Heard, NotAnswered
from memserve.bench.scenario import Scenario
from memserve.bench.workload import Planned
from memserve.client import AsyncClient, CallFailed, Route, Sampling, Slo, TextDelta, Usage


class GrpcTarget:
    """Asks `InferenceService.Generate`."""

    def __init__(self, client: AsyncClient, scenario: Scenario, namespace: str) -> None:
        """namespace: to recall from. Empty: none."""
        self._client = client
        self._scenario = scenario
        self._namespaces = (namespace,) if namespace else ()
        slo = scenario.slo
        self._slo = Slo(slo.ttft_ms, slo.tpot_ms, slo.refuse_late) if slo.send else None

    async def ask(self, request: Planned, heard: Heard, clock: Callable[[], float]) -> None:
        tokens = request.output_tokens
        stream = self._client.stream(
            request.messages,
            sampling=Sampling(tokens, min_tokens=tokens if self._scenario.output.fixed else 0),
            model=self._scenario.model,
            module=request.module,
            namespaces=self._namespaces,
            recall_limit=self._scenario.recall.limit if self._scenario.recall else 0,
            session=request.session,
            slo=self._slo,
        )
        ended = False
        try:
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    match event:
                        case TextDelta():
                            if event.token_ids or event.text:
                                heard.token_times_s.append(clock())
                        case Route():
                            heard.worker = event.worker_id
                        case Usage():
                            ended = True
                            heard.output_tokens = event.output_tokens
                            heard.prompt_tokens = event.prompt_tokens
                            heard.cached_tokens = event.cached.total
        except CallFailed as error:
            refused = error.reason is not None or error.code.name == "RESOURCE_EXHAUSTED"
            raise NotAnswered(str(error.reason or error.code.name), refused=refused) from None
        if not ended:
            raise NotAnswered("the stream ended early")
