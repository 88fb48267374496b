"""`memserve modules`: knowledge in weights. Its versions are published, gated, promoted, split, rolled back,
composed and removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from memserve.cli.module_tables import (
    alias_text,
    differences_table,
    gate_text,
    history_table,
    module_text,
    modules_table,
    published_lines,
    residency_lines,
    targets_text,
    version_text,
)
from memserve.cli.options import Call, gateway_command
from memserve.cli.terminal import err, progress_bar
from memserve.client import CallFailed
from memserve.domain import Alias, ModuleKind, ModuleVersion, WorkerResidency
from memserve.domain.kinds import KINDS, kind_of_name
from memserve.errors import StartupError
from memserve.plain import json_line
from memserve.policy.modules.recipes import SEED_MAX

modules_app = typer.Typer(
    help="Modules: knowledge in weights, in immutable versions behind aliases.\n\n"
    "A reference is NAME (its alias live), NAME@ALIAS or NAME@NUMBER.",
    no_args_is_help=True,
)

LONG_S = 3600.0
UPLOAD_ATTEMPTS = 3
INTERRUPTED = ("UNAVAILABLE", "DATA_LOSS", "RESOURCE_EXHAUSTED")
"""Statuses of an upload that is worth another attempt."""

Name = Annotated[str, typer.Argument(help="Name of the module.")]
Version = Annotated[int, typer.Argument(help="Number of the version.")]
Reference = Annotated[str, typer.Argument(help="NAME (its alias live), NAME@ALIAS or NAME@NUMBER.")]
AliasName = Annotated[str, typer.Option("--alias", help="Which alias. Default: live.")]
Revision = Annotated[
    int | None,
    typer.Option(
        "--expect-revision",
        min=0,
        help="Change the alias only if it still has this revision. 0: only if it does not exist yet.",
    ),
]


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """The options of every change of an alias."""

    alias: AliasName = ""
    expected_revision: Revision = None
    reason: Annotated[str, typer.Option(help="Why; kept in the history and the audit.")] = ""


@dataclass(frozen=True, slots=True)
class OriginOptions:
    """The origin of a version, which is kept with it."""

    source: Annotated[list[str] | None, typer.Option(help="What it was made from; may be repeated.")] = None
    recipe: Annotated[str, typer.Option(help="How it was made.")] = ""
    notes: Annotated[str, typer.Option(help="Anything else.")] = ""


@dataclass(frozen=True, slots=True)
class CompositionOptions:
    """How versions become one."""

    method: Annotated[str, typer.Option(help="linear, cat, svd, ties, dare, core, or compress (one parent).")]
    rank: Annotated[int, typer.Option(min=0, help="Rank of the result. 0: what the method gives.")] = 0
    density: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of weights kept (ties, dare) or core (core). 0: the default."),
    ] = 0.0
    seed: Annotated[int, typer.Option(min=0, max=SEED_MAX, help="Seed of dare's choice.")] = 0
    notes: Annotated[str, typer.Option(help="Kept with the version.")] = ""


@modules_app.command("push")
@gateway_command(timeout_s=600)
def push(
    call: Call,
    name: Name,
    folder: Annotated[
        Path,
        typer.Argument(
            help="A PEFT LoRA directory, a logit expert's, a cartridge's or a soft prompt's; with "
            "probes.json for the gate, if any."
        ),
    ],
    origin: OriginOptions,
    promote: Annotated[bool, typer.Option(help="Promote it to live when the gate passes.")] = False,
) -> None:
    """Publish a directory as the module's next version. An upload that is cut off goes on where it ended.

    Example: `memserve modules push tone ./my-lora --promote`
    """
    modules = call.client.modules

    def publish() -> ModuleVersion:
        with progress_bar(f"uploading {name}") as progress:
            return modules.publish(
                name,
                folder,
                sources=origin.source or (),
                recipe=origin.recipe,
                notes=origin.notes,
                progress=progress,
            )

    try:
        version = _with_retries(publish)
    except FileNotFoundError as error:
        raise StartupError(f"{error.filename} {error.strerror}") from None
    if promote:
        with progress_bar(f"asking the probes of {version.reference}") as progress:
            modules.promote(name, version.version, progress=progress)
        version = modules.version(version.reference)
    call.show(version, text=Group(*published_lines(name, version, promoted=promote)))


def _with_retries(publish: Callable[[], ModuleVersion]) -> ModuleVersion:
    """Try an interrupted upload again. The next attempt goes on where the last attempt ended."""
    for attempt in range(1, UPLOAD_ATTEMPTS):
        try:
            return publish()
        except CallFailed as failed:
            if failed.code.name not in INTERRUPTED:
                raise
            err.print(f"cut off ({failed.detail}); going on with it", style="yellow")
            time.sleep(max(attempt, failed.retry_after_s or 0))
    return publish()


def kind_named(text: str) -> ModuleKind:
    """The kind with this name. Raises BadParameter."""
    try:
        return kind_of_name(text)
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("kind: ")) from None


@modules_app.command("list")
@gateway_command(timeout_s=30)
def list_modules(
    call: Call,
    prefix: Annotated[str, typer.Option(help="Only names that begin so.")] = "",
    kind: Annotated[
        ModuleKind | None,
        typer.Option(parser=kind_named, metavar="KIND", help=f"Only this kind: {', '.join(KINDS)}."),
    ] = None,
) -> None:
    """List the modules."""
    modules = call.client.modules.all(name_prefix=prefix, kind=kind)
    call.show({"modules": [asdict(module) for module in modules]}, text=modules_table(modules))


@modules_app.command("show")
@gateway_command(timeout_s=30)
def show(call: Call, reference: Reference) -> None:
    """Show a module with its versions, or one version with where it is loaded.

    NAME shows the module. NAME@ALIAS and NAME@NUMBER show one version.
    """
    modules = call.client.modules
    if "@" not in reference:
        module, versions = modules.get(reference), modules.versions(reference)
        every_version = [asdict(version) for version in versions]
        call.show({**asdict(module), "every_version": every_version}, text=module_text(module, versions))
        return
    version, workers = modules.version(reference), modules.residency(reference)
    places = {worker.worker_id: worker.refusal or worker.place for worker in workers}
    lines = (f"  {worker_id}: {place}" for worker_id, place in places.items())
    call.show({**asdict(version), "workers": places}, text=Group(version_text(version), *lines))


@modules_app.command("gate")
@gateway_command(timeout_s=LONG_S)
def gate(call: Call, name: Name, version: Version) -> None:
    """Ask a version's probes now, and show the report. Exit 1 when it does not pass."""
    with progress_bar(f"asking the probes of {name}@{version}") as progress:
        report = call.client.modules.gate(name, version, progress=progress)
    call.show(report, text=gate_text(report))
    raise typer.Exit(0 if report.passed else 1)


