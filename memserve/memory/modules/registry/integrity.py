"""What must always be true of the module store, as pure functions over what was read of it.

1. A module's numbers are those of its versions, and were all given out. It is listed while it has any.
2. A version is of its module's kind, and its digests are referenced. Nothing else is referenced.
3. An alias targets versions that exist, each once, with weights above zero.
4. A history has no gaps, and the alias is what its history ends with. A canary is among the alias's targets.
5. A preload is in both of its places, and is of a version that exists.
6. What is condemned is neither referenced nor claimed. Claims and blocks end by themselves.
7. The audit tells of each published and each deleted version, and of each change of an alias, once and in
   order. Its oldest events may be gone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memserve.domain import Alias, AliasChange, AuditEvent, TrafficShare


@dataclass(frozen=True, slots=True)
class VersionView:
    """What the check needs of a version."""

    number: int
    kind: str
    digests: tuple[str, ...]
    """Of its weights and of its probes."""
    referenced: frozenset[str]
    """Those of its digests that have it among their references."""


@dataclass(frozen=True, slots=True)
class ModuleView:
    """All that Redis has of one module at one moment."""

    kind: str
    """"" where it has no head."""
    last_number: int
    """The highest number that a version ever had."""
    numbers: frozenset[int]
    versions: Mapping[int, VersionView]
    """By the number under which they are kept."""
    loose_numbers: frozenset[int]
    """Of texts, reports and marks without a version."""
    is_listed: bool
    """Among the tenant's modules."""
    is_listed_by_kind: bool
    aliases: Mapping[str, Alias]
    histories: Mapping[str, Sequence[AliasChange]]
    canaries: Mapping[str, tuple[int, tuple[int, ...]]]
    """By alias: the revision at which these versions are canaries."""
    preloaded: frozenset[tuple[int, str]]
    """Number and worker, as the versions have it."""
    preloads: Mapping[tuple[int, str], str]
    """The digest by number and worker, as workers read it."""


def module_contradictions(view: ModuleView) -> list[str]:
    """Rules 1 to 5, for one module."""
    sentences = [*_numbers(view), *_versions(view)]
    for alias in sorted({*view.aliases, *view.histories}):
        present = view.aliases.get(alias)
        wrong = alias_contradictions(present, view.histories.get(alias, ()), view.numbers)
        sentences += [f"alias {alias}: {what}" for what in wrong]
    return [*sentences, *_canaries(view), *_preloads(view)]


def _numbers(view: ModuleView) -> Iterator[str]:
    for number in sorted(view.numbers ^ view.versions.keys()):
        if number in view.numbers:
            yield f"number {number} has no version"
        else:
            yield f"version {number} is not among the numbers"
    for number in sorted(view.loose_numbers):
        yield f"a part of version {number} is kept, and the version is not"
    if max([*view.numbers, *view.versions], default=0) > view.last_number:
        yield f"a version has a number above {view.last_number}, the last one that was given out"
    if view.is_listed is not bool(view.numbers):
        yield f"it has {len(view.numbers)} versions, and is {'' if view.is_listed else 'not '}listed"
    if view.is_listed_by_kind is not bool(view.numbers):
        listed = "" if view.is_listed_by_kind else "not "
        yield f"it has {len(view.numbers)} versions, and is {listed}listed under its kind"


def _versions(view: ModuleView) -> Iterator[str]:
    for number, version in sorted(view.versions.items()):
        if version.number != number:
            yield f"version {number} says that its number is {version.number}"
        if version.kind != view.kind:
            yield f"version {number} is of kind {version.kind}, and the module of kind {view.kind or '-'}"
        for digest in version.digests:
            if digest not in version.referenced:
                yield f"version {number} is not among the references of {digest}"


def alias_contradictions(
    alias: Alias | None, changes: Sequence[AliasChange], numbers: Collection[int]
) -> list[str]:
    """Rules 3 and 4 for one alias. alias: None where it does not exist. changes: all of its history."""
    sentences = []
    if [change.revision for change in changes] != list(range(1, len(changes) + 1)):
        sentences.append("its history has gaps")
    last = changes[-1] if changes else None
    if alias is None:
        if last is not None and last.targets:
            sentences.append("it does not exist, and its history does not end with that")
        return sentences
    if last is None or (last.revision, last.targets) != (alias.revision, alias.targets):
        sentences.append("it is not what its history ends with")
    return sentences + list(_targets(alias.targets, numbers))


def _targets(targets: Sequence[TrafficShare], numbers: Collection[int]) -> Iterator[str]:
    targeted = [share.version for share in targets]
    if not targets or any(share.weight <= 0 for share in targets):
        yield "its weights give no shares of the traffic"
    if len(set(targeted)) < len(targeted):
        yield "it targets a version twice"
    for number in sorted(set(targeted) - set(numbers)):
        yield f"it targets version {number}, which does not exist"


