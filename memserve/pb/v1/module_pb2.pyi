from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModuleKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODULE_KIND_UNSPECIFIED: _ClassVar[ModuleKind]
    MODULE_KIND_LORA: _ClassVar[ModuleKind]
    MODULE_KIND_LOGIT_EXPERT: _ClassVar[ModuleKind]
    MODULE_KIND_CARTRIDGE: _ClassVar[ModuleKind]
    MODULE_KIND_SOFT_PROMPT: _ClassVar[ModuleKind]

class ModulePlace(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODULE_PLACE_UNSPECIFIED: _ClassVar[ModulePlace]
    MODULE_PLACE_DEVICE: _ClassVar[ModulePlace]
    MODULE_PLACE_HOST: _ClassVar[ModulePlace]
    MODULE_PLACE_DISK: _ClassVar[ModulePlace]
    MODULE_PLACE_ABSENT: _ClassVar[ModulePlace]

class ComposeMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPOSE_METHOD_UNSPECIFIED: _ClassVar[ComposeMethod]
    COMPOSE_METHOD_LINEAR: _ClassVar[ComposeMethod]
    COMPOSE_METHOD_CAT: _ClassVar[ComposeMethod]
    COMPOSE_METHOD_SVD: _ClassVar[ComposeMethod]
    COMPOSE_METHOD_TIES: _ClassVar[ComposeMethod]
    COMPOSE_METHOD_DARE: _ClassVar[ComposeMethod]
    COMPOSE_METHOD_CORE: _ClassVar[ComposeMethod]
    COMPOSE_METHOD_COMPRESS: _ClassVar[ComposeMethod]

class DistillationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISTILLATION_STATE_UNSPECIFIED: _ClassVar[DistillationState]
    DISTILLATION_STATE_RUNNING: _ClassVar[DistillationState]
    DISTILLATION_STATE_DONE: _ClassVar[DistillationState]
    DISTILLATION_STATE_FAILED: _ClassVar[DistillationState]
    DISTILLATION_STATE_STOPPED: _ClassVar[DistillationState]
MODULE_KIND_UNSPECIFIED: ModuleKind
MODULE_KIND_LORA: ModuleKind
MODULE_KIND_LOGIT_EXPERT: ModuleKind
MODULE_KIND_CARTRIDGE: ModuleKind
MODULE_KIND_SOFT_PROMPT: ModuleKind
MODULE_PLACE_UNSPECIFIED: ModulePlace
MODULE_PLACE_DEVICE: ModulePlace
MODULE_PLACE_HOST: ModulePlace
MODULE_PLACE_DISK: ModulePlace
MODULE_PLACE_ABSENT: ModulePlace
COMPOSE_METHOD_UNSPECIFIED: ComposeMethod
COMPOSE_METHOD_LINEAR: ComposeMethod
COMPOSE_METHOD_CAT: ComposeMethod
COMPOSE_METHOD_SVD: ComposeMethod
COMPOSE_METHOD_TIES: ComposeMethod
COMPOSE_METHOD_DARE: ComposeMethod
COMPOSE_METHOD_CORE: ComposeMethod
COMPOSE_METHOD_COMPRESS: ComposeMethod
DISTILLATION_STATE_UNSPECIFIED: DistillationState
DISTILLATION_STATE_RUNNING: DistillationState
DISTILLATION_STATE_DONE: DistillationState
DISTILLATION_STATE_FAILED: DistillationState
DISTILLATION_STATE_STOPPED: DistillationState

class WeightFigures(_message.Message):
    __slots__ = ("delta_norm", "sparsity", "effective_rank")
    DELTA_NORM_FIELD_NUMBER: _ClassVar[int]
    SPARSITY_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_RANK_FIELD_NUMBER: _ClassVar[int]
    delta_norm: float
    sparsity: float
    effective_rank: float
    def __init__(self, delta_norm: _Optional[float] = ..., sparsity: _Optional[float] = ..., effective_rank: _Optional[float] = ...) -> None: ...

class GateFigure(_message.Message):
    __slots__ = ("name", "base", "module", "rule", "holds", "probes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    name: str
    base: float
    module: float
    rule: str
    holds: bool
    probes: int
    def __init__(self, name: _Optional[str] = ..., base: _Optional[float] = ..., module: _Optional[float] = ..., rule: _Optional[str] = ..., holds: bool = ..., probes: _Optional[int] = ...) -> None: ...

class GateReport(_message.Message):
    __slots__ = ("passed", "figures", "worker_id", "at_s", "probes_digest")
    PASSED_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    PROBES_DIGEST_FIELD_NUMBER: _ClassVar[int]
    passed: bool
    figures: _containers.RepeatedCompositeFieldContainer[GateFigure]
    worker_id: str
    at_s: float
    probes_digest: str
    def __init__(self, passed: bool = ..., figures: _Optional[_Iterable[_Union[GateFigure, _Mapping]]] = ..., worker_id: _Optional[str] = ..., at_s: _Optional[float] = ..., probes_digest: _Optional[str] = ...) -> None: ...

class ModuleVersion(_message.Message):
    __slots__ = ("module", "version", "digest", "kind", "base_digest", "rank", "target_modules", "size_bytes", "created_s", "author", "sources", "parents", "recipe", "notes", "figures", "probes_digest", "gate", "moves_logits", "warning", "prefix_tokens")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    PROBES_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    MOVES_LOGITS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    module: str
    version: int
    digest: str
    kind: ModuleKind
    base_digest: str
    rank: int
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    size_bytes: int
    created_s: float
    author: str
    sources: _containers.RepeatedScalarFieldContainer[str]
    parents: _containers.RepeatedScalarFieldContainer[str]
    recipe: str
    notes: str
    figures: WeightFigures
    probes_digest: str
    gate: GateReport
    moves_logits: bool
    warning: str
    prefix_tokens: int
    def __init__(self, module: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., kind: _Optional[_Union[ModuleKind, str]] = ..., base_digest: _Optional[str] = ..., rank: _Optional[int] = ..., target_modules: _Optional[_Iterable[str]] = ..., size_bytes: _Optional[int] = ..., created_s: _Optional[float] = ..., author: _Optional[str] = ..., sources: _Optional[_Iterable[str]] = ..., parents: _Optional[_Iterable[str]] = ..., recipe: _Optional[str] = ..., notes: _Optional[str] = ..., figures: _Optional[_Union[WeightFigures, _Mapping]] = ..., probes_digest: _Optional[str] = ..., gate: _Optional[_Union[GateReport, _Mapping]] = ..., moves_logits: bool = ..., warning: _Optional[str] = ..., prefix_tokens: _Optional[int] = ...) -> None: ...

class TrafficShare(_message.Message):
    __slots__ = ("version", "weight")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    version: int
    weight: float
    def __init__(self, version: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class Alias(_message.Message):
    __slots__ = ("name", "targets", "revision", "changed_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    targets: _containers.RepeatedCompositeFieldContainer[TrafficShare]
    revision: int
    changed_s: float
    def __init__(self, name: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[TrafficShare, _Mapping]]] = ..., revision: _Optional[int] = ..., changed_s: _Optional[float] = ...) -> None: ...

class AliasChange(_message.Message):
    __slots__ = ("revision", "targets", "at_s", "principal", "action", "reason", "forced")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    targets: _containers.RepeatedCompositeFieldContainer[TrafficShare]
    at_s: float
    principal: str
    action: str
    reason: str
    forced: bool
    def __init__(self, revision: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[TrafficShare, _Mapping]]] = ..., at_s: _Optional[float] = ..., principal: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., forced: bool = ...) -> None: ...

