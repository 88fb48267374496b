"""Is the gateway ready? The question needs no key, and its cost does not depend on what is stored."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memserve.channels import NO_PROXY

# This service is healthy without workers. The inference service is not, and the workers are a part of their
# own.
SERVICE = "memserve.v1.MemoryService"
ANSWER_TIMEOUT_S = 1.0


def serves_memories(address: str) -> bool:
    """Whether the gateway at `address` takes calls. False while it starts or does not answer."""
    with grpc.insecure_channel(address, options=NO_PROXY) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=ANSWER_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
