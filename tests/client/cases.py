"""A call of each method of the client."""

from __future__ import annotations

import hashlib

from memserve.client import (
    Answer,
    CachedPrefix,
    CacheUsage,
    ContentFile,
    Evicted,
    Expert,
    Explanation,
    FilePart,
    HeldPrefix,
    Message,
    ModuleKind,
    RecallOutcome,
    RecallPreview,
    RecordedOutcome,
    Reinforced,
    Role,
    Slo,
    VersionContent,
    Warmth,
)
from memserve.pb.v1 import activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2
from tests.client.case import Case
from tests.client.examples import (
    ALIAS,
    ALIAS_PB,
    ANSWER_PB,
    CHOICE,
    CHOICE_PB,
    DELTAS,
    EVENT,
    EVENT_PB,
    EXPLAINED,
    EXPLAINED_PB,
    FIT,
    FIT_PB,
    HIT,
    HIT_PB,
    JOB,
    JOB_PB,
    LADDER,
    LADDER_PB,
    MEMORY,
    MEMORY_PB,
    MODULE,
    MODULE_PB,
    ON_PREFIX,
    PART,
    PART_PB,
    PLAN,
    PLAN_PB,
    PREFIX_PB,
    PROGRESS_PB,
    QUESTION_PB,
    RECIPE_PB,
    REPORT,
    REPORT_PB,
    RESIDENCY,
    RESIDENCY_PB,
    ROUTE,
    ROUTE_PB,
    SKIPPED,
    SKIPPED_PB,
    STATUS,
    STATUS_PB,
    USAGE,
    USAGE_PB,
    VERSION,
    VERSION_PB,
)
from tests.client.lineage_cases import LINEAGE
from tests.client.memory_cases import SETS, SINGLE

