from memserve.pb.v1 import module_pb2 as _module_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErasureState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERASURE_STATE_UNSPECIFIED: _ClassVar[ErasureState]
    ERASURE_STATE_PLANNED: _ClassVar[ErasureState]
    ERASURE_STATE_PENDING: _ClassVar[ErasureState]
    ERASURE_STATE_DONE: _ClassVar[ErasureState]
ERASURE_STATE_UNSPECIFIED: ErasureState
ERASURE_STATE_PLANNED: ErasureState
ERASURE_STATE_PENDING: ErasureState
ERASURE_STATE_DONE: ErasureState

class MovedAlias(_message.Message):
    __slots__ = ("module", "alias", "before", "after", "why", "revision")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    module: str
    alias: str
    before: _containers.RepeatedCompositeFieldContainer[_module_pb2.TrafficShare]
    after: _containers.RepeatedCompositeFieldContainer[_module_pb2.TrafficShare]
    why: str
    revision: int
    def __init__(self, module: _Optional[str] = ..., alias: _Optional[str] = ..., before: _Optional[_Iterable[_Union[_module_pb2.TrafficShare, _Mapping]]] = ..., after: _Optional[_Iterable[_Union[_module_pb2.TrafficShare, _Mapping]]] = ..., why: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class MemoryName(_message.Message):
    __slots__ = ("namespace", "memory_id")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ...) -> None: ...

class Retraining(_message.Message):
    __slots__ = ("module", "kind", "retired", "memories", "queued_s", "seed", "budget_s", "made")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    module: str
    kind: str
    retired: str
    memories: _containers.RepeatedCompositeFieldContainer[MemoryName]
    queued_s: float
    seed: int
    budget_s: float
    made: str
    def __init__(self, module: _Optional[str] = ..., kind: _Optional[str] = ..., retired: _Optional[str] = ..., memories: _Optional[_Iterable[_Union[MemoryName, _Mapping]]] = ..., queued_s: _Optional[float] = ..., seed: _Optional[int] = ..., budget_s: _Optional[float] = ..., made: _Optional[str] = ...) -> None: ...

class Erasure(_message.Message):
    __slots__ = ("erasure_id", "namespace", "memory_id", "state", "at_s", "derived", "retired", "aliases", "retraining", "pending", "seconds")
    ERASURE_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    DERIVED_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    RETRAINING_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    erasure_id: str
    namespace: str
    memory_id: str
    state: ErasureState
    at_s: float
    derived: _containers.RepeatedScalarFieldContainer[str]
    retired: _containers.RepeatedScalarFieldContainer[str]
    aliases: _containers.RepeatedCompositeFieldContainer[MovedAlias]
    retraining: _containers.RepeatedCompositeFieldContainer[Retraining]
    pending: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, erasure_id: _Optional[str] = ..., namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., state: _Optional[_Union[ErasureState, str]] = ..., at_s: _Optional[float] = ..., derived: _Optional[_Iterable[str]] = ..., retired: _Optional[_Iterable[str]] = ..., aliases: _Optional[_Iterable[_Union[MovedAlias, _Mapping]]] = ..., retraining: _Optional[_Iterable[_Union[Retraining, _Mapping]]] = ..., pending: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...
