"""One graph of what was made of what, and walks through it. It is read from the records, and not stored."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memserve.domain import KeptAnswer, LinkKind, Memory, MemoryState, ModuleVersion
from memserve.domain.lineage import (
    Lineage,
    LineageEdge,
    LineageKind,
    LineageNode,
    LineageState,
    MemoryVersionName,
    memories_of,
)
from memserve.errors import InvalidField
from memserve.policy.lineage.sources import Versions

DEPTH_MAX = 16
NODES_MAX = 2000
SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class KnownMemory:
    """What is known of a memory now. None for a memory that is not there."""

    version: int
    state: MemoryState
    text: str
    superseded_by: str = ""
    """`namespace/id`; empty: nothing has taken its place."""
    derived_from: tuple[tuple[str, str], ...] = ()
    """Namespace and id of those that its links name as what it was made of."""


Memories = Mapping[tuple[str, str], KnownMemory | None]
"""By namespace and id. A memory that is missing here was not looked up."""


@dataclass(frozen=True, slots=True)
class KvFacts:
    """Computed state, as far as something says of what it was made."""

    what: str
    """Its name behind `kv:`."""
    made_of: tuple[str, ...]
    """Names of nodes."""
    detail: str


@dataclass(slots=True)
class LineageGraph:
    """Nodes by name, and steps between them."""

    nodes: dict[str, LineageNode] = field(default_factory=dict)
    edges: dict[tuple[str, str], str] = field(default_factory=dict)
    """From source and made to how."""

    def add(self, node: LineageNode) -> None:
        self.nodes[node.name] = node

    def join(self, source: str, made: str, how: str) -> None:
        self.edges.setdefault((source, made), how)

    def add_memory(self, namespace: str, memory_id: str, known: KnownMemory | None) -> str:
        """A node for all versions of a memory that are in the graph, and the one that is current."""
        name = f"memory:{namespace}/{memory_id}"
        memories = {(namespace, memory_id): known}
        if known is not None:
            current = memory_node(MemoryVersionName(namespace, memory_id, known.version), memories)
            self.nodes.setdefault(current.name, current)
        self.add(replace(memory_node(MemoryVersionName(namespace, memory_id, 0), memories), name=name))
        if known is not None and known.state is MemoryState.LIVE:
            self.add(LineageNode(name, LineageKind.MEMORY, LineageState.CURRENT, _shown(known.text)))
        for version in [each for each in self.nodes if each.startswith(f"{name}@")]:
            self.join(name, version, "version")
            for source, made in list(self.edges):
                if made == version and self.edges[source, made] == "derived":
                    self.join(source, name, "derived")
        return name

    def around(self, root: str, *, up: bool, down: bool, depth: int, most: int) -> Lineage:
        """What is at most so many steps from the root: up to what it was made of, down to what came of it.

        Each direction is walked by itself: what else was made of a source is not part of it. The nearest come
        first where there are more than `most` nodes. Raises InvalidField for bounds out of range.
        """
        if not 1 <= depth <= DEPTH_MAX:
            raise InvalidField("depth", f"must be 1 to {DEPTH_MAX}")
        if not 1 <= most <= NODES_MAX:
            raise InvalidField("limit", f"must be 1 to {NODES_MAX}")
        made: dict[str, list[str]] = defaultdict(list)
        sources: dict[str, list[str]] = defaultdict(list)
        for source, product in self.edges:
            made[source].append(product)
            sources[product].append(source)
        seen: dict[str, None] = {root: None}
        cut: list[str] = []
        steps: set[tuple[str, str]] = set()
        for wanted, nexts, is_up in ((up, sources, True), (down, made, False)):
            if wanted:
                steps |= self._walk(root, nexts, seen, cut, depth=depth, most=most, is_up=is_up)
        edges = [edge for edge in self.edges if edge in steps]
        return Lineage(
            root,
            tuple(self._node(name) for name in seen),
            tuple(LineageEdge(source, product, self.edges[source, product]) for source, product in edges),
            tuple(cut),
        )

    def _walk(
        self,
        root: str,
        nexts: Mapping[str, Sequence[str]],
        seen: dict[str, None],
        cut: list[str],
        *,
        depth: int,
        most: int,
        is_up: bool,
    ) -> set[tuple[str, str]]:
        """Add what is reached to `seen`, and what is left out to `cut`. Returns the steps."""
        steps: set[tuple[str, str]] = set()
        front: deque[tuple[str, int]] = deque([(root, 0)])
        walked = {root}
        left_out = 0
        while front:
            name, distance = front.popleft()
            following = nexts.get(name, ())
            if following and distance == depth:
                cut.append(f"{name}: {len(following)} more beyond the depth of {depth}")
                continue
            for other in following:
                if other not in seen and len(seen) >= most:
                    left_out += 1
                    continue
                seen.setdefault(other)
                steps.add((other, name) if is_up else (name, other))
                if other not in walked:
                    walked.add(other)
                    front.append((other, distance + 1))
        if left_out:
            cut.append(f"{left_out} steps to more than {most} nodes")
        return steps

    def _node(self, name: str) -> LineageNode:
        return self.nodes.get(name) or LineageNode(
            name, kind_of(name), LineageState.GONE, "not kept any more"
        )


def kind_of(name: str) -> LineageKind:
    """Of a node's name."""
    prefix = name.partition(":")[0]
    return LineageKind(prefix) if prefix in tuple(LineageKind.known()) else LineageKind.UNKNOWN


