"""Converts the messages of `ActivationService` to domain values."""

from __future__ import annotations

from memserve.api.grpc.convert.inference import conversation
from memserve.domain import Message
from memserve.pb.v1 import activation_pb2
from memserve.policy.modules.references import parse_reference


def prefix_messages(prefix: activation_pb2.Prefix) -> tuple[Message, ...]:
    """The messages of a prefix. Its module reference is checked too. Raises InvalidField."""
    messages = conversation("prefix.messages", prefix.messages)
    if prefix.module:
        parse_reference("prefix.module", prefix.module)
    return messages
