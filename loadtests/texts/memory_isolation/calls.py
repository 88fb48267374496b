"""Draws calls: one generator for each RPC. A call is drawn once and made in both worlds of its tenant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import Message

from loadtests.texts.memory_isolation.drawing import (
    ASKED,
    DOCUMENTS,
    FILTERS,
    LESSONS,
    NAMESPACES,
    ORDERS,
    STATES,
    UNKNOWN,
    USES_WRITTEN_S,
    Drawn,
)  # fmt: skip
from loadtests.texts.memory_isolation.worlds import Reply, World
from memserve.pb.v1 import inference_pb2 as ask
from memserve.pb.v1 import memory_pb2 as pb

Build = Callable[[World], Message | Sequence[Message]]
Note = Callable[[World, Reply], None]


@dataclass(frozen=True, slots=True)
class Call:
    """One call, for any world of its tenant."""

    rpc: str
    build: Build
    note: Note = lambda world, reply: None
    """Keeps what later calls need."""
    settles_s: float = 0.0
    """How long the tenant's next call waits: a strength counts a use when it is written."""
    repeats: bool = True
    """Whether it may be made again and says the same: it reads, or it says what it said."""


def remember(drawn: Drawn) -> Call:
    namespace = drawn.namespace() if drawn.draw.random() < 0.5 else drawn.draw.choice(NAMESPACES)
    own_id = drawn.memory_id() if namespace == ASKED else ""
    request = pb.RememberRequest(
        namespace=namespace,
        memory_id=drawn.draw.choice((drawn.memory_id(), drawn.memory_id(), own_id, "not an id")),
        policy=drawn.policy(),
        **drawn.content(),  # type: ignore[arg-type]
    )
    if request.namespace == UNKNOWN:
        request.namespace = "Not A Name"
    return Call("Remember", lambda _: request, _note_times, repeats=False)


def batch_remember(drawn: Drawn) -> Call:
    parts = [pb.BatchRememberRequest(header=pb.BatchRememberHeader(relate=drawn.draw.random() < 0.3))]
    for _ in range(drawn.draw.randint(1, 4)):
        item = pb.RememberRequest(
            namespace=drawn.draw.choice(NAMESPACES),
            memory_id=drawn.draw.choice((drawn.memory_id(), "", "bad id")),
            **drawn.content(),  # type: ignore[arg-type]
        )
        parts.append(pb.BatchRememberRequest(item=item))
    return Call("BatchRemember", lambda _: parts, repeats=False)


def remember_document(drawn: Drawn) -> Call:
    header = pb.DocumentHeader(
        namespace=drawn.draw.choice(NAMESPACES), document_id=drawn.draw.choice(DOCUMENTS),
        media_type="text/markdown", source="upload",
    )  # fmt: skip
    sections = "\n\n".join(f"# {drawn.words(2)}\n\n{drawn.text()}" for _ in range(drawn.draw.randint(1, 3)))
    parts = [
        pb.RememberDocumentRequest(header=header),
        pb.RememberDocumentRequest(content=sections.encode()),
    ]
    return Call("RememberDocument", lambda _: parts, repeats=False)


def update_memory(drawn: Drawn) -> Call:
    fields = drawn.draw.sample(
        ["text", "keywords", "strength", "metadata", "pinned"], drawn.draw.randint(1, 3)
    )
    request = pb.UpdateMemoryRequest(
        namespace=drawn.namespace(), memory_id=drawn.memory_id(), fields=fields,
        expected_version=drawn.draw.choice((0, 0, 1, 2)), content=pb.MemoryContent(**drawn.content()),  # type: ignore[arg-type]
    )  # fmt: skip
    return Call("UpdateMemory", lambda _: request, _note_times, repeats=False)


