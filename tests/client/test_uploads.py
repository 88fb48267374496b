"""Which files of a folder a client sends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from memserve.client import AsyncClient
from memserve.client.uploads import PROBES_FILE, Origin, kind_of_folder, upload_of
from memserve.domain.kinds import KINDS, KindRow
from memserve.memory.modules.kinds import table
from memserve.pb.v1 import module_pb2 as pb
from memserve.pb.v1 import module_pb2_grpc as rpc


def test_probes_are_named_as_the_gateway_names_them() -> None:
    assert PROBES_FILE == table.PROBES_FILE


def test_the_first_file_of_a_kind_tells_the_kinds_apart() -> None:
    assert len({row.files[0] for row in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize("row", KINDS.values(), ids=KINDS)
def test_a_folder_is_sent_without_the_files_that_are_no_module(row: KindRow, tmp_path: Path) -> None:
    for name in (*row.files, *row.optional_files, PROBES_FILE, "README.md"):
        (tmp_path / name).write_bytes(b"x")
    header = upload_of("tone", tmp_path, "", Origin()).header
    assert [file.file_name for file in header.files] == [*row.files, *row.optional_files, PROBES_FILE]
    assert kind_of_folder(tmp_path) == row.kind


def test_a_folder_that_is_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json or expert_config\.json"):
        upload_of("tone", tmp_path, "", Origin())


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"is a pickle.*convert it with: python -c"):
        upload_of("tone", tmp_path, "", Origin())


class ForgetfulGateway(rpc.ModuleServiceServicer):  # type: ignore[misc]
    """It says that it has the beginning of an upload, as another one has. `offsets` are those that came."""

    def __init__(self) -> None:
        self.offsets: list[list[int]] = []

    async def GetUpload(self, request: pb.GetUploadRequest, context: Any) -> pb.GetUploadResponse:
        return pb.GetUploadResponse(received_bytes=[1] * len(request.header.files))

    async def PublishModule(
        self, parts: AsyncIterator[pb.PublishModuleRequest], context: Any
    ) -> pb.PublishModuleResponse:
        offsets = [part.chunk.offset async for part in parts if part.WhichOneof("part") == "chunk"]
        self.offsets.append(offsets)
        if any(offsets):
            await context.abort(grpc.StatusCode.DATA_LOSS, "the beginning is not here")
        return pb.PublishModuleResponse(version=pb.ModuleVersion(module="tone", version=1))


async def test_an_upload_begins_anew_where_its_beginning_is_at_another_gateway(tmp_path: Path) -> None:
    for name in KINDS["lora"].files:  # type: ignore[index]
        (tmp_path / name).write_bytes(b"content")
    gateway, server = ForgetfulGateway(), grpc.aio.server()
    rpc.add_ModuleServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            assert (await client.modules.publish("tone", tmp_path)).version == 1
    finally:
        await server.stop(0)
    assert gateway.offsets == [[1, 1], [0, 0]]
