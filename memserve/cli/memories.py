"""`memserve remember`, `memserve forget`, `memserve search`: the calls on memories that are used most."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from memserve.cli.memory_options import (
    ContentOptions,
    Filter,
    Kinds,
    MemoryId,
    Namespace,
    Namespaces,
    PolicyOptions,
    metadata_of,
)
from memserve.cli.memory_tables import found_text, remembered_text
from memserve.cli.options import Call, gateway_command, text_of
from memserve.cli.terminal import out


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What is wished of a search."""

    limit: Annotated[int, typer.Option(help="Results at most.")] = 8
    filter: Filter = ""
    kind: Kinds = None
    min_relevance: Annotated[
        float, typer.Option(min=0, max=1, help="Least probability that a result answers.")
    ] = 0.0
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="0: by score alone. 1: as different as can be.")
    ] = 0.0
    max_tokens: Annotated[int, typer.Option(min=0, help="Tokens of all results' texts. 0: any.")] = 0
    context: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE that conditions are judged by; may be repeated."),
    ] = None
    neighbours: Annotated[
        int, typer.Option(min=0, max=8, help="Memories before and after each hit, in its document.")
    ] = 0
    link_depth: Annotated[int, typer.Option(min=0, max=4, help="Steps along links from each hit.")] = 0
    as_of_s: Annotated[
        float | None, typer.Option("--as-of", help="Judge validity at this time, seconds since the epoch.")
    ] = None
    rerank: Annotated[bool, typer.Option("--rerank", help="Have the cross-encoder order the best.")] = False


@gateway_command(timeout_s=30)
def remember(
    call: Call,
    namespace: Namespace,
    text: Annotated[str, typer.Argument(help="What to remember; - reads it from standard input.")],
    content: ContentOptions,
    policy: PolicyOptions,
    memory_id: Annotated[
        str, typer.Option("--id", help="Makes a repeated call harmless. Default: a digest of the content.")
    ] = "",
) -> None:
    """Remember a text. What is near it already is named: duplicates, contradictions, updates.

    Example: `memserve remember notes "The code of Amber Lantern is 4071." --source handbook`
    """
    remembered = call.client.remember(
        namespace, text_of(text), memory_id=memory_id, policy=policy.policy(), **content.fields()
    )
    call.show(remembered, text=remembered_text(remembered))


@gateway_command(timeout_s=30, has_json=False)
def forget(call: Call, namespace: Namespace, memory_id: MemoryId) -> None:
    """Forget a memory. `memserve memories restore` brings it back, `memserve memories erase` does not."""
    call.client.forget(namespace, memory_id)
    out.print(f"forgot {memory_id}")


@gateway_command(timeout_s=30)
def search(
    call: Call,
    query: Annotated[str, typer.Argument(help="What the memories are to be about.")],
    namespace: Namespaces,
    options: SearchOptions,
) -> None:
    """Search memories by meaning and by words.

    Example: `memserve search "the code of the lantern" -n notes --min-relevance 0.5`
    """
    found = call.client.find(
        namespace,
        query,
        options.limit,
        filter=options.filter,
        kinds=tuple(options.kind or ()),
        min_relevance=options.min_relevance,
        diversity=options.diversity,
        max_tokens=options.max_tokens,
        context=metadata_of(options.context or ()),
        neighbours=options.neighbours,
        link_depth=options.link_depth,
        as_of_s=options.as_of_s,
        rerank=options.rerank,
    )
    result = {
        "results": [asdict(hit) for hit in found.hits],
        "skipped": [asdict(entry) for entry in found.skipped],
        "cut": found.cut,
    }
    call.show(result, text=found_text(found))
