"""Two gateways on one registry and the same workers: what one of them alone knows, the other finds out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from memserve.api.grpc.server import listen
from memserve.client import AsyncClient
from memserve.client.uploads import Origin, upload_of
from memserve.domain import Message, Role, Sampling, TrafficShare
from memserve.gateway.access.callers import load_access
from memserve.gateway.assembly import open_parts
from memserve.gateway.modules.canary import LOOK_S as CANARY_LOOK_S
from memserve.gateway.modules.canary import REQUESTS_TO_TELL
from memserve.pb.v1 import module_pb2, module_pb2_grpc
from tests.gateway.asking import GREEDY, LONG, failure_of, prompt_keys, published
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import PASSES, publish
from tests.gateway.running import RunningGateway, eventually, until

ONE = Sampling(max_tokens=1)


@contextlib.asynccontextmanager
async def another(first: RunningGateway, folder: Path, **settings: object) -> AsyncIterator[RunningGateway]:
    """A second gateway, with a directory and memories of its own: Milvus Lite serves one gateway."""
    store = str(first.settings.modules_root / "modules")
    chosen = first.settings.model_copy(
        update={"data_dir": folder / "second", "module_store_url": store, **settings}
    )
    async with open_parts(chosen) as parts:
        access = load_access(chosen)
        async with (
            listen(parts, access) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            AsyncClient(f"127.0.0.1:{port}", timeout_s=20) as client,
        ):
            await until(lambda: len(parts.pool.workers) == len(first.workers))
            await asyncio.wait_for(parts.gateways.listening.wait(), 5)
            yield replace(
                first,
                address=f"127.0.0.1:{port}",
                settings=chosen,
                parts=parts,
                access=access,
                channel=channel,
                client=client,
            )


async def test_a_decision_is_explained_at_the_gateway_that_did_not_take_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    first = await start_gateway(workers=[{}, {}])
    await published(first, tmp_path)
    async with another(first, tmp_path) as second:
        answer = await first.client.generate("hello", module="tone", sampling=GREEDY)
        here, there = [await gateway.client.explain(answer.route.request_id) for gateway in (first, second)]
        assert here == there
        assert there.route.candidates
        assert there.route.modules[0].name == "tone"
        assert there.usage == answer.usage
        failure = await failure_of(second.client.explain("nobody"))
        assert failure.code is grpc.StatusCode.NOT_FOUND


async def test_without_the_registry_a_gateway_explains_its_own_decisions(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    first = await start_gateway()
    answer = await first.client.generate("hello", sampling=GREEDY)
    first.redis.stop()
    assert (await first.client.explain(answer.route.request_id)).outcome == "answered"
    failure = await failure_of(first.client.explain("nobody"))
    assert failure.code is grpc.StatusCode.NOT_FOUND


async def test_a_version_that_a_request_at_another_gateway_holds_is_not_deleted(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """The request waits for a worker, and no worker knows of it."""
    first = await start_gateway(workers=[{}])
    await published(first, tmp_path)
    await first.client.modules.drop_alias("tone", "live")
    async with another(first, tmp_path, hold_s=20.0) as second:
        await second.parts.pool.workers["w0"].calls.close()
        second.parts.pool.workers["w0"].watch.cancel()  # type: ignore[union-attr]
        await until(lambda: not second.parts.pool.workers["w0"].connected)
        held = asyncio.create_task(second.client.generate("hello", module="tone@1", sampling=ONE))
        await until(lambda: len(second.parts.uses) == 1)
        failure = await failure_of(first.client.modules.delete("tone", 1))
        assert "a request at another gateway" in failure.detail
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        await until(lambda: not len(second.parts.uses))
        await first.client.modules.delete("tone", 1)


async def test_an_upload_that_another_gateway_has_the_beginning_of_is_sent_from_its_beginning(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Behind a balancer GetUpload may reach one gateway, and the upload the other."""
    first = await start_gateway(workers=[{}])
    folder = write_files(tmp_path / "tone", lora_files(first.parts.model.tensor_shapes()))
    upload = upload_of("tone", folder, "", Origin())
    parts = list(upload.parts([0] * len(upload.header.files), lambda done, total: None))
    async with another(first, tmp_path) as second:
        stub = module_pb2_grpc.ModuleServiceStub(first.channel)
        with pytest.raises(grpc.aio.AioRpcError, match="send the same upload again"):
            await stub.PublishModule(iter(parts[:2]))
        begun = await stub.GetUpload(module_pb2.GetUploadRequest(header=upload.header))
        assert any(begun.received_bytes)
        elsewhere = module_pb2_grpc.ModuleServiceStub(second.channel)
        resumed = upload.parts(list(begun.received_bytes), lambda done, total: None)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await elsewhere.PublishModule(iter(list(resumed)))
        assert refused.value.code() is grpc.StatusCode.DATA_LOSS, "the client begins anew after it"
        version = (await elsewhere.PublishModule(iter(parts))).version
        assert (await first.client.modules.publish("tone", folder)).digest == version.digest


async def test_failures_of_a_canary_count_over_all_gateways_and_it_is_taken_out_once(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    first = await start_gateway(workers=[{}])
    modules = first.client.modules
    await publish(first, tmp_path, 1)
    await modules.promote("tone", 1)
    canary = await publish(first, tmp_path, 2, probes=PASSES)
    async with another(first, tmp_path) as second:
        await modules.split("tone", {1: 50, 2: 50})
        await asyncio.sleep(3 * CANARY_LOOK_S)  # both have seen that there is a canary
        assert 12 < REQUESTS_TO_TELL <= 24
        for gateway in (first, second):
            gateway.parts.outcomes.add(canary.digest, refused=12)

        async def taken_out() -> bool:
            return (await modules.get("tone")).aliases[0].targets == (TrafficShare(1, 50),)

        await eventually(taken_out)
        await asyncio.sleep(2 * CANARY_LOOK_S)
        changes = [change.action for change in await modules.history("tone")]
        assert changes == ["promote", "split", "canary_rollback"]


async def test_both_gateways_send_a_session_to_the_same_worker(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    for policy in ("session_hash", "least_harm"):
        first = await start_gateway(workers=[{}, {}, {}], routing_policy=policy, routing_exploration=0.5)
        async with another(first, tmp_path / policy, routing_exploration=0.0) as second:
            for session in ("ada", "bob", "cyd", "dee"):
                text = f"{session} {LONG}"
                asked = first.client.generate(text, session=session, sampling=GREEDY)
                worker = (await asked).route.worker_id
                keys = prompt_keys(first, text)
                await until(lambda keys=keys, worker=worker: knows(second, worker, keys))
                talk = [Message(Role.USER, text), Message(Role.USER, "and then?")]
                again = await second.client.generate(talk, session=session, sampling=GREEDY)
                assert again.route.worker_id == worker, policy


def knows(gateway: RunningGateway, worker: str, keys: list[bytes]) -> bool:
    return gateway.parts.pool.index.longest_prefix(worker, keys) == len(keys)
