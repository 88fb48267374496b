"""Step 2 of a request, second half: immutable module versions for the whole answer."""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memserve.domain import GenerationRequest, KvOrigin, ModuleUse, ModuleVersion, UsedModule
from memserve.domain.kinds import KINDS, KindRow, origin_of
from memserve.domain.worker_calls import AppliedModule
from memserve.errors import InvalidField
from memserve.memory.modules.memory import ParametricMemory


@dataclass(frozen=True, slots=True)
class AnsweringModule:
    """An immutable version that an answer is made with."""

    version: ModuleVersion
    strength: float
    reason: str
    """Why this version, for a person."""

    @property
    def row(self) -> KindRow:
        return KINDS[self.version.kind]


@dataclass(frozen=True, slots=True)
class AnsweringModules:
    """All of an answer's modules, in the request's order."""

    modules: tuple[AnsweringModule, ...] = ()

    @property
    def versions(self) -> list[ModuleVersion]:
        return [module.version for module in self.modules]

    @property
    def used(self) -> tuple[UsedModule, ...]:
        """What the receipt says of them."""
        return tuple(
            UsedModule(
                module.version.module,
                module.version.version,
                module.version.digest,
                module.version.kind,
                module.reason,
                module.strength if module.row.has_strength else 0.0,
            )
            for module in self.modules
        )

    @property
    def applied(self) -> tuple[AppliedModule, ...]:
        """What a worker is asked to answer with."""
        return tuple(
            AppliedModule(module.version.digest, module.version.kind, module.strength)
            for module in self.modules
        )

    @property
    def adapter_version(self) -> ModuleVersion | None:
        """The version that computes the prompt's KV; None for the base model."""
        computing = (each.version for each in self.modules if each.row.changes_kv and not each.row.is_prefix)
        return next(computing, None)

    @property
    def origin(self) -> KvOrigin:
        """What the prompt's KV depends on."""
        prefix_tokens = sum(module.version.prefix_tokens for module in self.modules if module.row.is_prefix)
        named = ((module.version.digest, module.version.kind) for module in self.modules)
        return origin_of(named, prefix_tokens)

    @property
    def slot_digest(self) -> str:
        """Of the module that needs a slot of the batch; empty: none does."""
        return next((module.version.digest for module in self.modules if module.row.slots_setting), "")

    def fit(self, model_digest: str) -> bool:
        """Whether they were made for this model: while another is rolled out, workers of both are there."""
        return all(module.version.base_digest in ("", model_digest) for module in self.modules)


class ModuleUses:
    """How many of this gateway's requests hold each module version now, by digest."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __contains__(self, digest: str) -> bool:
        return digest in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    @contextlib.contextmanager
    def holding(self, modules: AnsweringModules) -> Iterator[None]:
        """While inside, these versions are in use."""
        digests = Counter(module.version.digest for module in modules.modules)
        self._counts += digests
        try:
            yield
        finally:
            self._counts -= digests  # a version that is at 0 leaves


async def resolve_modules(
    modules: ParametricMemory, request: GenerationRequest, tenant: str
) -> AnsweringModules:
    """What the request's references mean now, for its session. A module of strength 0 is left out.

    Raises InvalidField, and as `ParametricMemory.resolve`.
    """
    key = request.session or uuid.uuid4().hex
    answering = []
    for use in request.modules:
        resolved = await modules.resolve(use.field, tenant, use.reference, key)
        _check_kind(use, resolved.version)
        answering.append((use, AnsweringModule(resolved.version, use.strength, resolved.reason)))
    _check_counts(answering)
    return AnsweringModules(
        tuple(module for _, module in answering if module.strength or not module.row.has_strength)
    )


def _check_kind(use: ModuleUse, version: ModuleVersion) -> None:
    row = KINDS.get(version.kind)
    if row is None:
        raise InvalidField(use.field, f"{version.reference} is of kind {version.kind}, which is not served")
    if use.kind is not None and version.kind != use.kind:
        raise InvalidField(
            use.field, f"{version.reference} is of kind {version.kind}; name it in `{row.named_in}`"
        )


def _check_counts(answering: Sequence[tuple[ModuleUse, AnsweringModule]]) -> None:
    """How many of a kind, and how many that change the KV, one request may name."""
    counts: Counter[str] = Counter()
    kv: dict[bool, str] = {}
    for use, module in answering:
        kind = module.version.kind
        counts[kind] += 1
        if counts[kind] > module.row.max_in_a_request:
            raise InvalidField(use.field, f"at most {module.row.max_in_a_request} of kind {kind}")
        if not module.row.changes_kv:
            continue
        other = kv.setdefault(module.row.is_prefix, module.version.reference)
        if other != module.version.reference:
            raise InvalidField(use.field, f"{module.version.reference} and {other} both change the KV")
