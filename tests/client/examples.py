"""One value of each kind, as the client has it and as it is on the wire."""

from __future__ import annotations

from typing import Any

from memserve.client import (
    Alias,
    AnswerExplanation,
    AuditEvent,
    CachedTokens,
    DistilChoice,
    DistillationJob,
    DistillationState,
    DistilPlan,
    DistilProgress,
    ExcludedWorker,
    Explanation,
    Finding,
    FindingKind,
    FinishReason,
    GateFigure,
    GateReport,
    KeptAnswer,
    KeptModule,
    KeptPassage,
    KeptPrompt,
    LeaveOneOut,
    Link,
    LinkKind,
    Memory,
    MemoryKind,
    MemoryLeftOut,
    MemoryState,
    Module,
    ModuleFit,
    ModuleKind,
    ModulePlace,
    ModuleVersion,
    OutdatedFact,
    PassageWeight,
    Place,
    RecallOutcome,
    RecallPart,
    RecallSource,
    Route,
    RouteCandidate,
    RungCost,
    ScoredMemory,
    Skipped,
    SkipReason,
    Status,
    SurpriseScore,
    TextDelta,
    TrafficShare,
    Usage,
    UsedModule,
    Via,
    WeightFigures,
    WorkerResidency,
    WorkerStatus,
)
from memserve.domain.ladder import (
    LadderAction,
    LadderBudget,
    LadderDecision,
    LadderReport,
    LadderStep,
    LadderUse,
    Rung,
)
from memserve.pb.v1 import activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2

