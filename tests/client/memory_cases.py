"""A call of each method of the client on memories."""

from __future__ import annotations

from memserve.client import (
    Consolidation,
    ConsolidationPlan,
    ConsolidationProbes,
    ConsolidationState,
    DocumentReport,
    ErasedPlace,
    ForgottenWhere,
    FoundMemories,
    ImportResult,
    ItemRefusal,
    ItemResult,
    LeftAlone,
    Link,
    LinkKind,
    MemoryAction,
    MemoryChange,
    MemoryHistory,
    MemoryKind,
    MemoryPage,
    MemoryState,
    MemoryUsage,
    MemoryVersion,
    Merge,
    MergedMemory,
    MergeKind,
    NamespaceErasure,
    NamespaceUsage,
    NewDocument,
    NewMemory,
    Place,
    ReindexProgress,
    Remembered,
    ScoredMemory,
    WritePolicy,
)
from memserve.pb.v1 import memory_pb2 as pb
from tests.client.case import Case
from tests.client.examples import (
    FINDING,
    FINDING_PB,
    HIT,
    HIT_PB,
    MEMORY,
    MEMORY_PB,
    SKIPPED,
    SKIPPED_PB,
    SURPRISE,
    SURPRISE_PB,
)

NEW = NewMemory("n", "t")
NEW_PB = pb.RememberRequest(
    namespace="n", text="t", kind=pb.MEMORY_KIND_FACT, strength=1.0, policy=pb.WritePolicy()
)
REFUSAL = ItemRefusal("INVALID_ARGUMENT", "text", "must not be blank")
REFUSAL_PB = pb.ItemRefusal(status="INVALID_ARGUMENT", field="text", message="must not be blank")
ERASED = (ErasedPlace("index", 1, "gone"),)
ERASED_PB = [pb.ErasedPlace(place="index", removed=1, detail="gone")]

CONSOLIDATION = Consolidation(
    "c", ConsolidationState.CANDIDATE, "alice", 5.0,
    ConsolidationPlan(
        "n", 7,
        (Merge(MergeKind.SUMMARY, "summary-1", "A. B.", (MergedMemory("m", 2),), "why", 0),),
        (LeftAlone("x", "is pinned"),), 3,
    ),
    ConsolidationProbes(6, 5, 4, 3, 2, 1), "because",
)  # fmt: skip
CONSOLIDATION_PB = pb.Consolidation(
    consolidation_id="c", state=pb.CONSOLIDATION_STATE_CANDIDATE, principal="alice", at_s=5.0,
    plan=pb.ConsolidationPlan(
        namespace="n", memories=7, not_looked_at=3,
        merges=[
            pb.Merge(
                kind=pb.MERGE_KIND_SUMMARY, memory_id="summary-1", text="A. B.", reason="why",
                sources=[pb.MergedMemory(memory_id="m", version=2)],
            )
        ],
        left_alone=[pb.LeftAlone(memory_id="x", reason="is pinned")],
    ),
    probes=pb.ConsolidationProbes(
        questions=6, found_before=5, found_after=4, asked=3, right_before=2, right_after=1
    ),
    reason="because",
)  # fmt: skip

