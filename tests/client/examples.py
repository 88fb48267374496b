"""One value of each kind, as the client has it and as it is on the wire."""

from __future__ import annotations

from typing import Any

from memserve.client import (
    Alias,
    AuditEvent,
    CachedTokens,
    ExcludedWorker,
    FinishReason,
    GateFigure,
    GateReport,
    Memory,
    Module,
    ModuleKind,
    ModulePlace,
    ModuleVersion,
    RecallOutcome,
    Route,
    RouteCandidate,
    ScoredMemory,
    Status,
    TextDelta,
    TrafficShare,
    Usage,
    UsedModule,
    WeightFigures,
    WorkerResidency,
    WorkerStatus,
)
from memserve.pb.v1 import activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2

MEMORY = Memory("m", "n", "t", "s", ("k",), 1.5)
MEMORY_PB = memory_pb2.Memory(
    memory_id="m", namespace="n", text="t", source="s", keywords=["k"], created_s=1.5
)
ALIAS = Alias("live", (TrafficShare(3, 1.0),), 2, 1.5)
ALIAS_PB = module_pb2.Alias(
    name="live", targets=[module_pb2.TrafficShare(version=3, weight=1.0)], revision=2, changed_s=1.5
)
REPORT = GateReport(True, (GateFigure("recall", 0.25, 0.75, "at least 0.5", True, 8),), "w0", 1.5, "p")
REPORT_PB = module_pb2.GateReport(
    passed=True,
    figures=[
        module_pb2.GateFigure(
            name="recall", base=0.25, module=0.75, rule="at least 0.5", holds=True, probes=8
        )
    ],
    worker_id="w0",
    at_s=1.5,
    probes_digest="p",
)
VERSION = ModuleVersion(
    "tone", 3, "d", ModuleKind.LORA, "b", 4, ("q_proj",), 9, 1.5, "me", ("a book",), ("e",), "r", "n",
    WeightFigures(1.5, 0.25, 2.0), "p", True, REPORT, "w",
)  # fmt: skip
VERSION_PB = module_pb2.ModuleVersion(
    module="tone", version=3, digest="d", kind=module_pb2.MODULE_KIND_LORA, base_digest="b", rank=4,
    target_modules=["q_proj"], size_bytes=9, created_s=1.5, author="me", sources=["a book"], parents=["e"],
    recipe="r", notes="n", probes_digest="p", gate=REPORT_PB, moves_logits=True, warning="w",
    figures=module_pb2.WeightFigures(delta_norm=1.5, sparsity=0.25, effective_rank=2.0),
)  # fmt: skip
MODULE = Module("tone", ModuleKind.LOGIT_EXPERT, 3, 2, (ALIAS,))
MODULE_PB = module_pb2.Module(
    name="tone", kind=module_pb2.MODULE_KIND_LOGIT_EXPERT, newest_version=3, versions=2, aliases=[ALIAS_PB]
)
EVENT = AuditEvent("1-1", 1.5, "acme", "me", "promote", "tone", "", "{}")
EVENT_PB = module_pb2.AuditEvent(
    event_id="1-1", at_s=1.5, tenant="acme", principal="me", action="promote", module="tone", after="{}"
)
RESIDENCY = WorkerResidency("w0", ModulePlace.HOST, "no room")
RESIDENCY_PB = module_pb2.WorkerResidency(
    worker_id="w0", place=module_pb2.MODULE_PLACE_HOST, refusal="no room"
)
ROUTE = Route(
    "r", "tiny", "w0", "why", 1.5, 10, 4,
    (
        UsedModule("tone", 3, "d", ModuleKind.LORA, "live at revision 2"),
        UsedModule("facts", 1, "e", ModuleKind.LOGIT_EXPERT, "asked for by number", 0.5),
    ),
    RecallOutcome.FOUND, (ScoredMemory(MEMORY, 0.5, 0.25, None), ScoredMemory(MEMORY, 0.5, None, 8.0)), 1,
    (RouteCandidate("w0", 1.5, 0.5, 0.25, 0.125, 0.0625, 2.0, 3.0, -4.0, 4, 5, 6),),
    (ExcludedWorker("w1", "silent"),), 7.0, True, 2,
)  # fmt: skip
ROUTE_PB = inference_pb2.GenerateResponse(
    route=inference_pb2.Route(
        request_id="r", model="tiny", worker_id="w0", reason="why", predicted_ttft_ms=1.5, prompt_tokens=10,
        expected_cached_tokens=4, recall_outcome=inference_pb2.RECALL_OUTCOME_FOUND, lost_memories=1,
        modules=[
            inference_pb2.UsedModule(
                name="tone", version=3, digest="d", kind="lora", reason="live at revision 2"
            ),
            inference_pb2.UsedModule(
                name="facts", version=1, digest="e", kind="logit_expert", reason="asked for by number",
                alpha=0.5,
            ),
        ],
        passages=[
            memory_pb2.ScoredMemory(memory=MEMORY_PB, score=0.5, dense_score=0.25),
            memory_pb2.ScoredMemory(memory=MEMORY_PB, score=0.5, bm25_score=8.0),
        ],
        candidates=[
            inference_pb2.RouteCandidate(
                worker_id="w0", ttft_ms=1.5, queue_ms=0.5, slot_ms=0.25, memory_ms=0.125, fetch_ms=0.0625,
                prefill_ms=2.0, load_ms=3.0, learned_ms=-4.0, cached_tokens=4, queued_tokens=5, running=6,
            )
        ],
        excluded=[inference_pb2.ExcludedWorker(worker_id="w1", reason="silent")], predicted_within_ms=7.0,
        system_folded=True, merged_turns=2,
    )
)  # fmt: skip
DELTAS = [TextDelta(" a", (1, 2), (-0.5, -1.0)), TextDelta(" b", (3,), (-0.25,))]
DELTAS_PB = [
    inference_pb2.GenerateResponse(
        text=inference_pb2.TextDelta(text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs)
    )
    for delta in DELTAS
]
USAGE = Usage(10, 3, CachedTokens(1, 2, 3), 4.0, 5.0, True, FinishReason.STOP)
USAGE_PB = inference_pb2.GenerateResponse(
    usage=inference_pb2.Usage(
        prompt_tokens=10, output_tokens=3, ttft_ms=4.0, tpot_ms=5.0, slo_met=True,
        cached_tokens=inference_pb2.CachedTokens(device=1, host=2, redis=3),
        finish_reason=inference_pb2.FINISH_REASON_STOP,
    )
)  # fmt: skip
ANSWER_PB = [ROUTE_PB, *DELTAS_PB, USAGE_PB]
QUESTION_PB = [inference_pb2.Message(role=inference_pb2.ROLE_USER, content="q")]
PREFIX_PB = activation_pb2.Prefix(messages=QUESTION_PB, module="tone", model="tiny")
ON_PREFIX: dict[str, Any] = {"module": "tone", "model": "tiny"}
PROGRESS_PB = module_pb2.GateProgress(done=1, total=2)
STATUS = Status(
    "0.1.0", "tiny", "d", 8192,
    (
        WorkerStatus(
            "w0", "a:1", "a:2", 7, True, 1, 2, 3, 4.5, {"d": ModulePlace.DEVICE}, True, "no experts"
        ),
    ),
    True, False, 1, 2, 3, -1, "data", "minilm", 0.25, -0.5, 0.75, "model", "t", "joined", "cross",
)  # fmt: skip
STATUS_PB = status_pb2.GetStatusResponse(
    version="0.1.0", model="tiny", model_digest="d", max_context_tokens=8192, redis_ok=True, modules=1,
    memories=2, lost_memories=3, waiting_writes=-1, short_disk="data", embedder="minilm",
    forecasts=status_pb2.ForecastErrors(mape=0.25, bias=-0.5, coverage=0.75),
    prompts=status_pb2.PromptLayout(recall_template="model", recall_template_digest="t", changes="joined"),
    reranker="cross",
    workers=[
        status_pb2.WorkerStatus(
            worker_id="w0", address="a:1", metrics_address="a:2", pid=7, ready=True, running=1, waiting=2,
            known_blocks=3, prefill_tokens_per_s=4.5, shares_kv=True, limits="no experts",
            modules=[status_pb2.WorkerModule(digest="d", place=module_pb2.MODULE_PLACE_DEVICE)],
        )
    ],
)  # fmt: skip
