"""How an engine deals with each kind of modules."""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.config import Settings
from memserve.domain import ModuleKind
from memserve.domain.kinds import KINDS
from memserve.errors import InvalidModule
from memserve.model.files import ModelFiles, read_safetensors_header
from memserve.worker.kv.cartridges import CartridgeUse
from memserve.worker.modules.kinds.embedded import SoftPrompt
from memserve.worker.modules.room import Holder, ModuleRefused

# Errors by which an engine says that it lacks something. The module itself may be right.
_LACK = re.compile(r"\[Errno \d+\]|out of memory|can't allocate memory|No adapter found", re.IGNORECASE)


@dataclass
class EngineCall:
    """What a request asks of vLLM beside its prompt and its sampling. `EngineKind.apply` adds its modules."""

    lora: LoRARequest | None = None
    cartridge: CartridgeUse | None = None
    soft_prompt: SoftPrompt | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's SamplingParams."""
    extra_args: dict[str, Any] = field(default_factory=dict)
    """The entries of SamplingParams' `extra_args`."""


class EngineKind(Holder, Protocol):
    """How an engine holds the modules of one kind, applies them to requests, and tries them."""

    def __init__(self, llm: AsyncLLM, settings: Settings) -> None: ...

    @staticmethod
    def absent_reason(settings: Settings, model: ModelFiles) -> str:
        """Why an engine of this model holds no modules of the kind. Empty: it holds them."""

    @staticmethod
    def engine_arguments(settings: Settings) -> dict[str, Any]:
        """Arguments of vLLM's EngineArgs. Lists and dictionaries of several kinds are joined."""

    def apply(self, call: EngineCall, digest: str, folder: Path, strength: float) -> None:
        """Have the request answered with a module that the engine holds.

        folder: of the module's files.
        """

    async def effect(self, digest: str, folder: Path, prompts: Sequence[Sequence[int]]) -> float:
        """The largest change that the module makes to the next token of the prompts. 0: no change at all.

        prompts: token ids, each shorter than a block, so that nothing is cached.
        """


def engine_kind(kind: ModuleKind) -> type[EngineKind]:
    """The class that the kind's row names."""
    held_by: type[EngineKind] = pkgutil.resolve_name(KINDS[kind].held_by)
    return held_by


def absent_kinds(settings: Settings, model: ModelFiles) -> dict[ModuleKind, str]:
    """The kinds of modules that the model is served without, and why."""
    reasons = {kind: engine_kind(kind).absent_reason(settings, model) for kind in KINDS}
    return {kind: reason for kind, reason in reasons.items() if reason}


def engine_arguments(settings: Settings, kinds: Iterable[ModuleKind]) -> dict[str, Any]:
    """The arguments that vLLM is started with for modules of these kinds."""
    joined: dict[str, Any] = {}
    for kind in kinds:
        for name, value in engine_kind(kind).engine_arguments(settings).items():
            if isinstance(value, list):
                joined[name] = [*joined.get(name, []), *value]
            elif isinstance(value, dict):
                joined[name] = {**joined.get(name, {}), **value}
            else:
                joined[name] = value
    return joined


def held_bytes(file: Path, dtype: torch.dtype) -> int:
    """What the tensors of a safetensors file take in this dtype. Raises InvalidModule."""
    try:
        header = read_safetensors_header(file)
        entries = sum(math.prod(entry["shape"]) for entry in header.values())
        return int(entries * dtype.itemsize)
    except (ValueError, KeyError, TypeError, OSError):
        raise InvalidModule(file.name, "is not a safetensors file, or is cut short") from None


def refusal(llm: AsyncLLM, digest: str, error: Exception) -> Exception:
    """The fact behind an error that an engine raised at loading.

    It is InvalidModule or ModuleRefused, or the error itself when the engine has died.
    """
    if llm.errored:
        return error
    reason = str(error).rpartition("method failed: ")[2].partition("\n")[0] or type(error).__name__
    if _LACK.search(reason):
        return ModuleRefused(digest, f"the engine cannot load it now: {reason}")
    return InvalidModule("module", f"the engine refuses it: {reason}")
