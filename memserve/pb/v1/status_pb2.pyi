from memserve.pb.v1 import module_pb2 as _module_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BackupRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class BackupProgress(_message.Message):
    __slots__ = ("line",)
    LINE_FIELD_NUMBER: _ClassVar[int]
    line: str
    def __init__(self, line: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("workers_only",)
    WORKERS_ONLY_FIELD_NUMBER: _ClassVar[int]
    workers_only: bool
    def __init__(self, workers_only: bool = ...) -> None: ...

class WorkerModule(_message.Message):
    __slots__ = ("digest", "place")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    place: _module_pb2.ModulePlace
    def __init__(self, digest: _Optional[str] = ..., place: _Optional[_Union[_module_pb2.ModulePlace, str]] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker_id", "address", "ready", "running", "waiting", "known_blocks", "prefill_tokens_per_s", "modules", "metrics_address", "pid", "shares_kv", "modules_left_out", "limits")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KNOWN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SHARES_KV_FIELD_NUMBER: _ClassVar[int]
    MODULES_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    address: str
    ready: bool
    running: int
    waiting: int
    known_blocks: int
    prefill_tokens_per_s: float
    modules: _containers.RepeatedCompositeFieldContainer[WorkerModule]
    metrics_address: str
    pid: int
    shares_kv: bool
    modules_left_out: int
    limits: str
    def __init__(self, worker_id: _Optional[str] = ..., address: _Optional[str] = ..., ready: bool = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., known_blocks: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., modules: _Optional[_Iterable[_Union[WorkerModule, _Mapping]]] = ..., metrics_address: _Optional[str] = ..., pid: _Optional[int] = ..., shares_kv: bool = ..., modules_left_out: _Optional[int] = ..., limits: _Optional[str] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "model", "model_digest", "max_context_tokens", "workers", "redis_ok", "vector_store_ok", "modules", "memories", "lost_memories", "waiting_writes", "short_disk", "embedder", "forecasts", "prompts", "reranker", "reindexing")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REDIS_OK_FIELD_NUMBER: _ClassVar[int]
    VECTOR_STORE_OK_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    LOST_MEMORIES_FIELD_NUMBER: _ClassVar[int]
    WAITING_WRITES_FIELD_NUMBER: _ClassVar[int]
    SHORT_DISK_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    FORECASTS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    RERANKER_FIELD_NUMBER: _ClassVar[int]
    REINDEXING_FIELD_NUMBER: _ClassVar[int]
    version: str
    model: str
    model_digest: str
    max_context_tokens: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    redis_ok: bool
    vector_store_ok: bool
    modules: int
    memories: int
    lost_memories: int
    waiting_writes: int
    short_disk: str
    embedder: str
    forecasts: ForecastErrors
    prompts: PromptLayout
    reranker: str
    reindexing: Reindexing
    def __init__(self, version: _Optional[str] = ..., model: _Optional[str] = ..., model_digest: _Optional[str] = ..., max_context_tokens: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., redis_ok: bool = ..., vector_store_ok: bool = ..., modules: _Optional[int] = ..., memories: _Optional[int] = ..., lost_memories: _Optional[int] = ..., waiting_writes: _Optional[int] = ..., short_disk: _Optional[str] = ..., embedder: _Optional[str] = ..., forecasts: _Optional[_Union[ForecastErrors, _Mapping]] = ..., prompts: _Optional[_Union[PromptLayout, _Mapping]] = ..., reranker: _Optional[str] = ..., reindexing: _Optional[_Union[Reindexing, _Mapping]] = ...) -> None: ...

class Reindexing(_message.Message):
    __slots__ = ("memories_done", "memories_total", "embedder")
    MEMORIES_DONE_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    memories_done: int
    memories_total: int
    embedder: str
    def __init__(self, memories_done: _Optional[int] = ..., memories_total: _Optional[int] = ..., embedder: _Optional[str] = ...) -> None: ...

class PromptLayout(_message.Message):
    __slots__ = ("recall_template", "recall_template_digest", "changes")
    RECALL_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    RECALL_TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    recall_template: str
    recall_template_digest: str
    changes: str
    def __init__(self, recall_template: _Optional[str] = ..., recall_template_digest: _Optional[str] = ..., changes: _Optional[str] = ...) -> None: ...

class ForecastErrors(_message.Message):
    __slots__ = ("mape", "bias", "coverage")
    MAPE_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    mape: float
    bias: float
    coverage: float
    def __init__(self, mape: _Optional[float] = ..., bias: _Optional[float] = ..., coverage: _Optional[float] = ...) -> None: ...