@modules_app.command("promote")
@gateway_command(timeout_s=LONG_S)
def promote(
    call: Call,
    name: Name,
    version: Version,
    change: ChangeOptions,
    force: Annotated[
        bool, typer.Option(help="Promote it although the gate refuses; the audit says so.")
    ] = False,
) -> None:
    """Point an alias at a version, once it has passed the gate.

    Requests under way end on the version that they began with.

    Example: `memserve modules promote tone 3 --reason "fixes the greeting"`
    """
    with progress_bar(f"asking the probes of {name}@{version}") as progress:
        alias = call.client.modules.promote(
            name,
            version,
            alias=change.alias,
            expected_revision=change.expected_revision,
            force=force,
            reason=change.reason,
            progress=progress,
        )
    _show_alias(call, name, alias)


@modules_app.command("rollback")
@gateway_command(timeout_s=30)
def rollback(call: Call, name: Name, change: ChangeOptions) -> None:
    """Point an alias back at what it was before. Again: one step further back.

    Example: `memserve modules rollback tone --reason "answers in French"`
    """
    alias = call.client.modules.rollback(
        name, alias=change.alias, expected_revision=change.expected_revision, reason=change.reason
    )
    _show_alias(call, name, alias)


@modules_app.command("split")
@gateway_command(timeout_s=300)
def split(
    call: Call,
    name: Name,
    shares: Annotated[list[str], typer.Argument(metavar="VERSION=WEIGHT…", help="Such as 3=90 4=10.")],
    change: ChangeOptions,
) -> None:
    """Share an alias's traffic between versions; a session keeps its version.

    A version that has not passed the gate is watched as a canary.

    Example: `memserve modules split tone 3=90 4=10`
    """
    weights: dict[int, float] = {}
    for share in shares:
        version, _, weight = share.partition("=")
        try:
            weights[int(version)] = float(weight)
        except ValueError:
            raise StartupError(f"{share!r} is no share; give VERSION=WEIGHT, such as 3=90") from None
    alias = call.client.modules.split(
        name, weights, alias=change.alias, expected_revision=change.expected_revision, reason=change.reason
    )
    _show_alias(call, name, alias)


