from memserve.pb.v1 import erasure_pb2 as _erasure_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MemoryKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_KIND_UNSPECIFIED: _ClassVar[MemoryKind]
    MEMORY_KIND_FACT: _ClassVar[MemoryKind]
    MEMORY_KIND_EPISODE: _ClassVar[MemoryKind]
    MEMORY_KIND_REFLECTION: _ClassVar[MemoryKind]
    MEMORY_KIND_PROCEDURE: _ClassVar[MemoryKind]
    MEMORY_KIND_PASSAGE: _ClassVar[MemoryKind]

class LinkKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LINK_KIND_UNSPECIFIED: _ClassVar[LinkKind]
    LINK_KIND_SUPERSEDES: _ClassVar[LinkKind]
    LINK_KIND_CAUSED_BY: _ClassVar[LinkKind]
    LINK_KIND_PART_OF: _ClassVar[LinkKind]
    LINK_KIND_NEXT: _ClassVar[LinkKind]
    LINK_KIND_DUPLICATES: _ClassVar[LinkKind]
    LINK_KIND_CONTRADICTS: _ClassVar[LinkKind]
    LINK_KIND_DERIVED_FROM: _ClassVar[LinkKind]

class MemoryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_STATE_UNSPECIFIED: _ClassVar[MemoryState]
    MEMORY_STATE_LIVE: _ClassVar[MemoryState]
    MEMORY_STATE_SUPERSEDED: _ClassVar[MemoryState]
    MEMORY_STATE_FORGOTTEN: _ClassVar[MemoryState]

class MemoryAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_ACTION_UNSPECIFIED: _ClassVar[MemoryAction]
    MEMORY_ACTION_REMEMBERED: _ClassVar[MemoryAction]
    MEMORY_ACTION_UPDATED: _ClassVar[MemoryAction]
    MEMORY_ACTION_SUPERSEDED: _ClassVar[MemoryAction]
    MEMORY_ACTION_FORGOTTEN: _ClassVar[MemoryAction]
    MEMORY_ACTION_RESTORED: _ClassVar[MemoryAction]
    MEMORY_ACTION_ERASED: _ClassVar[MemoryAction]

class FindingKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINDING_KIND_UNSPECIFIED: _ClassVar[FindingKind]
    FINDING_KIND_DUPLICATE: _ClassVar[FindingKind]
    FINDING_KIND_CONTRADICTION: _ClassVar[FindingKind]
    FINDING_KIND_UPDATE: _ClassVar[FindingKind]

class MemoryOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_ORDER_UNSPECIFIED: _ClassVar[MemoryOrder]
    MEMORY_ORDER_CREATED: _ClassVar[MemoryOrder]
    MEMORY_ORDER_UPDATED: _ClassVar[MemoryOrder]
    MEMORY_ORDER_ID: _ClassVar[MemoryOrder]
    MEMORY_ORDER_PLACE: _ClassVar[MemoryOrder]

class SkipReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SKIP_REASON_UNSPECIFIED: _ClassVar[SkipReason]
    SKIP_REASON_CONDITION: _ClassVar[SkipReason]
    SKIP_REASON_EXPIRED: _ClassVar[SkipReason]
    SKIP_REASON_NOT_YET_VALID: _ClassVar[SkipReason]
    SKIP_REASON_SCORE: _ClassVar[SkipReason]
    SKIP_REASON_DIVERSITY: _ClassVar[SkipReason]
    SKIP_REASON_TOKENS: _ClassVar[SkipReason]
    SKIP_REASON_UNQUOTABLE: _ClassVar[SkipReason]

class MergeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MERGE_KIND_UNSPECIFIED: _ClassVar[MergeKind]
    MERGE_KIND_DUPLICATES: _ClassVar[MergeKind]
    MERGE_KIND_SUMMARY: _ClassVar[MergeKind]

class ConsolidationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSOLIDATION_STATE_UNSPECIFIED: _ClassVar[ConsolidationState]
    CONSOLIDATION_STATE_CANDIDATE: _ClassVar[ConsolidationState]
    CONSOLIDATION_STATE_ACCEPTING: _ClassVar[ConsolidationState]
    CONSOLIDATION_STATE_ACCEPTED: _ClassVar[ConsolidationState]
    CONSOLIDATION_STATE_REJECTED: _ClassVar[ConsolidationState]
    CONSOLIDATION_STATE_FAILED: _ClassVar[ConsolidationState]
