"""A model of an engine's prefix cache: full blocks by the whole prefix that ends in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from memserve.kv.keys import block_keys


class PrefixPool:
    """Blocks of one engine. Those that were used longest ago leave, of a prompt the last ones first.

    Source: vLLM's free queue of blocks.
    """

    def __init__(self, block_tokens: int, pool_tokens: int | None) -> None:
        """pool_tokens: None for no bound."""
        self._block_tokens = block_tokens
        self._most = None if pool_tokens is None else pool_tokens // block_tokens
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def cached_tokens(self, token_ids: Sequence[int]) -> int:
        """Answer a prompt. Returns how many of its leading tokens were there; the last one never counts."""
        keys = block_keys(token_ids, self._block_tokens, lora=None, cache_salt="reuse")
        usable = keys[: (len(token_ids) - 1) // self._block_tokens]
        found = next((place for place, key in enumerate(usable) if key not in self._blocks), len(usable))
        for key in reversed(keys):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while self._most is not None and len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return found * self._block_tokens


def cached_share(pool: PrefixPool, prompts: Iterable[Sequence[int]]) -> float:
    """The share of all prompts' tokens that was found."""
    found = asked = 0
    for token_ids in prompts:
        found += pool.cached_tokens(token_ids)
        asked += len(token_ids)
    return found / asked