class Module(_message.Message):
    __slots__ = ("name", "kind", "newest_version", "versions", "aliases")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NEWEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ModuleKind
    newest_version: int
    versions: int
    aliases: _containers.RepeatedCompositeFieldContainer[Alias]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ModuleKind, str]] = ..., newest_version: _Optional[int] = ..., versions: _Optional[int] = ..., aliases: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ...) -> None: ...

class AuditEvent(_message.Message):
    __slots__ = ("event_id", "at_s", "principal", "action", "module", "before", "after", "tenant")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    at_s: float
    principal: str
    action: str
    module: str
    before: str
    after: str
    tenant: str
    def __init__(self, event_id: _Optional[str] = ..., at_s: _Optional[float] = ..., principal: _Optional[str] = ..., action: _Optional[str] = ..., module: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class UploadFile(_message.Message):
    __slots__ = ("file_name", "size_bytes", "sha256")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    size_bytes: int
    sha256: str
    def __init__(self, file_name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class PublishModuleHeader(_message.Message):
    __slots__ = ("name", "kind", "expected_digest", "files", "sources", "recipe", "notes", "parents")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ModuleKind
    expected_digest: str
    files: _containers.RepeatedCompositeFieldContainer[UploadFile]
    sources: _containers.RepeatedScalarFieldContainer[str]
    recipe: str
    notes: str
    parents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ModuleKind, str]] = ..., expected_digest: _Optional[str] = ..., files: _Optional[_Iterable[_Union[UploadFile, _Mapping]]] = ..., sources: _Optional[_Iterable[str]] = ..., recipe: _Optional[str] = ..., notes: _Optional[str] = ..., parents: _Optional[_Iterable[str]] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("file_name", "content", "offset")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    content: bytes
    offset: int
    def __init__(self, file_name: _Optional[str] = ..., content: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class PublishModuleRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: PublishModuleHeader
    chunk: FileChunk
    def __init__(self, header: _Optional[_Union[PublishModuleHeader, _Mapping]] = ..., chunk: _Optional[_Union[FileChunk, _Mapping]] = ...) -> None: ...

class PublishModuleResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: ModuleVersion
    def __init__(self, version: _Optional[_Union[ModuleVersion, _Mapping]] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: PublishModuleHeader
    def __init__(self, header: _Optional[_Union[PublishModuleHeader, _Mapping]] = ...) -> None: ...

class GetUploadResponse(_message.Message):
    __slots__ = ("received_bytes",)
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    received_bytes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, received_bytes: _Optional[_Iterable[int]] = ...) -> None: ...

class GetModuleRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModuleResponse(_message.Message):
    __slots__ = ("module",)
    MODULE_FIELD_NUMBER: _ClassVar[int]
    module: Module
    def __init__(self, module: _Optional[_Union[Module, _Mapping]] = ...) -> None: ...

class ListModulesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "name_prefix", "kind")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAME_PREFIX_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    name_prefix: str
    kind: ModuleKind
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., name_prefix: _Optional[str] = ..., kind: _Optional[_Union[ModuleKind, str]] = ...) -> None: ...