MEMORY_KIND_UNSPECIFIED: MemoryKind
MEMORY_KIND_FACT: MemoryKind
MEMORY_KIND_EPISODE: MemoryKind
MEMORY_KIND_REFLECTION: MemoryKind
MEMORY_KIND_PROCEDURE: MemoryKind
MEMORY_KIND_PASSAGE: MemoryKind
LINK_KIND_UNSPECIFIED: LinkKind
LINK_KIND_SUPERSEDES: LinkKind
LINK_KIND_CAUSED_BY: LinkKind
LINK_KIND_PART_OF: LinkKind
LINK_KIND_NEXT: LinkKind
LINK_KIND_DUPLICATES: LinkKind
LINK_KIND_CONTRADICTS: LinkKind
LINK_KIND_DERIVED_FROM: LinkKind
MEMORY_STATE_UNSPECIFIED: MemoryState
MEMORY_STATE_LIVE: MemoryState
MEMORY_STATE_SUPERSEDED: MemoryState
MEMORY_STATE_FORGOTTEN: MemoryState
MEMORY_ACTION_UNSPECIFIED: MemoryAction
MEMORY_ACTION_REMEMBERED: MemoryAction
MEMORY_ACTION_UPDATED: MemoryAction
MEMORY_ACTION_SUPERSEDED: MemoryAction
MEMORY_ACTION_FORGOTTEN: MemoryAction
MEMORY_ACTION_RESTORED: MemoryAction
MEMORY_ACTION_ERASED: MemoryAction
FINDING_KIND_UNSPECIFIED: FindingKind
FINDING_KIND_DUPLICATE: FindingKind
FINDING_KIND_CONTRADICTION: FindingKind
FINDING_KIND_UPDATE: FindingKind
MEMORY_ORDER_UNSPECIFIED: MemoryOrder
MEMORY_ORDER_CREATED: MemoryOrder
MEMORY_ORDER_UPDATED: MemoryOrder
MEMORY_ORDER_ID: MemoryOrder
MEMORY_ORDER_PLACE: MemoryOrder
SKIP_REASON_UNSPECIFIED: SkipReason
SKIP_REASON_CONDITION: SkipReason
SKIP_REASON_EXPIRED: SkipReason
SKIP_REASON_NOT_YET_VALID: SkipReason
SKIP_REASON_SCORE: SkipReason
SKIP_REASON_DIVERSITY: SkipReason
SKIP_REASON_TOKENS: SkipReason
SKIP_REASON_UNQUOTABLE: SkipReason
MERGE_KIND_UNSPECIFIED: MergeKind
MERGE_KIND_DUPLICATES: MergeKind
MERGE_KIND_SUMMARY: MergeKind
CONSOLIDATION_STATE_UNSPECIFIED: ConsolidationState
CONSOLIDATION_STATE_CANDIDATE: ConsolidationState
CONSOLIDATION_STATE_ACCEPTING: ConsolidationState
CONSOLIDATION_STATE_ACCEPTED: ConsolidationState
CONSOLIDATION_STATE_REJECTED: ConsolidationState
CONSOLIDATION_STATE_FAILED: ConsolidationState

class TextList(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class MetadataValue(_message.Message):
    __slots__ = ("text", "whole", "number", "truth", "texts")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    text: str
    whole: int
    number: float
    truth: bool
    texts: TextList
    def __init__(self, text: _Optional[str] = ..., whole: _Optional[int] = ..., number: _Optional[float] = ..., truth: bool = ..., texts: _Optional[_Union[TextList, _Mapping]] = ...) -> None: ...

class MemoryLink(_message.Message):
    __slots__ = ("kind", "memory_id", "namespace")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    kind: LinkKind
    memory_id: str
    namespace: str
    def __init__(self, kind: _Optional[_Union[LinkKind, str]] = ..., memory_id: _Optional[str] = ..., namespace: _Optional[str] = ...) -> None: ...

class MemoryPlace(_message.Message):
    __slots__ = ("within", "position", "title", "headings")
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    HEADINGS_FIELD_NUMBER: _ClassVar[int]
    within: str
    position: int
    title: str
    headings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, within: _Optional[str] = ..., position: _Optional[int] = ..., title: _Optional[str] = ..., headings: _Optional[_Iterable[str]] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ("memory_id", "namespace", "text", "source", "keywords", "created_s", "kind", "metadata", "author", "valid_from_s", "valid_until_s", "applies_when", "strength", "links", "place", "pinned", "version", "updated_s", "state", "superseded_by")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetadataValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetadataValue, _Mapping]] = ...) -> None: ...
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    KEYWORDS_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    VALID_FROM_S_FIELD_NUMBER: _ClassVar[int]
    VALID_UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    APPLIES_WHEN_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPDATED_S_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_BY_FIELD_NUMBER: _ClassVar[int]
    memory_id: str
    namespace: str
    text: str
    source: str
    keywords: _containers.RepeatedScalarFieldContainer[str]
    created_s: float
    kind: MemoryKind
    metadata: _containers.MessageMap[str, MetadataValue]
    author: str
    valid_from_s: float
    valid_until_s: float
    applies_when: str
    strength: float
    links: _containers.RepeatedCompositeFieldContainer[MemoryLink]
    place: MemoryPlace
    pinned: bool
    version: int
    updated_s: float
    state: MemoryState
    superseded_by: MemoryLink
    def __init__(self, memory_id: _Optional[str] = ..., namespace: _Optional[str] = ..., text: _Optional[str] = ..., source: _Optional[str] = ..., keywords: _Optional[_Iterable[str]] = ..., created_s: _Optional[float] = ..., kind: _Optional[_Union[MemoryKind, str]] = ..., metadata: _Optional[_Mapping[str, MetadataValue]] = ..., author: _Optional[str] = ..., valid_from_s: _Optional[float] = ..., valid_until_s: _Optional[float] = ..., applies_when: _Optional[str] = ..., strength: _Optional[float] = ..., links: _Optional[_Iterable[_Union[MemoryLink, _Mapping]]] = ..., place: _Optional[_Union[MemoryPlace, _Mapping]] = ..., pinned: bool = ..., version: _Optional[int] = ..., updated_s: _Optional[float] = ..., state: _Optional[_Union[MemoryState, str]] = ..., superseded_by: _Optional[_Union[MemoryLink, _Mapping]] = ...) -> None: ...

