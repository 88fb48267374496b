"""`memserve remember`, `memserve forget`, `memserve search`: text memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from memserve.cli.options import Call, gateway_command, text_of
from memserve.cli.terminal import cell, out
from memserve.domain import ScoredMemory

Namespace = Annotated[str, typer.Argument(help="The namespace that the memory is in.")]


@gateway_command(timeout_s=30)
def remember(
    call: Call,
    namespace: Namespace,
    text: Annotated[str, typer.Argument(help="What to remember; - reads it from standard input.")],
    source: Annotated[str, typer.Option(help="Where it comes from.")] = "",
    keyword: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None,
    memory_id: Annotated[
        str, typer.Option("--id", help="Makes a repeated call harmless. Default: a digest of the content.")
    ] = "",
) -> None:
    """Remember a text.

    Example: `memserve remember notes "The code of Amber Lantern is 4071." --source handbook`
    """
    memory = call.client.remember(
        namespace, text_of(text), source=source, keywords=keyword or (), memory_id=memory_id
    )
    call.show(memory, text=f"remembered as {memory.memory_id}")


@gateway_command(timeout_s=30, has_json=False)
def forget(
    call: Call,
    namespace: Namespace,
    memory_id: Annotated[str, typer.Argument(help="As `memserve remember` and `memserve search` print it.")],
) -> None:
    """Forget a memory."""
    call.client.forget(namespace, memory_id)
    out.print(f"forgot {memory_id}")


@gateway_command(timeout_s=30)
def search(
    call: Call,
    query: Annotated[str, typer.Argument(help="What the memories are to be about.")],
    namespace: Annotated[
        list[str], typer.Option("--namespace", "-n", help="Where to search; may be repeated.")
    ],
    limit: Annotated[int, typer.Option(help="Results at most.")] = 8,
) -> None:
    """Search memories by meaning and by words.

    Example: `memserve search "the code of the lantern" -n notes`
    """
    hits = call.client.search(namespace, query, limit)
    call.show({"results": [asdict(hit) for hit in hits]}, text=hits_table(hits))


def hits_table(hits: Sequence[ScoredMemory]) -> Table:
    table = Table("score", "id", "text", "source")
    for hit in hits:
        table.add_row(f"{hit.score:.4f}", hit.memory.memory_id, cell(hit.memory.text), hit.memory.source)
    return table
