"""The typed Python client. `Client` for ordinary code, `AsyncClient` for asyncio; both need only grpcio and protobuf.

with Client("127.0.0.1:50051") as client:
    print(client.generate("What is the code of Alder?", namespaces=["notes"]).text)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from memserve.domain import (
    CachedTokens,
    FinishReason,
    Memory,
    Message,
    Module,
    RecallOutcome,
    Role,
    Route,
    Sampling,
    ScoredMemory,
    Slo,
    TextDelta,
    Usage,
)
from memserve.pb.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 60.0
UPLOAD_CHUNK_BYTES = 256 * 1024
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")
OPTIONS = (("grpc.max_receive_message_length", 16 << 20),)

Event = Route | TextDelta | Usage


class CallFailed(Exception):
    """A call ended with a gRPC status. `field` names the field at fault, `retry_after_s` the time to wait, where the server said so."""

    def __init__(self, code: grpc.StatusCode, detail: str, field: str | None, retry_after_s: float | None) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with its receipt. `logprobs`: one a token when asked for."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    route: Route
    usage: Usage


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker as the gateway sees it."""

    worker_id: str
    address: str
    metrics_address: str
    pid: int
    ready: bool
    running: int
    waiting: int
    known_blocks: int
    prefill_tokens_per_s: float
    resident_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """What runs now."""

    version: str
    model: str
    model_digest: str
    max_context_tokens: int
    workers: tuple[WorkerStatus, ...]
    redis_ok: bool
    vector_store_ok: bool
    modules: int
    memories: int


