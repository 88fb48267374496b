"""Erasures as messages. The gateway's edge uses both directions too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memserve.client.wire.memories import places_of
from memserve.client.wire.memory_values import member
from memserve.domain import TrafficShare
from memserve.domain.lineage import Erasure, ErasureState, MovedAlias, Retraining
from memserve.pb.v1 import erasure_pb2 as pb
from memserve.pb.v1 import memory_pb2, module_pb2

STATES: dict[ErasureState, pb.ErasureState] = {
    state: getattr(pb, f"ERASURE_STATE_{state.name}") for state in ErasureState.known()
}


def erasure_message(erasure: Erasure) -> pb.Erasure:
    """Without its places."""
    return pb.Erasure(
        erasure_id=erasure.erasure_id,
        namespace=erasure.namespace,
        memory_id=erasure.memory_id,
        state=STATES[erasure.state],
        at_s=erasure.at_s,
        derived=erasure.derived,
        retired=erasure.retired,
        aliases=map(_alias_message, erasure.aliases),
        retraining=map(_retraining_message, erasure.retraining),
        pending=erasure.pending,
        seconds=erasure.seconds,
    )


def erasure_of(message: pb.Erasure, places: Iterable[memory_pb2.ErasedPlace]) -> Erasure:
    return Erasure(
        erasure_id=message.erasure_id,
        namespace=message.namespace,
        memory_id=message.memory_id,
        state=member(STATES, message.state, ErasureState.UNKNOWN),
        at_s=message.at_s,
        places=places_of(places),
        derived=tuple(message.derived),
        retired=tuple(message.retired),
        aliases=tuple(map(_alias_of, message.aliases)),
        retraining=tuple(map(_retraining_of, message.retraining)),
        pending=tuple(message.pending),
        seconds=message.seconds,
    )


def _alias_message(alias: MovedAlias) -> pb.MovedAlias:
    return pb.MovedAlias(
        module=alias.module,
        alias=alias.alias,
        before=_share_messages(alias.before),
        after=_share_messages(alias.after),
        why=alias.why,
        revision=alias.revision,
    )


def _alias_of(message: pb.MovedAlias) -> MovedAlias:
    return MovedAlias(
        message.module,
        message.alias,
        _shares_of(message.before),
        _shares_of(message.after),
        message.why,
        message.revision,
    )


def _retraining_message(entry: Retraining) -> pb.Retraining:
    return pb.Retraining(
        module=entry.module,
        kind=entry.kind,
        retired=entry.retired,
        memories=[pb.MemoryName(namespace=namespace, memory_id=name) for namespace, name in entry.memories],
        queued_s=entry.queued_s,
        seed=entry.seed,
        budget_s=entry.budget_s,
        made=entry.made,
    )


def _retraining_of(message: pb.Retraining) -> Retraining:
    return Retraining(
        module=message.module,
        kind=message.kind,
        retired=message.retired,
        memories=tuple((name.namespace, name.memory_id) for name in message.memories),
        queued_s=message.queued_s,
        seed=message.seed,
        budget_s=message.budget_s,
        made=message.made,
    )


def _share_messages(shares: Sequence[TrafficShare]) -> list[module_pb2.TrafficShare]:
    return [module_pb2.TrafficShare(version=share.version, weight=share.weight) for share in shares]


def _shares_of(messages: Iterable[module_pb2.TrafficShare]) -> tuple[TrafficShare, ...]:
    return tuple(TrafficShare(share.version, share.weight) for share in messages)
