"""Cartridges in an engine: KV that a prompt begins with, held in host memory and put into its blocks.

1. A worker loads a cartridge into its `CartridgeShelf` before it gives the engine a request that names it.
2. The scheduler asks the connector how much of the prompt need not be computed. `CartridgePrefixes` answers
   with the cartridge's positions that the engine's own blocks lack, and what the tier has behind them.
3. vLLM allocates blocks, and `CartridgePrefixes` notes which of them get which positions (`Supply`).
4. At the beginning of the step the shelf writes the positions into the blocks, before the model runs.

Blocks are ordinary ones. When they have been evicted, or the request was preempted, it begins again at 2. No
load is awaited, so none can fail. What all this misses is caught by `GuardedScheduler`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingConnectorMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

PREFIX = "memserve_cartridge"
"""The key under which a request's `kv_transfer_params` carry what `prefix_parameters` returns."""
WEIGHTS_FILE = "adapter_model.safetensors"
# How long a request waits for a cartridge that should be here and is not. The guard ends it then.
ABSENT_WAIT_S = 10.0


def prefix_parameters(digest: str, tokens: int) -> dict[str, Any]:
    """What a request's `kv_transfer_params` carry under PREFIX."""
    return {"digest": digest, "tokens": tokens}


@dataclass(frozen=True, slots=True)
class CartridgeUse:
    """A request's cartridge."""

    digest: str
    tokens: int
    """The positions that it takes: 0 to tokens - 1."""

    @classmethod
    def of(cls, params: Mapping[str, Any] | None) -> CartridgeUse | None:
        """params: a request's `kv_transfer_params`."""
        named = (params or {}).get(PREFIX)
        return cls(named["digest"], named["tokens"]) if named else None


@dataclass(frozen=True, slots=True)
class Supply:
    """Positions of a cartridge that blocks get in this step."""

    digest: str
    first: int
    """The first position. It is the first one of its block."""
    blocks: tuple[int, ...]
    """Device blocks, in the order of the positions."""


@dataclass
class CartridgeMetadata(OffloadingConnectorMetadata):  # type: ignore[misc]
    """What the scheduler's half of the connector tells the worker's half in a step."""

    supplies: tuple[Supply, ...] = ()


class CartridgeShelf:
    """The cartridges in the memory of a process that runs a model. Belongs to the model runner's thread."""

    by_engine_id: ClassVar[WeakValueDictionary[str, CartridgeShelf]] = WeakValueDictionary()
    """The shelves of this process. The scheduler's half has no other way to the worker's."""

    def __init__(self, engine_id: str, kv_cache_config: KVCacheConfig, dtype: torch.dtype) -> None:
        """dtype: of the model, in which it computes KV."""
        self._dtype = dtype
        self._refusal = no_prefix_reason(kv_cache_config)
        self._block_tokens = 0
        if not self._refusal:
            self._block_tokens = int(kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size)
        # By layer: what writes KV into blocks.
        self._layers: list[Any] = []
        # By digest, least recently used first: [layers, 2, tokens, KV heads, head size], in the KV's dtype.
        self._held: dict[str, Tensor] = {}
        self.by_engine_id[engine_id] = self

    def attach(self, layers: Sequence[Any]) -> None:
        """layers: the model's attention layers, in the order of the model."""
        self._layers = list(layers)
        if any(layer.head_size_v != layer.head_size for layer in self._layers):
            self._refusal = "its keys and values have different sizes"
        elif not all(hasattr(layer.impl, "do_kv_cache_update") for layer in self._layers):
            self._refusal = "its attention backend has no way to write KV into blocks"

    @property
    def refusal(self) -> str:
        """Why this engine takes no cartridges. Empty: it takes them."""
        return self._refusal

    def tokens(self, digest: str) -> int | None:
        """The positions of a cartridge that is here. None: it is not."""
        kv = self._held.get(digest)
        return None if kv is None else kv.shape[2]

    def held(self) -> dict[str, int]:
        """Digest to positions, least recently used first."""
        return {digest: kv.shape[2] for digest, kv in self._held.items()}

    def load(self, digest: str, folder: Path) -> None:
        """Read a cartridge. Raises ValueError for one that does not fit this engine."""
        if self.refusal:
            raise ValueError(self.refusal)
        layer = self._layers[0]
        shape = (len(self._layers), 2, layer.num_kv_heads, layer.head_size)
        self._held[digest] = read_cartridge(folder / WEIGHTS_FILE, shape, self._dtype)
        tokens = self._held[digest].shape[2]
        if tokens % self._block_tokens:
            del self._held[digest]
            raise ValueError(f"its {tokens} positions are no multiple of the block's {self._block_tokens}")

    def drop(self, digest: str) -> None:
        self._held.pop(digest, None)

    def supply(self, supplies: Iterable[Supply]) -> set[int]:
        """Write positions into blocks. Returns the blocks of cartridges that are not here."""
        lost: set[int] = set()
        for supply in supplies:
            kv = self._held.pop(supply.digest, None)
            if kv is None:
                lost.update(supply.blocks)
                continue
            self._held[supply.digest] = kv  # to the end: the most recently used
            device = self._layers[0].kv_cache.device
            slots = slots_of(supply.blocks, self._block_tokens).to(device)
            part = kv[:, :, supply.first : supply.first + len(slots)].to(device)
            for layer, (keys, values) in zip(self._layers, part, strict=True):
                layer.impl.do_kv_cache_update(
                    layer, keys.contiguous(), values.contiguous(), layer.kv_cache, slots
                )
        return lost