def memory_node(name: MemoryVersionName, memories: Memories) -> LineageNode:
    if name.memory not in memories:
        return LineageNode(f"memory:{name}", LineageKind.MEMORY, LineageState.UNKNOWN, "not looked up")
    known = memories[name.memory]
    if known is None:
        return LineageNode(
            f"memory:{name}", LineageKind.MEMORY, LineageState.GONE, "no memory has this name any more"
        )
    state, detail = LineageState.CURRENT, _shown(known.text)
    if known.state is MemoryState.FORGOTTEN:
        state, detail = LineageState.OUT_OF_DATE, "forgotten"
    elif known.state is MemoryState.SUPERSEDED:
        state, detail = LineageState.OUT_OF_DATE, f"superseded by {known.superseded_by}"
    elif known.version > name.version:
        state, detail = LineageState.OUT_OF_DATE, f"version {known.version} is current: {_shown(known.text)}"
    return LineageNode(f"memory:{name}", LineageKind.MEMORY, state, detail)


def build(
    versions: Versions,
    memories: Memories,
    answers: Iterable[KeptAnswer],
    kv: Iterable[KvFacts] = (),
    aliases: Mapping[str, Sequence[str]] | None = None,
    links: Iterable[tuple[MemoryVersionName, MemoryVersionName]] = (),
) -> LineageGraph:
    """The graph of all that is given.

    aliases: by `name@number`, those that point at the version. links: a memory, and one derived from it.
    """
    graph = LineageGraph()
    for source, derived in links:
        graph.add(memory_node(source, memories))
        graph.add(memory_node(derived, memories))
        graph.join(f"memory:{source}", f"memory:{derived}", "derived")
    outdated: set[str] = set()
    # Equal contents were made of the same, whatever the record of one of them says.
    names_of: defaultdict[str, dict[MemoryVersionName, None]] = defaultdict(dict)
    references_of: defaultdict[str, list[str]] = defaultdict(list)
    for version in versions.all:
        names_of[version.digest] |= dict.fromkeys(memories_of(version.sources))
        references_of[version.digest].append(version.reference)
    for version in versions.all:
        for name in names_of[version.digest]:
            node = memory_node(name, memories)
            graph.add(node)
            graph.join(node.name, f"module:{version.reference}", "distilled")
            if name.memory in memories and node.state is not LineageState.CURRENT:
                outdated.add(version.digest)
        for parent in version.parents:
            known = [f"module:{reference}" for reference in references_of.get(parent, ())]
            for source_name in known or [f"module:digest {parent[:12]}"]:
                graph.join(source_name, f"module:{version.reference}", "composed")
    old = {version.digest for version in versions.with_compositions(_with_digest(versions, outdated))}
    for version in versions.all:
        graph.add(_version_node(version, version.digest in old, (aliases or {}).get(version.reference, ())))
    for answer in answers:
        _add_answer(graph, answer, memories)
    for fact in kv:
        node = LineageNode(f"kv:{fact.what}", LineageKind.KV, LineageState.CURRENT, fact.detail)
        graph.add(node)
        for made_of in fact.made_of:
            graph.join(made_of, node.name, "computed")
    return graph


def known_memory(memory: Memory) -> KnownMemory:
    by = memory.superseded_by
    return KnownMemory(
        memory.version,
        memory.state,
        memory.text,
        "" if by is None else f"{by.namespace or memory.namespace}/{by.memory_id}",
        tuple(
            (link.namespace or memory.namespace, link.memory_id)
            for link in memory.links
            if link.kind is LinkKind.DERIVED_FROM
        ),
    )


def tree_lines(lineage: Lineage, *, up: bool) -> Iterator[tuple[int, LineageNode, str]]:
    """The nodes on one side of the root as a tree: how deep each is, the node, and how it was made.

    A node that was shown before comes again without what is behind it.
    """
    nodes = {node.name: node for node in lineage.nodes}
    nexts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for edge in lineage.edges:
        ends = (edge.made, edge.source) if up else (edge.source, edge.made)
        nexts[ends[0]].append((ends[1], edge.how))
    shown = {lineage.root}
    waiting = [(1, *following) for following in reversed(nexts[lineage.root])]
    while waiting:
        depth, name, how = waiting.pop()
        is_again = name in shown
        node = nodes.get(name) or LineageNode(name, kind_of(name), LineageState.UNKNOWN)
        yield depth, replace(node, detail="shown above") if is_again and nexts[name] else node, how
        if not is_again:
            shown.add(name)
            waiting += [(depth + 1, *following) for following in reversed(nexts[name])]


def _with_digest(versions: Versions, digests: set[str]) -> list[ModuleVersion]:
    return [version for version in versions.all if version.digest in digests]


def _version_node(version: ModuleVersion, is_old: bool, aliases: Sequence[str]) -> LineageNode:
    served = f"alias {', '.join(aliases)}" if aliases else "no alias"
    old = "; what it was made of has changed" if is_old else ""
    state = LineageState.OUT_OF_DATE if is_old else LineageState.CURRENT
    detail = f"{version.kind} {version.digest[:12]}, {served}{old}"
    return LineageNode(f"module:{version.reference}", LineageKind.MODULE, state, detail)


def _add_answer(graph: LineageGraph, answer: KeptAnswer, memories: Memories) -> None:
    name = f"answer:{answer.request_id}"
    detail = f"{answer.output_tokens} tokens by {answer.worker_id}"
    graph.add(LineageNode(name, LineageKind.ANSWER, LineageState.CURRENT, detail))
    for passage in answer.passages:
        memory = MemoryVersionName(passage.namespace, passage.memory_id, passage.version)
        graph.add(memory_node(memory, memories))
        graph.join(f"memory:{memory}", name, "recalled")
    for module in answer.modules:
        graph.join(f"module:{module.name}@{module.version}", name, "answered")


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
