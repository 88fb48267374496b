from memserve.pb.v1 import module_pb2 as _module_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Rung(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUNG_UNSPECIFIED: _ClassVar[Rung]
    RUNG_TEXT: _ClassVar[Rung]
    RUNG_PREFIX: _ClassVar[Rung]
    RUNG_CARTRIDGE: _ClassVar[Rung]
    RUNG_LORA: _ClassVar[Rung]

class LadderAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LADDER_ACTION_UNSPECIFIED: _ClassVar[LadderAction]
    LADDER_ACTION_PROMOTE: _ClassVar[LadderAction]
    LADDER_ACTION_DEMOTE: _ClassVar[LadderAction]
    LADDER_ACTION_KEEP: _ClassVar[LadderAction]
RUNG_UNSPECIFIED: Rung
RUNG_TEXT: Rung
RUNG_PREFIX: Rung
RUNG_CARTRIDGE: Rung
RUNG_LORA: Rung
LADDER_ACTION_UNSPECIFIED: LadderAction
LADDER_ACTION_PROMOTE: LadderAction
LADDER_ACTION_DEMOTE: LadderAction
LADDER_ACTION_KEEP: LadderAction

class GetLadderRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LadderUse(_message.Message):
    __slots__ = ("resident_bytes", "make_s")
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAKE_S_FIELD_NUMBER: _ClassVar[int]
    resident_bytes: int
    make_s: float
    def __init__(self, resident_bytes: _Optional[int] = ..., make_s: _Optional[float] = ...) -> None: ...

class LadderStep(_message.Message):
    __slots__ = ("namespace", "action", "from_rung", "to_rung", "reason", "before", "after", "makes_room_for", "outcome")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    FROM_RUNG_FIELD_NUMBER: _ClassVar[int]
    TO_RUNG_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    MAKES_ROOM_FOR_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    action: LadderAction
    from_rung: Rung
    to_rung: Rung
    reason: str
    before: LadderUse
    after: LadderUse
    makes_room_for: str
    outcome: str
    def __init__(self, namespace: _Optional[str] = ..., action: _Optional[_Union[LadderAction, str]] = ..., from_rung: _Optional[_Union[Rung, str]] = ..., to_rung: _Optional[_Union[Rung, str]] = ..., reason: _Optional[str] = ..., before: _Optional[_Union[LadderUse, _Mapping]] = ..., after: _Optional[_Union[LadderUse, _Mapping]] = ..., makes_room_for: _Optional[str] = ..., outcome: _Optional[str] = ...) -> None: ...

class GetLadderResponse(_message.Message):
    __slots__ = ("mode", "at_s", "budget", "use", "steps")
    MODE_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    mode: str
    at_s: float
    budget: LadderUse
    use: LadderUse
    steps: _containers.RepeatedCompositeFieldContainer[LadderStep]
    def __init__(self, mode: _Optional[str] = ..., at_s: _Optional[float] = ..., budget: _Optional[_Union[LadderUse, _Mapping]] = ..., use: _Optional[_Union[LadderUse, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[LadderStep, _Mapping]]] = ...) -> None: ...

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
