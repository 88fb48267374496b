from memserve.pb.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Prefix(_message.Message):
    __slots__ = ("model", "messages", "module")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Message]
    module: str
    def __init__(self, model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_inference_pb2.Message, _Mapping]]] = ..., module: _Optional[str] = ...) -> None: ...

class LookupPrefixRequest(_message.Message):
    __slots__ = ("prefix",)
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: Prefix
    def __init__(self, prefix: _Optional[_Union[Prefix, _Mapping]] = ...) -> None: ...

class WorkerPrefix(_message.Message):
    __slots__ = ("worker_id", "device_tokens", "held_tokens")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HELD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    device_tokens: int
    held_tokens: int
    def __init__(self, worker_id: _Optional[str] = ..., device_tokens: _Optional[int] = ..., held_tokens: _Optional[int] = ...) -> None: ...

class LookupPrefixResponse(_message.Message):
    __slots__ = ("prompt_tokens", "chunk_tokens", "redis_tokens", "workers")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REDIS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    chunk_tokens: int
    redis_tokens: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerPrefix]
    def __init__(self, prompt_tokens: _Optional[int] = ..., chunk_tokens: _Optional[int] = ..., redis_tokens: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerPrefix, _Mapping]]] = ...) -> None: ...

class WarmPrefixRequest(_message.Message):
    __slots__ = ("prefix", "worker_id")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    prefix: Prefix
    worker_id: str
    def __init__(self, prefix: _Optional[_Union[Prefix, _Mapping]] = ..., worker_id: _Optional[str] = ...) -> None: ...

class WarmPrefixResponse(_message.Message):
    __slots__ = ("worker_id", "prompt_tokens", "computed_tokens", "stored_tokens", "done")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    prompt_tokens: int
    computed_tokens: int
    stored_tokens: int
    done: bool
    def __init__(self, worker_id: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., stored_tokens: _Optional[int] = ..., done: bool = ...) -> None: ...

class PinPrefixRequest(_message.Message):
    __slots__ = ("prefix", "duration_s")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    prefix: Prefix
    duration_s: int
    def __init__(self, prefix: _Optional[_Union[Prefix, _Mapping]] = ..., duration_s: _Optional[int] = ...) -> None: ...

class PinPrefixResponse(_message.Message):
    __slots__ = ("pinned_tokens", "pinned_bytes")
    PINNED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    pinned_tokens: int
    pinned_bytes: int
    def __init__(self, pinned_tokens: _Optional[int] = ..., pinned_bytes: _Optional[int] = ...) -> None: ...

class UnpinPrefixRequest(_message.Message):
    __slots__ = ("prefix",)
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: Prefix
    def __init__(self, prefix: _Optional[_Union[Prefix, _Mapping]] = ...) -> None: ...

class UnpinPrefixResponse(_message.Message):
    __slots__ = ("unpinned_tokens",)
    UNPINNED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    unpinned_tokens: int
    def __init__(self, unpinned_tokens: _Optional[int] = ...) -> None: ...

class EvictPrefixRequest(_message.Message):
    __slots__ = ("prefix",)
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: Prefix
    def __init__(self, prefix: _Optional[_Union[Prefix, _Mapping]] = ...) -> None: ...

class EvictPrefixResponse(_message.Message):
    __slots__ = ("removed_chunks", "pinned_chunks")
    REMOVED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PINNED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    removed_chunks: int
    pinned_chunks: int
    def __init__(self, removed_chunks: _Optional[int] = ..., pinned_chunks: _Optional[int] = ...) -> None: ...

class EvictModuleRequest(_message.Message):
    __slots__ = ("module_digest",)
    MODULE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    module_digest: str
    def __init__(self, module_digest: _Optional[str] = ...) -> None: ...

class EvictModuleResponse(_message.Message):
    __slots__ = ("removed_chunks", "pinned_chunks")
    REMOVED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PINNED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    removed_chunks: int
    pinned_chunks: int
    def __init__(self, removed_chunks: _Optional[int] = ..., pinned_chunks: _Optional[int] = ...) -> None: ...

class EvictTenantRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EvictTenantResponse(_message.Message):
    __slots__ = ("removed_chunks", "pinned_chunks")
    REMOVED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PINNED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    removed_chunks: int
    pinned_chunks: int
    def __init__(self, removed_chunks: _Optional[int] = ..., pinned_chunks: _Optional[int] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("stored_bytes", "chunks", "pinned_bytes", "tenant_quota_bytes", "cache_stored_bytes", "cache_quota_bytes")
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TENANT_QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHE_STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHE_QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    stored_bytes: int
    chunks: int
    pinned_bytes: int
    tenant_quota_bytes: int
    cache_stored_bytes: int
    cache_quota_bytes: int
    def __init__(self, stored_bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., pinned_bytes: _Optional[int] = ..., tenant_quota_bytes: _Optional[int] = ..., cache_stored_bytes: _Optional[int] = ..., cache_quota_bytes: _Optional[int] = ...) -> None: ...
