"""`memserve audit`: who changed which module, as a table or as an export that can be continued."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.table import Table

from memserve.cli.module_tables import short, when
from memserve.cli.options import Call, gateway_command
from memserve.cli.terminal import out
from memserve.domain import AuditEvent
from memserve.errors import StartupError
from memserve.plain import json_line

audit_app = typer.Typer(help="Who changed which module, when, from what to what.", no_args_is_help=True)

ROWS_OF_A_TABLE = 1000


@audit_app.command("list")
@gateway_command(timeout_s=60, has_json=False)
def audit_list(
    call: Call,
    after: Annotated[str, typer.Option(help="Id of an event; begin after it. Default: with the first.")] = "",
) -> None:
    """Show every change of modules, oldest first."""
    events = call.client.modules.audit(after)
    while page := list(itertools.islice(events, ROWS_OF_A_TABLE)):
        out.print(events_table(page))


@audit_app.command("export")
@gateway_command(timeout_s=600, has_json=False)
def audit_export(
    call: Call,
    file: Annotated[
        Path | None,
        typer.Argument(help="Where to write. Default: standard output. An export that exists is continued."),
    ] = None,
    after: Annotated[
        str,
        typer.Option(
            help="Id of an event; begin after it. Default: after the last event in the file, else with the "
            "first."
        ),
    ] = "",
    release: Annotated[
        bool, typer.Option(help="Then allow the gateway to drop what is exported when the audit is full.")
    ] = False,
) -> None:
    """Write every change as JSON lines. An export that was cut off goes on where it ended.

    Example: `memserve audit export audit.jsonl --release`
    """
    if release and file is None:
        raise StartupError("--release needs a file: what goes to standard output may not have been kept")
    last = after
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("a+b")) if file is not None else None
        if stream is not None:
            last = after or last_exported(stream)
        for event in call.client.modules.audit(last):
            line = json_line(asdict(event))
            print(line) if stream is None else stream.write(line.encode() + b"\n")
            last = event.event_id
        if stream is not None:
            stream.flush()
            os.fsync(stream.fileno())
        if release and last:
            call.client.modules.release_audit(last)


def last_exported(stream: BinaryIO) -> str:
    """The id of the last event in an export. Empty: the export has no event.

    An incomplete last line is cut off. The stream is then at its end.

    Raises StartupError for a file that is no export.
    """
    whole = last = 0
    stream.seek(0)
    for line in stream:
        if line.endswith(b"\n"):
            last, whole = whole, whole + len(line)
    stream.seek(last)
    line = stream.read(whole - last)
    try:
        event_id = str(json.loads(line)["event_id"]) if line else ""
    except (ValueError, KeyError, TypeError):
        raise StartupError(
            f"{getattr(stream, 'name', 'the file')} is no export of an audit: its last line has no event_id"
        ) from None
    stream.truncate(whole)
    stream.seek(whole)
    return event_id


def events_table(events: Sequence[AuditEvent]) -> Table:
    table = Table("when", "by", "what", "module", "before", "after")
    for event in events:
        table.add_row(
            when(event.at_s),
            event.principal,
            event.action,
            event.module,
            short(event.before),
            short(event.after),
        )
    return table
