from memserve.pb.v1 import memory_pb2 as _memory_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]

class RecallSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECALL_SOURCE_UNSPECIFIED: _ClassVar[RecallSource]
    RECALL_SOURCE_TEXTS: _ClassVar[RecallSource]
    RECALL_SOURCE_PINNED: _ClassVar[RecallSource]
    RECALL_SOURCE_MODULES: _ClassVar[RecallSource]
    RECALL_SOURCE_PREFIX: _ClassVar[RecallSource]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]

class RecallOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECALL_OUTCOME_UNSPECIFIED: _ClassVar[RecallOutcome]
    RECALL_OUTCOME_NOT_ASKED: _ClassVar[RecallOutcome]
    RECALL_OUTCOME_FOUND: _ClassVar[RecallOutcome]
    RECALL_OUTCOME_EMPTY: _ClassVar[RecallOutcome]
    RECALL_OUTCOME_LATE: _ClassVar[RecallOutcome]
    RECALL_OUTCOME_UNAVAILABLE: _ClassVar[RecallOutcome]
    RECALL_OUTCOME_SKIPPED: _ClassVar[RecallOutcome]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
RECALL_SOURCE_UNSPECIFIED: RecallSource
RECALL_SOURCE_TEXTS: RecallSource
RECALL_SOURCE_PINNED: RecallSource
RECALL_SOURCE_MODULES: RecallSource
RECALL_SOURCE_PREFIX: RecallSource
PRIORITY_UNSPECIFIED: Priority
PRIORITY_HIGH: Priority
PRIORITY_NORMAL: Priority
PRIORITY_LOW: Priority
RECALL_OUTCOME_UNSPECIFIED: RecallOutcome
RECALL_OUTCOME_NOT_ASKED: RecallOutcome
RECALL_OUTCOME_FOUND: RecallOutcome
RECALL_OUTCOME_EMPTY: RecallOutcome
RECALL_OUTCOME_LATE: RecallOutcome
RECALL_OUTCOME_UNAVAILABLE: RecallOutcome
RECALL_OUTCOME_SKIPPED: RecallOutcome
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: Role
    content: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., content: _Optional[str] = ...) -> None: ...

class Slo(_message.Message):
    __slots__ = ("ttft_ms", "tpot_ms", "refuse_late", "skip_recall")
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSE_LATE_FIELD_NUMBER: _ClassVar[int]
    SKIP_RECALL_FIELD_NUMBER: _ClassVar[int]
    ttft_ms: float
    tpot_ms: float
    refuse_late: bool
    skip_recall: bool
    def __init__(self, ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., refuse_late: bool = ..., skip_recall: bool = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "seed", "stop", "logprobs", "min_tokens", "json_schema")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: bool
    min_tokens: int
    json_schema: str
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: bool = ..., min_tokens: _Optional[int] = ..., json_schema: _Optional[str] = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("namespaces", "limit", "timeout_ms", "options", "choose_module", "skip_pinned")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CHOOSE_MODULE_FIELD_NUMBER: _ClassVar[int]
    SKIP_PINNED_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    timeout_ms: int
    options: _memory_pb2.SearchOptions
    choose_module: bool
    skip_pinned: bool
    def __init__(self, namespaces: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., options: _Optional[_Union[_memory_pb2.SearchOptions, _Mapping]] = ..., choose_module: bool = ..., skip_pinned: bool = ...) -> None: ...