class MemoryContent(_message.Message):
    __slots__ = ("text", "source", "keywords", "kind", "metadata", "valid_from_s", "valid_until_s", "applies_when", "strength", "links", "place", "pinned")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetadataValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetadataValue, _Mapping]] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    KEYWORDS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VALID_FROM_S_FIELD_NUMBER: _ClassVar[int]
    VALID_UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    APPLIES_WHEN_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    text: str
    source: str
    keywords: _containers.RepeatedScalarFieldContainer[str]
    kind: MemoryKind
    metadata: _containers.MessageMap[str, MetadataValue]
    valid_from_s: float
    valid_until_s: float
    applies_when: str
    strength: float
    links: _containers.RepeatedCompositeFieldContainer[MemoryLink]
    place: MemoryPlace
    pinned: bool
    def __init__(self, text: _Optional[str] = ..., source: _Optional[str] = ..., keywords: _Optional[_Iterable[str]] = ..., kind: _Optional[_Union[MemoryKind, str]] = ..., metadata: _Optional[_Mapping[str, MetadataValue]] = ..., valid_from_s: _Optional[float] = ..., valid_until_s: _Optional[float] = ..., applies_when: _Optional[str] = ..., strength: _Optional[float] = ..., links: _Optional[_Iterable[_Union[MemoryLink, _Mapping]]] = ..., place: _Optional[_Union[MemoryPlace, _Mapping]] = ..., pinned: bool = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("kind", "namespace", "memory_id", "score", "reason", "superseded")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    kind: FindingKind
    namespace: str
    memory_id: str
    score: float
    reason: str
    superseded: bool
    def __init__(self, kind: _Optional[_Union[FindingKind, str]] = ..., namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., score: _Optional[float] = ..., reason: _Optional[str] = ..., superseded: bool = ...) -> None: ...

class SurpriseScore(_message.Message):
    __slots__ = ("nats_per_token", "nats_per_token_recalled", "stored", "strength", "reason")
    NATS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NATS_PER_TOKEN_RECALLED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    nats_per_token: float
    nats_per_token_recalled: float
    stored: bool
    strength: float
    reason: str
    def __init__(self, nats_per_token: _Optional[float] = ..., nats_per_token_recalled: _Optional[float] = ..., stored: bool = ..., strength: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class RememberRequest(_message.Message):
    __slots__ = ("namespace", "text", "source", "keywords", "memory_id", "kind", "metadata", "valid_from_s", "valid_until_s", "applies_when", "strength", "links", "place", "pinned", "policy")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetadataValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetadataValue, _Mapping]] = ...) -> None: ...
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    KEYWORDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VALID_FROM_S_FIELD_NUMBER: _ClassVar[int]
    VALID_UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    APPLIES_WHEN_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    text: str
    source: str
    keywords: _containers.RepeatedScalarFieldContainer[str]
    memory_id: str
    kind: MemoryKind
    metadata: _containers.MessageMap[str, MetadataValue]
    valid_from_s: float
    valid_until_s: float
    applies_when: str
    strength: float
    links: _containers.RepeatedCompositeFieldContainer[MemoryLink]
    place: MemoryPlace
    pinned: bool
    policy: WritePolicy
    def __init__(self, namespace: _Optional[str] = ..., text: _Optional[str] = ..., source: _Optional[str] = ..., keywords: _Optional[_Iterable[str]] = ..., memory_id: _Optional[str] = ..., kind: _Optional[_Union[MemoryKind, str]] = ..., metadata: _Optional[_Mapping[str, MetadataValue]] = ..., valid_from_s: _Optional[float] = ..., valid_until_s: _Optional[float] = ..., applies_when: _Optional[str] = ..., strength: _Optional[float] = ..., links: _Optional[_Iterable[_Union[MemoryLink, _Mapping]]] = ..., place: _Optional[_Union[MemoryPlace, _Mapping]] = ..., pinned: bool = ..., policy: _Optional[_Union[WritePolicy, _Mapping]] = ...) -> None: ...