def get_memory(drawn: Drawn) -> Call:
    draw = drawn.draw
    request = pb.GetMemoryRequest(
        namespace=drawn.namespace(), memory_id=drawn.memory_id(), with_history=draw.random() < 0.5,
        forgotten=draw.random() < 0.4, version=draw.choice((0, 0, 0, 1, 2)),
    )  # fmt: skip
    at = draw.random() if draw.random() < 0.3 and not request.version else None

    def build(world: World) -> Message:
        if at is None or not world.times_s:
            return request
        timed = pb.GetMemoryRequest()
        timed.CopyFrom(request)
        timed.as_of_s = world.times_s[int(at * len(world.times_s))]
        return timed

    return Call("GetMemory", build)


def restore_memory(drawn: Drawn) -> Call:
    request = pb.RestoreMemoryRequest(
        namespace=drawn.namespace(), memory_id=drawn.memory_id(), version=drawn.draw.choice((0, 0, 1, 3))
    )
    return Call("RestoreMemory", lambda _: request, _note_times, repeats=False)


def supersede_memory(drawn: Drawn) -> Call:
    request = pb.SupersedeMemoryRequest(
        namespace=drawn.namespace(), memory_id=drawn.memory_id(), by_memory_id=drawn.memory_id()
    )
    return Call("SupersedeMemory", lambda _: request, repeats=False)


def forget(drawn: Drawn) -> Call:
    request = pb.ForgetRequest(namespace=drawn.namespace(), memory_id=drawn.memory_id())
    return Call("Forget", lambda _: request, repeats=False)


def forget_where(drawn: Drawn) -> Call:
    expression = drawn.draw.choice(FILTERS)
    spaces = drawn.namespaces()
    is_meant = drawn.draw.random() < 0.3

    def build(world: World) -> Message:
        token = world.dry_runs.get(f"{spaces}{expression}", "") if is_meant else ""
        return pb.ForgetWhereRequest(namespaces=spaces, filter=expression, dry_run_token=token)

    def note(world: World, reply: Reply) -> None:
        for message in reply.messages:
            world.dry_runs[f"{spaces}{expression}"] = message.dry_run_token  # type: ignore[attr-defined]

    return Call("ForgetWhere", build, note, repeats=not is_meant)


def erase_memory(drawn: Drawn) -> Call:
    request = pb.EraseMemoryRequest(namespace=drawn.namespace(), memory_id=drawn.memory_id(), reason="asked")
    return Call("EraseMemory", lambda _: request, repeats=False)


def delete_namespace(drawn: Drawn) -> Call:
    name = drawn.draw.choice((LESSONS, "plans", "plans", UNKNOWN))
    request = pb.DeleteNamespaceRequest(namespace=name, confirm=name)
    return Call("DeleteNamespace", lambda _: request, repeats=False)


def consolidate(drawn: Drawn) -> Call:
    """The plan alone: how far a candidate is when it is told depends on the time."""
    request = pb.ConsolidateNamespaceRequest(
        namespace=drawn.namespace(), dry_run=True, no_summaries=drawn.draw.random() < 0.5
    )
    return Call("ConsolidateNamespace", lambda _: request)


def decide_consolidation(drawn: Drawn) -> Call:
    request = pb.DecideConsolidationRequest(namespace=drawn.namespace(), accept=drawn.draw.random() < 0.5)
    return Call("DecideConsolidation", lambda _: request, repeats=False)


def list_consolidations(_: Drawn) -> Call:
    return Call("ListConsolidations", lambda world: pb.ListConsolidationsRequest())


def list_memories(drawn: Drawn) -> Call:
    number, drawn.lists = drawn.lists, drawn.lists + 1
    draw = drawn.draw
    request = pb.ListMemoriesRequest(
        namespaces=drawn.namespaces(), filter=draw.choice(FILTERS) if draw.random() < 0.4 else "",
        states=draw.choice(STATES), order=draw.choice(ORDERS),
        descending=draw.random() < 0.5, page_size=draw.choice((1, 3, 0)),
    )  # fmt: skip
    goes_on = draw.random() < 0.5

    def build(world: World) -> Message:
        if not goes_on or not world.page_tokens.get(number):
            return request
        second = pb.ListMemoriesRequest()
        second.CopyFrom(request)
        second.page_token = world.page_tokens[number]
        return second

    def note(world: World, reply: Reply) -> None:
        for message in reply.messages:
            world.page_tokens[number] = message.next_page_token  # type: ignore[attr-defined]

    return Call("ListMemories", build, note)


