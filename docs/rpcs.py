"""The page of RPCs, made from the .proto files: services, messages, fields, and the comments above them."""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc
from layout import filled, head, table

from memserve.gateway.access.roles import NEEDED

PROTOS = Path(__file__).resolve().parents[1] / "protos"
INTRODUCTION = """
The services of `memserve.v1` are for clients. `memserve.worker.v1` is spoken between gateway and worker only.
A call carries its key in the metadata `authorization: Bearer <key>`. The last column names the least role
that may call; [secure it](../how-to/secure-it.md) explains roles, and [errors](errors.md) the refusals.
`grpc.health.v1` says SERVING while a worker is ready.
"""

SCALARS = {
    FieldDescriptorProto.TYPE_DOUBLE: "double",
    FieldDescriptorProto.TYPE_FLOAT: "float",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_UINT64: "uint64",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
}
# The numbers of these in a .proto file's own description, which its comments are found by.
MESSAGES, ENUMS, SERVICES, METHODS, FIELDS, ENUM_VALUES = 4, 5, 6, 2, 2, 2


class Proto:
    """One .proto file and its comments."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self._comments = {
            tuple(place.path): " ".join(place.leading_comments.split())
            for place in file.source_code_info.location
            if place.leading_comments
        }

    def comment(self, *path: int) -> str:
        return self._comments.get(path, "")


def protos() -> list[Proto]:
    """Every .proto file, as protoc reads it."""
    with tempfile.TemporaryDirectory() as scratch:
        described = Path(scratch) / "all.binpb"
        sources = [str(path) for path in sorted(PROTOS.glob("memserve/**/*.proto"))]
        arguments = ["protoc", f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
        arguments += ["--include_source_info", f"--descriptor_set_out={described}", *sources]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed; see above")
        return [Proto(file) for file in FileDescriptorSet.FromString(described.read_bytes()).file]


def rpcs_page() -> str:
    text = head("RPCs", INTRODUCTION)
    described = protos()
    for proto in described:
        for number, service in enumerate(proto.file.service):
            text += (
                f"\n## {proto.file.package}.{service.name}\n\n{filled(proto.comment(SERVICES, number))}\n\n"
            )
            rows = []
            for index, method in enumerate(service.method):
                role = NEEDED.get(method.name) if proto.file.package == "memserve.v1" else None
                asked = ("stream of " if method.client_streaming else "") + link(method.input_type, described)
                given = ("stream of " if method.server_streaming else "") + link(
                    method.output_type, described
                )
                comment = proto.comment(SERVICES, number, METHODS, index)
                rows.append(
                    (
                        f"`{service.name}.{method.name}`",
                        asked,
                        given,
                        comment,
                        f"`{role}`" if role else "gateways",
                    )
                )
            text += table(("RPC", "request", "response", "what it does", "role"), rows)
    for proto in described:
        text += f"\n## Messages of {proto.file.name}\n"
        for number, message in enumerate(proto.file.message_type):
            text += message_text(proto, number, message, described)
        for number, enum in enumerate(proto.file.enum_type):
            text += enum_text(proto, number, enum)
    return text


def message_text(proto: Proto, number: int, message: DescriptorProto, described: list[Proto]) -> str:
    text = f"\n### {anchor_name(proto.file.package, message.name)}\n"
    if comment := proto.comment(MESSAGES, number):
        text += f"\n{filled(comment)}\n"
    rows = [
        (
            f"`{field.name}`",
            str(field.number),
            field_type(field, message, described),
            proto.comment(MESSAGES, number, FIELDS, index),
        )
        for index, field in enumerate(message.field)
    ]
    return text + ("\n" + table(("field", "number", "type", "meaning"), rows) if rows else "\nNo fields.\n")


def enum_text(proto: Proto, number: int, enum: EnumDescriptorProto) -> str:
    text = f"\n### {anchor_name(proto.file.package, enum.name)}\n"
    if comment := proto.comment(ENUMS, number):
        text += f"\n{filled(comment)}\n"
    rows = [
        (f"`{value.name}`", str(value.number), proto.comment(ENUMS, number, ENUM_VALUES, index))
        for index, value in enumerate(enum.value)
    ]
    return text + "\n" + table(("value", "number", "meaning"), rows)


def field_type(field: FieldDescriptorProto, message: DescriptorProto, described: list[Proto]) -> str:
    kind = SCALARS.get(field.type) or link(field.type_name, described)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {kind}"
    if field.proto3_optional:
        return f"{kind}, may be absent"
    if field.HasField("oneof_index"):
        return f"{kind}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return kind


def anchor_name(package: str, name: str) -> str:
    """A heading that is unique on the page: worker.v1 has messages of the same names as v1."""
    return f"{package.removeprefix('memserve.')}.{name}"


def link(type_name: str, described: list[Proto]) -> str:
    package, _, name = type_name.removeprefix(".").rpartition(".")
    heading = anchor_name(package, name)
    known = any(proto.file.package == package for proto in described)
    return f"[{name}](#{heading.lower().replace('.', '')})" if known else f"`{type_name}`"