SHA256_OF_ABC = hashlib.sha256(b"abc").hexdigest()
CASES = [
    Case(
        "generate", ("q",), {}, inference_pb2.GenerateRequest(
            messages=QUESTION_PB, recall=inference_pb2.Recall(), slo=inference_pb2.Slo(),
            sampling=inference_pb2.Sampling(top_p=1.0),
        ),
        ANSWER_PB, Answer(" a b", (1, 2, 3), (-0.5, -1.0, -0.25), ROUTE, USAGE),
    ),
    Case(
        "explain", ("r",), {}, inference_pb2.ExplainRequest(request_id="r"),
        [inference_pb2.ExplainResponse(route=ROUTE_PB.route, outcome="answered", usage=USAGE_PB.usage)],
        Explanation(ROUTE, "answered", USAGE),
    ),
    Case(
        "recall", ("q",),
        {
            "namespaces": "n", "limit": 3, "timeout_ms": 250, "options": {"min_relevance": 0.5},
            "choose_module": True, "skip_pinned": True, "model": "tiny", "module": "tone", "modules": ["e"],
        },
        inference_pb2.RecallRequest(
            messages=QUESTION_PB, model="tiny", module="tone",
            modules=[inference_pb2.ModuleUse(reference="e", strength=1.0)],
            recall=inference_pb2.Recall(
                namespaces=["n"], limit=3, timeout_ms=250, choose_module=True, skip_pinned=True,
                options=memory_pb2.SearchOptions(min_relevance=0.5),
            ),
        ),
        [
            inference_pb2.RecallResponse(
                outcome=inference_pb2.RECALL_OUTCOME_FOUND, passages=[HIT_PB], skipped=[SKIPPED_PB],
                parts=[PART_PB], module_fits=[FIT_PB], prompt_tokens=9, redis_tokens=0, held_tokens=4,
            )
        ],
        RecallPreview(RecallOutcome.FOUND, (HIT,), (SKIPPED,), (PART,), (FIT,), 9, 0, 4),
    ),
    Case(
        "record_outcome", ("r", -1.0),
        {"note": "wrong", "reflect": True, "namespace": "n", "task": "q"},
        inference_pb2.RecordOutcomeRequest(
            request_id="r", reward=-1.0, note="wrong", reflect=True, namespace="n", task="q"
        ),
        [
            inference_pb2.RecordOutcomeResponse(
                memories=[
                    inference_pb2.Reinforced(
                        namespace="n", memory_id="m", strength_before=1.0, strength=0.5
                    )
                ],
                reflection=MEMORY_PB,
            )
        ],
        RecordedOutcome((Reinforced("n", "m", 1.0, 0.5),), MEMORY),
    ),
    Case(
        "explain_answer", ("r",), {"leave_one_out": True},
        inference_pb2.ExplainAnswerRequest(request_id="r", leave_one_out=True), [EXPLAINED_PB], EXPLAINED,
    ),
    Case(
        "stream", ([Message(Role.SYSTEM, "s"), {"role": "user", "content": "q"}],),
        {
            "module": "tone", "expert": Expert("facts@2", 0.0), "namespaces": ["b", "a"], "recall_limit": 3,
            "recall_timeout_ms": 250, "max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "seed": 0,
            "stop": "end", "logprobs": True, "min_tokens": 2, "slo": Slo(1.0, 2.0), "model": "tiny",
            "worker_id": "w0", "session": "s",
        },
        inference_pb2.GenerateRequest(
            messages=[inference_pb2.Message(role=inference_pb2.ROLE_SYSTEM, content="s"), *QUESTION_PB],
            module="tone", experts=[inference_pb2.Expert(reference="facts@2", alpha=0.0)],
            recall=inference_pb2.Recall(namespaces=["b", "a"], limit=3, timeout_ms=250),
            sampling=inference_pb2.Sampling(
                max_tokens=7, temperature=0.5, top_p=0.25, seed=0, stop=["end"], logprobs=True, min_tokens=2
            ),
            slo=inference_pb2.Slo(ttft_ms=1.0, tpot_ms=2.0), model="tiny", worker_id="w0", session="s",
        ),
        ANSWER_PB, [ROUTE, *DELTAS, USAGE],
    ),
    *SINGLE,
    *SETS,
    *LINEAGE,
    Case(
        "status", (), {"workers_only": True}, status_pb2.GetStatusRequest(workers_only=True), [STATUS_PB],
        STATUS,
    ),
    Case("ladder", (), {}, status_pb2.GetLadderRequest(), [LADDER_PB], LADDER),
    Case(
        "backup", ("b",), {}, status_pb2.BackupRequest(name="b"),
        [status_pb2.BackupProgress(line="one"), status_pb2.BackupProgress(line="two")], ["one", "two"],
    ),
    Case(
        "modules.get", ("tone",), {}, module_pb2.GetModuleRequest(name="tone"),
        [module_pb2.GetModuleResponse(module=MODULE_PB)], MODULE,
    ),
    Case(
        "modules.all", (), {"name_prefix": "t", "kind": ModuleKind.LORA},
        module_pb2.ListModulesRequest(page_size=1000, name_prefix="t", kind=module_pb2.MODULE_KIND_LORA),
        [module_pb2.ListModulesResponse(modules=[MODULE_PB])], [MODULE],
    ),
    Case(
        "modules.version", ("tone@3",), {}, module_pb2.GetVersionRequest(reference="tone@3"),
        [module_pb2.GetVersionResponse(version=VERSION_PB)], VERSION,
    ),
    Case(
        "modules.read", ("tone@3",), {}, module_pb2.ReadVersionRequest(reference="tone@3"),
        [
            module_pb2.ReadVersionResponse(content=module_pb2.VersionContent(
                version=VERSION_PB,
                files=[module_pb2.UploadFile(file_name="a.json", size_bytes=3, sha256=SHA256_OF_ABC)],
            )),
            module_pb2.ReadVersionResponse(chunk=module_pb2.FileChunk(file_name="a.json", content=b"ab")),
            module_pb2.ReadVersionResponse(
                chunk=module_pb2.FileChunk(file_name="a.json", content=b"c", offset=2)
            ),
        ],
        [
            VersionContent(VERSION, (ContentFile("a.json", 3, SHA256_OF_ABC),)),
            FilePart("a.json", 0, b"ab"), FilePart("a.json", 2, b"c"),
        ],
    ),
    Case(
        "modules.versions", ("tone",), {}, module_pb2.ListVersionsRequest(name="tone", page_size=1000),
        [module_pb2.ListVersionsResponse(versions=[VERSION_PB])], [VERSION],
    ),
    Case(
        "modules.gate", ("tone", 3), {}, module_pb2.RunGateRequest(name="tone", version=3),
        [module_pb2.RunGateResponse(progress=PROGRESS_PB), module_pb2.RunGateResponse(report=REPORT_PB)],
        REPORT,
    ),
    Case(
        "modules.promote", ("tone", 3),
        {"alias": "live", "expected_revision": 0, "force": True, "reason": "because"},
        module_pb2.PromoteModuleRequest(
            name="tone", version=3, alias="live", expected_revision=0, force=True, reason="because"
        ),
        [
            module_pb2.PromoteModuleResponse(progress=PROGRESS_PB),
            module_pb2.PromoteModuleResponse(alias=ALIAS_PB),
        ],
        ALIAS,
    ),
    Case(
        "modules.rollback", ("tone",), {"alias": "live", "expected_revision": 2, "reason": "because"},
        module_pb2.RollbackModuleRequest(name="tone", alias="live", expected_revision=2, reason="because"),
        [module_pb2.RollbackModuleResponse(alias=ALIAS_PB)], ALIAS,
    ),
    Case(
        "modules.split", ("tone", {3: 1.0}), {"reason": "because"},
        module_pb2.SetTrafficRequest(
            name="tone", targets=[module_pb2.TrafficShare(version=3, weight=1.0)], reason="because"
        ),
        [module_pb2.SetTrafficResponse(alias=ALIAS_PB)], ALIAS,
    ),
    Case(
        "modules.drop_alias", ("tone", "live"), {"expected_revision": 2},
        module_pb2.DropAliasRequest(name="tone", alias="live", expected_revision=2),
        [module_pb2.DropAliasResponse(alias=ALIAS_PB)], ALIAS,
    ),
    Case(
        "modules.delete", ("tone", 3), {}, module_pb2.DeleteVersionRequest(name="tone", version=3),
        [module_pb2.DeleteVersionResponse(evicted_chunks=5)], 5,
    ),
    Case(
        "modules.preload", ("tone",), {"worker_id": "w0"},
        module_pb2.PreloadModuleRequest(reference="tone", worker_id="w0"),
        [module_pb2.PreloadModuleResponse(workers=[RESIDENCY_PB])], [RESIDENCY],
    ),
    Case(
        "modules.residency", ("tone",), {}, module_pb2.GetResidencyRequest(reference="tone"),
        [module_pb2.GetResidencyResponse(workers=[RESIDENCY_PB])], [RESIDENCY],
    ),
    Case(
        "modules.unload", ("tone",), {}, module_pb2.UnloadModuleRequest(reference="tone"),
        [module_pb2.UnloadModuleResponse(workers=[RESIDENCY_PB])], [RESIDENCY],
    ),
    Case(
        "modules.compose", ("both", "ties", {"a@1": 0.5}),
        {"rank": 4, "density": 0.5, "seed": 1, "notes": "n"},
        module_pb2.ComposeModuleRequest(
            name="both", method=module_pb2.COMPOSE_METHOD_TIES, rank=4, density=0.5, seed=1, notes="n",
            parents=[module_pb2.ComposeParent(reference="a@1", weight=0.5)],
        ),
        [
            module_pb2.ComposeModuleResponse(progress=PROGRESS_PB),
            module_pb2.ComposeModuleResponse(version=VERSION_PB),
        ],
        VERSION,
    ),
    Case(
        "modules.distil", ("handbook", CHOICE),
        {"kind": ModuleKind.LORA, "budget_s": 60.0, "seed": 3, "notes": "n", "from_reference": "handbook@6"},
        module_pb2.DistilModuleRequest(
            **CHOICE_PB, kind=module_pb2.MODULE_KIND_LORA, recipe=RECIPE_PB, budget_s=60.0, seed=3,
            notes="n", from_reference="handbook@6",
        ),
        [
            module_pb2.DistilModuleResponse(plan=module_pb2.DistilPlan(memories=4)),
            module_pb2.DistilModuleResponse(progress=module_pb2.DistilProgress(stage="training", done=1)),
            module_pb2.DistilModuleResponse(version=VERSION_PB),
        ],
        VERSION,
    ),
    Case(
        "modules.plan_distil", ("handbook", CHOICE), {"seed": 3},
        module_pb2.DistilModuleRequest(**CHOICE_PB, recipe=RECIPE_PB, seed=3, dry_run=True),
        [module_pb2.DistilModuleResponse(plan=PLAN_PB)], PLAN,
    ),
    Case(
        "modules.distillations", (), {}, module_pb2.ListDistillationsRequest(),
        [module_pb2.ListDistillationsResponse(distillations=[JOB_PB])], [JOB],
    ),
    Case(
        "modules.stop_distil", ("handbook",), {},
        module_pb2.DistilModuleRequest(name="handbook", cancel=True),
        [module_pb2.DistilModuleResponse(cancelled=True)], None,
    ),
    Case(
        "modules.watch", ("0-1",), {}, module_pb2.WatchModulesRequest(after_event_id="0-1"),
        [module_pb2.WatchModulesResponse(event=EVENT_PB)], [EVENT],
    ),
    Case(
        "modules.release_audit", ("1-1",), {}, module_pb2.ReleaseAuditRequest(through_event_id="1-1"),
        [module_pb2.ReleaseAuditResponse()], None,
    ),
    Case(
        "activation.lookup", ("q",), ON_PREFIX, activation_pb2.LookupPrefixRequest(prefix=PREFIX_PB),
        [
            activation_pb2.LookupPrefixResponse(
                prompt_tokens=9, chunk_tokens=4,
                workers=[activation_pb2.WorkerPrefix(worker_id="w0", device_tokens=4, held_tokens=8)],
            )
        ],
        CachedPrefix(9, 4, None, (HeldPrefix("w0", 4, 8),)),
    ),
    Case(
        "activation.warm", ("q",), {**ON_PREFIX, "worker_id": "w0"},
        activation_pb2.WarmPrefixRequest(prefix=PREFIX_PB, worker_id="w0"),
        [
            activation_pb2.WarmPrefixResponse(worker_id="w0", prompt_tokens=9, computed_tokens=4),
            activation_pb2.WarmPrefixResponse(
                worker_id="w0", prompt_tokens=9, computed_tokens=9, stored_tokens=8, done=True
            ),
        ],
        [Warmth("w0", 9, 4, 0), Warmth("w0", 9, 9, 8, True)],
    ),
    Case(
        "activation.pin", ("q", 60), ON_PREFIX,
        activation_pb2.PinPrefixRequest(prefix=PREFIX_PB, duration_s=60),
        [activation_pb2.PinPrefixResponse(pinned_tokens=8)], 8,
    ),
    Case(
        "activation.unpin", ("q",), ON_PREFIX, activation_pb2.UnpinPrefixRequest(prefix=PREFIX_PB),
        [activation_pb2.UnpinPrefixResponse(unpinned_tokens=8)], 8,
    ),
    Case(
        "activation.evict", ("q",), ON_PREFIX, activation_pb2.EvictPrefixRequest(prefix=PREFIX_PB),
        [activation_pb2.EvictPrefixResponse(removed_chunks=2, pinned_chunks=1)], Evicted(2, 1),
    ),
    Case(
        "activation.evict_module", ("d",), {}, activation_pb2.EvictModuleRequest(module_digest="d"),
        [activation_pb2.EvictModuleResponse(removed_chunks=2)], Evicted(2, 0),
    ),
    Case(
        "activation.evict_tenant", (), {}, activation_pb2.EvictTenantRequest(),
        [activation_pb2.EvictTenantResponse(removed_chunks=2)], Evicted(2, 0),
    ),
    Case(
        "activation.usage", (), {}, activation_pb2.GetUsageRequest(),
        [
            activation_pb2.GetUsageResponse(
                stored_bytes=1, chunks=2, pinned_bytes=3, tenant_quota_bytes=4, cache_stored_bytes=5,
                cache_quota_bytes=6,
            )
        ],
        CacheUsage(1, 2, 3, 4, 5, 6),
    ),
]  # fmt: skip
