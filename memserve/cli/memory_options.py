"""Options and arguments that the commands on memories share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from memserve.domain import Link, LinkKind, MemoryKind, MetadataValue, NewMemory, Place, WritePolicy
from memserve.errors import StartupError

Namespace = Annotated[str, typer.Argument(help="The namespace that the memory is in.")]
MemoryId = Annotated[str, typer.Argument(help="As `memserve remember` and `memserve search` print it.")]
Namespaces = Annotated[list[str], typer.Option("--namespace", "-n", help="Which namespace; may be repeated.")]
Filter = Annotated[
    str, typer.Option("--filter", help='An expression, such as `metadata.city == "Oslo" and version > 1`.')
]
Kinds = Annotated[
    list[MemoryKind] | None, typer.Option("--kind", help="Only memories of this kind; may be repeated.")
]
ExpectedVersion = Annotated[
    int, typer.Option("--expect-version", min=0, help="Fail where another version is current. 0: any.")
]


@dataclass(frozen=True, slots=True)
class ContentOptions:
    """What is said of a memory beside its text."""

    source: Annotated[str, typer.Option(help="Where it comes from.")] = ""
    keyword: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None
    kind: Annotated[
        MemoryKind | None, typer.Option(help="fact, episode, reflection, procedure or passage.")
    ] = None
    metadata: Annotated[
        list[str] | None,
        typer.Option("--meta", help="KEY=VALUE; 1, 1.5 and true are typed. May be repeated."),
    ] = None
    valid_from_s: Annotated[
        float | None, typer.Option("--valid-from", help="It holds from then on, seconds since the epoch.")
    ] = None
    valid_until_s: Annotated[
        float | None, typer.Option("--valid-until", help="It holds until then, seconds since the epoch.")
    ] = None
    applies_when: Annotated[
        str, typer.Option(help='A condition on the request\'s context, as `user.role == "nurse"`.')
    ] = ""
    strength: Annotated[float | None, typer.Option(min=0, max=10, help="How much it counts. Default: 1.")] = (
        None
    )
    link: Annotated[list[str] | None, typer.Option(help="KIND:ID or KIND:NAMESPACE/ID; may be repeated.")] = (
        None
    )
    within: Annotated[str, typer.Option(help="The document or session that it belongs to.")] = ""
    position: Annotated[int, typer.Option(min=0, help="Its place there, from 0.")] = 0
    pin: Annotated[bool, typer.Option("--pin", help="Keep it in its namespace's warm prefix.")] = False

    def fields(self) -> dict[str, Any]:
        """What is said, by the client's names; what is not said is left out. Raises StartupError."""
        said: dict[str, Any] = {
            "source": self.source,
            "keywords": self.keyword,
            "kind": self.kind,
            "metadata": metadata_of(self.metadata or ()),
            "valid_from_s": self.valid_from_s,
            "valid_until_s": self.valid_until_s,
            "applies_when": self.applies_when,
            "strength": self.strength,
            "links": [link_of(link) for link in self.link or ()],
            "place": Place(self.within, self.position) if self.within else None,
            "pinned": self.pin,
        }
        return {
            name: value
            for name, value in said.items()
            if value is not None and (value or isinstance(value, float)) and value is not False
        }


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What a write does with what is near it."""

    no_relations: Annotated[
        bool, typer.Option("--no-relations", help="Do not look for duplicates and contradictions.")
    ] = False
    supersede: Annotated[
        bool, typer.Option("--supersede", help="Supersede what the new memory is an update of.")
    ] = False
    skip_duplicate: Annotated[
        bool, typer.Option("--skip-duplicate", help="Store nothing that a memory says already.")
    ] = False
    surprise: Annotated[
        bool, typer.Option("--surprise", help="Store only what the served model does not know already.")
    ] = False

    def policy(self) -> WritePolicy:
        return WritePolicy(self.no_relations, self.supersede, self.skip_duplicate, self.surprise)


def metadata_of(pairs: Sequence[str]) -> dict[str, MetadataValue]:
    """Of KEY=VALUE. Raises StartupError."""
    values: dict[str, MetadataValue] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise StartupError(f"{pair!r} must be KEY=VALUE")
        values[key] = typed(value)
    return values


def typed(value: str) -> MetadataValue:
    """1 is a whole number, 1.5 a number, true and false are truth values; all else, and "1", is text."""
    if value in ("true", "false"):
        return value == "true"
    if len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    for convert in (int, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value


def link_of(text: str) -> Link:
    """Of KIND:ID or KIND:NAMESPACE/ID. Raises StartupError."""
    kind, _, target = text.partition(":")
    namespace, slash, memory_id = target.partition("/")
    if kind not in LinkKind.known() or not target:
        kinds = ", ".join(LinkKind.known())
        raise StartupError(f"--link {text!r} must be KIND:ID, where the kind is one of {kinds}")
    return Link(LinkKind(kind), memory_id, namespace) if slash else Link(LinkKind(kind), target)


def new_memory_of(line: str) -> NewMemory:
    """Of a JSON object with the fields of a NewMemory. Raises StartupError."""
    try:
        said = json.loads(line)
    except ValueError as error:
        raise StartupError(f"not JSON: {error}") from None
    if not isinstance(said, dict):
        raise StartupError("must be a JSON object")
    known = {field.name for field in fields(NewMemory)}
    for name in said:
        if name not in known:
            raise StartupError(f"{name!r} must be one of {', '.join(sorted(known))}")
    for name in ("namespace", "text"):
        if name not in said:
            raise StartupError(f"{name} is missing")
    try:
        if "kind" in said:
            said["kind"] = MemoryKind(said["kind"])
        if "keywords" in said:
            said["keywords"] = tuple(said["keywords"])
        if "links" in said:
            said["links"] = tuple(
                Link(LinkKind(link["kind"]), link["memory_id"], link.get("namespace", ""))
                for link in said["links"]
            )
        if "place" in said:
            place = said["place"]
            said["place"] = Place(**{**place, "headings": tuple(place.get("headings", ()))})
        return NewMemory(**said)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise StartupError(f"has a field that cannot be read: {error}") from None