class WritePolicy(_message.Message):
    __slots__ = ("skip_relations", "supersede_updates", "skip_duplicates", "surprise_gate")
    SKIP_RELATIONS_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDE_UPDATES_FIELD_NUMBER: _ClassVar[int]
    SKIP_DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    SURPRISE_GATE_FIELD_NUMBER: _ClassVar[int]
    skip_relations: bool
    supersede_updates: bool
    skip_duplicates: bool
    surprise_gate: bool
    def __init__(self, skip_relations: bool = ..., supersede_updates: bool = ..., skip_duplicates: bool = ..., surprise_gate: bool = ...) -> None: ...

class RememberResponse(_message.Message):
    __slots__ = ("memory", "created", "findings", "surprise")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    SURPRISE_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    created: bool
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    surprise: SurpriseScore
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ..., created: bool = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., surprise: _Optional[_Union[SurpriseScore, _Mapping]] = ...) -> None: ...

class BatchRememberRequest(_message.Message):
    __slots__ = ("header", "item")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    header: BatchRememberHeader
    item: RememberRequest
    def __init__(self, header: _Optional[_Union[BatchRememberHeader, _Mapping]] = ..., item: _Optional[_Union[RememberRequest, _Mapping]] = ...) -> None: ...

class BatchRememberHeader(_message.Message):
    __slots__ = ("relate",)
    RELATE_FIELD_NUMBER: _ClassVar[int]
    relate: bool
    def __init__(self, relate: bool = ...) -> None: ...

class BatchRememberResponse(_message.Message):
    __slots__ = ("index", "remembered", "refusal")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    index: int
    remembered: RememberResponse
    refusal: ItemRefusal
    def __init__(self, index: _Optional[int] = ..., remembered: _Optional[_Union[RememberResponse, _Mapping]] = ..., refusal: _Optional[_Union[ItemRefusal, _Mapping]] = ...) -> None: ...

class ItemRefusal(_message.Message):
    __slots__ = ("status", "field", "message")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    status: str
    field: str
    message: str
    def __init__(self, status: _Optional[str] = ..., field: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RememberDocumentRequest(_message.Message):
    __slots__ = ("header", "content")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    header: DocumentHeader
    content: bytes
    def __init__(self, header: _Optional[_Union[DocumentHeader, _Mapping]] = ..., content: _Optional[bytes] = ...) -> None: ...

class DocumentHeader(_message.Message):
    __slots__ = ("namespace", "document_id", "media_type", "file_name", "source", "title", "metadata", "keywords", "valid_from_s", "valid_until_s", "applies_when")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetadataValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetadataValue, _Mapping]] = ...) -> None: ...
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    KEYWORDS_FIELD_NUMBER: _ClassVar[int]
    VALID_FROM_S_FIELD_NUMBER: _ClassVar[int]
    VALID_UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    APPLIES_WHEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    document_id: str
    media_type: str
    file_name: str
    source: str
    title: str
    metadata: _containers.MessageMap[str, MetadataValue]
    keywords: _containers.RepeatedScalarFieldContainer[str]
    valid_from_s: float
    valid_until_s: float
    applies_when: str
    def __init__(self, namespace: _Optional[str] = ..., document_id: _Optional[str] = ..., media_type: _Optional[str] = ..., file_name: _Optional[str] = ..., source: _Optional[str] = ..., title: _Optional[str] = ..., metadata: _Optional[_Mapping[str, MetadataValue]] = ..., keywords: _Optional[_Iterable[str]] = ..., valid_from_s: _Optional[float] = ..., valid_until_s: _Optional[float] = ..., applies_when: _Optional[str] = ...) -> None: ...

class RememberDocumentResponse(_message.Message):
    __slots__ = ("passages", "stored", "unchanged", "updated", "forgotten", "refused", "done", "title")
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    passages: int
    stored: int
    unchanged: int
    updated: int
    forgotten: int
    refused: _containers.RepeatedCompositeFieldContainer[BatchRememberResponse]
    done: bool
    title: str
    def __init__(self, passages: _Optional[int] = ..., stored: _Optional[int] = ..., unchanged: _Optional[int] = ..., updated: _Optional[int] = ..., forgotten: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[BatchRememberResponse, _Mapping]]] = ..., done: bool = ..., title: _Optional[str] = ...) -> None: ...

class UpdateMemoryRequest(_message.Message):
    __slots__ = ("namespace", "memory_id", "expected_version", "fields", "content", "policy")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    expected_version: int
    fields: _containers.RepeatedScalarFieldContainer[str]
    content: MemoryContent
    policy: WritePolicy
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., expected_version: _Optional[int] = ..., fields: _Optional[_Iterable[str]] = ..., content: _Optional[_Union[MemoryContent, _Mapping]] = ..., policy: _Optional[_Union[WritePolicy, _Mapping]] = ...) -> None: ...

