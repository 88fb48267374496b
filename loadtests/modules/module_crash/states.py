"""What modules are to be after operations on them, and what the API says that they are. For
`module_crash`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from memserve.client import Client
from memserve.domain import Alias, AliasChange, AuditEvent, ModuleVersion
from memserve.memory.modules.registry.integrity import (
    alias_contradictions,
    audit_contradictions,
    audit_fact,
)

MODULES = ("amber", "birch", "cedar")
Targets = tuple[tuple[int, float], ...]
"""Version and weight of each."""


@dataclass(frozen=True, slots=True)
class Operation:
    """content: number of the files that are published. versions: that the alias is to target, or the one to
    delete.
    """

    kind: str
    module: str
    content: int = 0
    versions: tuple[int, ...] = ()

    @property
    def targets(self) -> Targets:
        return tuple((version, float(weight)) for weight, version in enumerate(self.versions, 1))


@dataclass(frozen=True, slots=True)
class State:
    """What a module is. versions: number to digest. published: versions that there ever were. history:
    targets and action, of `live`.
    """

    versions: Mapping[int, str] = field(default_factory=dict)
    published: int = 0
    history: tuple[tuple[Targets, str], ...] = ()

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
    """What the API tells of all modules at one time."""

    versions: Mapping[str, tuple[ModuleVersion, ...]]
    histories: Mapping[str, tuple[AliasChange, ...]]
    live: Mapping[str, Alias]
    """By module."""
    audit: tuple[AuditEvent, ...]

    def state(self, module: str) -> State:
        events = Counter(event.action for event in self.audit if event.module == module)
        history = tuple((_targets(change), change.action) for change in self.histories[module])
        return State(
            {each.version: each.digest for each in self.versions[module]}, events["publish"], history
        )


def look(client: Client) -> Seen:
    """Raises CallFailed."""
    modules = {module.name: module for module in client.modules.all()}
    return Seen(
        {name: tuple(client.modules.versions(name)) if name in modules else () for name in MODULES},
        {name: tuple(client.modules.history(name)) if name in modules else () for name in MODULES},
        {name: alias for name, module in modules.items() for alias in module.aliases},
        tuple(client.modules.audit()),
    )


def _targets(change: AliasChange) -> Targets:
    return tuple((share.version, share.weight) for share in change.targets)


def contradictions(seen: Seen, before: Seen) -> list[str]:
    """What in the store does not agree with the rest of it, or with what it was before."""
    sentences = []
    for module in MODULES:
        sentences += [f"{module}: {what}" for what in _contradictions_of(module, seen, before)]
    if seen.audit[: len(before.audit)] != before.audit:
        sentences.append("the audit was rewritten")
    return sentences


def _contradictions_of(module: str, seen: Seen, before: Seen) -> Iterator[str]:
    state = seen.state(module)
    changes = seen.histories[module]
    facts = [fact for event in seen.audit if event.module == module and (fact := audit_fact(event))]
    yield from alias_contradictions(seen.live.get(module), changes, state.versions)
    yield from audit_contradictions(facts, state.versions, {"live": changes})
    published = [fact.number for fact in facts if fact.action == "publish"]
    if published[:1] != [1] and (published or state.versions):
        yield "the audit does not begin with the first version"
    if len([fact for fact in facts if fact.alias]) != len(changes):
        yield "the audit and the history differ"
    if changes[: len(before.histories[module])] != before.histories[module]:
        yield "the history was rewritten"
    bodies = {version.version: _body(version) for version in seen.versions[module]}
    for version in before.versions[module]:
        if bodies.get(version.version, _body(version)) != _body(version):
            yield f"version {version.version} has changed"


def _body(version: ModuleVersion) -> ModuleVersion:
    """What of a version never changes."""
    return replace(version, gate=None, moves_logits=False)
