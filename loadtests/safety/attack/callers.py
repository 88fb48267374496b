"""Who gets in by a key: every RPC without one, with a wrong and a revoked one, and with one of each role."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections import Counter
from typing import Any

import grpc
from google.protobuf import message_factory

from loadtests.safety.attack.world import TENANT, Attack, World, refusal_of
from memserve.api.grpc.server import SERVICES
from memserve.client import Client
from memserve.demo import ADAPTERS_DIR
from memserve.domain import KeyRole
from memserve.gateway.access.keys import add_key, revoke_key
from memserve.gateway.access.roles import NEEDED
from memserve.pb.v1 import activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2

FILES = (activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2)
FOLLOW_S = 5.0
# An RPC that streams for ever, or works for long, is ended: it was let in.
CALL_S = 1.0
BEARERS = (
    "",
    "Bearer",
    "Bearer ",
    "Basic YWRtaW46YWRtaW4=",
    "Bearer wrong-key-0000",
    "Bearer null",
    "bearer x",
    "Bearer " + "k" * 4000,
)


def call_every_rpc(address: str, authorization: str) -> dict[str, grpc.StatusCode]:
    """The status of each RPC with an empty message. A call that is answered, or refused for its message, was
    let in.
    """
    statuses = {}
    with grpc.insecure_channel(address) as channel:
        for file in FILES:
            for service in file.DESCRIPTOR.services_by_name.values():
                if service.full_name not in SERVICES:
                    continue
                for method in service.methods:
                    statuses[method.name] = _call(channel, service.full_name, method, authorization)
    return statuses


def _call(channel: grpc.Channel, service: str, method: Any, authorization: str) -> grpc.StatusCode:
    request = message_factory.GetMessageClass(method.input_type)()
    answer = message_factory.GetMessageClass(method.output_type).FromString
    streaming = (method.client_streaming, method.server_streaming)
    kind = "_".join("stream" if streams else "unary" for streams in streaming)
    rpc = getattr(channel, kind)(f"/{service}/{method.name}", type(request).SerializeToString, answer)
    metadata = (("authorization", authorization),) if authorization else ()
    try:
        call = rpc(iter([request]) if method.client_streaming else request, timeout=CALL_S, metadata=metadata)
        if method.server_streaming:
            next(call)
    except StopIteration:
        pass
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
        return code
    return grpc.StatusCode.OK


def without_a_key(world: World) -> tuple[str, bool]:
    refused = Counter[bool]()
    for authorization in BEARERS:
        statuses = call_every_rpc(world.stack.address, authorization)
        refused.update(status is grpc.StatusCode.UNAUTHENTICATED for status in statuses.values())
    return (
        f"{refused[True]} of {refused.total()} calls refused ({len(NEEDED)} RPCs, {len(BEARERS)} headers)",
        not refused[False],
    )


def with_each_role(world: World) -> tuple[str, bool]:
    order, wrong, calls = list(KeyRole), [], 0
    for role, key in world.keys.items():
        for rpc, status in call_every_rpc(world.stack.address, f"Bearer {key}").items():
            calls += 1
            allowed = order.index(role) >= order.index(NEEDED[rpc])
            denied = status in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
            if allowed == denied:
                wrong.append(f"{rpc} as {role}: {status.name}")
    return f"{calls} calls with a key of each role: {len(wrong)} not as the table says" + "".join(
        f"; {w}" for w in wrong[:3]
    ), not wrong


def beyond_the_role(world: World) -> tuple[str, bool]:
    with world.client(KeyRole.ADMIN) as admin:
        worker = admin.status().workers[0]
    with world.client(KeyRole.WRITE) as writer:
        pinned = [
            refusal_of(lambda: writer.generate("Hello.", worker_id=worker.worker_id)),
            refusal_of(lambda: list(writer.activation.warm("Hello.", worker_id=worker.worker_id))),
        ]
        seen = writer.status().workers[0]
        usage = writer.activation.usage()
    hidden = not (seen.address or seen.metrics_address or seen.pid or usage.cache_stored_bytes)
    held = (
        hidden and all(code is grpc.StatusCode.PERMISSION_DENIED for code in pinned) and bool(worker.address)
    )
    return (
        f"worker_id: {', '.join(code.name for code in pinned)}; addresses and others' bytes "
        f"{'hidden' if hidden else 'shown'}",
        held,
    )


def revoked_key(world: World) -> tuple[str, bool]:
    key = add_key(world.keys_file, "passing", TENANT, KeyRole.READ, time.time())
    with Client(world.stack.address, key, 5.0) as client:
        let_in_s = _until(lambda: refusal_of(client.status) is grpc.StatusCode.OK)
        revoke_key(world.keys_file, "passing")
        refused_s = _until(lambda: refusal_of(client.status) is grpc.StatusCode.UNAUTHENTICATED)
    held = let_in_s is not None and refused_s is not None
    return f"let in after {let_in_s or -1:.1f} s, refused {refused_s or -1:.1f} s after it was revoked", held


def sighup_and_broken_file(world: World) -> tuple[str, bool]:
    gateway = world.stack.gateway_process
    assert gateway is not None
    pid, content = gateway.pid, world.keys_file.read_bytes()
    try:
        world.keys_file.write_bytes(b'{"keys": [{"na')
        os.kill(pid, signal.SIGHUP)
        time.sleep(2.5)
        with world.client(KeyRole.READ) as reader:
            still = refusal_of(reader.status)
        anonymous = refusal_of(Client(world.stack.address, "", 5.0).status)
    finally:
        world.keys_file.write_bytes(content)
    said = "stay as they were" in world.log_of("gateway")
    time.sleep(1.5)
    same = world.stack.gateway_process is not None and world.stack.gateway_process.pid == pid
    held = still is grpc.StatusCode.OK and anonymous is grpc.StatusCode.UNAUTHENTICATED and said and same
    return (
        f"the old keys {'count on' if still is grpc.StatusCode.OK else 'are lost'}, "
        f"{'said' if said else 'not said'}; " + ("the gateway lives" if same else "the gateway ended"),
        held,
    )


def guess_keys_from_the_audit(world: World) -> tuple[str, bool]:
    with world.client(KeyRole.WRITE) as writer:
        writer.modules.publish("attacked", ADAPTERS_DIR / "harbour")
        events = [event.principal for event in writer.modules.audit()]
    digests = {hashlib.sha256(key.encode()).hexdigest() for key in (*world.keys.values(), world.other_key)}
    parts = {part for principal in events for part in principal.split() if len(part) >= 8}
    leaked = [part for part in parts for digest in digests if part in digest]
    principals = ", ".join(sorted(set(events)))
    return f"{len(events)} events; principals: {principals}; {len(leaked)} begin a key's digest", bool(
        events
    ) and not leaked


def _until(holds: Any) -> float | None:
    began_s = time.monotonic()
    while time.monotonic() - began_s < FOLLOW_S:
        if holds():
            return time.monotonic() - began_s
        time.sleep(0.05)
    return None


ATTACKS = (
    Attack("3", "every RPC without a key and with a wrong one", without_a_key),
    Attack("3", "every RPC with a key of each role", with_each_role),
    Attack("3", "name a worker, see addresses and others' bytes as `write`", beyond_the_role),
    Attack("3", "use a key after it was revoked", revoked_key),
    Attack("3", "SIGHUP with a broken file of keys", sighup_and_broken_file),
    Attack("3", "test guessed keys against the audit's principals", guess_keys_from_the_audit),
)