MEMORY = Memory(
    "m", "n", "t", "s", ("k",), 1.5, MemoryKind.EPISODE,
    {"day": 1, "share": 1.0, "seen": True, "city": "Oslo", "tags": ("a", "b")}, "me", 2.5, 3.5, "has(user)",
    2.0, (Link(LinkKind.CAUSED_BY, "cause", "other"), Link(LinkKind.NEXT, "after")),
    Place("session", 4, "title", ("one", "two")), True, 3, 6.5, MemoryState.SUPERSEDED,
    Link(LinkKind.SUPERSEDES, "newer"),
)  # fmt: skip
MEMORY_PB = memory_pb2.Memory(
    memory_id="m", namespace="n", text="t", source="s", keywords=["k"], created_s=1.5,
    kind=memory_pb2.MEMORY_KIND_EPISODE, author="me", valid_from_s=2.5, valid_until_s=3.5,
    applies_when="has(user)", strength=2.0, pinned=True, version=3, updated_s=6.5,
    state=memory_pb2.MEMORY_STATE_SUPERSEDED,
    metadata={
        "day": memory_pb2.MetadataValue(whole=1), "share": memory_pb2.MetadataValue(number=1.0),
        "seen": memory_pb2.MetadataValue(truth=True), "city": memory_pb2.MetadataValue(text="Oslo"),
        "tags": memory_pb2.MetadataValue(texts=memory_pb2.TextList(texts=["a", "b"])),
    },
    links=[
        memory_pb2.MemoryLink(kind=memory_pb2.LINK_KIND_CAUSED_BY, memory_id="cause", namespace="other"),
        memory_pb2.MemoryLink(kind=memory_pb2.LINK_KIND_NEXT, memory_id="after"),
    ],
    place=memory_pb2.MemoryPlace(within="session", position=4, title="title", headings=["one", "two"]),
    superseded_by=memory_pb2.MemoryLink(kind=memory_pb2.LINK_KIND_SUPERSEDES, memory_id="newer"),
)  # fmt: skip
FINDING = Finding(FindingKind.UPDATE, "n", "old", 0.75, "same subject", True)
FINDING_PB = memory_pb2.Finding(
    kind=memory_pb2.FINDING_KIND_UPDATE, namespace="n", memory_id="old", score=0.75, reason="same subject",
    superseded=True,
)  # fmt: skip
SURPRISE = SurpriseScore(2.5, 0.5, True, 0.25, "weaker")
SURPRISE_PB = memory_pb2.SurpriseScore(
    nats_per_token=2.5, nats_per_token_recalled=0.5, stored=True, strength=0.25, reason="weaker"
)
HIT = ScoredMemory(MEMORY, 0.5, 0.25, 8.0, 0.75, 1.5, -2.0, Via("hit", "n", LinkKind.PART_OF, 2, True))
HIT_PB = memory_pb2.ScoredMemory(
    memory=MEMORY_PB, score=0.5, dense_score=0.25, bm25_score=8.0, relevance=0.75, strength=1.5,
    rerank_score=-2.0,
    via=memory_pb2.Via(
        memory_id="hit", namespace="n", kind=memory_pb2.LINK_KIND_PART_OF, depth=2, backwards=True
    ),
)  # fmt: skip
SKIPPED = Skipped("n", "gone", 2, SkipReason.EXPIRED, "held until 3.5")
SKIPPED_PB = memory_pb2.SkippedMemory(
    namespace="n", memory_id="gone", version=2, reason=memory_pb2.SKIP_REASON_EXPIRED, detail="held until 3.5"
)
PART = RecallPart(RecallSource.TEXTS, RecallOutcome.FOUND, 1.5, 2, 30, "two passages")
PART_PB = inference_pb2.RecallPart(
    source=inference_pb2.RECALL_SOURCE_TEXTS, outcome=inference_pb2.RECALL_OUTCOME_FOUND, took_ms=1.5,
    given=2, prompt_tokens=30, detail="two passages",
)  # fmt: skip
FIT = ModuleFit("facts", 2, "d", 0.75, "trained on a question like it", True)
FIT_PB = inference_pb2.ModuleFit(
    name="facts", version=2, digest="d", score=0.75, reason="trained on a question like it", chosen=True
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
    RecallOutcome.FOUND, (ScoredMemory(MEMORY, 0.5, 0.25, None, 0.5), HIT), 1,
    (RouteCandidate("w0", 1.5, 0.5, 0.25, 0.125, 0.0625, 2.0, 3.0, -4.0, 4, 5, 6),),
    (ExcludedWorker("w1", "silent"),), 7.0, True, 2, (SKIPPED,), (PART,), (FIT,),
    (OutdatedFact("tone@3", "n", "m", 1, "n", "x", 2, "newer"),),
)  # fmt: skip
OUTDATED_PB = inference_pb2.OutdatedFact(
    module="tone@3", namespace="n", memory_id="m", known_version=1, text_namespace="n", text_memory_id="x",
    text_version=2, why="newer",
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
            memory_pb2.ScoredMemory(
                memory=MEMORY_PB, score=0.5, dense_score=0.25, relevance=0.5, strength=1.0
            ),
            HIT_PB,
        ],
        candidates=[
            inference_pb2.RouteCandidate(
                worker_id="w0", ttft_ms=1.5, queue_ms=0.5, slot_ms=0.25, memory_ms=0.125, fetch_ms=0.0625,
                prefill_ms=2.0, load_ms=3.0, learned_ms=-4.0, cached_tokens=4, queued_tokens=5, running=6,
            )
        ],
        excluded=[inference_pb2.ExcludedWorker(worker_id="w1", reason="silent")], predicted_within_ms=7.0,
        skipped=[SKIPPED_PB], recall=[PART_PB], module_fits=[FIT_PB], outdated=[OUTDATED_PB],
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
USAGE = Usage(
    10,
    3,
    CachedTokens(1, 2, 3),
    4.0,
    5.0,
    True,
    FinishReason.STOP,
    rungs=(RungCost("lora", "tone@3", 1, 2, 0.5),),
)
USAGE_PB = inference_pb2.GenerateResponse(
    usage=inference_pb2.Usage(
        prompt_tokens=10, output_tokens=3, ttft_ms=4.0, tpot_ms=5.0, slo_met=True,
        cached_tokens=inference_pb2.CachedTokens(device=1, host=2, redis=3),
        finish_reason=inference_pb2.FINISH_REASON_STOP,
        rungs=[inference_pb2.RungCost(kind="lora", name="tone@3", tokens=1, bytes=2, ms=0.5)],
    )
)  # fmt: skip
ANSWER_PB = [ROUTE_PB, *DELTAS_PB, USAGE_PB]
_KEPT = KeptAnswer(
    "r", 1.5, "tiny", "w0", ("n",), RecallOutcome.FOUND, (KeptPassage("n", "m", 2, 0.5, 0.25, "by meaning"),),
    (Skipped("n", "x", 1, SkipReason.EXPIRED, "since May"),),
    (KeptModule("tone", 3, "d", ModuleKind.LORA, 1.0, ("a book",), ("e",)),),
    10, 3, CachedTokens(1, 2, 3), "answered", KeptPrompt("<q>", (1, 2), (3,), (), ()), "",
    LeaveOneOut((PassageWeight("n", "m", 2, 4.5, 1.5),), -0.5, 3, 2.5),
)  # fmt: skip
EXPLAINED = AnswerExplanation(Explanation(ROUTE, "answered", USAGE), _KEPT, "", "why")
EXPLAINED_PB = inference_pb2.ExplainAnswerResponse(
    routing=inference_pb2.ExplainResponse(route=ROUTE_PB.route, outcome="answered", usage=USAGE_PB.usage),
    answer=inference_pb2.KeptAnswer(
        request_id="r", at_s=1.5, model="tiny", worker_id="w0", namespaces=["n"],
        recall_outcome=inference_pb2.RECALL_OUTCOME_FOUND,
        passages=[
            inference_pb2.KeptPassage(
                namespace="n", memory_id="m", version=2, score=0.5, relevance=0.25, why="by meaning"
            )
        ],
        skipped=[
            inference_pb2.KeptSkipped(
                namespace="n", memory_id="x", version=1, reason="expired", detail="since May"
            )
        ],
        modules=[
            inference_pb2.KeptModule(
                name="tone", version=3, digest="d", kind="lora", strength=1.0, sources=["a book"],
                parents=["e"],
            )
        ],
        prompt_tokens=10, output_tokens=3,
        cached_tokens=inference_pb2.CachedTokens(device=1, host=2, redis=3), outcome="answered",
        prompt=inference_pb2.KeptPrompt(text="<q>", token_ids=[1, 2], answer_ids=[3]),
        leave_one_out=inference_pb2.LeaveOneOut(
            passages=[
                inference_pb2.PassageWeight(
                    namespace="n", memory_id="m", version=2, nats=4.5, nats_per_token=1.5
                )
            ],
            logprob=-0.5, scored_tokens=3, at_s=2.5,
        ),
    ),
    leave_one_out_absent="why",
)  # fmt: skip
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

