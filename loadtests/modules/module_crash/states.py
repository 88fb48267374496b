"""What modules must be after operations on them, and what the API says that they are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from memserve.client import Client
from memserve.domain import Alias, AliasChange, AuditEvent, ModuleVersion

MODULES = ("amber", "birch", "cedar")
Targets = tuple[tuple[int, float], ...]
"""Version and weight of each."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One change of a module."""

    kind: str
    module: str
    content: int = 0
    """The number of the files that are published."""
    versions: tuple[int, ...] = ()
    """The versions that the alias is to target, or the version to delete."""

    @property
    def targets(self) -> Targets:
        return tuple((version, float(weight)) for weight, version in enumerate(self.versions, 1))


@dataclass(frozen=True, slots=True)
class State:
    """What a module is."""

    versions: Mapping[int, str] = field(default_factory=dict)
    """Digests by number."""
    published: int = 0
    """How many versions there ever were."""
    history: tuple[tuple[Targets, str], ...] = ()
    """Targets and action of every change of `live`."""

    @property
    def targets(self) -> Targets:
        return self.history[-1][0] if self.history else ()

    def promoted(self, version: int) -> bool:
        """Whether it has been, which it could not be without passing the gate."""
        return any((targets, action) == (((version, 1.0),), "promote") for targets, action in self.history)

    @property
    def rolled_back(self) -> Targets:
        """What a rollback leads to; () where there is nothing. The revision that first had the targets
        decides, not the last one.
        """
        origins: list[int] = []
        for number, (targets, action) in enumerate(self.history):
            if action == "rollback":
                origins.append(origins[origins[-1] - 1])
            else:
                origins.append(origins[-1] if number and self.history[number - 1][0] == targets else number)
        return self.history[origins[-1] - 1][0] if origins and origins[-1] else ()


def after(state: State, operation: Operation, digest: str) -> State:
    """The state with the operation done. digest: of the content, for one that publishes."""
    match operation.kind:
        case "publish":
            number = state.published + 1
            return State({**state.versions, number: digest}, number, state.history)
        case "delete":
            left = {
                number: digest
                for number, digest in state.versions.items()
                if number not in operation.versions
            }
            return replace(state, versions=left)
        case "rollback":
            return replace(state, history=(*state.history, (state.rolled_back, "rollback")))
    return replace(state, history=(*state.history, (operation.targets, operation.kind)))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the API says of all modules at one time."""

    versions: Mapping[str, tuple[ModuleVersion, ...]]
    histories: Mapping[str, tuple[AliasChange, ...]]
    live: Mapping[str, tuple[int, Targets]]
    audit: tuple[AuditEvent, ...]

    def state(self, module: str) -> State:
        events = Counter(event.action for event in self.audit if event.module == module)
        history = tuple((_targets(change), change.action) for change in self.histories[module])
        return State(
            {version.version: version.digest for version in self.versions[module]}, events["publish"], history
        )


def look(client: Client) -> Seen:
    """Raises CallFailed."""
    modules = {module.name: module for module in client.modules.all()}
    live = {name: alias for name, module in modules.items() for alias in module.aliases}
    return Seen(
        {name: tuple(client.modules.versions(name)) if name in modules else () for name in MODULES},
        {name: tuple(client.modules.history(name)) if name in modules else () for name in MODULES},
        {name: (alias.revision, _targets(alias)) for name, alias in live.items()},
        tuple(client.modules.audit()),
    )


def _targets(of: Alias | AliasChange) -> Targets:
    return tuple((share.version, share.weight) for share in of.targets)


def contradictions(seen: Seen, before: Seen) -> list[str]:
    """What in the store does not agree with the rest of it, or with what it was before."""
    wrong = []
    for module in MODULES:
        state = seen.state(module)
        changes, events = seen.histories[module], [event for event in seen.audit if event.module == module]
        if [change.revision for change in changes] != list(range(1, len(changes) + 1)):
            wrong.append(f"{module}: the history has gaps")
        if changes[: len(before.histories[module])] != before.histories[module]:
            wrong.append(f"{module}: the history was rewritten")
        if changes and seen.live[module] != (len(changes), state.targets):
            wrong.append(f"{module}: the alias is not what its history ends with")
        if not {version for version, _ in state.targets} <= state.versions.keys():
            wrong.append(f"{module}: the alias targets a version that does not exist")
        if [event.action for event in events if event.action in ("promote", "split", "rollback")] != [
            c.action for c in changes
        ]:
            wrong.append(f"{module}: audit and history differ")
        if [json.loads(event.after)["version"] for event in events if event.action == "publish"] != list(
            range(1, state.published + 1)
        ):
            wrong.append(f"{module}: audit and version numbers differ")
        gone = sorted(json.loads(event.before)["version"] for event in events if event.action == "delete")
        if sorted([*gone, *state.versions]) != list(range(1, state.published + 1)):
            wrong.append(f"{module}: a version is neither there nor deleted, or both")
        bodies = {
            version.version: replace(version, gate=None, moves_logits=False)
            for version in seen.versions[module]
        }
        for version in before.versions[module]:
            if bodies.get(version.version, version) not in (
                version,
                replace(version, gate=None, moves_logits=False),
            ):
                wrong.append(f"{module}: version {version.version} has changed")
    if seen.audit[: len(before.audit)] != before.audit:
        wrong.append("the audit was rewritten")
    return wrong
