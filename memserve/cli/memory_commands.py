"""`memserve memories`: one memory, its history, and what it is linked to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group

from memserve.cli.lineage import erasure_lines
from memserve.cli.memory_options import (
    ContentOptions,
    ExpectedVersion,
    MemoryId,
    Namespace,
    PolicyOptions,
)
from memserve.cli.memory_tables import (
    finding_lines,
    history_text,
    hits_table,
    memories_table,
    memory_text,
)
from memserve.cli.options import Call, gateway_command, text_of
from memserve.cli.terminal import line
from memserve.domain import LinkKind
from memserve.errors import StartupError

memories_app = typer.Typer(
    help="Memories: corrected, restored, erased, listed, exported, and read by place and link.",
    no_args_is_help=True,
)


@memories_app.command("show")
@gateway_command(timeout_s=30)
def show(
    call: Call,
    namespace: Namespace,
    memory_id: MemoryId,
    version: Annotated[int, typer.Option(min=0, help="Which version. 0: the current one.")] = 0,
    as_of_s: Annotated[
        float | None,
        typer.Option("--as-of", help="The version that was current then, seconds since the epoch."),
    ] = None,
    forgotten: Annotated[bool, typer.Option("--forgotten", help="Also where it is forgotten.")] = False,
) -> None:
    """Show a memory, with all that is said of it.

    Example: `memserve memories show notes amber --version 1`
    """
    memory = call.client.get_memory(
        namespace, memory_id, version=version, as_of_s=as_of_s, forgotten=forgotten
    )
    call.show(memory, text=memory_text(memory))


@memories_app.command("history")
@gateway_command(timeout_s=30)
def history(call: Call, namespace: Namespace, memory_id: MemoryId) -> None:
    """Show all versions of a memory that are kept, oldest first."""
    versions = call.client.memory_history(namespace, memory_id)
    call.show(versions, text=history_text(versions))


@memories_app.command("update")
@gateway_command(timeout_s=30)
def update(
    call: Call,
    namespace: Namespace,
    memory_id: MemoryId,
    content: ContentOptions,
    policy: PolicyOptions,
    text: Annotated[str | None, typer.Option(help="The new text; - reads it from standard input.")] = None,
    expected_version: ExpectedVersion = 0,
) -> None:
    """Write a new version of a memory. What is not named stays as it is.

    Example: `memserve memories update notes amber --text "The code of Amber Lantern is 4072."`
    """
    changes = content.fields() | ({} if text is None else {"text": text_of(text)})
    if not changes:
        raise StartupError("name what changes, such as with --text or --meta")
    memory, findings = call.client.update_memory(
        namespace, memory_id, expected_version=expected_version, policy=policy.policy(), **changes
    )
    done = line(f"{memory.memory_id} is at version {memory.version}")
    answer = {"memory": asdict(memory), "findings": [asdict(finding) for finding in findings]}
    call.show(answer, text=Group(done, *finding_lines(findings)))


@memories_app.command("restore")
@gateway_command(timeout_s=30)
def restore(
    call: Call,
    namespace: Namespace,
    memory_id: MemoryId,
    version: Annotated[int, typer.Option(min=0, help="Which version. 0: the last live one.")] = 0,
    expected_version: ExpectedVersion = 0,
) -> None:
    """Make an earlier version current again, also of a memory that is forgotten or superseded."""
    memory = call.client.restore_memory(
        namespace, memory_id, version=version, expected_version=expected_version
    )
    call.show(memory, text=line(f"{memory.memory_id} is at version {memory.version}"))


@memories_app.command("supersede")
@gateway_command(timeout_s=30)
def supersede(
    call: Call,
    namespace: Namespace,
    memory_id: MemoryId,
    by: Annotated[str, typer.Argument(help="The id of the memory that takes its place.")],
    by_namespace: Annotated[str, typer.Option(help="Where that one is. Default: the same.")] = "",
) -> None:
    """Have another memory take this one's place. It stays readable, and no search finds it.

    Example: `memserve memories supersede notes amber-2024 amber-2025`
    """
    memory = call.client.supersede_memory(namespace, memory_id, by, by_namespace=by_namespace)
    call.show(memory, text=line(f"{memory.memory_id} is superseded by {by}"))


@memories_app.command("erase")
@gateway_command(timeout_s=120)
def erase(
    call: Call,
    namespace: Namespace,
    memory_id: MemoryId,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit.")] = "",
    dry_run: Annotated[bool, typer.Option(help="Only show what would be removed.")] = False,
) -> None:
    """Remove a memory and all that was made of it, for good.

    Says what was removed where: texts with their history, module versions that
    know it, KV, answers. What cannot be reached yet is removed later.

    Example: `memserve memories erase town amber --dry-run`
    """
    if dry_run:
        erasure = call.client.lineage.plan_erasure(namespace, memory_id)
    else:
        erasure = call.client.lineage.erase(namespace, memory_id, reason=reason)
    call.show(erasure, text=Group(*erasure_lines(erasure)))


@memories_app.command("links")
@gateway_command(timeout_s=30)
def links(
    call: Call,
    namespace: Namespace,
    memory_id: MemoryId,
    depth: Annotated[int, typer.Option(min=1, max=4, help="Steps at most.")] = 1,
    kind: Annotated[
        list[LinkKind] | None, typer.Option(help="Only links of this kind; may be repeated.")
    ] = None,
    into: Annotated[
        list[str] | None, typer.Option(help="Another namespace that links may lead to; may be repeated.")
    ] = None,
) -> None:
    """Follow the links of a memory, forwards and backwards.

    Example: `memserve memories links notes amber --depth 2`
    """
    hits = call.client.follow_links(
        namespace, memory_id, depth=depth, kinds=kind or (), namespaces=into or ()
    )
    call.show({"results": [asdict(hit) for hit in hits]}, text=hits_table(hits))


@memories_app.command("read")
@gateway_command(timeout_s=30)
def read(
    call: Call,
    namespace: Namespace,
    within: Annotated[str, typer.Argument(help="The document or session.")],
    first: Annotated[int, typer.Option(min=0, help="The first position.")] = 0,
    last: Annotated[int, typer.Option(min=0, help="The last position.")] = 255,
) -> None:
    """Read a document or session in its order.

    Example: `memserve memories read notes handbook --first 3 --last 5`
    """
    memories = call.client.read_places(namespace, within, first, last)
    call.show({"memories": [asdict(memory) for memory in memories]}, text=memories_table(memories))