class UpdateMemoryResponse(_message.Message):
    __slots__ = ("memory", "findings")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class GetMemoryRequest(_message.Message):
    __slots__ = ("namespace", "memory_id", "version", "as_of_s", "with_history", "forgotten")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AS_OF_S_FIELD_NUMBER: _ClassVar[int]
    WITH_HISTORY_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    version: int
    as_of_s: float
    with_history: bool
    forgotten: bool
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., version: _Optional[int] = ..., as_of_s: _Optional[float] = ..., with_history: bool = ..., forgotten: bool = ...) -> None: ...

class MemoryVersion(_message.Message):
    __slots__ = ("memory", "action")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    action: MemoryAction
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ..., action: _Optional[_Union[MemoryAction, str]] = ...) -> None: ...

class GetMemoryResponse(_message.Message):
    __slots__ = ("memory", "history", "dropped_versions")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    DROPPED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    history: _containers.RepeatedCompositeFieldContainer[MemoryVersion]
    dropped_versions: int
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ..., history: _Optional[_Iterable[_Union[MemoryVersion, _Mapping]]] = ..., dropped_versions: _Optional[int] = ...) -> None: ...

class RestoreMemoryRequest(_message.Message):
    __slots__ = ("namespace", "memory_id", "version", "expected_version")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    version: int
    expected_version: int
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., version: _Optional[int] = ..., expected_version: _Optional[int] = ...) -> None: ...

class RestoreMemoryResponse(_message.Message):
    __slots__ = ("memory",)
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ...) -> None: ...

class SupersedeMemoryRequest(_message.Message):
    __slots__ = ("namespace", "memory_id", "by_memory_id", "by_namespace")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    BY_MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    BY_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    by_memory_id: str
    by_namespace: str
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., by_memory_id: _Optional[str] = ..., by_namespace: _Optional[str] = ...) -> None: ...

class SupersedeMemoryResponse(_message.Message):
    __slots__ = ("memory",)
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("namespace", "memory_id")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForgetWhereRequest(_message.Message):
    __slots__ = ("namespaces", "filter", "dry_run_token")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    dry_run_token: str
    def __init__(self, namespaces: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., dry_run_token: _Optional[str] = ...) -> None: ...

class ForgetWhereResponse(_message.Message):
    __slots__ = ("matched", "forgotten", "examples", "dry_run_token")
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_TOKEN_FIELD_NUMBER: _ClassVar[int]
    matched: int
    forgotten: int
    examples: _containers.RepeatedCompositeFieldContainer[Memory]
    dry_run_token: str
    def __init__(self, matched: _Optional[int] = ..., forgotten: _Optional[int] = ..., examples: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ..., dry_run_token: _Optional[str] = ...) -> None: ...

class EraseMemoryRequest(_message.Message):
    __slots__ = ("namespace", "memory_id", "reason", "dry_run")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    reason: str
    dry_run: bool
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., reason: _Optional[str] = ..., dry_run: bool = ...) -> None: ...

class ErasedPlace(_message.Message):
    __slots__ = ("place", "removed", "detail", "pending")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    place: str
    removed: int
    detail: str
    pending: bool
    def __init__(self, place: _Optional[str] = ..., removed: _Optional[int] = ..., detail: _Optional[str] = ..., pending: bool = ...) -> None: ...

class EraseMemoryResponse(_message.Message):
    __slots__ = ("places", "erasure")
    PLACES_FIELD_NUMBER: _ClassVar[int]
    ERASURE_FIELD_NUMBER: _ClassVar[int]
    places: _containers.RepeatedCompositeFieldContainer[ErasedPlace]
    erasure: _erasure_pb2.Erasure
    def __init__(self, places: _Optional[_Iterable[_Union[ErasedPlace, _Mapping]]] = ..., erasure: _Optional[_Union[_erasure_pb2.Erasure, _Mapping]] = ...) -> None: ...

class DeleteNamespaceRequest(_message.Message):
    __slots__ = ("namespace", "confirm")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    confirm: str
    def __init__(self, namespace: _Optional[str] = ..., confirm: _Optional[str] = ...) -> None: ...

class DeleteNamespaceResponse(_message.Message):
    __slots__ = ("erased", "remaining", "done", "places")
    ERASED_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    erased: int
    remaining: int
    done: bool
    places: _containers.RepeatedCompositeFieldContainer[ErasedPlace]
    def __init__(self, erased: _Optional[int] = ..., remaining: _Optional[int] = ..., done: bool = ..., places: _Optional[_Iterable[_Union[ErasedPlace, _Mapping]]] = ...) -> None: ...