class Client:
    """A blocking client. Every method raises CallFailed; `timeout_s` is the call's deadline."""

    def __init__(self, address: str = DEFAULT_ADDRESS, api_key: str = "", timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._metadata = _metadata(api_key)
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def stream(self, messages: str | Sequence[Message], **options: Any) -> Iterator[Event]:
        """Stream an answer: a Route, TextDeltas, last a Usage. Closing the iterator cancels the call. Options as in `generate`."""
        request = generate_request(messages, **options)
        call = inference_pb2_grpc.InferenceServiceStub(self._channel).Generate(request, timeout=self._timeout_s, metadata=self._metadata)
        try:
            with _facts():
                for response in call:
                    yield event_of(response)
        finally:
            call.cancel()

    def generate(self, messages: str | Sequence[Message], **options: Any) -> Answer:
        """Ask, and wait for the whole answer.

        messages: a question, or the conversation. Options: those of `generate_request`.
        """
        return collect(list(self.stream(messages, **options)))

    def remember(self, namespace: str, text: str, *, source: str = "", keywords: Sequence[str] = (), memory_id: str = "") -> Memory:
        request = memory_pb2.RememberRequest(namespace=namespace, text=text, source=source, keywords=keywords, memory_id=memory_id)
        return memory_of(self._call(memory_pb2_grpc.MemoryServiceStub, "Remember", request).memory)

    def get_memory(self, namespace: str, memory_id: str) -> Memory:
        request = memory_pb2.GetMemoryRequest(namespace=namespace, memory_id=memory_id)
        return memory_of(self._call(memory_pb2_grpc.MemoryServiceStub, "GetMemory", request).memory)

    def forget(self, namespace: str, memory_id: str) -> None:
        self._call(memory_pb2_grpc.MemoryServiceStub, "Forget", memory_pb2.ForgetRequest(namespace=namespace, memory_id=memory_id))

    def search(self, namespaces: Sequence[str], query: str, limit: int = 8) -> list[ScoredMemory]:
        request = memory_pb2.SearchRequest(namespaces=namespaces, query=query, limit=limit)
        return [scored_of(hit) for hit in self._call(memory_pb2_grpc.MemoryServiceStub, "Search", request).results]

    def namespaces(self) -> dict[str, int]:
        """Namespace to number of memories."""
        found = self._call(memory_pb2_grpc.MemoryServiceStub, "ListNamespaces", memory_pb2.ListNamespacesRequest())
        return {entry.namespace: entry.memories for entry in found.namespaces}

    def publish_module(
        self, name: str, folder: Path, *, expected_digest: str = "", progress: Callable[[int, int], None] = lambda sent, total: None
    ) -> Module:
        """Publish a PEFT LoRA directory. progress: called with bytes sent and bytes in all."""
        parts = upload_parts(name, folder, expected_digest, progress)
        return module_of(self._call(module_pb2_grpc.ModuleServiceStub, "PublishModule", parts).module)

    def get_module(self, name: str) -> Module:
        return module_of(self._call(module_pb2_grpc.ModuleServiceStub, "GetModule", module_pb2.GetModuleRequest(name=name)).module)

    def modules(self) -> list[Module]:
        found: list[Module] = []
        token = ""
        while True:
            page = self._call(module_pb2_grpc.ModuleServiceStub, "ListModules", module_pb2.ListModulesRequest(page_token=token))
            found += [module_of(entry) for entry in page.modules]
            token = page.next_page_token
            if not token:
                return found

    def status(self) -> Status:
        return status_of(self._call(status_pb2_grpc.StatusServiceStub, "GetStatus", status_pb2.GetStatusRequest()))

    def _call(self, stub: Any, rpc: str, request: Any) -> Any:
        with _facts():
            return getattr(stub(self._channel), rpc)(request, timeout=self._timeout_s, metadata=self._metadata)


class AsyncClient:
    """The same for asyncio. Cancelling a task cancels its call, down to the engine."""

    def __init__(self, address: str = DEFAULT_ADDRESS, api_key: str = "", timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._metadata = _metadata(api_key)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def stream(self, messages: str | Sequence[Message], **options: Any) -> AsyncIterator[Event]:
        """As `Client.stream`."""
        request = generate_request(messages, **options)
        call = inference_pb2_grpc.InferenceServiceStub(self._channel).Generate(request, timeout=self._timeout_s, metadata=self._metadata)
        try:
            with _facts():
                async for response in call:
                    yield event_of(response)
        finally:
            call.cancel()

    async def generate(self, messages: str | Sequence[Message], **options: Any) -> Answer:
        """As `Client.generate`."""
        return collect([event async for event in self.stream(messages, **options)])

    async def remember(self, namespace: str, text: str, *, source: str = "", keywords: Sequence[str] = (), memory_id: str = "") -> Memory:
        request = memory_pb2.RememberRequest(namespace=namespace, text=text, source=source, keywords=keywords, memory_id=memory_id)
        return memory_of((await self._call(memory_pb2_grpc.MemoryServiceStub, "Remember", request)).memory)

    async def get_memory(self, namespace: str, memory_id: str) -> Memory:
        request = memory_pb2.GetMemoryRequest(namespace=namespace, memory_id=memory_id)
        return memory_of((await self._call(memory_pb2_grpc.MemoryServiceStub, "GetMemory", request)).memory)

    async def forget(self, namespace: str, memory_id: str) -> None:
        await self._call(memory_pb2_grpc.MemoryServiceStub, "Forget", memory_pb2.ForgetRequest(namespace=namespace, memory_id=memory_id))

    async def search(self, namespaces: Sequence[str], query: str, limit: int = 8) -> list[ScoredMemory]:
        request = memory_pb2.SearchRequest(namespaces=namespaces, query=query, limit=limit)
        return [scored_of(hit) for hit in (await self._call(memory_pb2_grpc.MemoryServiceStub, "Search", request)).results]

    async def namespaces(self) -> dict[str, int]:
        """Namespace to number of memories."""
        found = await self._call(memory_pb2_grpc.MemoryServiceStub, "ListNamespaces", memory_pb2.ListNamespacesRequest())
        return {entry.namespace: entry.memories for entry in found.namespaces}

    async def publish_module(
        self, name: str, folder: Path, *, expected_digest: str = "", progress: Callable[[int, int], None] = lambda sent, total: None
    ) -> Module:
        """As `Client.publish_module`."""
        parts = upload_parts(name, folder, expected_digest, progress)
        return module_of((await self._call(module_pb2_grpc.ModuleServiceStub, "PublishModule", parts)).module)

    async def get_module(self, name: str) -> Module:
        return module_of((await self._call(module_pb2_grpc.ModuleServiceStub, "GetModule", module_pb2.GetModuleRequest(name=name))).module)

    async def modules(self) -> list[Module]:
        found: list[Module] = []
        token = ""
        while True:
            page = await self._call(module_pb2_grpc.ModuleServiceStub, "ListModules", module_pb2.ListModulesRequest(page_token=token))
            found += [module_of(entry) for entry in page.modules]
            token = page.next_page_token
            if not token:
                return found

    async def status(self) -> Status:
        return status_of(await self._call(status_pb2_grpc.StatusServiceStub, "GetStatus", status_pb2.GetStatusRequest()))

    async def _call(self, stub: Any, rpc: str, request: Any) -> Any:
        with _facts():
            return await getattr(stub(self._channel), rpc)(request, timeout=self._timeout_s, metadata=self._metadata)


ROLES = {
    Role.SYSTEM: inference_pb2.ROLE_SYSTEM,
    Role.USER: inference_pb2.ROLE_USER,
    Role.ASSISTANT: inference_pb2.ROLE_ASSISTANT,
}


def generate_request(
    messages: str | Sequence[Message],
    *,
    module: str = "",
    namespaces: Sequence[str] = (),
    recall_limit: int = 0,
    recall_timeout_ms: int = 0,
    sampling: Sampling | None = None,
    slo: Slo | None = None,
    model: str = "",
    worker_id: str = "",
) -> inference_pb2.GenerateRequest:
    """The request message. A string is one message of the user."""
    turns = [Message(Role.USER, messages)] if isinstance(messages, str) else messages
    sampling = sampling or Sampling(max_tokens=0)
    slo = slo or Slo()
    return inference_pb2.GenerateRequest(
        model=model,
        messages=[inference_pb2.Message(role=ROLES[turn.role], content=turn.content) for turn in turns],
        module=module,
        recall=inference_pb2.Recall(namespaces=namespaces, limit=recall_limit, timeout_ms=recall_timeout_ms),
        sampling=inference_pb2.Sampling(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=sampling.stop,
            logprobs=sampling.logprobs,
        ),
        slo=inference_pb2.Slo(ttft_ms=slo.ttft_ms or 0, tpot_ms=slo.tpot_ms or 0),
        worker_id=worker_id,
    )


def event_of(response: inference_pb2.GenerateResponse) -> Event:
    """The domain value of one streamed message."""
    match response.WhichOneof("event"):
        case "text":
            return TextDelta(response.text.text, tuple(response.text.token_ids), tuple(response.text.logprobs))
        case "usage":
            usage = response.usage
            return Usage(
                prompt_tokens=usage.prompt_tokens,
                output_tokens=usage.output_tokens,
                cached=CachedTokens(usage.cached_tokens.device, usage.cached_tokens.host, usage.cached_tokens.redis),
                ttft_ms=usage.ttft_ms,
                tpot_ms=usage.tpot_ms if usage.HasField("tpot_ms") else None,
                slo_met=usage.slo_met,
                finish_reason=FinishReason(inference_pb2.FinishReason.Name(usage.finish_reason).removeprefix("FINISH_REASON_").lower()),
            )
    route = response.route
    return Route(
        request_id=route.request_id,
        model=route.model,
        worker_id=route.worker_id,
        reason=route.reason,
        predicted_ttft_ms=route.predicted_ttft_ms,
        prompt_tokens=route.prompt_tokens,
        expected_cached_tokens=route.expected_cached_tokens,
        module=route.module,
        module_digest=route.module_digest,
        recall_outcome=RecallOutcome(inference_pb2.RecallOutcome.Name(route.recall_outcome).removeprefix("RECALL_OUTCOME_").lower()),
        passages=tuple(scored_of(hit) for hit in route.passages),
    )


def collect(events: Sequence[Event]) -> Answer:
    """Put a finished stream together. A later Route (after a retry elsewhere) replaces an earlier one."""
    routes = [event for event in events if isinstance(event, Route)]
    deltas = [event for event in events if isinstance(event, TextDelta)]
    usages = [event for event in events if isinstance(event, Usage)]
    return Answer(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        route=routes[-1],
        usage=usages[-1],
    )


def memory_of(value: memory_pb2.Memory) -> Memory:
    return Memory(value.memory_id, value.namespace, value.text, value.source, tuple(value.keywords), value.created_s)


def scored_of(hit: memory_pb2.ScoredMemory) -> ScoredMemory:
    return ScoredMemory(
        memory=memory_of(hit.memory),
        score=hit.score,
        dense_score=hit.dense_score if hit.HasField("dense_score") else None,
        bm25_score=hit.bm25_score if hit.HasField("bm25_score") else None,
    )


def module_of(value: module_pb2.Module) -> Module:
    kind = module_pb2.ModuleKind.Name(value.kind).removeprefix("MODULE_KIND_").lower()
    return Module(value.name, value.digest, kind, value.rank, tuple(value.target_modules), value.size_bytes, value.created_s)


def status_of(value: status_pb2.GetStatusResponse) -> Status:
    workers = tuple(
        WorkerStatus(
            worker_id=w.worker_id,
            address=w.address,
            metrics_address=w.metrics_address,
            pid=w.pid,
            ready=w.ready,
            running=w.running,
            waiting=w.waiting,
            known_blocks=w.known_blocks,
            prefill_tokens_per_s=w.prefill_tokens_per_s,
            resident_modules=tuple(w.resident_modules),
        )
        for w in value.workers
    )
    return Status(
        version=value.version,
        model=value.model,
        model_digest=value.model_digest,
        max_context_tokens=value.max_context_tokens,
        workers=workers,
        redis_ok=value.redis_ok,
        vector_store_ok=value.vector_store_ok,
        modules=value.modules,
        memories=value.memories,
    )


def upload_parts(
    name: str, folder: Path, expected_digest: str, progress: Callable[[int, int], None]
) -> Iterator[module_pb2.PublishModuleRequest]:
    """The messages of an upload. Raises FileNotFoundError before the first when a file is missing."""
    files = [folder / file_name for file_name in LORA_FILES]
    total = sum(file.stat().st_size for file in files)
    return _upload_parts(name, files, total, expected_digest, progress)


def _upload_parts(
    name: str, files: Sequence[Path], total: int, expected_digest: str, progress: Callable[[int, int], None]
) -> Iterator[module_pb2.PublishModuleRequest]:
    header = module_pb2.PublishModuleHeader(name=name, kind=module_pb2.MODULE_KIND_LORA, expected_digest=expected_digest)
    yield module_pb2.PublishModuleRequest(header=header)
    sent = 0
    for file in files:
        with file.open("rb") as stream:
            while content := stream.read(UPLOAD_CHUNK_BYTES):
                yield module_pb2.PublishModuleRequest(chunk=module_pb2.FileChunk(file_name=file.name, content=content))
                sent += len(content)
                progress(sent, total)


def _metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


@contextlib.contextmanager
def _facts() -> Iterator[None]:
    try:
        yield
    except (grpc.RpcError, grpc.aio.AioRpcError) as error:
        raise call_failed(error) from None


def call_failed(error: Any) -> CallFailed:
    """The fact in a gRPC error."""
    trailing = {key: str(value) for key, value in (error.trailing_metadata() or ())}
    retry = trailing.get("retry-after-s")
    return CallFailed(error.code(), error.details() or "", trailing.get("memserve-field"), float(retry) if retry else None)


def wait_until_ready(address: str, timeout_s: float, workers: int = 1) -> bool:
    """Wait until the gateway at `address` has so many workers to send requests to. False when it has not in time."""
    deadline_s = time.monotonic() + timeout_s
    with Client(address, timeout_s=2.0) as client:
        while True:
            with contextlib.suppress(CallFailed):
                if sum(worker.ready for worker in client.status().workers) >= workers:
                    return True
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(0.1)