class RecallPart(_message.Message):
    __slots__ = ("source", "outcome", "took_ms", "given", "prompt_tokens", "detail")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TOOK_MS_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    source: RecallSource
    outcome: RecallOutcome
    took_ms: float
    given: int
    prompt_tokens: int
    detail: str
    def __init__(self, source: _Optional[_Union[RecallSource, str]] = ..., outcome: _Optional[_Union[RecallOutcome, str]] = ..., took_ms: _Optional[float] = ..., given: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class ModuleFit(_message.Message):
    __slots__ = ("name", "version", "digest", "score", "reason", "chosen")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    digest: str
    score: float
    reason: str
    chosen: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., score: _Optional[float] = ..., reason: _Optional[str] = ..., chosen: bool = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "messages", "module", "recall", "sampling", "slo", "worker_id", "experts", "session", "modules", "priority", "do_not_queue", "keep_prompt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DO_NOT_QUEUE_FIELD_NUMBER: _ClassVar[int]
    KEEP_PROMPT_FIELD_NUMBER: _ClassVar[int]
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    module: str
    recall: Recall
    sampling: Sampling
    slo: Slo
    worker_id: str
    experts: _containers.RepeatedCompositeFieldContainer[Expert]
    session: str
    modules: _containers.RepeatedCompositeFieldContainer[ModuleUse]
    priority: Priority
    do_not_queue: bool
    keep_prompt: bool
    def __init__(self, model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., module: _Optional[str] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., slo: _Optional[_Union[Slo, _Mapping]] = ..., worker_id: _Optional[str] = ..., experts: _Optional[_Iterable[_Union[Expert, _Mapping]]] = ..., session: _Optional[str] = ..., modules: _Optional[_Iterable[_Union[ModuleUse, _Mapping]]] = ..., priority: _Optional[_Union[Priority, str]] = ..., do_not_queue: bool = ..., keep_prompt: bool = ...) -> None: ...

class ModuleUse(_message.Message):
    __slots__ = ("reference", "strength")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    reference: str
    strength: float
    def __init__(self, reference: _Optional[str] = ..., strength: _Optional[float] = ...) -> None: ...

class Expert(_message.Message):
    __slots__ = ("reference", "alpha")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    reference: str
    alpha: float
    def __init__(self, reference: _Optional[str] = ..., alpha: _Optional[float] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("worker_id", "reason", "predicted_ttft_ms", "prompt_tokens", "expected_cached_tokens", "recall_outcome", "passages", "request_id", "model", "modules", "lost_memories", "candidates", "excluded", "predicted_within_ms", "system_folded", "merged_turns", "skipped", "recall", "module_fits", "outdated")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECALL_OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    LOST_MEMORIES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_WITHIN_MS_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FOLDED_FIELD_NUMBER: _ClassVar[int]
    MERGED_TURNS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    MODULE_FITS_FIELD_NUMBER: _ClassVar[int]
    OUTDATED_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    reason: str
    predicted_ttft_ms: float
    prompt_tokens: int
    expected_cached_tokens: int
    recall_outcome: RecallOutcome
    passages: _containers.RepeatedCompositeFieldContainer[_memory_pb2.ScoredMemory]
    request_id: str
    model: str
    modules: _containers.RepeatedCompositeFieldContainer[UsedModule]
    lost_memories: int
    candidates: _containers.RepeatedCompositeFieldContainer[RouteCandidate]
    excluded: _containers.RepeatedCompositeFieldContainer[ExcludedWorker]
    predicted_within_ms: float
    system_folded: bool
    merged_turns: int
    skipped: _containers.RepeatedCompositeFieldContainer[_memory_pb2.SkippedMemory]
    recall: _containers.RepeatedCompositeFieldContainer[RecallPart]
    module_fits: _containers.RepeatedCompositeFieldContainer[ModuleFit]
    outdated: _containers.RepeatedCompositeFieldContainer[OutdatedFact]
    def __init__(self, worker_id: _Optional[str] = ..., reason: _Optional[str] = ..., predicted_ttft_ms: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., expected_cached_tokens: _Optional[int] = ..., recall_outcome: _Optional[_Union[RecallOutcome, str]] = ..., passages: _Optional[_Iterable[_Union[_memory_pb2.ScoredMemory, _Mapping]]] = ..., request_id: _Optional[str] = ..., model: _Optional[str] = ..., modules: _Optional[_Iterable[_Union[UsedModule, _Mapping]]] = ..., lost_memories: _Optional[int] = ..., candidates: _Optional[_Iterable[_Union[RouteCandidate, _Mapping]]] = ..., excluded: _Optional[_Iterable[_Union[ExcludedWorker, _Mapping]]] = ..., predicted_within_ms: _Optional[float] = ..., system_folded: bool = ..., merged_turns: _Optional[int] = ..., skipped: _Optional[_Iterable[_Union[_memory_pb2.SkippedMemory, _Mapping]]] = ..., recall: _Optional[_Iterable[_Union[RecallPart, _Mapping]]] = ..., module_fits: _Optional[_Iterable[_Union[ModuleFit, _Mapping]]] = ..., outdated: _Optional[_Iterable[_Union[OutdatedFact, _Mapping]]] = ...) -> None: ...

class OutdatedFact(_message.Message):
    __slots__ = ("module", "namespace", "memory_id", "known_version", "text_namespace", "text_memory_id", "text_version", "why")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TEXT_MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_VERSION_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    module: str
    namespace: str
    memory_id: str
    known_version: int
    text_namespace: str
    text_memory_id: str
    text_version: int
    why: str
    def __init__(self, module: _Optional[str] = ..., namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., known_version: _Optional[int] = ..., text_namespace: _Optional[str] = ..., text_memory_id: _Optional[str] = ..., text_version: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class RungCost(_message.Message):
    __slots__ = ("kind", "name", "tokens", "bytes", "ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    tokens: int
    bytes: int
    ms: float
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., tokens: _Optional[int] = ..., bytes: _Optional[int] = ..., ms: _Optional[float] = ...) -> None: ...

class RouteCandidate(_message.Message):
    __slots__ = ("worker_id", "ttft_ms", "queue_ms", "slot_ms", "memory_ms", "fetch_ms", "prefill_ms", "load_ms", "learned_ms", "cached_tokens", "queued_tokens", "running")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    SLOT_MS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MS_FIELD_NUMBER: _ClassVar[int]
    FETCH_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    LEARNED_MS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    ttft_ms: float
    queue_ms: float
    slot_ms: float
    memory_ms: float
    fetch_ms: float
    prefill_ms: float
    load_ms: float
    learned_ms: float
    cached_tokens: int
    queued_tokens: int
    running: int
    def __init__(self, worker_id: _Optional[str] = ..., ttft_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., slot_ms: _Optional[float] = ..., memory_ms: _Optional[float] = ..., fetch_ms: _Optional[float] = ..., prefill_ms: _Optional[float] = ..., load_ms: _Optional[float] = ..., learned_ms: _Optional[float] = ..., cached_tokens: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., running: _Optional[int] = ...) -> None: ...

class ExcludedWorker(_message.Message):
    __slots__ = ("worker_id", "reason")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    reason: str
    def __init__(self, worker_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RecallRequest(_message.Message):
    __slots__ = ("model", "messages", "module", "modules", "recall")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    module: str
    modules: _containers.RepeatedCompositeFieldContainer[ModuleUse]
    recall: Recall
    def __init__(self, model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., module: _Optional[str] = ..., modules: _Optional[_Iterable[_Union[ModuleUse, _Mapping]]] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ...) -> None: ...

class RecallResponse(_message.Message):
    __slots__ = ("outcome", "passages", "skipped", "parts", "module_fits", "prompt_tokens", "redis_tokens", "held_tokens")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    MODULE_FITS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REDIS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HELD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    outcome: RecallOutcome
    passages: _containers.RepeatedCompositeFieldContainer[_memory_pb2.ScoredMemory]
    skipped: _containers.RepeatedCompositeFieldContainer[_memory_pb2.SkippedMemory]
    parts: _containers.RepeatedCompositeFieldContainer[RecallPart]
    module_fits: _containers.RepeatedCompositeFieldContainer[ModuleFit]
    prompt_tokens: int
    redis_tokens: int
    held_tokens: int
    def __init__(self, outcome: _Optional[_Union[RecallOutcome, str]] = ..., passages: _Optional[_Iterable[_Union[_memory_pb2.ScoredMemory, _Mapping]]] = ..., skipped: _Optional[_Iterable[_Union[_memory_pb2.SkippedMemory, _Mapping]]] = ..., parts: _Optional[_Iterable[_Union[RecallPart, _Mapping]]] = ..., module_fits: _Optional[_Iterable[_Union[ModuleFit, _Mapping]]] = ..., prompt_tokens: _Optional[int] = ..., redis_tokens: _Optional[int] = ..., held_tokens: _Optional[int] = ...) -> None: ...

class RecordOutcomeRequest(_message.Message):
    __slots__ = ("request_id", "reward", "note", "reflect", "namespace", "task")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    REFLECT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    reward: float
    note: str
    reflect: bool
    namespace: str
    task: str
    def __init__(self, request_id: _Optional[str] = ..., reward: _Optional[float] = ..., note: _Optional[str] = ..., reflect: bool = ..., namespace: _Optional[str] = ..., task: _Optional[str] = ...) -> None: ...

class RecordOutcomeResponse(_message.Message):
    __slots__ = ("memories", "reflection")
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    REFLECTION_FIELD_NUMBER: _ClassVar[int]
    memories: _containers.RepeatedCompositeFieldContainer[Reinforced]
    reflection: _memory_pb2.Memory
    def __init__(self, memories: _Optional[_Iterable[_Union[Reinforced, _Mapping]]] = ..., reflection: _Optional[_Union[_memory_pb2.Memory, _Mapping]] = ...) -> None: ...

class Reinforced(_message.Message):
    __slots__ = ("namespace", "memory_id", "strength_before", "strength")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_BEFORE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    strength_before: float
    strength: float
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., strength_before: _Optional[float] = ..., strength: _Optional[float] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("route", "outcome", "usage")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    route: Route
    outcome: str
    usage: Usage
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ..., outcome: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class ExplainAnswerRequest(_message.Message):
    __slots__ = ("request_id", "leave_one_out")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LEAVE_ONE_OUT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    leave_one_out: bool
    def __init__(self, request_id: _Optional[str] = ..., leave_one_out: bool = ...) -> None: ...

class ExplainAnswerResponse(_message.Message):
    __slots__ = ("routing", "answer", "answer_absent", "leave_one_out_absent")
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_ABSENT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_ONE_OUT_ABSENT_FIELD_NUMBER: _ClassVar[int]
    routing: ExplainResponse
    answer: KeptAnswer
    answer_absent: str
    leave_one_out_absent: str
    def __init__(self, routing: _Optional[_Union[ExplainResponse, _Mapping]] = ..., answer: _Optional[_Union[KeptAnswer, _Mapping]] = ..., answer_absent: _Optional[str] = ..., leave_one_out_absent: _Optional[str] = ...) -> None: ...

class KeptAnswer(_message.Message):
    __slots__ = ("request_id", "at_s", "model", "worker_id", "namespaces", "recall_outcome", "passages", "skipped", "modules", "prompt_tokens", "output_tokens", "cached_tokens", "outcome", "prompt", "prompt_absent", "leave_one_out")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    RECALL_OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_ABSENT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_ONE_OUT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    at_s: float
    model: str
    worker_id: str
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    recall_outcome: RecallOutcome
    passages: _containers.RepeatedCompositeFieldContainer[KeptPassage]
    skipped: _containers.RepeatedCompositeFieldContainer[KeptSkipped]
    modules: _containers.RepeatedCompositeFieldContainer[KeptModule]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: CachedTokens
    outcome: str
    prompt: KeptPrompt
    prompt_absent: str
    leave_one_out: LeaveOneOut
    def __init__(self, request_id: _Optional[str] = ..., at_s: _Optional[float] = ..., model: _Optional[str] = ..., worker_id: _Optional[str] = ..., namespaces: _Optional[_Iterable[str]] = ..., recall_outcome: _Optional[_Union[RecallOutcome, str]] = ..., passages: _Optional[_Iterable[_Union[KeptPassage, _Mapping]]] = ..., skipped: _Optional[_Iterable[_Union[KeptSkipped, _Mapping]]] = ..., modules: _Optional[_Iterable[_Union[KeptModule, _Mapping]]] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[_Union[CachedTokens, _Mapping]] = ..., outcome: _Optional[str] = ..., prompt: _Optional[_Union[KeptPrompt, _Mapping]] = ..., prompt_absent: _Optional[str] = ..., leave_one_out: _Optional[_Union[LeaveOneOut, _Mapping]] = ...) -> None: ...

class KeptPassage(_message.Message):
    __slots__ = ("namespace", "memory_id", "version", "score", "relevance", "why")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    RELEVANCE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    version: int
    score: float
    relevance: float
    why: str
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., version: _Optional[int] = ..., score: _Optional[float] = ..., relevance: _Optional[float] = ..., why: _Optional[str] = ...) -> None: ...

class KeptSkipped(_message.Message):
    __slots__ = ("namespace", "memory_id", "version", "reason", "detail")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    version: int
    reason: str
    detail: str
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., version: _Optional[int] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class KeptModule(_message.Message):
    __slots__ = ("name", "version", "digest", "kind", "strength", "sources", "parents")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    digest: str
    kind: str
    strength: float
    sources: _containers.RepeatedScalarFieldContainer[str]
    parents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., kind: _Optional[str] = ..., strength: _Optional[float] = ..., sources: _Optional[_Iterable[str]] = ..., parents: _Optional[_Iterable[str]] = ...) -> None: ...

class KeptPrompt(_message.Message):
    __slots__ = ("text", "token_ids", "answer_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    answer_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., answer_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class LeaveOneOut(_message.Message):
    __slots__ = ("passages", "logprob", "scored_tokens", "at_s")
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    passages: _containers.RepeatedCompositeFieldContainer[PassageWeight]
    logprob: float
    scored_tokens: int
    at_s: float
    def __init__(self, passages: _Optional[_Iterable[_Union[PassageWeight, _Mapping]]] = ..., logprob: _Optional[float] = ..., scored_tokens: _Optional[int] = ..., at_s: _Optional[float] = ...) -> None: ...

class PassageWeight(_message.Message):
    __slots__ = ("namespace", "memory_id", "version", "nats", "nats_per_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NATS_FIELD_NUMBER: _ClassVar[int]
    NATS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    version: int
    nats: float
    nats_per_token: float
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., version: _Optional[int] = ..., nats: _Optional[float] = ..., nats_per_token: _Optional[float] = ...) -> None: ...

class UsedModule(_message.Message):
    __slots__ = ("name", "version", "digest", "kind", "reason", "alpha")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    digest: str
    kind: str
    reason: str
    alpha: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., kind: _Optional[str] = ..., reason: _Optional[str] = ..., alpha: _Optional[float] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

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

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "output_tokens", "cached_tokens", "ttft_ms", "tpot_ms", "slo_met", "finish_reason", "stored_tokens", "rungs")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNGS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: CachedTokens
    ttft_ms: float
    tpot_ms: float
    slo_met: bool
    finish_reason: FinishReason
    stored_tokens: int
    rungs: _containers.RepeatedCompositeFieldContainer[RungCost]
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[_Union[CachedTokens, _Mapping]] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., slo_met: bool = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., stored_tokens: _Optional[int] = ..., rungs: _Optional[_Iterable[_Union[RungCost, _Mapping]]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("route", "text", "usage")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    route: Route
    text: TextDelta
    usage: Usage
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ..., text: _Optional[_Union[TextDelta, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...
