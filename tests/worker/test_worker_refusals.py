"""The status of all that a worker refuses: the module is wrong, or it is not here, not now. Over an engine
that only fails.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from memserve.domain import ModuleKind
from memserve.errors import InvalidModule
from memserve.memory.modules.blobs.store import BlobStore
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.engine_load import EngineLoad

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from memserve.worker.engine.engine import Engine
    from memserve.worker.kv.block_log import BlockLog
    from memserve.worker.modules.copies import LocalCopies
    from memserve.worker.modules.held import Modules
    from memserve.worker.modules.room import ModuleRefused, Places
    from memserve.worker.pace import AnswerPace
    from memserve.worker.service import WorkerService, refusals
    from memserve.worker.training.ray_task import ComposeTaskLost
    from memserve.worker.training_calls import TrainingPlace
    from memserve.worker.waiting_room import EngineRoom

SOUND, DAMAGED, NOWHERE = "a" * 64, "b" * 64, "0" * 64
LIMIT_S = 30.0
COSTS = EngineCosts(0.01, 1e-4, 0.0, 1e-3, 0.0, 0.1)


class FailingHolder:
    """Every load fails with `failure`."""

    capacity = 2
    setting = "max_cpu_loras"
    failure: Exception = InvalidModule("module", "the engine refuses it")

    async def places(self) -> Places:
        return {}

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        raise self.failure

    async def unload(self, digest: str) -> Places:
        return {}


@pytest.fixture
def holder() -> FailingHolder:
    return FailingHolder()


@pytest.fixture
async def worker(tmp_path: Path, holder: FailingHolder) -> AsyncIterator[rpc.WorkerServiceStub]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"some weights")
    blobs = BlobStore("", tmp_path / "modules")
    for digest in (SOUND, DAMAGED):
        blobs.put(digest, source)
    (tmp_path / "modules" / DAMAGED / "weights").write_bytes(b"same weights")
    no_llm = cast(Any, None)
    engine = Engine(no_llm, Modules(LocalCopies(blobs), {ModuleKind.LORA: holder}, {}), {}, tmp_path)
    server = grpc.aio.server()
    room = EngineRoom(EngineLoad(COSTS, 4, 10_000), ttft_s=1.0, wait_s=60.0)
    training = TrainingPlace(tmp_path, "", tmp_path / "distil")
    service = WorkerService(engine, room, BlockLog(), AnswerPace(), training, max_lora_rank=16)
    rpc.add_WorkerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield rpc.WorkerServiceStub(channel)
    await server.stop(0)


async def status(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value.code(), refusal.value.details() or ""


async def statuses(worker: rpc.WorkerServiceStub, digest: str) -> list[tuple[grpc.StatusCode, str]]:
    """Of loading, trying and answering with the module."""
    return [
        await status(worker.LoadModule(pb.LoadModuleRequest(digest=digest, kind="lora"), timeout=LIMIT_S)),
        await status(worker.TryModule(pb.TryModuleRequest(digest=digest, kind="lora"), timeout=LIMIT_S)),
        await status(
            worker.Generate(
                pb.GenerateRequest(module_digest=digest, token_ids=[1], max_tokens=1), timeout=LIMIT_S
            ).read()
        ),
    ]


async def test_a_module_that_is_wrong_is_an_invalid_argument_but_in_an_answer_a_reason_to_go_elsewhere(
    worker: rpc.WorkerServiceStub,
) -> None:
    told = await statuses(worker, SOUND)
    codes = [code for code, _ in told]
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT] * 2 + [grpc.StatusCode.FAILED_PRECONDITION]
    assert all("the engine refuses it" in reason for _, reason in told)
    composing = worker.ComposeModule(
        pb.ComposeModuleRequest(method="svd", parents=[pb.ComposeParent(digest="../x")]), timeout=LIMIT_S
    )
    assert (await status(composing.read()))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ModuleRefused(SOUND, "no room"), "no room"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/where"), "No space left on device"),
        (TimeoutError(), "TimeoutError"),
    ],
)
async def test_what_this_worker_cannot_do_now_another_may(
    worker: rpc.WorkerServiceStub, holder: FailingHolder, failure: Exception, reason: str
) -> None:
    holder.failure = failure
    for code, told in await statuses(worker, SOUND):
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert reason in told
        assert "/some/where" not in told


@pytest.mark.parametrize(("digest", "reason"), [(NOWHERE, "does not have the module"), (DAMAGED, "damaged")])
async def test_a_module_that_is_not_in_the_store_or_damaged_there_is_not_wrong(
    worker: rpc.WorkerServiceStub, digest: str, reason: str
) -> None:
    for code, told in await statuses(worker, digest):
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert reason in told
    composing = worker.ComposeModule(
        pb.ComposeModuleRequest(method="svd", parents=[pb.ComposeParent(digest=digest)]), timeout=LIMIT_S
    )
    assert (await status(composing.read()))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_composition_that_was_lost_does_not_make_the_worker_look_dead() -> None:
    class Aborted(Exception):
        pass

    class Context:
        async def abort(self, code: grpc.StatusCode, reason: str) -> None:
            raise Aborted(code)

    with pytest.raises(Aborted) as refusal:
        async with refusals(cast(Any, Context())):
            raise ComposeTaskLost("WorkerCrashedError")
    assert refusal.value.args == (grpc.StatusCode.FAILED_PRECONDITION,)


async def test_places_are_told_for_any_kind_and_no_path(worker: rpc.WorkerServiceStub) -> None:
    told = await worker.GetModulePlaces(pb.GetModulePlacesRequest(digests=[SOUND, NOWHERE]), timeout=LIMIT_S)
    assert [each.place for each in told.modules] == [pb.MODULE_PLACE_DISK, pb.MODULE_PLACE_ABSENT]
    bad = worker.GetModulePlaces(pb.GetModulePlacesRequest(digests=["../secrets"]), timeout=LIMIT_S)
    assert (await status(bad))[0] is grpc.StatusCode.INVALID_ARGUMENT