def export_memories(drawn: Drawn) -> Call:
    request = pb.ExportMemoriesRequest(namespaces=drawn.draw.choice((["notes"], ["plans"], [UNKNOWN])))

    def note(world: World, reply: Reply) -> None:
        world.lines = [message.line for message in reply.messages]  # type: ignore[attr-defined]

    return Call("ExportMemories", lambda _: request, note)


def import_memories(drawn: Drawn) -> Call:
    keep = drawn.draw.random()

    def build(world: World) -> list[Message]:
        lines = world.lines[: 1 + int(keep * len(world.lines))] or ['{"no": "header"}']
        return [pb.ImportMemoriesRequest(line=line) for line in lines]

    return Call("ImportMemories", build, repeats=False)


def watch_memories(drawn: Drawn) -> Call:
    at, spaces = drawn.draw.random(), drawn.draw.choice(([], ["notes"], [UNKNOWN]))

    def build(world: World) -> Message:
        after = world.sequences[int(at * len(world.sequences))] if world.sequences else 1
        return pb.WatchMemoriesRequest(after_sequence=after, namespaces=spaces)

    def note(world: World, reply: Reply) -> None:
        told = [message.change.sequence for message in reply.messages]  # type: ignore[attr-defined]
        world.sequences = sorted({*world.sequences, *told})

    return Call("WatchMemories", build, note)


def search(drawn: Drawn) -> Call:
    request = pb.SearchRequest(
        namespaces=drawn.namespaces(), query=drawn.question(), limit=drawn.draw.choice((0, 3, 64)),
        options=drawn.options(),
    )  # fmt: skip
    return Call("Search", lambda _: request)


def follow_links(drawn: Drawn) -> Call:
    request = pb.FollowLinksRequest(
        namespace=drawn.namespace(), memory_id=drawn.memory_id(), depth=drawn.draw.randint(0, 4)
    )
    return Call("FollowLinks", lambda _: request)


def read_places(drawn: Drawn) -> Call:
    within = drawn.draw.choice(("session", *DOCUMENTS))
    request = pb.ReadPlacesRequest(namespace=drawn.namespace(), within=within, first=0, last=9)
    return Call("ReadPlaces", lambda _: request)


def reindex_memories(drawn: Drawn) -> Call:
    request = pb.ReindexMemoriesRequest(cancel=drawn.draw.random() < 0.5)
    return Call("ReindexMemories", lambda _: request)


def recall_of(drawn: Drawn) -> ask.Recall:
    return ask.Recall(
        namespaces=drawn.namespaces(), limit=drawn.draw.choice((0, 2)), options=drawn.options(),
        skip_pinned=drawn.draw.random() < 0.3,
    )  # fmt: skip


def recall(drawn: Drawn) -> Call:
    message = ask.Message(role=ask.ROLE_USER, content=drawn.question())
    request = ask.RecallRequest(messages=[message], recall=recall_of(drawn))
    return Call("Recall", lambda _: request)