class ListModulesResponse(_message.Message):
    __slots__ = ("modules", "next_page_token")
    MODULES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    modules: _containers.RepeatedCompositeFieldContainer[Module]
    next_page_token: str
    def __init__(self, modules: _Optional[_Iterable[_Union[Module, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetVersionRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class GetVersionResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: ModuleVersion
    def __init__(self, version: _Optional[_Union[ModuleVersion, _Mapping]] = ...) -> None: ...

class ReadVersionRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class VersionContent(_message.Message):
    __slots__ = ("version", "files")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    version: ModuleVersion
    files: _containers.RepeatedCompositeFieldContainer[UploadFile]
    def __init__(self, version: _Optional[_Union[ModuleVersion, _Mapping]] = ..., files: _Optional[_Iterable[_Union[UploadFile, _Mapping]]] = ...) -> None: ...

class ReadVersionResponse(_message.Message):
    __slots__ = ("content", "chunk")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    content: VersionContent
    chunk: FileChunk
    def __init__(self, content: _Optional[_Union[VersionContent, _Mapping]] = ..., chunk: _Optional[_Union[FileChunk, _Mapping]] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("name", "page_size", "page_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    page_size: int
    page_token: str
    def __init__(self, name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions", "next_page_token")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[ModuleVersion]
    next_page_token: str
    def __init__(self, versions: _Optional[_Iterable[_Union[ModuleVersion, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GateProgress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class RunGateRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class RunGateResponse(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: GateProgress
    report: GateReport
    def __init__(self, progress: _Optional[_Union[GateProgress, _Mapping]] = ..., report: _Optional[_Union[GateReport, _Mapping]] = ...) -> None: ...

class PromoteModuleRequest(_message.Message):
    __slots__ = ("name", "version", "alias", "expected_revision", "force", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    alias: str
    expected_revision: int
    force: bool
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., alias: _Optional[str] = ..., expected_revision: _Optional[int] = ..., force: bool = ..., reason: _Optional[str] = ...) -> None: ...

class PromoteModuleResponse(_message.Message):
    __slots__ = ("progress", "alias")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    progress: GateProgress
    alias: Alias
    def __init__(self, progress: _Optional[_Union[GateProgress, _Mapping]] = ..., alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class RollbackModuleRequest(_message.Message):
    __slots__ = ("name", "alias", "expected_revision", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    alias: str
    expected_revision: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., alias: _Optional[str] = ..., expected_revision: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RollbackModuleResponse(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: Alias
    def __init__(self, alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ("name", "alias", "targets", "expected_revision", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    alias: str
    targets: _containers.RepeatedCompositeFieldContainer[TrafficShare]
    expected_revision: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., alias: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[TrafficShare, _Mapping]]] = ..., expected_revision: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class SetTrafficResponse(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: Alias
    def __init__(self, alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class DropAliasRequest(_message.Message):
    __slots__ = ("name", "alias", "expected_revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    alias: str
    expected_revision: int
    def __init__(self, name: _Optional[str] = ..., alias: _Optional[str] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class DropAliasResponse(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: Alias
    def __init__(self, alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class ListAliasHistoryRequest(_message.Message):
    __slots__ = ("name", "alias", "page_size", "after_revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    alias: str
    page_size: int
    after_revision: int
    def __init__(self, name: _Optional[str] = ..., alias: _Optional[str] = ..., page_size: _Optional[int] = ..., after_revision: _Optional[int] = ...) -> None: ...

class ListAliasHistoryResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[AliasChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[AliasChange, _Mapping]]] = ...) -> None: ...

class DeleteVersionRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class DeleteVersionResponse(_message.Message):
    __slots__ = ("evicted_chunks",)
    EVICTED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    evicted_chunks: int
    def __init__(self, evicted_chunks: _Optional[int] = ...) -> None: ...

class WorkerResidency(_message.Message):
    __slots__ = ("worker_id", "place", "refusal")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    place: ModulePlace
    refusal: str
    def __init__(self, worker_id: _Optional[str] = ..., place: _Optional[_Union[ModulePlace, str]] = ..., refusal: _Optional[str] = ...) -> None: ...

class GetResidencyRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class GetResidencyResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerResidency]
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerResidency, _Mapping]]] = ...) -> None: ...

class PreloadModuleRequest(_message.Message):
    __slots__ = ("reference", "worker_id")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    reference: str
    worker_id: str
    def __init__(self, reference: _Optional[str] = ..., worker_id: _Optional[str] = ...) -> None: ...

class PreloadModuleResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerResidency]
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerResidency, _Mapping]]] = ...) -> None: ...

class UnloadModuleRequest(_message.Message):
    __slots__ = ("reference", "worker_id")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    reference: str
    worker_id: str
    def __init__(self, reference: _Optional[str] = ..., worker_id: _Optional[str] = ...) -> None: ...

class UnloadModuleResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerResidency]
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerResidency, _Mapping]]] = ...) -> None: ...

class ComposeParent(_message.Message):
    __slots__ = ("reference", "weight")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    reference: str
    weight: float
    def __init__(self, reference: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class ComposeModuleRequest(_message.Message):
    __slots__ = ("name", "method", "parents", "rank", "density", "seed", "notes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    method: ComposeMethod
    parents: _containers.RepeatedCompositeFieldContainer[ComposeParent]
    rank: int
    density: float
    seed: int
    notes: str
    def __init__(self, name: _Optional[str] = ..., method: _Optional[_Union[ComposeMethod, str]] = ..., parents: _Optional[_Iterable[_Union[ComposeParent, _Mapping]]] = ..., rank: _Optional[int] = ..., density: _Optional[float] = ..., seed: _Optional[int] = ..., notes: _Optional[str] = ...) -> None: ...

class ComposeModuleResponse(_message.Message):
    __slots__ = ("progress", "version")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    progress: GateProgress
    version: ModuleVersion
    def __init__(self, progress: _Optional[_Union[GateProgress, _Mapping]] = ..., version: _Optional[_Union[ModuleVersion, _Mapping]] = ...) -> None: ...

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

class DistilMemory(_message.Message):
    __slots__ = ("namespace", "memory_id")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ...) -> None: ...

class DistilModuleRequest(_message.Message):
    __slots__ = ("name", "kind", "namespaces", "filter", "document_ids", "memories", "recipe", "budget_s", "seed", "notes", "dry_run", "cancel", "from_reference")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    FROM_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ModuleKind
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    document_ids: _containers.RepeatedScalarFieldContainer[str]
    memories: _containers.RepeatedCompositeFieldContainer[DistilMemory]
    recipe: DistilRecipe
    budget_s: float
    seed: int
    notes: str
    dry_run: bool
    cancel: bool
    from_reference: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ModuleKind, str]] = ..., namespaces: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., document_ids: _Optional[_Iterable[str]] = ..., memories: _Optional[_Iterable[_Union[DistilMemory, _Mapping]]] = ..., recipe: _Optional[_Union[DistilRecipe, _Mapping]] = ..., budget_s: _Optional[float] = ..., seed: _Optional[int] = ..., notes: _Optional[str] = ..., dry_run: bool = ..., cancel: bool = ..., from_reference: _Optional[str] = ...) -> None: ...

class DistilLeftOut(_message.Message):
    __slots__ = ("namespace", "memory_id", "reason")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    memory_id: str
    reason: str
    def __init__(self, namespace: _Optional[str] = ..., memory_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class DistilPlan(_message.Message):
    __slots__ = ("memories", "facts", "questions", "left_out", "examples", "probes")
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    memories: int
    facts: int
    questions: int
    left_out: _containers.RepeatedCompositeFieldContainer[DistilLeftOut]
    examples: _containers.RepeatedScalarFieldContainer[str]
    probes: int
    def __init__(self, memories: _Optional[int] = ..., facts: _Optional[int] = ..., questions: _Optional[int] = ..., left_out: _Optional[_Iterable[_Union[DistilLeftOut, _Mapping]]] = ..., examples: _Optional[_Iterable[str]] = ..., probes: _Optional[int] = ...) -> None: ...

class DistilProgress(_message.Message):
    __slots__ = ("stage", "done", "total", "cpu_s", "tokens", "median_loss")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_LOSS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    done: int
    total: int
    cpu_s: float
    tokens: int
    median_loss: float
    def __init__(self, stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., cpu_s: _Optional[float] = ..., tokens: _Optional[int] = ..., median_loss: _Optional[float] = ...) -> None: ...

class DistilModuleResponse(_message.Message):
    __slots__ = ("plan", "progress", "version", "cancelled")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    plan: DistilPlan
    progress: DistilProgress
    version: ModuleVersion
    cancelled: bool
    def __init__(self, plan: _Optional[_Union[DistilPlan, _Mapping]] = ..., progress: _Optional[_Union[DistilProgress, _Mapping]] = ..., version: _Optional[_Union[ModuleVersion, _Mapping]] = ..., cancelled: bool = ...) -> None: ...

class Distillation(_message.Message):
    __slots__ = ("job_id", "module", "kind", "state", "principal", "begun_s", "ended_s", "progress", "taken_up", "version", "passed", "promoted_to", "reason", "from_reference")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    BEGUN_S_FIELD_NUMBER: _ClassVar[int]
    ENDED_S_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TAKEN_UP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_TO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FROM_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    module: str
    kind: ModuleKind
    state: DistillationState
    principal: str
    begun_s: float
    ended_s: float
    progress: DistilProgress
    taken_up: int
    version: int
    passed: bool
    promoted_to: str
    reason: str
    from_reference: str
    def __init__(self, job_id: _Optional[str] = ..., module: _Optional[str] = ..., kind: _Optional[_Union[ModuleKind, str]] = ..., state: _Optional[_Union[DistillationState, str]] = ..., principal: _Optional[str] = ..., begun_s: _Optional[float] = ..., ended_s: _Optional[float] = ..., progress: _Optional[_Union[DistilProgress, _Mapping]] = ..., taken_up: _Optional[int] = ..., version: _Optional[int] = ..., passed: bool = ..., promoted_to: _Optional[str] = ..., reason: _Optional[str] = ..., from_reference: _Optional[str] = ...) -> None: ...

class ListDistillationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDistillationsResponse(_message.Message):
    __slots__ = ("distillations",)
    DISTILLATIONS_FIELD_NUMBER: _ClassVar[int]
    distillations: _containers.RepeatedCompositeFieldContainer[Distillation]
    def __init__(self, distillations: _Optional[_Iterable[_Union[Distillation, _Mapping]]] = ...) -> None: ...

class WatchModulesRequest(_message.Message):
    __slots__ = ("after_event_id",)
    AFTER_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    after_event_id: str
    def __init__(self, after_event_id: _Optional[str] = ...) -> None: ...

class WatchModulesResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: AuditEvent
    def __init__(self, event: _Optional[_Union[AuditEvent, _Mapping]] = ...) -> None: ...

class ListAuditEventsRequest(_message.Message):
    __slots__ = ("page_size", "after_event_id")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    after_event_id: str
    def __init__(self, page_size: _Optional[int] = ..., after_event_id: _Optional[str] = ...) -> None: ...

class ListAuditEventsResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[AuditEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[AuditEvent, _Mapping]]] = ...) -> None: ...

class ReleaseAuditRequest(_message.Message):
    __slots__ = ("through_event_id",)
    THROUGH_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    through_event_id: str
    def __init__(self, through_event_id: _Optional[str] = ...) -> None: ...

class ReleaseAuditResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