def _show_alias(call: Call, name: str, alias: Alias) -> None:
    call.show(alias, text=f"{name}@{alias_text(alias)}, revision {alias.revision}")


@modules_app.command("history")
@gateway_command(timeout_s=30)
def history(call: Call, name: Name, alias: AliasName = "") -> None:
    """Show every change of an alias, oldest first."""
    changes = call.client.modules.history(name, alias=alias)
    call.show({"changes": [asdict(change) for change in changes]}, text=history_table(changes))


@modules_app.command("diff")
@gateway_command(timeout_s=30)
def diff(call: Call, first: Reference, second: Reference) -> None:
    """Show what differs between two versions.

    Example: `memserve modules diff tone@1 tone@2`
    """
    before, after = (asdict(call.client.modules.version(reference)) for reference in (first, second))
    differences = {field: [before[field], after[field]] for field in before if before[field] != after[field]}
    call.show({"differs": differences}, text=differences_table(first, second, differences))


@modules_app.command("rm")
@gateway_command(timeout_s=60)
def remove(call: Call, name: Name, version: Version) -> None:
    """Delete a version that no alias and no request uses, and free its KV."""
    chunks = call.client.modules.delete(name, version)
    call.show({"evicted_chunks": chunks}, text=f"{name}@{version} is gone, {chunks} chunks of KV freed")


@modules_app.command("drop")
@gateway_command(timeout_s=30)
def drop(
    call: Call,
    name: Name,
    alias: Annotated[str, typer.Argument(help="Which alias.")],
    expected_revision: Revision = None,
) -> None:
    """Remove an alias, so that its versions can be deleted. Its history stays."""
    last = call.client.modules.drop_alias(name, alias, expected_revision=expected_revision)
    call.show(last, text=f"{name}@{alias} is gone; it was {targets_text(last.targets)}")


@modules_app.command("preload")
@gateway_command(timeout_s=300)
def preload(
    call: Call,
    reference: Reference,
    worker_id: Annotated[
        str, typer.Option(help="Only this worker, while it lives. Default: all, also after restarts.")
    ] = "",
) -> None:
    """Load a version on the workers and keep it there."""
    _show_residency(call, call.client.modules.preload(reference, worker_id=worker_id))


@modules_app.command("unload")
@gateway_command(timeout_s=60)
def unload(
    call: Call,
    reference: Reference,
    worker_id: Annotated[str, typer.Option(help="Only this worker. Default: all.")] = "",
) -> None:
    """Take a version out of the workers. A request that names it loads it again."""
    _show_residency(call, call.client.modules.unload(reference, worker_id=worker_id))


def _show_residency(call: Call, workers: list[WorkerResidency]) -> None:
    call.show({"workers": [asdict(worker) for worker in workers]}, text=Group(*residency_lines(workers)))


@modules_app.command("compose")
@gateway_command(timeout_s=LONG_S)
def compose(
    call: Call,
    name: Name,
    parents: Annotated[
        list[str],
        typer.Argument(metavar="REFERENCE[=WEIGHT]…", help="Such as harbour@1=0.5 observatory@1=0.5."),
    ],
    options: CompositionOptions,
) -> None:
    """Make a new version from others, away from serving. It faces the gate like any other.

    Example: `memserve modules compose both harbour@1=0.5 observatory@1=0.5 --method linear`
    """
    weights: dict[str, float] = {}
    for parent in parents:
        reference, _, weight = parent.partition("=")
        try:
            weights[reference] = float(weight) if weight else 1.0
        except ValueError:
            raise StartupError(f"{parent!r} is no parent; give REFERENCE or REFERENCE=WEIGHT") from None
    with progress_bar(f"composing {name}") as progress:
        version = call.client.modules.compose(
            name,
            options.method,
            weights,
            rank=options.rank,
            density=options.density,
            seed=options.seed,
            notes=options.notes,
            progress=progress,
        )
    call.show(version, text=version_text(version))


@modules_app.command("watch")
@gateway_command(timeout_s=LONG_S, has_json=False)
def watch(
    call: Call,
    after: Annotated[str, typer.Option(help="Id of an event; begin after it. Default: with the next.")] = "",
) -> None:
    """Print changes as they happen, one JSON object a line. Ends after --timeout."""
    try:
        for event in call.client.modules.watch(after):
            print(json_line(asdict(event)), flush=True)
    except CallFailed as failed:
        if failed.code.name != "DEADLINE_EXCEEDED":
            raise