class ListMemoriesRequest(_message.Message):
    __slots__ = ("namespaces", "filter", "kinds", "states", "order", "descending", "page_size", "page_token")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DESCENDING_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    kinds: _containers.RepeatedScalarFieldContainer[MemoryKind]
    states: _containers.RepeatedScalarFieldContainer[MemoryState]
    order: MemoryOrder
    descending: bool
    page_size: int
    page_token: str
    def __init__(self, namespaces: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., kinds: _Optional[_Iterable[_Union[MemoryKind, str]]] = ..., states: _Optional[_Iterable[_Union[MemoryState, str]]] = ..., order: _Optional[_Union[MemoryOrder, str]] = ..., descending: bool = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListMemoriesResponse(_message.Message):
    __slots__ = ("memories", "next_page_token")
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    memories: _containers.RepeatedCompositeFieldContainer[Memory]
    next_page_token: str
    def __init__(self, memories: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ExportMemoriesRequest(_message.Message):
    __slots__ = ("namespaces",)
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, namespaces: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportMemoriesResponse(_message.Message):
    __slots__ = ("line",)
    LINE_FIELD_NUMBER: _ClassVar[int]
    line: str
    def __init__(self, line: _Optional[str] = ...) -> None: ...

class ImportMemoriesRequest(_message.Message):
    __slots__ = ("line",)
    LINE_FIELD_NUMBER: _ClassVar[int]
    line: str
    def __init__(self, line: _Optional[str] = ...) -> None: ...

class ImportMemoriesResponse(_message.Message):
    __slots__ = ("index", "refusal", "skipped")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    index: int
    refusal: ItemRefusal
    skipped: bool
    def __init__(self, index: _Optional[int] = ..., refusal: _Optional[_Union[ItemRefusal, _Mapping]] = ..., skipped: bool = ...) -> None: ...

class WatchMemoriesRequest(_message.Message):
    __slots__ = ("after_sequence", "namespaces")
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, after_sequence: _Optional[int] = ..., namespaces: _Optional[_Iterable[str]] = ...) -> None: ...

class MemoryChange(_message.Message):
    __slots__ = ("sequence", "namespace", "memory_id", "version", "action")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    namespace: str
    memory_id: str
    version: int
    action: MemoryAction
    def __init__(self, sequence: _Optional[int] = ..., namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., version: _Optional[int] = ..., action: _Optional[_Union[MemoryAction, str]] = ...) -> None: ...

class WatchMemoriesResponse(_message.Message):
    __slots__ = ("change",)
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    change: MemoryChange
    def __init__(self, change: _Optional[_Union[MemoryChange, _Mapping]] = ...) -> None: ...

class GetMemoryUsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NamespaceUsage(_message.Message):
    __slots__ = ("namespace", "memories", "records", "bytes")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memories: int
    records: int
    bytes: int
    def __init__(self, namespace: _Optional[str] = ..., memories: _Optional[int] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class GetMemoryUsageResponse(_message.Message):
    __slots__ = ("namespaces", "max_memories", "max_namespaces", "max_bytes")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    MAX_MEMORIES_FIELD_NUMBER: _ClassVar[int]
    MAX_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedCompositeFieldContainer[NamespaceUsage]
    max_memories: int
    max_namespaces: int
    max_bytes: int
    def __init__(self, namespaces: _Optional[_Iterable[_Union[NamespaceUsage, _Mapping]]] = ..., max_memories: _Optional[int] = ..., max_namespaces: _Optional[int] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class Via(_message.Message):
    __slots__ = ("memory_id", "namespace", "kind", "depth", "backwards")
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    BACKWARDS_FIELD_NUMBER: _ClassVar[int]
    memory_id: str
    namespace: str
    kind: LinkKind
    depth: int
    backwards: bool
    def __init__(self, memory_id: _Optional[str] = ..., namespace: _Optional[str] = ..., kind: _Optional[_Union[LinkKind, str]] = ..., depth: _Optional[int] = ..., backwards: bool = ...) -> None: ...

class ScoredMemory(_message.Message):
    __slots__ = ("memory", "score", "dense_score", "bm25_score", "relevance", "strength", "rerank_score", "via")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DENSE_SCORE_FIELD_NUMBER: _ClassVar[int]
    BM25_SCORE_FIELD_NUMBER: _ClassVar[int]
    RELEVANCE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    RERANK_SCORE_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    score: float
    dense_score: float
    bm25_score: float
    relevance: float
    strength: float
    rerank_score: float
    via: Via
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ..., score: _Optional[float] = ..., dense_score: _Optional[float] = ..., bm25_score: _Optional[float] = ..., relevance: _Optional[float] = ..., strength: _Optional[float] = ..., rerank_score: _Optional[float] = ..., via: _Optional[_Union[Via, _Mapping]] = ...) -> None: ...

class SkippedMemory(_message.Message):
    __slots__ = ("namespace", "memory_id", "version", "reason", "detail")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    version: int
    reason: SkipReason
    detail: str
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., version: _Optional[int] = ..., reason: _Optional[_Union[SkipReason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class SearchOptions(_message.Message):
    __slots__ = ("kinds", "filter", "min_relevance", "diversity", "max_tokens", "context", "neighbours", "link_depth", "link_kinds", "as_of_s", "rerank")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetadataValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetadataValue, _Mapping]] = ...) -> None: ...
    KINDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    MIN_RELEVANCE_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    LINK_DEPTH_FIELD_NUMBER: _ClassVar[int]
    LINK_KINDS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_S_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedScalarFieldContainer[MemoryKind]
    filter: str
    min_relevance: float
    diversity: float
    max_tokens: int
    context: _containers.MessageMap[str, MetadataValue]
    neighbours: int
    link_depth: int
    link_kinds: _containers.RepeatedScalarFieldContainer[LinkKind]
    as_of_s: float
    rerank: bool
    def __init__(self, kinds: _Optional[_Iterable[_Union[MemoryKind, str]]] = ..., filter: _Optional[str] = ..., min_relevance: _Optional[float] = ..., diversity: _Optional[float] = ..., max_tokens: _Optional[int] = ..., context: _Optional[_Mapping[str, MetadataValue]] = ..., neighbours: _Optional[int] = ..., link_depth: _Optional[int] = ..., link_kinds: _Optional[_Iterable[_Union[LinkKind, str]]] = ..., as_of_s: _Optional[float] = ..., rerank: bool = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("namespaces", "query", "limit", "options")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    query: str
    limit: int
    options: SearchOptions
    def __init__(self, namespaces: _Optional[_Iterable[str]] = ..., query: _Optional[str] = ..., limit: _Optional[int] = ..., options: _Optional[_Union[SearchOptions, _Mapping]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "skipped", "cut")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ScoredMemory]
    skipped: _containers.RepeatedCompositeFieldContainer[SkippedMemory]
    cut: bool
    def __init__(self, results: _Optional[_Iterable[_Union[ScoredMemory, _Mapping]]] = ..., skipped: _Optional[_Iterable[_Union[SkippedMemory, _Mapping]]] = ..., cut: bool = ...) -> None: ...

class FollowLinksRequest(_message.Message):
    __slots__ = ("namespace", "memory_id", "depth", "kinds", "namespaces")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    depth: int
    kinds: _containers.RepeatedScalarFieldContainer[LinkKind]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., depth: _Optional[int] = ..., kinds: _Optional[_Iterable[_Union[LinkKind, str]]] = ..., namespaces: _Optional[_Iterable[str]] = ...) -> None: ...

class FollowLinksResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ScoredMemory]
    def __init__(self, results: _Optional[_Iterable[_Union[ScoredMemory, _Mapping]]] = ...) -> None: ...

