"""`memserve modules`: knowledge in weights, published, gated, promoted, split, rolled back, composed,
removed. And `memserve audit`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.table import Table

from memserve.cli.options import Address, ApiKey, AsJson, Timeout, connected, err, out, print_json
from memserve.cli.terminal import coloured, progress_bar
from memserve.client import DEFAULT_ADDRESS, CallFailed, Client, Progress
from memserve.domain import Alias, GateReport, ModuleKind, ModuleVersion, TrafficShare
from memserve.errors import StartupError
from memserve.plain import json_line, plain

modules_app = typer.Typer(
    help="Modules: knowledge in weights, in immutable versions behind aliases.\n\n"
    "A reference is NAME (its alias live), NAME@ALIAS or NAME@NUMBER.",
    no_args_is_help=True,
)
audit_app = typer.Typer(help="Who changed which module, when, from what to what.", no_args_is_help=True)

LONG_S = 3600.0
UPLOAD_ATTEMPTS = 3
ROWS_OF_A_TABLE = 1000

AliasName = Annotated[str, typer.Option("--alias", help="Which alias. Default: live.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the history and the audit.")]
Revision = Annotated[
    int | None,
    typer.Option(
        "--expect-revision", min=0, help="Only if the alias has this revision still (0: does not exist yet)."
    ),
]


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A progress bar on standard error."""
    with progress_bar(err) as progress:
        task = progress.add_task(plain(title), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@modules_app.command("push")
def push(
    name: str,
    folder: Annotated[
        Path,
        typer.Argument(
            help="A PEFT LoRA directory, or a logit expert's; with probes.json for the gate, if any."
        ),
    ],
    source: Annotated[list[str] | None, typer.Option(help="What it was made from; may be repeated.")] = None,
    recipe: Annotated[str, typer.Option(help="How it was made.")] = "",
    notes: Annotated[str, typer.Option(help="Anything else.")] = "",
    promote: Annotated[bool, typer.Option(help="Promote it to live when the gate passes.")] = False,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Publish a directory as the module's next version. An upload that is cut off goes on where it ended."""
    with connected(address, api_key, timeout) as client:

        def publish() -> ModuleVersion:
            with _bar(f"uploading {name}") as told:
                return client.modules.publish(
                    name, folder, sources=source or (), recipe=recipe, notes=notes, progress=told
                )

        try:
            version = _again(publish)
        except FileNotFoundError as error:
            raise StartupError(f"{error.filename} {error.strerror}") from None
        if promote:
            with _bar(f"asking the probes of {version.reference}") as told:
                client.modules.promote(name, version.version, progress=told)
            version = client.modules.version(version.reference)
    if as_json:
        print_json(version)
        return
    out.print(
        f"{version.reference} is {version.digest} ({version.kind}, rank {version.rank})", highlight=False
    )
    if version.warning:
        out.print(coloured("warning", "bold yellow", f": {version.warning}"))
    if not promote:
        out.print(f"make it answer with: memserve modules promote {name} {version.version}", highlight=False)


@modules_app.command("list")
def list_modules(
    prefix: Annotated[str, typer.Option(help="Only names that begin so.")] = "",
    kind: Annotated[ModuleKind | None, typer.Option(help="Only this kind.")] = None,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """List the modules."""
    with connected(address, api_key, timeout) as client:
        found = client.modules.all(name_prefix=prefix, kind=kind)
    if as_json:
        print_json({"modules": [asdict(module) for module in found]})
        return
    table = Table("name", "kind", "versions", "aliases")
    for module in found:
        table.add_row(
            module.name,
            module.kind,
            str(module.versions),
            "; ".join(_told_alias(alias) for alias in module.aliases),
        )
    out.print(table)


@modules_app.command("show")
def show(
    reference: str,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Show a module (NAME) with its versions, or one version (NAME@ALIAS, NAME@NUMBER) with where it is
    loaded.
    """
    with connected(address, api_key, timeout) as client:
        if "@" in reference:
            version = client.modules.version(reference)
            places = {
                worker.worker_id: worker.refusal or worker.place
                for worker in client.modules.residency(reference)
            }
            if as_json:
                print_json({**asdict(version), "workers": places})
                return
            _print_version(version)
            for worker_id, place in places.items():
                out.print(f"  {worker_id}: {place}", highlight=False)
            return
        module, versions = client.modules.get(reference), client.modules.versions(reference)
    if as_json:
        print_json({**asdict(module), "every_version": [asdict(version) for version in versions]})
        return
    out.print(
        f"{module.name}, {module.kind}; "
        f"{'; '.join(_told_alias(alias) for alias in module.aliases) or 'no alias yet'}",
        highlight=False,
    )
    table = Table("version", "digest", "rank", "bytes", "norm", "gate", "author", "notes")
    for version in versions:
        table.add_row(
            str(version.version),
            version.digest[:12],
            str(version.rank),
            str(version.size_bytes),
            f"{version.figures.delta_norm:.3g}",
            _gate_word(version.gate),
            version.author,
            version.notes[:40],
        )
    out.print(table)


@modules_app.command("gate")
def gate(
    name: str,
    version: int,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = LONG_S,
    as_json: AsJson = False,
) -> None:
    """Ask a version's probes now, and show the report. Exit 1 when it does not pass."""
    with (
        connected(address, api_key, timeout) as client,
        _bar(f"asking the probes of {name}@{version}") as told,
    ):
        report = client.modules.gate(name, version, progress=told)
    print_json(report) if as_json else _print_gate(report)
    raise typer.Exit(0 if report.passed else 1)


@modules_app.command("promote")
def promote(
    name: str,
    version: int,
    alias: AliasName = "",
    expected_revision: Revision = None,
    force: Annotated[bool, typer.Option(help="Although the gate refuses; the audit says so.")] = False,
    reason: Reason = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = LONG_S,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version, once it has passed the gate. Requests under way end on the version that
    they began with.
    """
    with (
        connected(address, api_key, timeout) as client,
        _bar(f"asking the probes of {name}@{version}") as told,
    ):
        changed = client.modules.promote(
            name,
            version,
            alias=alias,
            expected_revision=expected_revision,
            force=force,
            reason=reason,
            progress=told,
        )
    _print_alias(name, changed, as_json)


@modules_app.command("rollback")
def rollback(
    name: str,
    alias: AliasName = "",
    expected_revision: Revision = None,
    reason: Reason = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Point an alias back at what it was before. Again: one step further back."""
    with connected(address, api_key, timeout) as client:
        changed = client.modules.rollback(
            name, alias=alias, expected_revision=expected_revision, reason=reason
        )
    _print_alias(name, changed, as_json)


@modules_app.command("split")
def split(
    name: str,
    shares: Annotated[list[str], typer.Argument(metavar="VERSION=WEIGHT…", help="Such as 3=90 4=10.")],
    alias: AliasName = "",
    expected_revision: Revision = None,
    reason: Reason = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 300.0,
    as_json: AsJson = False,
) -> None:
    """Share an alias's traffic between versions; a session keeps its version. One that has not passed the
    gate is watched as a canary.
    """
    weights: dict[int, float] = {}
    for share in shares:
        version, _, weight = share.partition("=")
        try:
            weights[int(version)] = float(weight)
        except ValueError:
            raise StartupError(f"{share!r} is no share; give VERSION=WEIGHT, such as 3=90") from None
    with connected(address, api_key, timeout) as client:
        changed = client.modules.split(
            name, weights, alias=alias, expected_revision=expected_revision, reason=reason
        )
    _print_alias(name, changed, as_json)


@modules_app.command("history")
def history(
    name: str,
    alias: AliasName = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Show every change of an alias, oldest first."""
    with connected(address, api_key, timeout) as client:
        changes = client.modules.history(name, alias=alias)
    if as_json:
        print_json({"changes": [asdict(change) for change in changes]})
        return
    table = Table("revision", "when", "what", "targets", "by", "why")
    for change in changes:
        what = f"{change.action}, forced" if change.forced else change.action
        table.add_row(
            str(change.revision),
            _when(change.at_s),
            what,
            _told_targets(change.targets),
            change.principal,
            change.reason,
        )
    out.print(table)


@modules_app.command("diff")
def diff(
    first: str,
    second: str,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two versions: NAME@1 NAME@2."""
    with connected(address, api_key, timeout) as client:
        before, after = asdict(client.modules.version(first)), asdict(client.modules.version(second))
    changed = {field: [before[field], after[field]] for field in before if before[field] != after[field]}
    if as_json:
        print_json({"differs": changed})
        return
    table = Table("field", first, second)
    for field, (old, new) in changed.items():
        table.add_row(field, _short(old), _short(new))
    out.print(table if changed else "no difference")


@modules_app.command("rm")
def remove(
    name: str,
    version: int,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Delete a version that no alias and no request uses, and free its KV."""
    with connected(address, api_key, timeout) as client:
        chunks = client.modules.delete(name, version)
    print_json({"evicted_chunks": chunks}) if as_json else out.print(
        f"{name}@{version} is gone, {chunks} chunks of KV freed"
    )


@modules_app.command("drop")
def drop(
    name: str,
    alias: str,
    expected_revision: Revision = None,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Remove an alias, so that its versions can be deleted. Its history stays."""
    with connected(address, api_key, timeout) as client:
        was = client.modules.drop_alias(name, alias, expected_revision=expected_revision)
    print_json(was) if as_json else out.print(
        f"{name}@{alias} is gone; it was {_told_targets(was.targets)}", highlight=False
    )


@modules_app.command("preload")
def preload(
    reference: str,
    worker_id: Annotated[
        str, typer.Option(help="Only this worker, while it lives. Default: all, also after restarts.")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 300.0,
    as_json: AsJson = False,
) -> None:
    """Load a version on the workers and keep it there."""
    with connected(address, api_key, timeout) as client:
        _print_residency(client, lambda: client.modules.preload(reference, worker_id=worker_id), as_json)


@modules_app.command("unload")
def unload(
    reference: str,
    worker_id: Annotated[str, typer.Option(help="Only this worker. Default: all.")] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Take a version out of the workers. A request that names it loads it again."""
    with connected(address, api_key, timeout) as client:
        _print_residency(client, lambda: client.modules.unload(reference, worker_id=worker_id), as_json)


@modules_app.command("compose")
def compose(
    name: str,
    parents: Annotated[
        list[str],
        typer.Argument(metavar="REFERENCE[=WEIGHT]…", help="Such as harbour@1=0.5 observatory@1=0.5."),
    ],
    method: Annotated[
        str, typer.Option(help="linear, cat, svd, ties, dare, core, or compress (one parent).")
    ],
    rank: Annotated[int, typer.Option(min=0, help="Of the result. 0: what the method gives.")] = 0,
    density: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of weights kept (ties, dare) or core (core). 0: the default."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of dare's choice.")] = 0,
    notes: Annotated[str, typer.Option(help="Kept with the version.")] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = LONG_S,
    as_json: AsJson = False,
) -> None:
    """Make a new version from others, away from serving. It faces the gate like any other."""
    weights: dict[str, float] = {}
    for parent in parents:
        reference, _, weight = parent.partition("=")
        try:
            weights[reference] = float(weight) if weight else 1.0
        except ValueError:
            raise StartupError(f"{parent!r} is no parent; give REFERENCE or REFERENCE=WEIGHT") from None
    with connected(address, api_key, timeout) as client, _bar(f"composing {name}") as told:
        version = client.modules.compose(
            name, method, weights, rank=rank, density=density, seed=seed, notes=notes, progress=told
        )
    print_json(version) if as_json else _print_version(version)


@modules_app.command("watch")
def watch(
    after: Annotated[str, typer.Option(help="Begin after this event; default: with the next.")] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = LONG_S,
) -> None:
    """Print changes as they happen, one JSON object a line. Ends after --timeout."""
    with connected(address, api_key, timeout) as client:
        try:
            for event in client.modules.watch(after):
                print(json_line(asdict(event)), flush=True)
        except CallFailed as failed:
            if failed.code.name != "DEADLINE_EXCEEDED":
                raise


@audit_app.command("list")
def audit_list(
    after: Annotated[str, typer.Option(help="Begin after this event; default: with the first.")] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 60.0,
) -> None:
    """Show every change of modules, oldest first."""
    with connected(address, api_key, timeout) as client:
        events = client.modules.audit(after)
        while page := list(itertools.islice(events, ROWS_OF_A_TABLE)):
            table = Table("when", "by", "what", "module", "before", "after")
            for event in page:
                table.add_row(
                    _when(event.at_s),
                    event.principal,
                    event.action,
                    event.module,
                    _short(event.before),
                    _short(event.after),
                )
            out.print(table)


@audit_app.command("export")
def audit_export(
    file: Annotated[
        Path | None,
        typer.Argument(help="Where to write; default: standard output. One that is there is continued."),
    ] = None,
    after: Annotated[
        str,
        typer.Option(
            help="Begin after this event. Default: after the last one in the file, else with the first."
        ),
    ] = "",
    release: Annotated[
        bool, typer.Option(help="Then say that all of it is exported: it may go when the audit is full.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 600.0,
) -> None:
    """Write every change as JSON lines. An export that was cut off goes on where it ended."""
    if release and file is None:
        raise StartupError("--release needs a file: what goes to standard output may not have been kept")
    last = after
    with connected(address, api_key, timeout) as client, contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("a+b")) if file is not None else None
        if stream is not None:
            last = after or last_exported(stream)
        for event in client.modules.audit(last):
            line = json_line(asdict(event))
            print(line) if stream is None else stream.write(line.encode() + b"\n")
            last = event.event_id
        if stream is not None:
            stream.flush()
            os.fsync(stream.fileno())
        if release and last:
            client.modules.release_audit(last)


def last_exported(stream: BinaryIO) -> str:
    """The id of the last event in an export, which is cut to its whole lines; empty where there is none.
    Leaves the stream at its end.

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


def _again(publish: Callable[[], ModuleVersion]) -> ModuleVersion:
    """An upload that is cut off is tried again; it goes on where it ended."""
    for attempt in range(UPLOAD_ATTEMPTS):
        try:
            return publish()
        except CallFailed as failed:
            if (
                failed.code.name not in ("UNAVAILABLE", "DATA_LOSS", "RESOURCE_EXHAUSTED")
                or attempt + 1 == UPLOAD_ATTEMPTS
            ):
                raise
            err.print(f"cut off ({failed.detail}); going on with it", style="yellow", highlight=False)
            time.sleep(max(1 + attempt, failed.retry_after_s or 0))
    raise AssertionError


def _print_residency(client: Client, call: Callable[[], Any], as_json: bool) -> None:
    workers = call()
    if as_json:
        print_json({"workers": [asdict(worker) for worker in workers]})
        return
    for worker in workers:
        out.print(f"{worker.worker_id}: {worker.refusal or worker.place}", highlight=False)


def _print_alias(name: str, alias: Alias, as_json: bool) -> None:
    print_json(alias) if as_json else out.print(
        f"{name}@{_told_alias(alias)}, revision {alias.revision}", highlight=False
    )


def _print_version(version: ModuleVersion) -> None:
    table = Table(show_header=False)
    for field, value in asdict(version).items():
        if field not in ("gate", "figures"):
            table.add_row(field, _when(value) if field == "created_s" else str(value))
    for field, value in asdict(version.figures).items():
        table.add_row(field, f"{value:.4g}")
    out.print(table)
    if version.gate is not None:
        _print_gate(version.gate)


def _print_gate(report: GateReport) -> None:
    table = Table("probes", "asked", "base", "module", "rule", "")
    for figure in report.figures:
        verdict = coloured("holds", "green") if figure.holds else coloured("missed", "red")
        table.add_row(
            figure.name,
            str(figure.probes),
            f"{figure.base:.3f}",
            f"{figure.module:.3f}",
            figure.rule,
            verdict,
        )
    out.print(table)
    out.print(f"the gate {_gate_word(report)} on {report.worker_id}, {_when(report.at_s)}", highlight=False)


def _gate_word(report: GateReport | None) -> str:
    if report is None:
        return "not run"
    return "passed" if report.passed else "refused"


def _told_alias(alias: Alias) -> str:
    return f"{alias.name} is {_told_targets(alias.targets)}"


def _told_targets(targets: tuple[TrafficShare, ...]) -> str:
    whole = sum(target.weight for target in targets)
    if len(targets) == 1:
        return f"version {targets[0].version}"
    return ", ".join(f"version {target.version} {target.weight / whole:.0%}" for target in targets)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:79] + "…"