LADDER = LadderReport(
    "advise", 5.0, LadderBudget(100, 60.0), LadderUse(7, 1.5),
    (
        LadderStep(
            LadderDecision(
                "town", LadderAction.DEMOTE, Rung.LORA, Rung.TEXT, "it is cold", LadderUse(9, 1.5),
                LadderUse(7, 1.5), "hall",
            ),
            "town-lora@1 is unloaded",
        ),
    ),
)  # fmt: skip
LADDER_PB = status_pb2.GetLadderResponse(
    mode="advise", at_s=5.0, budget=status_pb2.LadderUse(resident_bytes=100, make_s=60.0),
    use=status_pb2.LadderUse(resident_bytes=7, make_s=1.5),
    steps=[
        status_pb2.LadderStep(
            namespace="town", action=status_pb2.LADDER_ACTION_DEMOTE, from_rung=status_pb2.RUNG_LORA,
            to_rung=status_pb2.RUNG_TEXT, reason="it is cold", makes_room_for="hall",
            before=status_pb2.LadderUse(resident_bytes=9, make_s=1.5),
            after=status_pb2.LadderUse(resident_bytes=7, make_s=1.5), outcome="town-lora@1 is unloaded",
        )
    ],
)  # fmt: skip

CHOICE = DistilChoice(("town",), "version > 1", ("d",), (("town", "m"),))
CHOICE_PB = {
    "name": "handbook",
    "namespaces": ["town"],
    "filter": "version > 1",
    "document_ids": ["d"],
    "memories": [module_pb2.DistilMemory(namespace="town", memory_id="m")],
}
RECIPE_PB = module_pb2.DistilRecipe(rank=16, stop_loss=0.02, least_teacher=0.2, old_share=0.5)
JOB = DistillationJob(
    "job", "handbook", ModuleKind.LORA, DistillationState.DONE, "alice", 1.0, 2.0,
    DistilProgress("gate", 3, 4, 5.0, 6, 0.5), 1, 7, True, "live", "why", "handbook@6",
)  # fmt: skip
JOB_PB = module_pb2.Distillation(
    job_id="job", module="handbook", kind=module_pb2.MODULE_KIND_LORA,
    state=module_pb2.DISTILLATION_STATE_DONE, principal="alice", begun_s=1.0, ended_s=2.0,
    progress=module_pb2.DistilProgress(stage="gate", done=3, total=4, cpu_s=5.0, tokens=6, median_loss=0.5),
    taken_up=1, version=7, passed=True, promoted_to="live", reason="why", from_reference="handbook@6",
)  # fmt: skip
PLAN = DistilPlan(4, 5, 60, (MemoryLeftOut("town", "m", "is forgotten"),), ("Who? Ida.",), 7)
PLAN_PB = module_pb2.DistilPlan(
    memories=4,
    facts=5,
    questions=60,
    left_out=[module_pb2.DistilLeftOut(namespace="town", memory_id="m", reason="is forgotten")],
    examples=["Who? Ida."],
    probes=7,
)
