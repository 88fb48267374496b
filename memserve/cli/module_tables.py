"""How `memserve modules` shows what the gateway answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.terminal import coloured
from memserve.domain import (
    Alias,
    AliasChange,
    GateReport,
    Module,
    ModuleVersion,
    TrafficShare,
    WorkerResidency,
)


def published_lines(name: str, version: ModuleVersion, *, promoted: bool) -> Iterator[RenderableType]:
    """What `push` prints about a new version.

    name: as the user typed it, because the last line is a command to copy.
    """
    size = f"{version.prefix_tokens} positions" if version.prefix_tokens else f"rank {version.rank}"
    yield f"{version.reference} is {version.digest} ({version.kind}, {size})"
    if version.warning:
        yield coloured("warning", "bold yellow", f": {version.warning}")
    if not promoted:
        yield f"make it answer with: memserve modules promote {name} {version.version}"


def modules_table(modules: Sequence[Module]) -> Table:
    table = Table("name", "kind", "versions", "aliases")
    for module in modules:
        table.add_row(module.name, module.kind, str(module.versions), aliases_text(module))
    return table


def module_text(module: Module, versions: Sequence[ModuleVersion]) -> Group:
    """A module with a row for each version."""
    table = Table("version", "digest", "rank", "bytes", "norm", "gate", "author", "notes")
    for version in versions:
        table.add_row(
            str(version.version),
            version.digest[:12],
            str(version.rank),
            str(version.size_bytes),
            f"{version.figures.delta_norm:.3g}",
            verdict(version.gate),
            version.author,
            version.notes[:40],
        )
    return Group(f"{module.name}, {module.kind}; {aliases_text(module) or 'no alias yet'}", table)


def version_text(version: ModuleVersion) -> Group:
    """Every field of a version, and its gate report if it has one."""
    table = Table(show_header=False)
    for field, value in asdict(version).items():
        if field not in ("gate", "figures"):
            table.add_row(field, when(value) if field == "created_s" else str(value))
    for field, value in asdict(version.figures).items():
        table.add_row(field, f"{value:.4g}")
    return Group(table) if version.gate is None else Group(table, gate_text(version.gate))


def gate_text(report: GateReport) -> Group:
    """A row for each figure of the gate, and its verdict."""
    table = Table("probes", "asked", "base", "module", "rule", "")
    for figure in report.figures:
        table.add_row(
            figure.name,
            str(figure.probes),
            f"{figure.base:.3f}",
            f"{figure.module:.3f}",
            figure.rule,
            coloured("holds", "green") if figure.holds else coloured("missed", "red"),
        )
    return Group(table, f"the gate {verdict(report)} on {report.worker_id}, {when(report.at_s)}")


def history_table(changes: Sequence[AliasChange]) -> Table:
    table = Table("revision", "when", "what", "targets", "by", "why")
    for change in changes:
        table.add_row(
            str(change.revision),
            when(change.at_s),
            f"{change.action}, forced" if change.forced else change.action,
            targets_text(change.targets),
            change.principal,
            change.reason,
        )
    return table


def differences_table(first: str, second: str, differences: Mapping[str, Sequence[Any]]) -> RenderableType:
    """differences: field to its value in the first version and in the second."""
    if not differences:
        return "no difference"
    table = Table("field", first, second)
    for field, (old, new) in differences.items():
        table.add_row(field, short(old), short(new))
    return table


def residency_lines(workers: Sequence[WorkerResidency]) -> Iterator[str]:
    for worker in workers:
        yield f"{worker.worker_id}: {worker.refusal or worker.place}"


def verdict(report: GateReport | None) -> str:
    if report is None:
        return "not run"
    return "passed" if report.passed else "refused"


def aliases_text(module: Module) -> str:
    return "; ".join(alias_text(alias) for alias in module.aliases)


def alias_text(alias: Alias) -> str:
    return f"{alias.name} is {targets_text(alias.targets)}"


def targets_text(targets: Sequence[TrafficShare]) -> str:
    """The versions that share an alias's traffic, with their shares if there are several."""
    whole = sum(target.weight for target in targets)
    if len(targets) == 1:
        return f"version {targets[0].version}"
    return ", ".join(f"version {target.version} {target.weight / whole:.0%}" for target in targets)


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def short(value: object) -> str:
    """A value for a cell, cut to 80 characters."""
    text = str(value)
    return text if len(text) <= 80 else text[:79] + "…"