SINGLE = [
    Case(
        "remember", ("n", "t"), {"source": "s", "keywords": ["k"], "memory_id": "m"},
        pb.RememberRequest(
            namespace="n", text="t", source="s", keywords=["k"], memory_id="m", kind=pb.MEMORY_KIND_FACT,
            strength=1.0, policy=pb.WritePolicy(),
        ),
        [pb.RememberResponse(memory=MEMORY_PB, created=True)], Remembered(MEMORY, True),
    ),
    Case(
        "remember", ("n", "t"),
        {
            "kind": "procedure", "metadata": {"day": 1}, "valid_from_s": 0.0, "valid_until_s": 9.0,
            "applies_when": "has(a)", "strength": 0.0, "links": [Link(LinkKind.PART_OF, "p", "o")],
            "place": Place("d", 2, "title", ("h",)), "pinned": True,
            "policy": WritePolicy(True, True, True, True),
        },
        pb.RememberRequest(
            namespace="n", text="t", kind=pb.MEMORY_KIND_PROCEDURE,
            metadata={"day": pb.MetadataValue(whole=1)}, valid_from_s=0.0, valid_until_s=9.0,
            applies_when="has(a)", strength=0.0,
            links=[pb.MemoryLink(kind=pb.LINK_KIND_PART_OF, memory_id="p", namespace="o")],
            place=pb.MemoryPlace(within="d", position=2, title="title", headings=["h"]), pinned=True,
            policy=pb.WritePolicy(
                skip_relations=True, supersede_updates=True, skip_duplicates=True, surprise_gate=True
            ),
        ),
        [pb.RememberResponse(findings=[FINDING_PB], surprise=SURPRISE_PB)],
        Remembered(None, False, (FINDING,), SURPRISE),
    ),
    Case(
        "update_memory", ("n", "m"),
        {"expected_version": 3, "text": "new", "strength": 0.0, "keywords": "k", "valid_until_s": 4.5},
        pb.UpdateMemoryRequest(
            namespace="n", memory_id="m", expected_version=3,
            fields=["keywords", "strength", "text", "valid_until_s"],
            content=pb.MemoryContent(text="new", strength=0.0, keywords=["k"], valid_until_s=4.5),
            policy=pb.WritePolicy(),
        ),
        [pb.UpdateMemoryResponse(memory=MEMORY_PB, findings=[FINDING_PB])], (MEMORY, (FINDING,)),
    ),
    Case(
        "get_memory", ("n", "m"), {"version": 2, "as_of_s": 1.5, "forgotten": True},
        pb.GetMemoryRequest(namespace="n", memory_id="m", version=2, as_of_s=1.5, forgotten=True),
        [pb.GetMemoryResponse(memory=MEMORY_PB)], MEMORY,
    ),
    Case(
        "memory_history", ("n", "m"), {},
        pb.GetMemoryRequest(namespace="n", memory_id="m", with_history=True, forgotten=True),
        [
            pb.GetMemoryResponse(
                memory=MEMORY_PB, dropped_versions=2,
                history=[pb.MemoryVersion(memory=MEMORY_PB, action=pb.MEMORY_ACTION_RESTORED)],
            )
        ],
        MemoryHistory((MemoryVersion(MEMORY, MemoryAction.RESTORED),), 2),
    ),
    Case(
        "restore_memory", ("n", "m"), {"version": 2, "expected_version": 5},
        pb.RestoreMemoryRequest(namespace="n", memory_id="m", version=2, expected_version=5),
        [pb.RestoreMemoryResponse(memory=MEMORY_PB)], MEMORY,
    ),
    Case(
        "supersede_memory", ("n", "m", "o"), {"by_namespace": "p"},
        pb.SupersedeMemoryRequest(namespace="n", memory_id="m", by_memory_id="o", by_namespace="p"),
        [pb.SupersedeMemoryResponse(memory=MEMORY_PB)], MEMORY,
    ),
    Case(
        "forget", ("n", "m"), {}, pb.ForgetRequest(namespace="n", memory_id="m"), [pb.ForgetResponse()],
        None,
    ),
    Case(
        "erase_memory", ("n", "m"), {"reason": "asked for"},
        pb.EraseMemoryRequest(namespace="n", memory_id="m", reason="asked for"),
        [pb.EraseMemoryResponse(places=ERASED_PB)], ERASED,
    ),
    Case(
        "search", ("n", "q", 3), {},
        pb.SearchRequest(namespaces=["n"], query="q", limit=3, options=pb.SearchOptions()),
        [pb.SearchResponse(results=[pb.ScoredMemory(memory=MEMORY_PB, score=0.5)])],
        [ScoredMemory(MEMORY, 0.5, None, None, 0.0, 0.0)],
    ),
    Case(
        "find", (["n", "o"], "q"),
        {
            "kinds": (MemoryKind.FACT,), "filter": "version > 1", "min_relevance": 0.5, "diversity": 0.25,
            "max_tokens": 100, "context": {"role": "nurse"}, "neighbours": 1, "link_depth": 2,
            "link_kinds": (LinkKind.NEXT,), "as_of_s": 0.0, "rerank": True,
        },
        pb.SearchRequest(
            namespaces=["n", "o"], query="q", limit=8,
            options=pb.SearchOptions(
                kinds=[pb.MEMORY_KIND_FACT], filter="version > 1", min_relevance=0.5, diversity=0.25,
                max_tokens=100, context={"role": pb.MetadataValue(text="nurse")}, neighbours=1, link_depth=2,
                link_kinds=[pb.LINK_KIND_NEXT], as_of_s=0.0, rerank=True,
            ),
        ),
        [pb.SearchResponse(results=[HIT_PB], skipped=[SKIPPED_PB], cut=True)],
        FoundMemories((HIT,), (SKIPPED,), True),
    ),
    Case(
        "follow_links", ("n", "m"), {"depth": 2, "kinds": [LinkKind.CAUSED_BY], "namespaces": "o"},
        pb.FollowLinksRequest(
            namespace="n", memory_id="m", depth=2, kinds=[pb.LINK_KIND_CAUSED_BY], namespaces=["o"]
        ),
        [pb.FollowLinksResponse(results=[HIT_PB])], [HIT],
    ),
    Case(
        "read_places", ("n", "d"), {"first": 1, "last": 3},
        pb.ReadPlacesRequest(namespace="n", within="d", first=1, last=3),
        [pb.ReadPlacesResponse(memories=[MEMORY_PB])], [MEMORY],
    ),
]  # fmt: skip