class CartridgePrefixes:
    """The requests with a cartridge. Belongs to the scheduler's thread."""

    def __init__(self, shelf: CartridgeShelf | None, block_tokens: int) -> None:
        """shelf: the engine's, when the model runs in this process. Without it a cartridge is taken for here:
        the worker has loaded it everywhere before it gave the engine the request."""
        self._shelf = shelf
        self._block_tokens = block_tokens
        self._uses: dict[str, CartridgeUse] = {}
        # By request: positions that the next allocation of its blocks has to supply.
        self._missing: dict[str, int] = {}
        self._absent_since_s: dict[str, float] = {}
        self._supplies: list[Supply] = []

    def begin(self, request_id: str, params: Mapping[str, Any] | None) -> CartridgeUse | None:
        """A request has come. params: its `kv_transfer_params`."""
        use = CartridgeUse.of(params)
        if use is not None:
            self._uses[request_id] = use
        return use

    def end(self, request_id: str) -> None:
        self._uses.pop(request_id, None)
        self._missing.pop(request_id, None)
        self._absent_since_s.pop(request_id, None)

    def use(self, request_id: str) -> CartridgeUse | None:
        return self._uses.get(request_id)

    def missing(self, request_id: str, local_tokens: int, now_s: float) -> int | None:
        """How many positions a request's blocks lack of its cartridge. 0: none, or it has no cartridge.

        None: the cartridge is not here, and the request waits. A request that has waited for too long is let
        through with 0, and the guard ends it.

        local_tokens: leading tokens in the engine's blocks.
        """
        use = self._uses.get(request_id)
        self._missing.pop(request_id, None)
        if use is None or local_tokens >= use.tokens:
            return 0
        if self._shelf is not None and self._shelf.tokens(use.digest) != use.tokens:
            since_s = self._absent_since_s.setdefault(request_id, now_s)
            return None if now_s - since_s < ABSENT_WAIT_S else 0
        self._absent_since_s.pop(request_id, None)
        self._missing[request_id] = use.tokens - local_tokens
        return self._missing[request_id]

    def allocated(self, request_id: str, block_ids: Sequence[int], external_tokens: int) -> int:
        """A request has its blocks. Notes what they get in this step.

        block_ids: of the whole prompt. external_tokens: as many as the connector has said it has.
        Returns how many of those tokens are the cartridge's.
        """
        missing = self._missing.pop(request_id, 0)
        if not missing or external_tokens < missing:
            return 0
        use = self._uses[request_id]
        first = use.tokens - missing
        blocks = block_ids[first // self._block_tokens : use.tokens // self._block_tokens]
        self._supplies.append(Supply(use.digest, first, tuple(blocks)))
        return missing

    def take_supplies(self) -> tuple[Supply, ...]:
        """Those of this step."""
        supplies, self._supplies = tuple(self._supplies), []
        return supplies

    def unsupplied(self, positions: Mapping[str, int]) -> list[str]:
        """The requests that would have positions of their cartridge computed.

        positions: by request, the first one that this step computes.
        """
        return [
            request_id
            for request_id, first in positions.items()
            if (use := self._uses.get(request_id)) is not None and first < use.tokens
        ]


def first_positions(scheduler_output: SchedulerOutput) -> dict[str, int]:
    """By request of a step: the first position that it computes."""
    cached = scheduler_output.scheduled_cached_reqs
    return {
        **{new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs},
        **dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True)),
    }


def no_prefix_reason(kv_cache_config: KVCacheConfig) -> str:
    """Why no cartridge can be put into an engine's blocks. Empty: it can."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        return f"its KV is in {len(groups)} groups of layers, and a cartridge fits one"
    spec = groups[0].kv_cache_spec
    # vLLM's classes for sliding windows and latent attention are others, or derive from this one.
    windows = getattr(spec, "sliding_window", None), getattr(spec, "attention_chunk_size", None)
    if type(spec) is not FullAttentionSpec or windows != (None, None):
        return f"its KV is a {type(spec).__name__}, and a cartridge is K and V of full attention"
    return ""


def read_cartridge(file: Path, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """[layers, 2, tokens, KV heads, head size]

    shape: layers, 2, KV heads, head size of the engine. dtype: of its KV.
    Raises ValueError for a file that does not fit.
    """
    with safe_open(str(file), framework="pt") as tensors:
        (name,) = tensors.keys()
        kv = tensors.get_tensor(name)
    layers, two, heads, head_size = shape
    if kv.ndim == 0 or kv.shape[0] == 0 or kv[0].numel() != layers * two * heads * head_size:
        raise ValueError(
            f"its KV is {list(kv.shape)}; this engine has {layers} layers of {heads} KV heads of {head_size}"
        )
    by_layer: Tensor = kv.reshape(-1, layers, two, heads, head_size).permute(1, 2, 0, 3, 4)
    by_layer = by_layer.to(dtype).contiguous()
    if not torch.isfinite(by_layer).all():
        raise ValueError(f"its KV is beyond the range of {dtype}")
    return by_layer


def slots_of(blocks: Sequence[int], block_tokens: int) -> Tensor:
    """[blocks * block_tokens] places in the KV cache, as vLLM's kernels take them."""
    starts = torch.tensor(blocks, dtype=torch.int64) * block_tokens
    return (starts.unsqueeze(1) + torch.arange(block_tokens)).reshape(-1)
