"""An engine of these tests behind a worker's port, with a gateway in front of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import grpc

from memserve.api.grpc.server import listen
from memserve.client import AsyncClient
from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.domain import WorkerLease
from memserve.gateway.access.callers import load_access
from memserve.gateway.assembly import open_parts
from memserve.model.files import open_model
from memserve.pb.v1 import inference_pb2, inference_pb2_grpc
from memserve.pb.worker.v1 import worker_pb2_grpc
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.engine_load import EngineLoad
from memserve.registry.leases import Registry
from memserve.worker.engine.engine import Engine
from memserve.worker.fleet.gateways_only import GatewaysOnly
from memserve.worker.kv.block_log import BlockLog
from memserve.worker.pace import AnswerPace
from memserve.worker.service import WorkerService
from memserve.worker.training_calls import TrainingPlace
from memserve.worker.waiting_room import EngineRoom
from tests.contract.fake_worker import CREDENTIAL, SALT_KEY
from tests.gateway.running import until

COSTS = EngineCosts(
    step_s=0.005, token_s=5e-5, context_s=0.0, answer_s=5e-4, kv_token_s=0.0, step_limit_s=0.1
)


@contextlib.asynccontextmanager
async def serving(
    engine: Engine, settings: Settings, redis_url: str
) -> AsyncIterator[tuple[grpc.aio.Channel, AsyncClient]]:
    """The engine behind a worker's port, and a gateway in front of it."""
    model = open_model(MODEL_DIR, settings.max_context_tokens)
    room = EngineRoom(EngineLoad(COSTS, seats=8, kv_tokens=100_000), ttft_s=5.0, wait_s=60.0)
    training = TrainingPlace(MODEL_DIR, "", settings.data / "distil")
    server = grpc.aio.server(interceptors=[GatewaysOnly(CREDENTIAL)])
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(
        WorkerService(engine, room, BlockLog(), AnswerPace(), training, max_lora_rank=16), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    lease = WorkerLease(
        "w0",
        f"127.0.0.1:{port}",
        "",
        0,
        model.name,
        model.model_digest(),
        model.tokenizer_digest(),
        "ab" * 32,
        32,
        1,
        settings.max_context_tokens,
        8,
        0.0,
    )
    registry = Registry(redis_url)
    await registry.renew_lease(lease, 60.0)
    own = {"model": str(MODEL_DIR), "redis_url": redis_url, "port": 0, "salt_key": SALT_KEY}
    chosen = Settings.model_validate({**settings.model_dump(exclude_unset=True), **own})
    async with open_parts(chosen) as parts, listen(parts, load_access(chosen)) as gateway_port:
        await until(lambda: parts.pool.ready(time.monotonic()))
        address = f"127.0.0.1:{gateway_port}"
        async with grpc.aio.insecure_channel(address) as channel, AsyncClient(address) as client:
            yield channel, client
    await registry.close()
    await server.stop(0)


async def generated(
    channel: grpc.aio.Channel, *modules: inference_pb2.ModuleUse
) -> tuple[inference_pb2.Route, list[int]]:
    """The receipt and the tokens of a greedy answer."""
    message = inference_pb2.Message(role=inference_pb2.ROLE_USER, content="hello")
    request = inference_pb2.GenerateRequest(
        messages=[message], modules=modules, sampling=inference_pb2.Sampling(max_tokens=4, min_tokens=4)
    )
    route, tokens = inference_pb2.Route(), []
    async for response in inference_pb2_grpc.InferenceServiceStub(channel).Generate(request):
        if response.HasField("route"):
            route = response.route
        tokens += response.text.token_ids
    return route, list(tokens)
