"""Step 2 of a request, second half: immutable module versions for the whole answer."""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memserve.domain import GenerationRequest, ModuleKind, ModuleVersion, UsedModule
from memserve.domain.worker_calls import AppliedModule
from memserve.errors import InvalidField
from memserve.memory.modules.memory import ParametricMemory, Resolved


@dataclass(frozen=True, slots=True)
class AnsweringModules:
    """The immutable versions that one answer is made with."""

    lora: ModuleVersion | None = None
    expert: ModuleVersion | None = None
    used: tuple[UsedModule, ...] = ()
    """What the receipt says of them."""

    @property
    def lora_digest(self) -> str:
        return self.lora.digest if self.lora is not None else ""

    @property
    def applied(self) -> tuple[AppliedModule, ...]:
        """What a worker is asked to answer with."""
        return tuple(
            AppliedModule(
                module.digest, module.kind, module.alpha if module.kind is ModuleKind.LOGIT_EXPERT else 1.0
            )
            for module in self.used
        )

    def fit(self, model_digest: str) -> bool:
        """Whether they were made for this model: while another is rolled out, workers of both are there."""
        return all(
            version is None or version.base_digest in ("", model_digest)
            for version in (self.lora, self.expert)
        )


class ModuleUses:
    """How many of this gateway's requests hold each module version now, by digest."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __contains__(self, digest: str) -> bool:
        return digest in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    @contextlib.contextmanager
    def holding(self, used: Sequence[UsedModule]) -> Iterator[None]:
        """While inside, these versions are in use."""
        digests = Counter(module.digest for module in used)
        self._counts += digests
        try:
            yield
        finally:
            self._counts -= digests  # a version that is at 0 leaves


async def resolve_modules(
    modules: ParametricMemory, request: GenerationRequest, tenant: str
) -> AnsweringModules:
    """What the request's references mean now, for its session.

    Raises InvalidField, and as `ParametricMemory.resolve`.
    """
    key = request.session or uuid.uuid4().hex
    lora = expert = None
    if request.module:
        lora = await modules.resolve("module", tenant, request.module, key)
        _check_kind("module", lora, ModuleKind.LORA)
    alpha = request.expert.alpha if request.expert is not None else 0.0
    if request.expert is not None:
        expert = await modules.resolve("experts[0].reference", tenant, request.expert.reference, key)
        _check_kind("experts[0].reference", expert, ModuleKind.LOGIT_EXPERT)
    if not alpha:
        expert = None
    return AnsweringModules(
        lora=lora.version if lora else None,
        expert=expert.version if expert else None,
        used=(*([_used(lora)] if lora else []), *([_used(expert, alpha)] if expert else [])),
    )


def _check_kind(field: str, resolved: Resolved, kind: ModuleKind) -> None:
    if resolved.version.kind is not kind:
        other = "experts" if kind is ModuleKind.LORA else "module"
        raise InvalidField(
            field, f"{resolved.version.reference} is of kind {resolved.version.kind}; name it in `{other}`"
        )


def _used(resolved: Resolved, alpha: float = 0.0) -> UsedModule:
    version = resolved.version
    return UsedModule(version.module, version.version, version.digest, version.kind, resolved.reason, alpha)
