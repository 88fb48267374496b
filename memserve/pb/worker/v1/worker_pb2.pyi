from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_BACKGROUND: _ClassVar[Priority]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class ModulePlace(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODULE_PLACE_UNSPECIFIED: _ClassVar[ModulePlace]
    MODULE_PLACE_DEVICE: _ClassVar[ModulePlace]
    MODULE_PLACE_HOST: _ClassVar[ModulePlace]
    MODULE_PLACE_DISK: _ClassVar[ModulePlace]
    MODULE_PLACE_ABSENT: _ClassVar[ModulePlace]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_HIGH: Priority
PRIORITY_NORMAL: Priority
PRIORITY_LOW: Priority
PRIORITY_BACKGROUND: Priority
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
MODULE_PLACE_UNSPECIFIED: ModulePlace
MODULE_PLACE_DEVICE: ModulePlace
MODULE_PLACE_HOST: ModulePlace
MODULE_PLACE_DISK: ModulePlace
MODULE_PLACE_ABSENT: ModulePlace

class SetPaceRequest(_message.Message):
    __slots__ = ("window_ms",)
    WINDOW_MS_FIELD_NUMBER: _ClassVar[int]
    window_ms: float
    def __init__(self, window_ms: _Optional[float] = ...) -> None: ...

class SetPaceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForgetMemoriesRequest(_message.Message):
    __slots__ = ("tenant", "memory_keys")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_KEYS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    memory_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tenant: _Optional[str] = ..., memory_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class ForgetMemoriesResponse(_message.Message):
    __slots__ = ("blocks", "chunks", "held", "trainings")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    TRAININGS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    chunks: int
    held: int
    trainings: int
    def __init__(self, blocks: _Optional[int] = ..., chunks: _Optional[int] = ..., held: _Optional[int] = ..., trainings: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "token_ids", "cache_salt", "module_digest", "max_tokens", "temperature", "top_p", "seed", "stop", "logprobs", "min_tokens", "tenant", "keep", "expert_digest", "expert_alpha", "modules", "priority", "first_token_ms", "refuse_late", "do_not_queue", "expected_cached_tokens", "json_schema")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    MODULE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    EXPERT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ALPHA_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSE_LATE_FIELD_NUMBER: _ClassVar[int]
    DO_NOT_QUEUE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cache_salt: str
    module_digest: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: bool
    min_tokens: int
    tenant: str
    keep: bool
    expert_digest: str
    expert_alpha: float
    modules: _containers.RepeatedCompositeFieldContainer[AppliedModule]
    priority: Priority
    first_token_ms: float
    refuse_late: bool
    do_not_queue: bool
    expected_cached_tokens: int
    json_schema: str
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., cache_salt: _Optional[str] = ..., module_digest: _Optional[str] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: bool = ..., min_tokens: _Optional[int] = ..., tenant: _Optional[str] = ..., keep: bool = ..., expert_digest: _Optional[str] = ..., expert_alpha: _Optional[float] = ..., modules: _Optional[_Iterable[_Union[AppliedModule, _Mapping]]] = ..., priority: _Optional[_Union[Priority, str]] = ..., first_token_ms: _Optional[float] = ..., refuse_late: bool = ..., do_not_queue: bool = ..., expected_cached_tokens: _Optional[int] = ..., json_schema: _Optional[str] = ...) -> None: ...

class AppliedModule(_message.Message):
    __slots__ = ("digest", "kind", "strength")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    digest: str
    kind: str
    strength: float
    def __init__(self, digest: _Optional[str] = ..., kind: _Optional[str] = ..., strength: _Optional[float] = ...) -> None: ...

