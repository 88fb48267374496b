"""What the Redis tier knows of a request: whose it is, and where its chunks stand in its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.kv_offload.base import OffloadKey, ReqContext

from memserve.kv.ledger.records import Owner
from memserve.kv.outcomes import Account
from memserve.worker.kv.cartridges import CartridgeUse

OWNER = "memserve"
"""The key under which a request's `kv_transfer_params` carry what `owner_parameters` returns."""
DEFAULT_OWNER = Owner()
FIRST_GROUP = bytes(4)
"""How the keys of the first KV cache group end. Only these keys make a chain."""


def owner_parameters(tenant: str, module_digest: str, *, store_whole_prompt: bool) -> dict[str, Any]:
    """What a request's `kv_transfer_params` carry under OWNER."""
    return {"tenant": tenant, "module": module_digest, "store_whole_prompt": store_whole_prompt}


def owner_of(params: Mapping[str, Any] | None) -> Owner:
    """params: a request's `kv_transfer_params`."""
    owner = (params or {}).get(OWNER) or {}
    return Owner(owner.get("tenant") or DEFAULT_OWNER.tenant, owner.get("module") or "")


@dataclass(slots=True)
class TierRequest:
    """A request, from its first look-up to the end of its last load. Belongs to the scheduler's thread."""

    owner: Owner
    store_whole_prompt: bool
    """Store all of the prompt's KV, at its first use and even where much else waits to be stored."""
    load_until_tokens: int | None = None
    """Where its loads from Redis end; None until the tier has decided it."""
    loaded: list[OffloadKey] = field(default_factory=list)
    """Chunks whose use the ledger has not counted yet."""
    finished: bool = False
    prefix_tokens: int = 0
    """Leading positions of a cartridge. Chunks that end in them are never stored."""

    @classmethod
    def of(cls, req_context: ReqContext) -> TierRequest:
        """The request's state, which vLLM keeps with its context."""
        request: TierRequest | None = req_context.get_state(cls)
        if request is None:
            told = (req_context.kv_transfer_params or {}).get(OWNER) or {}
            request = cls(owner_of(req_context.kv_transfer_params), bool(told.get("store_whole_prompt")))
            use = CartridgeUse.of(req_context.kv_transfer_params)
            request.prefix_tokens = 0 if use is None else use.tokens
            req_context.set_state(request)
        return request


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """Where the chunks of a store stand in their prompt. Any thread may read it.

        tokens  0             64            128           192      221
                |-- chunk 0 --|-- chunk 1 --|-- chunk 2 --|- rest -|

    `positions` is {key 0: 64, key 1: 128, key 2: 192}. The parent of key 2 is key 1, key 0 has none. The rest
    is shorter than a chunk and is not stored.
    """

    request: TierRequest
    positions: Mapping[OffloadKey, int]
    """The end of every chunk in tokens, in the order of the prompt."""

    @property
    def chunk_tokens(self) -> int:
        return next(iter(self.positions.values()), 1)

    def depth_tokens(self, key: OffloadKey) -> int:
        """Where a chunk ends."""
        return self.positions.get(key, 0)

    def account(self, keys: Sequence[OffloadKey], worth: float) -> Account:
        """What the ledger needs to count these chunks.

        keys: in the order of the prompt. worth: of one use, as `worth_per_use` returns it.
        """
        chain = [key for key in self.positions if key[-4:] == FIRST_GROUP]
        depths = [self.depth_tokens(key) for key in keys]
        parents: list[bytes] = [b""] * len(keys)
        for number, (key, depth) in enumerate(zip(keys, depths, strict=True)):
            if key[-4:] == FIRST_GROUP and depth - self.chunk_tokens > self.request.prefix_tokens:
                parents[number] = chain[depth // self.chunk_tokens - 2]
        return Account(self.request.owner, parents, depths, worth, at_once=self.request.store_whole_prompt)
