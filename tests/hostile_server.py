"""A gateway whose every word is hostile: each RPC answers with messages in which all text is HOSTILE, or
fails with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from memserve.pb.v1 import activation_pb2, inference_pb2, lineage_pb2, memory_pb2, module_pb2, status_pb2

# Rich's markup and an emoji of its, a cleared screen, a window title (OSC), C1's CSI, a bell, a return, a
# line that looks like memserve's own, text turned round, and half of a surrogate pair cannot be sent.
MARKS = ("[/INST]", "[bold]x[/bold]", ":warning:")
HOSTILE = f"{' '.join(MARKS)} \x1b[2J\x1b]0;owned\x07\x9b31m\r\nmemserve: all is well\u202e\u2028 end"
FILES = (activation_pb2, inference_pb2, lineage_pb2, memory_pb2, module_pb2, status_pb2)
NUMBERS = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}
# Not free text: a newer server's kinds are the client's to understand.
FIXED = {"kind": "lora"}
# Lists that have an entry for each file of an upload: a LoRA has two files.
LENGTHS = {"received_bytes": 2}


def hostile_messages(descriptor: Descriptor, depth: int = 0) -> list[Any]:
    """One message for each choice of its first oneof; one where it has none."""
    oneofs = [oneof for oneof in descriptor.oneofs if len(oneof.fields) > 1]
    choices = [field.name for field in oneofs[0].fields] if oneofs else [None]
    messages = []
    for choice in choices:
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if field.containing_oneof in oneofs and field.name != choice:
                continue
            if field.name == "next_page_token":
                continue
            value: Any
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                if depth > 5:
                    continue
                if field.message_type.GetOptions().map_entry:
                    value = hostile_messages(
                        field.message_type.fields_by_name["value"].message_type, depth + 1
                    )[0]
                    getattr(message, field.name)[HOSTILE].CopyFrom(value)
                    continue
                value = hostile_messages(field.message_type, depth + 1)[0]
                getattr(message, field.name).add().CopyFrom(value) if field.is_repeated else getattr(
                    message, field.name
                ).CopyFrom(value)
                continue
            if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
                value = b"x" if field.type == FieldDescriptor.TYPE_BYTES else FIXED.get(field.name, HOSTILE)
            elif field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
                value = field.enum_type.values[-1].number
            elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
                value = True
            else:
                value = 1.5 if field.cpp_type in NUMBERS else 1
            if field.is_repeated:
                getattr(message, field.name).extend([value] * LENGTHS.get(field.name, 1))
            else:
                setattr(message, field.name, value)
        messages.append(message)
    return messages


@contextmanager
def hostile_server(*, fails: bool, code: grpc.StatusCode = grpc.StatusCode.INTERNAL) -> Iterator[str]:
    """Yields its address. fails: every call ends with that status and HOSTILE's words; metadata of gRPC
    cannot carry all of its bytes.
    """
    server = grpc.server(ThreadPoolExecutor(4))
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            handlers = {method.name: _handler(method, code if fails else None) for method in service.methods}
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service.full_name, handlers),)
            )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def _handler(method: Any, failure: grpc.StatusCode | None) -> Any:

    def answers(request: Any, context: grpc.ServicerContext) -> list[Any]:
        if method.client_streaming:
            list(request)
        if failure is not None:
            context.abort(failure, HOSTILE)
        # A list that is asked for again from its end is empty.
        last = getattr(request, "after_event_id", "") or getattr(request, "after_revision", 0)
        if last and method.name.startswith("List"):
            return [GetMessageClass(method.output_type)()]
        return hostile_messages(method.output_type)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from answers(request, context)

    def unary(request: Any, context: grpc.ServicerContext) -> Any:
        return answers(request, context)[0]

    options = {
        "request_deserializer": GetMessageClass(method.input_type).FromString,
        "response_serializer": lambda message: message.SerializeToString(),
    }
    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, **options)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, **options)
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(unary, **options)
    return grpc.unary_unary_rpc_method_handler(unary, **options)
