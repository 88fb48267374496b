from memserve.pb.v1 import erasure_pb2 as _erasure_pb2
from memserve.pb.v1 import memory_pb2 as _memory_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LineageKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LINEAGE_KIND_UNSPECIFIED: _ClassVar[LineageKind]
    LINEAGE_KIND_MEMORY: _ClassVar[LineageKind]
    LINEAGE_KIND_KV: _ClassVar[LineageKind]
    LINEAGE_KIND_MODULE: _ClassVar[LineageKind]
    LINEAGE_KIND_ANSWER: _ClassVar[LineageKind]

class LineageState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LINEAGE_STATE_UNSPECIFIED: _ClassVar[LineageState]
    LINEAGE_STATE_CURRENT: _ClassVar[LineageState]
    LINEAGE_STATE_OUT_OF_DATE: _ClassVar[LineageState]
    LINEAGE_STATE_GONE: _ClassVar[LineageState]
LINEAGE_KIND_UNSPECIFIED: LineageKind
LINEAGE_KIND_MEMORY: LineageKind
LINEAGE_KIND_KV: LineageKind
LINEAGE_KIND_MODULE: LineageKind
LINEAGE_KIND_ANSWER: LineageKind
LINEAGE_STATE_UNSPECIFIED: LineageState
LINEAGE_STATE_CURRENT: LineageState
LINEAGE_STATE_OUT_OF_DATE: LineageState
LINEAGE_STATE_GONE: LineageState

class ShowLineageRequest(_message.Message):
    __slots__ = ("of", "skip_sources", "skip_products", "depth", "limit")
    OF_FIELD_NUMBER: _ClassVar[int]
    SKIP_SOURCES_FIELD_NUMBER: _ClassVar[int]
    SKIP_PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    of: str
    skip_sources: bool
    skip_products: bool
    depth: int
    limit: int
    def __init__(self, of: _Optional[str] = ..., skip_sources: bool = ..., skip_products: bool = ..., depth: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class LineageNode(_message.Message):
    __slots__ = ("name", "kind", "state", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: LineageKind
    state: LineageState
    detail: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[LineageKind, str]] = ..., state: _Optional[_Union[LineageState, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class LineageEdge(_message.Message):
    __slots__ = ("source", "made", "how")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    HOW_FIELD_NUMBER: _ClassVar[int]
    source: str
    made: str
    how: str
    def __init__(self, source: _Optional[str] = ..., made: _Optional[str] = ..., how: _Optional[str] = ...) -> None: ...

class ShowLineageResponse(_message.Message):
    __slots__ = ("root", "nodes", "edges", "cut")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    root: str
    nodes: _containers.RepeatedCompositeFieldContainer[LineageNode]
    edges: _containers.RepeatedCompositeFieldContainer[LineageEdge]
    cut: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, root: _Optional[str] = ..., nodes: _Optional[_Iterable[_Union[LineageNode, _Mapping]]] = ..., edges: _Optional[_Iterable[_Union[LineageEdge, _Mapping]]] = ..., cut: _Optional[_Iterable[str]] = ...) -> None: ...

class ListErasuresRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ErasureReport(_message.Message):
    __slots__ = ("erasure", "places")
    ERASURE_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    erasure: _erasure_pb2.Erasure
    places: _containers.RepeatedCompositeFieldContainer[_memory_pb2.ErasedPlace]
    def __init__(self, erasure: _Optional[_Union[_erasure_pb2.Erasure, _Mapping]] = ..., places: _Optional[_Iterable[_Union[_memory_pb2.ErasedPlace, _Mapping]]] = ...) -> None: ...

class ListErasuresResponse(_message.Message):
    __slots__ = ("erasures",)
    ERASURES_FIELD_NUMBER: _ClassVar[int]
    erasures: _containers.RepeatedCompositeFieldContainer[ErasureReport]
    def __init__(self, erasures: _Optional[_Iterable[_Union[ErasureReport, _Mapping]]] = ...) -> None: ...

class CheckErasureRequest(_message.Message):
    __slots__ = ("erasure_id",)
    ERASURE_ID_FIELD_NUMBER: _ClassVar[int]
    erasure_id: str
    def __init__(self, erasure_id: _Optional[str] = ...) -> None: ...

class CheckErasureResponse(_message.Message):
    __slots__ = ("erasure", "places")
    ERASURE_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    erasure: _erasure_pb2.Erasure
    places: _containers.RepeatedCompositeFieldContainer[_memory_pb2.ErasedPlace]
    def __init__(self, erasure: _Optional[_Union[_erasure_pb2.Erasure, _Mapping]] = ..., places: _Optional[_Iterable[_Union[_memory_pb2.ErasedPlace, _Mapping]]] = ...) -> None: ...