def _canaries(view: ModuleView) -> Iterator[str]:
    for name, (revision, canaries) in sorted(view.canaries.items()):
        alias = view.aliases.get(name)
        if alias is None or alias.revision != revision:
            yield f"alias {name}: its canaries are those of revision {revision}, at which it is not"
        elif len(alias.targets) < 2 or not {*canaries} <= {share.version for share in alias.targets}:
            yield f"alias {name}: a canary does not share it"


def _preloads(view: ModuleView) -> Iterator[str]:
    for number, worker in sorted(view.preloaded | view.preloads.keys()):
        where = f"the preload of version {number} on {worker or 'every worker'}"
        digest = view.preloads.get((number, worker))
        version = view.versions.get(number)
        if digest is None:
            yield f"{where} is unknown to workers"
        elif (number, worker) not in view.preloaded:
            yield f"{where} is unknown to the version"
        if version is None:
            yield f"{where} is of a version that does not exist"
        elif digest is not None and digest != version.digests[0]:
            yield f"{where} has another digest"


@dataclass(frozen=True, slots=True)
class DigestView:
    """All that Redis has of one digest, but its versions, at one moment."""

    is_referenced: bool
    is_condemned: bool
    live_claims: int
    is_endless: bool
    """A claim or a block of it has no end."""


def digest_contradictions(view: DigestView) -> list[str]:
    """Rule 6."""
    sentences = []
    if view.is_condemned and view.is_referenced:
        sentences.append("it is condemned, and a version references it")
    if view.is_condemned and view.live_claims:
        sentences.append("it is condemned, and a publisher claims it")
    if view.is_endless:
        sentences.append("a claim or a block of it never ends")
    return sentences


@dataclass(frozen=True, slots=True)
class AuditFact:
    """What an event says of a version, or of an alias."""

    action: str
    number: int = 0
    """Of a version that was published or deleted."""
    alias: str = ""
    revision: int = 0
    """At which the alias was after the change."""


def audit_fact(event: AuditEvent) -> AuditFact | None:
    """None for an event of another kind."""
    before, after = _object(event.before), _object(event.after)
    match event.action:
        case "publish" if "version" in after:
            return AuditFact("publish", number=int(after["version"]))
        case "delete" if "version" in before:
            return AuditFact("delete", number=int(before["version"]))
        case "drop" if "revision" in before:
            return AuditFact("drop", alias=str(before["name"]), revision=int(before["revision"]) + 1)
        case _ if after.keys() >= {"name", "targets", "revision"}:
            return AuditFact(event.action, alias=str(after["name"]), revision=int(after["revision"]))
    return None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def audit_contradictions(
    facts: Sequence[AuditFact], numbers: Collection[int], histories: Mapping[str, Sequence[AliasChange]]
) -> list[str]:
    """Rule 7 for one module.

    facts: of its events, oldest first; the oldest may be missing. numbers: of its versions. histories: all of
    each alias's.
    """
    published = [fact.number for fact in facts if fact.action == "publish"]
    deleted = [fact.number for fact in facts if fact.action == "delete"]
    sentences = []
    if published and published != list(range(published[0], published[0] + len(published))):
        sentences.append("the audit's published versions are not in order, or have gaps")
    if len(set(deleted)) < len(deleted):
        sentences.append("the audit has a version deleted twice")
    # The audit's last publication is the module's.
    newer = [number for number in sorted(numbers) if published and number > published[-1]]
    for number in [*published, *newer]:
        is_told_there = number in published and number not in deleted
        if (number in numbers) is not is_told_there:
            state = "is there" if number in numbers else "is not there"
            sentences.append(f"version {number} {state}, and the audit says otherwise")
    for alias in sorted({fact.alias for fact in facts if fact.alias}):
        of_alias = [fact for fact in facts if fact.alias == alias]
        wrong = _changes_of_alias(of_alias, histories.get(alias, ()))
        sentences += [f"alias {alias}: {what}" for what in wrong]
    return sentences


def _changes_of_alias(facts: Sequence[AuditFact], changes: Sequence[AliasChange]) -> Iterator[str]:
    revisions = [fact.revision for fact in facts]
    if revisions != sorted(set(revisions)):
        yield "the audit's changes are not in order, or there twice"
    in_audit = {fact.revision: fact.action for fact in facts}
    in_history = {change.revision: change.action for change in changes if change.revision >= revisions[0]}
    for revision in sorted(in_audit.keys() | in_history.keys()):
        if in_audit.get(revision) != in_history.get(revision):
            yield f"the audit and its history differ at revision {revision}"
