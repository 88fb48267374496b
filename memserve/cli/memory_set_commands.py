"""`memserve memories`: documents, lists, exports and whole namespaces."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from memserve.cli.memory_options import Filter, Kinds, Namespace, Namespaces, metadata_of, new_memory_of
from memserve.cli.memory_tables import change_line, erased_table, memories_table, usage_text
from memserve.cli.options import Call, gateway_command, print_json
from memserve.cli.terminal import err, line, out, progress_bar
from memserve.client.wire.memories import remember_request
from memserve.domain import ItemRefusal, MemoryState, NewDocument, NewMemory
from memserve.errors import StartupError, UsageError
from memserve.plain import json_escaped, plain

memory_sets_app = typer.Typer()
LONG_S = 3600.0


class _Refusals:
    """Tells the first few refusals, and counts all of them."""

    SHOWN = 20

    def __init__(self) -> None:
        self.count = 0

    def add(self, index: int, refusal: ItemRefusal) -> None:
        self.count += 1
        if self.count <= self.SHOWN:
            err.print(plain(f"line {index + 1}: {refusal.status}: {refusal.message}"))
        elif self.count == self.SHOWN + 1:
            err.print("further refusals are counted only")


class _Items:
    """The memories of the lines. A line that is none is told, and is not sent."""

    def __init__(self, lines: Iterator[str], refusals: _Refusals) -> None:
        # Of what was sent, the line that it was on, from 0.
        self._numbers: list[int] = []
        self._lines = lines
        self._refusals = refusals

    def __iter__(self) -> Iterator[NewMemory]:
        for number, read in enumerate(self._lines):
            try:
                memory = new_memory_of(read)
                remember_request(memory)
            except (StartupError, UsageError, TypeError, ValueError) as error:
                self._refusals.add(number, ItemRefusal("INVALID_ARGUMENT", "", str(error)))
                continue
            self._numbers.append(number)
            yield memory

    def number(self, index: int) -> int:
        """The line, from 0, of what was sent as number `index`. A number that was never sent is its own."""
        return self._numbers[index] if 0 <= index < len(self._numbers) else index


@memory_sets_app.command("list")
@gateway_command(timeout_s=60)
def list_(
    call: Call,
    namespace: Namespaces,
    filter: Filter = "",
    kind: Kinds = None,
    state: Annotated[
        list[MemoryState] | None, typer.Option(help="live (the default), superseded or forgotten.")
    ] = None,
    order: Annotated[str, typer.Option(help="created, updated, id or place.")] = "created",
    descending: Annotated[bool, typer.Option("--descending", help="The other way round.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Memories at most.")] = 100,
    page_token: Annotated[str, typer.Option("--after", help="The token that a page ended with.")] = "",
) -> None:
    """List memories, a page at a time.

    Example: `memserve memories list -n notes --filter 'metadata.city == "Oslo"' --order updated`
    """
    page = call.client.list_memories(
        namespace,
        filter=filter,
        kinds=kind or (),
        states=state or (),
        order=order,
        descending=descending,
        page_size=limit,
        page_token=page_token,
    )
    more = [line(f"more: --after {page.next_page_token}")] if page.next_page_token else []
    call.show(page, text=Group(memories_table(page.memories), *more))


@memory_sets_app.command("add")
@gateway_command(timeout_s=LONG_S)
def add(
    call: Call,
    file: Annotated[
        Path, typer.Argument(help="Lines of JSON with `namespace` and `text`; - for standard input.")
    ],
    relate: Annotated[
        bool, typer.Option("--relate", help="Look for duplicates and contradictions of each.")
    ] = False,
) -> None:
    """Remember many texts from a file with one JSON object a line. A bad line does not stop the others.

    Example: `memserve memories add facts.jsonl`
    """
    stored = known = 0
    refusals = _Refusals()
    with _lines(file) as lines, progress_bar(f"remembering {file.name}") as progress:
        items = _Items(lines, refusals)
        for result in call.client.remember_many(items, relate=relate):
            if result.refusal is not None:
                refusals.add(items.number(result.index), result.refusal)
            elif result.remembered is not None and result.remembered.created:
                stored += 1
            else:
                known += 1
            progress(result.index + 1, result.index + 1)
    summary = {"stored": stored, "already_there": known, "refused": refusals.count}
    text = f"{stored} stored, {known} were there already, {refusals.count} refused"
    call.show(summary, text=line(text))
    if refusals.count:
        raise typer.Exit(1)


@memory_sets_app.command("document")
@gateway_command(timeout_s=LONG_S)
def document(
    call: Call,
    namespace: Namespace,
    file: Annotated[Path, typer.Argument(help="Text, Markdown, HTML or PDF.")],
    document_id: Annotated[str, typer.Option("--id", help="Default: the file's name.")] = "",
    media_type: Annotated[str, typer.Option(help="Such as text/markdown. Default: by name and bytes.")] = "",
    source: Annotated[str, typer.Option(help="Where it comes from. Default: the file's name.")] = "",
    title: Annotated[str, typer.Option(help="Default: the document's own.")] = "",
    metadata: Annotated[
        list[str] | None, typer.Option("--meta", help="KEY=VALUE of every passage; may be repeated.")
    ] = None,
) -> None:
    """Remember a document in passages that can be read alone. Sent again, it is brought up to date.

    Example: `memserve memories document notes handbook.md --id handbook`
    """
    new = NewDocument(
        namespace,
        document_id or _id_of(file),
        media_type,
        file.name,
        source or file.name,
        title,
        metadata_of(metadata or ()),
    )
    report = None
    with progress_bar(f"remembering {file.name}") as progress:
        for report in call.client.remember_document(new, _bytes_of(file)):
            progress(report.stored + report.unchanged + report.updated, report.passages)
    if report is None:
        raise StartupError("the gateway ended the call without a report")
    text = (
        f"{report.title or new.document_id}: {report.passages} passages, {report.stored} new, "
        f"{report.updated} updated, {report.unchanged} unchanged, {report.forgotten} forgotten, "
        f"{len(report.refused)} refused"
    )
    call.show(report, text=line(text))
    if report.refused:
        raise typer.Exit(1)


@memory_sets_app.command("forget-where")
@gateway_command(timeout_s=LONG_S)
def forget_where(
    call: Call,
    namespace: Namespaces,
    filter: Annotated[str, typer.Option("--filter", help="Which memories: an expression.")],
    token: Annotated[str, typer.Option("--yes", help="The token of the run without it.")] = "",
) -> None:
    """Forget what a filter matches. Without --yes it only shows what that is.

    Example: `memserve memories forget-where -n notes --filter 'source == "old.md"'`
    """
    result = call.client.forget_where(namespace, filter, dry_run_token=token)
    if token:
        text: Group | Text = line(f"{result.forgotten} of {result.matched} forgotten")
    else:
        lead = line(f"{result.matched} match; forget them with --yes {result.dry_run_token}")
        text = Group(memories_table(result.examples), lead)
    call.show(result, text=text)


@memory_sets_app.command("export")
@gateway_command(timeout_s=LONG_S, has_json=False)
def export(
    call: Call,
    namespace: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Default: all; may be repeated.")
    ] = None,
) -> None:
    """Print all memories with their histories, one JSON object a line.

    Example: `memserve memories export -n notes`
    """
    for exported in call.client.export_memories(namespace or ()):
        print(json_escaped(exported))


@memory_sets_app.command("import")
@gateway_command(timeout_s=LONG_S)
def import_(
    call: Call,
    file: Annotated[Path, typer.Argument(help="An export; - for standard input.")],
) -> None:
    """Bring in an export: memories, versions, ids and times as they were.

    Example: `memserve memories import notes.jsonl`
    """
    imported = skipped = 0
    refusals = _Refusals()
    with _lines(file) as lines, progress_bar(f"importing {file.name}") as progress:
        for result in call.client.import_memories(lines):
            if result.refusal is not None:
                refusals.add(result.index, result.refusal)
            elif result.skipped:
                skipped += 1
            else:
                imported += 1
            progress(result.index + 1, result.index + 1)
    summary = {"imported": imported, "skipped": skipped, "refused": refusals.count}
    call.show(summary, text=line(f"{imported} imported, {skipped} skipped, {refusals.count} refused"))
    if refusals.count:
        raise typer.Exit(1)


@memory_sets_app.command("watch")
@gateway_command(timeout_s=24 * 3600)
def watch(
    call: Call,
    namespace: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Default: all; may be repeated.")
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="The last change that was seen. 0: from now on.")] = 0,
) -> None:
    """Print changes of memories as they happen, until it is interrupted."""
    for change in call.client.watch_memories(namespace or (), after_sequence=after):
        if call.as_json:
            print_json(change)
        else:
            out.print(change_line(change))


@memory_sets_app.command("usage")
@gateway_command(timeout_s=30)
def usage(call: Call) -> None:
    """Show what each namespace holds, and what the tenant may keep."""
    held = call.client.memory_usage()
    call.show(held, text=usage_text(held))


@memory_sets_app.command("delete-namespace")
@gateway_command(timeout_s=LONG_S)
def delete_namespace(
    call: Call,
    namespace: Annotated[str, typer.Argument(help="The namespace.")],
    confirm: Annotated[str, typer.Option("--yes", help="The namespace's name again.")],
) -> None:
    """Erase a namespace with all its memories, for good.

    Example: `memserve memories delete-namespace notes --yes notes`
    """
    erasure = None
    with progress_bar(f"erasing {namespace}") as progress:
        for erasure in call.client.delete_namespace(namespace, confirm=confirm):
            progress(erasure.erased, erasure.erased + erasure.remaining)
    if erasure is None:
        raise StartupError("the gateway ended the call without a report")
    lead = line(f"erased {erasure.erased} memories of {namespace}")
    call.show(erasure, text=Group(lead, erased_table(erasure.places)))


@memory_sets_app.command("reindex")
@gateway_command(timeout_s=24 * 3600)
def reindex(
    call: Call,
    embedder: Annotated[
        str,
        typer.Argument(
            help="The model, as the gateway's setting `embedder` names it, or `bundled`. None: watch the "
            "reindexing that is under way."
        ),
    ] = "",
    query_prompt: Annotated[
        str, typer.Option(help="What the model wants before a query. Empty: what its files name.")
    ] = "",
    passage_prompt: Annotated[
        str, typer.Option(help="What the model wants before a passage. Empty: what its files name.")
    ] = "",
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop a reindexing that is under way.")] = False,
) -> None:
    """Embed all memories of all tenants again, by another model, while the gateway serves. For admins.

    It goes on when this command ends.
    Stopped or killed, it goes on where it was when it is asked for again.

    Example: `memserve memories reindex intfloat/multilingual-e5-small --query-prompt "query: "`
    """
    last = None
    with progress_bar("embedding memories again") as progress:
        for last in call.client.reindex_memories(
            embedder, query_prompt=query_prompt, passage_prompt=passage_prompt, cancel=cancel
        ):
            progress(last.memories_done, last.memories_total)
    if last is None:
        raise StartupError("the gateway ended the call without a report")
    lines = [f"{last.memories_done} of {last.memories_total} memories are embedded by {last.embedder}"]
    if last.done:
        lines = [
            f"all memories are embedded by {last.embedder}",
            "Before the gateways start again, set `embedder` and its prompts to this model: they refuse to "
            "start with another one.",
        ]
    call.show(last, text=Group(*map(line, lines)))


def _id_of(file: Path) -> str:
    """A document's id of a file's name."""
    letters = (sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in file.name)
    return "".join(letters).lstrip("._-")[:120] or "document"


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartupError(f"{file} cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def _lines(file: Path) -> Iterator[Iterator[str]]:
    """The lines of a file that are not blank. Raises StartupError for a file that cannot be read as UTF-8."""
    try:
        stream = sys.stdin if str(file) == "-" else file.open(encoding="utf-8")
    except OSError as error:
        raise StartupError(f"{file} cannot be read: {error.strerror}") from None
    try:
        with stream:
            yield (line for line in stream if line.strip())
    except UnicodeDecodeError as error:
        raise StartupError(f"{file} is not UTF-8 (byte {error.start})") from None