class CachedTokens(_message.Message):
    __slots__ = ("device", "host", "redis", "cartridge")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    REDIS_FIELD_NUMBER: _ClassVar[int]
    CARTRIDGE_FIELD_NUMBER: _ClassVar[int]
    device: int
    host: int
    redis: int
    cartridge: int
    def __init__(self, device: _Optional[int] = ..., host: _Optional[int] = ..., redis: _Optional[int] = ..., cartridge: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs", "cached_tokens", "finish_reason")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    cached_tokens: CachedTokens
    finish_reason: FinishReason
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., cached_tokens: _Optional[_Union[CachedTokens, _Mapping]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ...) -> None: ...

class ScoreTokensRequest(_message.Message):
    __slots__ = ("request_id", "token_ids", "continuation", "cache_salt", "tenant", "modules", "priority", "expected_cached_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    continuation: _containers.RepeatedScalarFieldContainer[int]
    cache_salt: str
    tenant: str
    modules: _containers.RepeatedCompositeFieldContainer[AppliedModule]
    priority: Priority
    expected_cached_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., continuation: _Optional[_Iterable[int]] = ..., cache_salt: _Optional[str] = ..., tenant: _Optional[str] = ..., modules: _Optional[_Iterable[_Union[AppliedModule, _Mapping]]] = ..., priority: _Optional[_Union[Priority, str]] = ..., expected_cached_tokens: _Optional[int] = ...) -> None: ...

class ScoreTokensResponse(_message.Message):
    __slots__ = ("logprobs", "cached_tokens")
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    cached_tokens: CachedTokens
    def __init__(self, logprobs: _Optional[_Iterable[float]] = ..., cached_tokens: _Optional[_Union[CachedTokens, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("epoch", "after_sequence")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    after_sequence: int
    def __init__(self, epoch: _Optional[int] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class ModuleResidency(_message.Message):
    __slots__ = ("digest", "place")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    place: ModulePlace
    def __init__(self, digest: _Optional[str] = ..., place: _Optional[_Union[ModulePlace, str]] = ...) -> None: ...

class WorkerState(_message.Message):
    __slots__ = ("running", "waiting", "prefill_tokens_per_s", "modules", "decode_tokens_per_s", "pending_prefill_tokens", "used_modules", "engine")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    DECODE_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PENDING_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    USED_MODULES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    prefill_tokens_per_s: float
    modules: _containers.RepeatedCompositeFieldContainer[ModuleResidency]
    decode_tokens_per_s: float
    pending_prefill_tokens: int
    used_modules: _containers.RepeatedScalarFieldContainer[str]
    engine: EngineState
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., modules: _Optional[_Iterable[_Union[ModuleResidency, _Mapping]]] = ..., decode_tokens_per_s: _Optional[float] = ..., pending_prefill_tokens: _Optional[int] = ..., used_modules: _Optional[_Iterable[str]] = ..., engine: _Optional[_Union[EngineState, _Mapping]] = ...) -> None: ...

class StepCosts(_message.Message):
    __slots__ = ("step_s", "token_s", "context_s", "answer_s", "kv_token_s", "step_limit_s")
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_S_FIELD_NUMBER: _ClassVar[int]
    ANSWER_S_FIELD_NUMBER: _ClassVar[int]
    KV_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    STEP_LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    step_s: float
    token_s: float
    context_s: float
    answer_s: float
    kv_token_s: float
    step_limit_s: float
    def __init__(self, step_s: _Optional[float] = ..., token_s: _Optional[float] = ..., context_s: _Optional[float] = ..., answer_s: _Optional[float] = ..., kv_token_s: _Optional[float] = ..., step_limit_s: _Optional[float] = ...) -> None: ...

class WaitingSeconds(_message.Message):
    __slots__ = ("band", "buckets")
    BAND_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    band: int
    buckets: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, band: _Optional[int] = ..., buckets: _Optional[_Iterable[float]] = ...) -> None: ...

class EngineState(_message.Message):
    __slots__ = ("costs", "waiting", "prefill_s", "seat_s", "answers", "kv_tokens", "free_kv_tokens", "requests", "queued_tokens", "recent_requests")
    COSTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    SEAT_S_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECENT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    costs: StepCosts
    waiting: _containers.RepeatedCompositeFieldContainer[WaitingSeconds]
    prefill_s: float
    seat_s: float
    answers: int
    kv_tokens: int
    free_kv_tokens: int
    requests: int
    queued_tokens: int
    recent_requests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, costs: _Optional[_Union[StepCosts, _Mapping]] = ..., waiting: _Optional[_Iterable[_Union[WaitingSeconds, _Mapping]]] = ..., prefill_s: _Optional[float] = ..., seat_s: _Optional[float] = ..., answers: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., free_kv_tokens: _Optional[int] = ..., requests: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., recent_requests: _Optional[_Iterable[str]] = ...) -> None: ...

class BlocksStored(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class BlocksRemoved(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class BlocksReset(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("epoch", "sequence", "state", "stored", "removed", "reset", "more")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequence: int
    state: WorkerState
    stored: BlocksStored
    removed: BlocksRemoved
    reset: BlocksReset
    more: bool
    def __init__(self, epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., state: _Optional[_Union[WorkerState, _Mapping]] = ..., stored: _Optional[_Union[BlocksStored, _Mapping]] = ..., removed: _Optional[_Union[BlocksRemoved, _Mapping]] = ..., reset: _Optional[_Union[BlocksReset, _Mapping]] = ..., more: bool = ...) -> None: ...

class LookupBlocksRequest(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LookupBlocksResponse(_message.Message):
    __slots__ = ("device_blocks", "held_blocks")
    DEVICE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    device_blocks: int
    held_blocks: int
    def __init__(self, device_blocks: _Optional[int] = ..., held_blocks: _Optional[int] = ...) -> None: ...

class LoadModuleRequest(_message.Message):
    __slots__ = ("digest", "kind", "pin")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    digest: str
    kind: str
    pin: bool
    def __init__(self, digest: _Optional[str] = ..., kind: _Optional[str] = ..., pin: bool = ...) -> None: ...

class LoadModuleResponse(_message.Message):
    __slots__ = ("place",)
    PLACE_FIELD_NUMBER: _ClassVar[int]
    place: ModulePlace
    def __init__(self, place: _Optional[_Union[ModulePlace, str]] = ...) -> None: ...

class UnloadModuleRequest(_message.Message):
    __slots__ = ("digest", "kind", "forget")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    kind: str
    forget: bool
    def __init__(self, digest: _Optional[str] = ..., kind: _Optional[str] = ..., forget: bool = ...) -> None: ...

class UnloadModuleResponse(_message.Message):
    __slots__ = ("place",)
    PLACE_FIELD_NUMBER: _ClassVar[int]
    place: ModulePlace
    def __init__(self, place: _Optional[_Union[ModulePlace, str]] = ...) -> None: ...

class GetModulePlacesRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, digests: _Optional[_Iterable[str]] = ...) -> None: ...

class GetModulePlacesResponse(_message.Message):
    __slots__ = ("modules",)
    MODULES_FIELD_NUMBER: _ClassVar[int]
    modules: _containers.RepeatedCompositeFieldContainer[ModuleResidency]
    def __init__(self, modules: _Optional[_Iterable[_Union[ModuleResidency, _Mapping]]] = ...) -> None: ...

class TryModuleRequest(_message.Message):
    __slots__ = ("digest", "kind")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    digest: str
    kind: str
    def __init__(self, digest: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class TryModuleResponse(_message.Message):
    __slots__ = ("largest_change",)
    LARGEST_CHANGE_FIELD_NUMBER: _ClassVar[int]
    largest_change: float
    def __init__(self, largest_change: _Optional[float] = ...) -> None: ...

class ComposeParent(_message.Message):
    __slots__ = ("digest", "weight")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    weight: float
    def __init__(self, digest: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class ComposeModuleRequest(_message.Message):
    __slots__ = ("method", "parents", "rank", "density", "seed")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    method: str
    parents: _containers.RepeatedCompositeFieldContainer[ComposeParent]
    rank: int
    density: float
    seed: int
    def __init__(self, method: _Optional[str] = ..., parents: _Optional[_Iterable[_Union[ComposeParent, _Mapping]]] = ..., rank: _Optional[int] = ..., density: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class ComposeProgress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class ComposedFile(_message.Message):
    __slots__ = ("file_name", "content")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    content: bytes
    def __init__(self, file_name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class ComposeModuleResponse(_message.Message):
    __slots__ = ("progress", "file", "recipe")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    progress: ComposeProgress
    file: ComposedFile
    recipe: str
    def __init__(self, progress: _Optional[_Union[ComposeProgress, _Mapping]] = ..., file: _Optional[_Union[ComposedFile, _Mapping]] = ..., recipe: _Optional[str] = ...) -> None: ...

class DistilRecipe(_message.Message):
    __slots__ = ("steps", "rows", "rank", "rate", "fact_share", "fresh", "stop_loss", "least_teacher", "phrasings", "tokens", "old_share")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    FACT_SHARE_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    STOP_LOSS_FIELD_NUMBER: _ClassVar[int]
    LEAST_TEACHER_FIELD_NUMBER: _ClassVar[int]
    PHRASINGS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    OLD_SHARE_FIELD_NUMBER: _ClassVar[int]
    steps: int
    rows: int
    rank: int
    rate: float
    fact_share: float
    fresh: float
    stop_loss: float
    least_teacher: float
    phrasings: int
    tokens: int
    old_share: float
    def __init__(self, steps: _Optional[int] = ..., rows: _Optional[int] = ..., rank: _Optional[int] = ..., rate: _Optional[float] = ..., fact_share: _Optional[float] = ..., fresh: _Optional[float] = ..., stop_loss: _Optional[float] = ..., least_teacher: _Optional[float] = ..., phrasings: _Optional[int] = ..., tokens: _Optional[int] = ..., old_share: _Optional[float] = ...) -> None: ...

class DistilModuleRequest(_message.Message):
    __slots__ = ("kind", "texts", "recipe", "seed", "budget_s", "recall_template", "parent_digest", "old_texts", "memory_keys")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    RECALL_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    PARENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OLD_TEXTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_KEYS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    recipe: DistilRecipe
    seed: int
    budget_s: float
    recall_template: str
    parent_digest: str
    old_texts: _containers.RepeatedScalarFieldContainer[str]
    memory_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., recipe: _Optional[_Union[DistilRecipe, _Mapping]] = ..., seed: _Optional[int] = ..., budget_s: _Optional[float] = ..., recall_template: _Optional[str] = ..., parent_digest: _Optional[str] = ..., old_texts: _Optional[_Iterable[str]] = ..., memory_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class DistilProgress(_message.Message):
    __slots__ = ("stage", "step", "steps", "cpu_s", "tokens", "median_loss")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_LOSS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    step: int
    steps: int
    cpu_s: float
    tokens: int
    median_loss: float
    def __init__(self, stage: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., cpu_s: _Optional[float] = ..., tokens: _Optional[int] = ..., median_loss: _Optional[float] = ...) -> None: ...

class DistilModuleResponse(_message.Message):
    __slots__ = ("progress", "file", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: DistilProgress
    file: ComposedFile
    report: str
    def __init__(self, progress: _Optional[_Union[DistilProgress, _Mapping]] = ..., file: _Optional[_Union[ComposedFile, _Mapping]] = ..., report: _Optional[str] = ...) -> None: ...