SETS = [
    Case(
        "remember_many", ([NEW, NEW],), {"relate": True},
        [
            pb.BatchRememberRequest(header=pb.BatchRememberHeader(relate=True)),
            pb.BatchRememberRequest(item=NEW_PB), pb.BatchRememberRequest(item=NEW_PB),
        ],
        [
            pb.BatchRememberResponse(
                index=0, remembered=pb.RememberResponse(memory=MEMORY_PB, created=True)
            ),
            pb.BatchRememberResponse(index=1, refusal=REFUSAL_PB),
        ],
        [ItemResult(0, Remembered(MEMORY, True)), ItemResult(1, refusal=REFUSAL)], rpc="BatchRemember",
    ),
    Case(
        "remember_document",
        (
            NewDocument("n", "d", "text/plain", "d.txt", "s", "t", {"day": 1}, ("k",), 1.0, 2.0, "has(a)"),
            b"ab",
        ),
        {},
        [
            pb.RememberDocumentRequest(
                header=pb.DocumentHeader(
                    namespace="n", document_id="d", media_type="text/plain", file_name="d.txt", source="s",
                    title="t", metadata={"day": pb.MetadataValue(whole=1)}, keywords=["k"], valid_from_s=1.0,
                    valid_until_s=2.0, applies_when="has(a)",
                )
            ),
            pb.RememberDocumentRequest(content=b"ab"),
        ],
        [
            pb.RememberDocumentResponse(
                passages=5, stored=1, unchanged=1, updated=1, forgotten=1, title="t", done=True,
                refused=[pb.BatchRememberResponse(index=4, refusal=REFUSAL_PB)],
            )
        ],
        [DocumentReport(5, 1, 1, 1, 1, "t", True, (ItemResult(4, refusal=REFUSAL),))],
        rpc="RememberDocument",
    ),
    Case(
        "forget_where", ("n", "version > 1"), {"dry_run_token": "token"},
        pb.ForgetWhereRequest(namespaces=["n"], filter="version > 1", dry_run_token="token"),
        [pb.ForgetWhereResponse(matched=2, forgotten=1, examples=[MEMORY_PB], dry_run_token="other")],
        ForgottenWhere(2, 1, (MEMORY,), "other"),
    ),
    Case(
        "delete_namespace", ("n",), {"confirm": "n"},
        pb.DeleteNamespaceRequest(namespace="n", confirm="n"),
        [
            pb.DeleteNamespaceResponse(erased=1, remaining=2),
            pb.DeleteNamespaceResponse(erased=3, done=True, places=ERASED_PB),
        ],
        [NamespaceErasure(1, 2), NamespaceErasure(3, 0, True, ERASED)],
    ),
    Case(
        "plan_consolidation", ("n",), {"summaries": False},
        pb.ConsolidateNamespaceRequest(namespace="n", dry_run=True, no_summaries=True),
        [pb.ConsolidateNamespaceResponse(plan=CONSOLIDATION_PB.plan)], CONSOLIDATION.plan,
    ),
    Case(
        "consolidate", ("n",), {"model_writes": True, "budget_s": 9.0},
        pb.ConsolidateNamespaceRequest(namespace="n", model_writes=True, budget_s=9.0),
        [
            pb.ConsolidateNamespaceResponse(plan=CONSOLIDATION_PB.plan),
            pb.ConsolidateNamespaceResponse(progress=pb.ConsolidationProgress(done=1, total=2)),
            pb.ConsolidateNamespaceResponse(consolidation=CONSOLIDATION_PB),
        ],
        CONSOLIDATION,
    ),
    Case(
        "decide_consolidation", ("n",), {"accept": True, "consolidation_id": "c"},
        pb.DecideConsolidationRequest(namespace="n", consolidation_id="c", accept=True),
        [pb.DecideConsolidationResponse(consolidation=CONSOLIDATION_PB)], CONSOLIDATION,
    ),
    Case(
        "consolidations", (), {}, pb.ListConsolidationsRequest(),
        [pb.ListConsolidationsResponse(consolidations=[CONSOLIDATION_PB])], [CONSOLIDATION],
    ),
    Case(
        "list_memories", ("n",),
        {
            "filter": "pinned", "kinds": [MemoryKind.FACT], "states": [MemoryState.FORGOTTEN],
            "order": "place", "descending": True, "page_size": 7, "page_token": "t",
        },
        pb.ListMemoriesRequest(
            namespaces=["n"], filter="pinned", kinds=[pb.MEMORY_KIND_FACT],
            states=[pb.MEMORY_STATE_FORGOTTEN], order=pb.MEMORY_ORDER_PLACE, descending=True, page_size=7,
            page_token="t",
        ),
        [pb.ListMemoriesResponse(memories=[MEMORY_PB], next_page_token="u")], MemoryPage((MEMORY,), "u"),
    ),
    Case(
        "export_memories", ("n",), {}, pb.ExportMemoriesRequest(namespaces=["n"]),
        [pb.ExportMemoriesResponse(line="{}"), pb.ExportMemoriesResponse(line="[]")], ["{}", "[]"],
    ),
    Case(
        "import_memories", (["{}\n", "[]"],), {},
        [pb.ImportMemoriesRequest(line="{}"), pb.ImportMemoriesRequest(line="[]")],
        [
            pb.ImportMemoriesResponse(index=0, skipped=True),
            pb.ImportMemoriesResponse(index=1, refusal=REFUSAL_PB),
        ],
        [ImportResult(0, None, True), ImportResult(1, REFUSAL)],
    ),
    Case(
        "watch_memories", ("n",), {"after_sequence": 3},
        pb.WatchMemoriesRequest(namespaces=["n"], after_sequence=3),
        [
            pb.WatchMemoriesResponse(
                change=pb.MemoryChange(
                    sequence=4, namespace="n", memory_id="m", version=2, action=pb.MEMORY_ACTION_UPDATED
                )
            ),
            pb.WatchMemoriesResponse(
                change=pb.MemoryChange(
                    sequence=5, namespace="n", memory_id="m", action=pb.MEMORY_ACTION_ERASED
                )
            ),
        ],
        [
            MemoryChange(4, "n", "m", 2, MemoryAction.UPDATED),
            MemoryChange(5, "n", "m", 0, MemoryAction.ERASED),
        ],
    ),
    Case(
        "memory_usage", (), {}, pb.GetMemoryUsageRequest(),
        [
            pb.GetMemoryUsageResponse(
                namespaces=[pb.NamespaceUsage(namespace="n", memories=1, records=2, bytes=3)],
                max_memories=4, max_namespaces=5, max_bytes=6,
            )
        ],
        MemoryUsage((NamespaceUsage("n", 1, 2, 3),), 4, 5, 6),
    ),
    Case(
        "namespaces", (), {}, pb.ListNamespacesRequest(),
        [pb.ListNamespacesResponse(namespaces=[pb.NamespaceSummary(namespace="n", memories=2)])], {"n": 2},
    ),
    Case(
        "reindex_memories", ("org/model",), {"query_prompt": "q: ", "passage_prompt": "p: "},
        pb.ReindexMemoriesRequest(embedder="org/model", query_prompt="q: ", passage_prompt="p: "),
        [pb.ReindexMemoriesResponse(memories_total=2, embedder="e")], [ReindexProgress(0, 2, "e", False)],
    ),
    Case(
        "reindex_memories", (), {"cancel": True}, pb.ReindexMemoriesRequest(cancel=True),
        [pb.ReindexMemoriesResponse(memories_done=1, memories_total=2, embedder="e", done=True)],
        [ReindexProgress(1, 2, "e", True)],
    ),
]  # fmt: skip
