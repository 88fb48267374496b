"""The kinds of modules: one row for each.

A kind is a row here and two files: how its files are checked (`memory/modules/kinds`), and how an engine
holds and applies it (`worker/modules/kinds`). The row names both. It is all that the rest knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memserve.domain.modules import KvOrigin, ModuleKind


@dataclass(frozen=True, slots=True)
class LoadCosts:
    """Seconds that routing charges a worker for a module that is not where the next batch can use it."""

    load_s: float
    """A module that the engine does not hold. The charge is more than the loading takes where another module
    has to leave for it, and will have to be loaded again."""
    swap_s: float
    """A module in the engine's host memory, which needs a slot of the device."""
    slot_wait_s: float = 0.0
    """Each module that must leave a slot before this one gets one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRow:
    """What memserve knows of a kind."""

    kind: ModuleKind
    number: int
    """In `memserve.v1.ModuleKind`. Part of the wire: it never changes."""
    files: tuple[str, ...]
    """What a version must have."""
    optional_files: tuple[str, ...] = ()
    """What a version may have besides them."""
    named_in: str
    """The field of a GenerateRequest that names a module of this kind; `modules` takes every kind."""
    max_in_a_request: int = 1
    changes_kv: bool
    """Whether the KV of a prompt depends on the module."""
    is_prefix: bool = False
    """Whether the module stands before the prompt. Of those that change the KV, one that does and one that
    does not may answer a request together."""
    is_embedded: bool = False
    """Of a prefix: whether it is embeddings, whose KV an engine computes. Otherwise it is KV itself."""
    has_strength: bool
    """Whether a request says how strongly the module counts. Strength 0 is off."""
    moves_logprobs: bool
    """Whether the engine's log-probabilities are those with the module applied."""
    costs: LoadCosts
    slots_setting: str = ""
    """The setting that says how many modules of the kind one batch may use; empty: any number."""
    checked_by: str
    """module:name of the check of its files, a `FilesCheck`. Imported by gateways."""
    held_by: str
    """module:name of what holds and applies it in an engine, an `EngineKind`. Imported by workers."""


KINDS: dict[ModuleKind, KindRow] = {
    row.kind: row
    for row in (
        KindRow(
            kind=ModuleKind.LORA,
            number=1,
            files=("adapter_config.json", "adapter_model.safetensors"),
            named_in="module",
            changes_kv=True,
            has_strength=False,
            moves_logprobs=True,
            costs=LoadCosts(load_s=0.2, swap_s=0.005, slot_wait_s=0.1),
            slots_setting="max_loras",
            checked_by="memserve.memory.modules.kinds.lora:check_lora",
            held_by="memserve.worker.modules.kinds.lora:LoraKind",
        ),
        KindRow(
            kind=ModuleKind.LOGIT_EXPERT,
            number=2,
            files=("expert_config.json", "config.json", "model.safetensors"),
            optional_files=("anti_model.safetensors",),
            named_in="experts",
            changes_kv=False,
            has_strength=True,
            moves_logprobs=False,
            costs=LoadCosts(load_s=0.5, swap_s=0.5),
            checked_by="memserve.memory.modules.kinds.logit_expert:check_logit_expert",
            held_by="memserve.worker.modules.kinds.expert:LogitExpertKind",
        ),
        KindRow(
            kind=ModuleKind.CARTRIDGE,
            number=3,
            files=("cartridge.json", "adapter_config.json", "adapter_model.safetensors"),
            named_in="modules",
            changes_kv=True,
            is_prefix=True,
            has_strength=False,
            moves_logprobs=True,
            costs=LoadCosts(load_s=0.05, swap_s=0.0),
            checked_by="memserve.memory.modules.kinds.cartridge:check_cartridge",
            held_by="memserve.worker.modules.kinds.cartridge:CartridgeKind",
        ),
        KindRow(
            kind=ModuleKind.SOFT_PROMPT,
            number=4,
            files=("soft_prompt.json", "adapter_config.json", "adapter_model.safetensors"),
            named_in="modules",
            changes_kv=True,
            is_prefix=True,
            is_embedded=True,
            has_strength=False,
            moves_logprobs=True,
            costs=LoadCosts(load_s=0.02, swap_s=0.0),
            checked_by="memserve.memory.modules.kinds.soft_prompt:check_soft_prompt",
            held_by="memserve.worker.modules.kinds.soft_prompt:SoftPromptKind",
        ),
    )
}


def origin_of(modules: Iterable[tuple[str, ModuleKind]], prefix_tokens: int = 0) -> KvOrigin:
    """What the KV of an answer with these modules depends on.

    modules: digests and kinds. prefix_tokens: of the cartridge or the soft prompt among them.
    """
    adapter = prefix = ""
    is_embedded = False
    for digest, kind in modules:
        row = KINDS[kind]
        if row.is_prefix:
            prefix, is_embedded = digest, row.is_embedded
        elif row.changes_kv:
            adapter = digest
    return KvOrigin(adapter, prefix, prefix_tokens, is_embedded)


def kind_of_name(name: str) -> ModuleKind:
    """Raises ValueError for a name that is no kind's."""
    if name not in KINDS:
        raise ValueError(f"kind: {name!r} is none of {', '.join(KINDS)}")
    return ModuleKind(name)
