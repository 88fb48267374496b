"""Lineages as messages. The gateway's edge uses both directions too."""

from __future__ import annotations

from memserve.client.wire.memory_values import member
from memserve.domain.lineage import Lineage, LineageEdge, LineageKind, LineageNode, LineageState
from memserve.pb.v1 import lineage_pb2 as pb

KINDS: dict[LineageKind, pb.LineageKind] = {
    kind: getattr(pb, f"LINEAGE_KIND_{kind.name}") for kind in LineageKind.known()
}
STATES: dict[LineageState, pb.LineageState] = {
    state: getattr(pb, f"LINEAGE_STATE_{state.name}") for state in LineageState.known()
}


def lineage_message(lineage: Lineage) -> pb.ShowLineageResponse:
    return pb.ShowLineageResponse(
        root=lineage.root,
        nodes=[
            pb.LineageNode(
                name=node.name,
                kind=KINDS.get(node.kind, pb.LINEAGE_KIND_UNSPECIFIED),
                state=STATES.get(node.state, pb.LINEAGE_STATE_UNSPECIFIED),
                detail=node.detail,
            )
            for node in lineage.nodes
        ],
        edges=[pb.LineageEdge(source=edge.source, made=edge.made, how=edge.how) for edge in lineage.edges],
        cut=lineage.cut,
    )


def lineage_of(message: pb.ShowLineageResponse) -> Lineage:
    return Lineage(
        message.root,
        tuple(
            LineageNode(
                node.name,
                member(KINDS, node.kind, LineageKind.UNKNOWN),
                member(STATES, node.state, LineageState.UNKNOWN),
                node.detail,
            )
            for node in message.nodes
        ),
        tuple(LineageEdge(edge.source, edge.made, edge.how) for edge in message.edges),
        tuple(message.cut),
    )