class ReadPlacesRequest(_message.Message):
    __slots__ = ("namespace", "within", "first", "last")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    within: str
    first: int
    last: int
    def __init__(self, namespace: _Optional[str] = ..., within: _Optional[str] = ..., first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class ReadPlacesResponse(_message.Message):
    __slots__ = ("memories",)
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    memories: _containers.RepeatedCompositeFieldContainer[Memory]
    def __init__(self, memories: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ...) -> None: ...

class ListNamespacesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NamespaceSummary(_message.Message):
    __slots__ = ("namespace", "memories")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memories: int
    def __init__(self, namespace: _Optional[str] = ..., memories: _Optional[int] = ...) -> None: ...

class ListNamespacesResponse(_message.Message):
    __slots__ = ("namespaces",)
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedCompositeFieldContainer[NamespaceSummary]
    def __init__(self, namespaces: _Optional[_Iterable[_Union[NamespaceSummary, _Mapping]]] = ...) -> None: ...

class ReindexMemoriesRequest(_message.Message):
    __slots__ = ("cancel", "embedder", "query_prompt", "passage_prompt")
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    QUERY_PROMPT_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    cancel: bool
    embedder: str
    query_prompt: str
    passage_prompt: str
    def __init__(self, cancel: bool = ..., embedder: _Optional[str] = ..., query_prompt: _Optional[str] = ..., passage_prompt: _Optional[str] = ...) -> None: ...

class ReindexMemoriesResponse(_message.Message):
    __slots__ = ("memories_done", "memories_total", "embedder", "done")
    MEMORIES_DONE_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    memories_done: int
    memories_total: int
    embedder: str
    done: bool
    def __init__(self, memories_done: _Optional[int] = ..., memories_total: _Optional[int] = ..., embedder: _Optional[str] = ..., done: bool = ...) -> None: ...

class ConsolidateNamespaceRequest(_message.Message):
    __slots__ = ("namespace", "dry_run", "no_summaries", "model_writes", "budget_s")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    NO_SUMMARIES_FIELD_NUMBER: _ClassVar[int]
    MODEL_WRITES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    dry_run: bool
    no_summaries: bool
    model_writes: bool
    budget_s: float
    def __init__(self, namespace: _Optional[str] = ..., dry_run: bool = ..., no_summaries: bool = ..., model_writes: bool = ..., budget_s: _Optional[float] = ...) -> None: ...

class MergedMemory(_message.Message):
    __slots__ = ("memory_id", "version")
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    memory_id: str
    version: int
    def __init__(self, memory_id: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Merge(_message.Message):
    __slots__ = ("kind", "memory_id", "text", "sources", "reason", "version")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    kind: MergeKind
    memory_id: str
    text: str
    sources: _containers.RepeatedCompositeFieldContainer[MergedMemory]
    reason: str
    version: int
    def __init__(self, kind: _Optional[_Union[MergeKind, str]] = ..., memory_id: _Optional[str] = ..., text: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[MergedMemory, _Mapping]]] = ..., reason: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class LeftAlone(_message.Message):
    __slots__ = ("memory_id", "reason")
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    memory_id: str
    reason: str
    def __init__(self, memory_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ConsolidationPlan(_message.Message):
    __slots__ = ("namespace", "memories", "merges", "left_alone", "not_looked_at")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    LEFT_ALONE_FIELD_NUMBER: _ClassVar[int]
    NOT_LOOKED_AT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memories: int
    merges: _containers.RepeatedCompositeFieldContainer[Merge]
    left_alone: _containers.RepeatedCompositeFieldContainer[LeftAlone]
    not_looked_at: int
    def __init__(self, namespace: _Optional[str] = ..., memories: _Optional[int] = ..., merges: _Optional[_Iterable[_Union[Merge, _Mapping]]] = ..., left_alone: _Optional[_Iterable[_Union[LeftAlone, _Mapping]]] = ..., not_looked_at: _Optional[int] = ...) -> None: ...

class ConsolidationProbes(_message.Message):
    __slots__ = ("questions", "found_before", "found_after", "asked", "right_before", "right_after")
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    FOUND_BEFORE_FIELD_NUMBER: _ClassVar[int]
    FOUND_AFTER_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    RIGHT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    RIGHT_AFTER_FIELD_NUMBER: _ClassVar[int]
    questions: int
    found_before: int
    found_after: int
    asked: int
    right_before: int
    right_after: int
    def __init__(self, questions: _Optional[int] = ..., found_before: _Optional[int] = ..., found_after: _Optional[int] = ..., asked: _Optional[int] = ..., right_before: _Optional[int] = ..., right_after: _Optional[int] = ...) -> None: ...

class Consolidation(_message.Message):
    __slots__ = ("consolidation_id", "state", "principal", "at_s", "plan", "probes", "reason")
    CONSOLIDATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    consolidation_id: str
    state: ConsolidationState
    principal: str
    at_s: float
    plan: ConsolidationPlan
    probes: ConsolidationProbes
    reason: str
    def __init__(self, consolidation_id: _Optional[str] = ..., state: _Optional[_Union[ConsolidationState, str]] = ..., principal: _Optional[str] = ..., at_s: _Optional[float] = ..., plan: _Optional[_Union[ConsolidationPlan, _Mapping]] = ..., probes: _Optional[_Union[ConsolidationProbes, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class ConsolidationProgress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class ConsolidateNamespaceResponse(_message.Message):
    __slots__ = ("plan", "progress", "consolidation")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CONSOLIDATION_FIELD_NUMBER: _ClassVar[int]
    plan: ConsolidationPlan
    progress: ConsolidationProgress
    consolidation: Consolidation
    def __init__(self, plan: _Optional[_Union[ConsolidationPlan, _Mapping]] = ..., progress: _Optional[_Union[ConsolidationProgress, _Mapping]] = ..., consolidation: _Optional[_Union[Consolidation, _Mapping]] = ...) -> None: ...

class DecideConsolidationRequest(_message.Message):
    __slots__ = ("namespace", "consolidation_id", "accept")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONSOLIDATION_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    consolidation_id: str
    accept: bool
    def __init__(self, namespace: _Optional[str] = ..., consolidation_id: _Optional[str] = ..., accept: bool = ...) -> None: ...

class DecideConsolidationResponse(_message.Message):
    __slots__ = ("consolidation",)
    CONSOLIDATION_FIELD_NUMBER: _ClassVar[int]
    consolidation: Consolidation
    def __init__(self, consolidation: _Optional[_Union[Consolidation, _Mapping]] = ...) -> None: ...

class ListConsolidationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListConsolidationsResponse(_message.Message):
    __slots__ = ("consolidations",)
    CONSOLIDATIONS_FIELD_NUMBER: _ClassVar[int]
    consolidations: _containers.RepeatedCompositeFieldContainer[Consolidation]
    def __init__(self, consolidations: _Optional[_Iterable[_Union[Consolidation, _Mapping]]] = ...) -> None: ...