def generate(drawn: Drawn) -> Call:
    # A kept prompt says its question again, so this one has the tenant's own word alone.
    question = f"What is the {drawn.words(4)} of {drawn.marker}?"
    message = ask.Message(role=ask.ROLE_USER, content=question)
    recalled = recall_of(drawn)
    del recalled.namespaces[:]
    recalled.namespaces.append(UNKNOWN if drawn.draw.random() < 0.04 else ASKED)
    request = ask.GenerateRequest(
        messages=[message], recall=recalled, sampling=ask.Sampling(max_tokens=2),
        keep_prompt=drawn.draw.random() < 0.5,
    )  # fmt: skip

    def note(world: World, reply: Reply) -> None:
        events: Sequence[Any] = reply.messages
        routes = [event.route for event in events if event.HasField("route")]
        world.request_ids += [route.request_id for route in routes[:1]]

    return Call("Generate", lambda _: request, note, repeats=False, settles_s=USES_WRITTEN_S)


def record_outcome(drawn: Drawn) -> Call:
    reward, reflect = drawn.draw.choice((-1.0, 1.0, 0.5, 7.0)), drawn.draw.random() < 0.3
    pick = _request_id(drawn)

    def build(world: World) -> Message:
        return ask.RecordOutcomeRequest(
            request_id=pick(world), reward=reward, note="look at the gate first", reflect=reflect,
            namespace=LESSONS, task=f"the gate of {drawn.marker}",
        )  # fmt: skip

    return Call("RecordOutcome", build)


def explain(drawn: Drawn) -> Call:
    pick = _request_id(drawn)
    return Call("Explain", lambda world: ask.ExplainRequest(request_id=pick(world)))


def explain_answer(drawn: Drawn) -> Call:
    pick, leave_out = _request_id(drawn), drawn.draw.random() < 0.2
    return Call(
        "ExplainAnswer",
        lambda world: ask.ExplainAnswerRequest(request_id=pick(world), leave_one_out=leave_out),
    )


def get_usage(_: Drawn) -> Call:
    return Call("GetMemoryUsage", lambda world: pb.GetMemoryUsageRequest())


def list_namespaces(_: Drawn) -> Call:
    return Call("ListNamespaces", lambda world: pb.ListNamespacesRequest())


def _request_id(drawn: Drawn) -> Callable[[World], str]:
    return partial(_picked, drawn.draw.random(), drawn.draw.random() < 0.25)


def _picked(at: float, is_foreign: bool, world: World) -> str:
    ids = world.foreign_ids if is_foreign else world.request_ids
    return ids[int(at * len(ids))] if ids else "0" * 32


def _note_times(world: World, reply: Reply) -> None:
    told: Sequence[Any] = reply.messages
    world.times_s += [each.memory.updated_s for each in told if each.HasField("memory")]


GENERATORS: dict[str, tuple[Callable[[Drawn], Call], float]] = {
    # By RPC: who draws it, and how often. What takes long comes rarely.
    "Remember": (remember, 22), "BatchRemember": (batch_remember, 5), "UpdateMemory": (update_memory, 9),
    "GetMemory": (get_memory, 12), "RestoreMemory": (restore_memory, 3), "Forget": (forget, 3),
    "SupersedeMemory": (supersede_memory, 3), "ForgetWhere": (forget_where, 2), "Search": (search, 12),
    "ListMemories": (list_memories, 8), "ExportMemories": (export_memories, 1),
    "ImportMemories": (import_memories, 1), "GetMemoryUsage": (get_usage, 4),
    "ListNamespaces": (list_namespaces, 3), "FollowLinks": (follow_links, 4),
    "ReadPlaces": (read_places, 4), "Recall": (recall, 5), "Generate": (generate, 0.8),
    "RecordOutcome": (record_outcome, 2), "Explain": (explain, 2), "ExplainAnswer": (explain_answer, 3),
    "ReindexMemories": (reindex_memories, 0.3), "WatchMemories": (watch_memories, 0.6),
    "RememberDocument": (remember_document, 0.4), "EraseMemory": (erase_memory, 0.4),
    "DeleteNamespace": (delete_namespace, 0.25), "ConsolidateNamespace": (consolidate, 0.4),
    "DecideConsolidation": (decide_consolidation, 0.2), "ListConsolidations": (list_consolidations, 0.4),
}  # fmt: skip
