"""Names of cached KV: block keys as vLLM computes them, chunk keys of the offload tier, and their Redis keys.

These keys agree with vLLM's under two conditions:

1. The engine runs with `prefix_caching_hash_algo="sha256_cbor"`. vLLM's default, "sha256", pickles, and is
   not reproducible.
2. `PYTHONHASHSEED` is unset in the process that starts the engine. vLLM 0.32 then starts every chain from the
   fixed seed "vllm-none-hash". Where the variable must be set, pass its value here as `hash_seed`. vLLM reads
   it in the engine-core process, a child that inherits the environment of the process that creates the
   `AsyncLLM`. With a different seed every look-up misses. It never mixes blocks up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cbor2

from memserve.domain import EmbeddedRows, KvOrigin

SCHEMA_VERSION = 1
HASH_ALGORITHM = "sha256_cbor"
VLLM_HASH_SEED = "vllm-none-hash"
BLOCK_KEY_BYTES = 32
VALUE_PREFIX = "memserve:kv:"


@dataclass(frozen=True, slots=True)
class CacheNamespace:
    """Everything that decides whether one engine can use another engine's KV bytes.

    A change of any field makes the old entries unreachable.
    """

    model_digest: str
    """Over the bytes of the weights and of the config."""
    kv_dtype: str
    """As vLLM names it: "bfloat16"."""
    kv_layout: str
    """How a block's bytes are arranged, as `memserve.worker.kv.offload.kv_layout` names it."""
    block_size_tokens: int
    blocks_per_chunk: int
    codec: str = "raw"
    """How a chunk is stored: the name of a `memserve.kv.values.envelope.Codec` in small letters."""
    hash_algorithm: str = HASH_ALGORITHM
    hash_seed: str = VLLM_HASH_SEED
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.block_size_tokens < 1 or self.blocks_per_chunk < 1:
            raise ValueError(f"block_size_tokens and blocks_per_chunk must be at least 1: {self}")

    @property
    def digest(self) -> str:
        """64 hex digits: sha256 over the fields as canonical JSON. It is equal on every machine."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def chunk_tokens(self) -> int:
        return self.block_size_tokens * self.blocks_per_chunk


def block_keys(
    token_ids: Sequence[int],
    block_size: int,
    *,
    lora: tuple[str, str] | None,
    cache_salt: str | None,
    hash_seed: str = VLLM_HASH_SEED,
    embedded: EmbeddedRows | None = None,
) -> list[bytes]:
    """Key every full block by the whole prefix that ends in it.

    Images are not covered.

    token_ids: [prompt_tokens]; a trailing partial block gets no key.
    embedded: of a prompt that begins with embeddings. They enter the key of every block, those of tokens too.
    lora: name and path, as the engine has them.
    cache_salt: enters the first block, and through the chain every other block; "" counts as none.
    Returns [prompt_tokens // block_size] keys of 32 bytes.
    Raises ValueError when block_size < 1.
    Source: vllm/v1/core/kv_cache_utils.py 0.32, `get_request_block_hasher`, for text prompts.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    lora_keys = (("lora", *lora),) if lora else ()
    salt_keys = (("cache_salt", cache_salt),) if cache_salt else ()
    of_tokens = _embedded_keys(embedded, embedded.tokens, block_size) if embedded else ()
    parent = _sha256_cbor(hash_seed)
    keys = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        extra: tuple[tuple[str | bytes, ...], ...] = lora_keys
        if start == 0:
            extra += salt_keys
        if embedded:
            of_rows = start < embedded.tokens
            extra += _embedded_keys(embedded, start, block_size) if of_rows else of_tokens
        parent = _sha256_cbor((parent, tuple(token_ids[start : start + block_size]), extra or None))
        keys.append(parent)
    return keys


def _embedded_keys(rows: EmbeddedRows, first: int, tokens: int) -> tuple[tuple[str, bytes]]:
    return (("prompt_embeds", hashlib.sha256(rows.block(first, tokens)).digest()),)


def prompt_keys(
    token_ids: Sequence[int],
    block_size: int,
    origin: KvOrigin,
    cache_salt: str,
    embedded: EmbeddedRows | None = None,
) -> list[bytes]:
    """[full blocks] keys of a tenant's prompt, as memserve's engines compute them. Raises as `block_keys`.

    token_ids: with a cartridge or a soft prompt, its placeholders first. embedded: of the soft prompt.
    """
    if origin.is_embedded != (embedded is not None):
        raise ValueError("embedded: of a soft prompt, and of nothing else")
    lora = (origin.adapter, f"modules/{origin.adapter}") if origin.adapter else None
    salt = prefix_salt(cache_salt, origin.prefix) if origin.prefix else cache_salt
    return block_keys(token_ids, block_size, lora=lora, cache_salt=salt, embedded=embedded)


def prefix_salt(cache_salt: str, digest: str) -> str:
    """The salt of prompts that begin with a cartridge or a soft prompt.

    The placeholders of one are those of any other.

    cache_salt: the tenant's. digest: the module's.
    """
    return hashlib.sha256(f"cartridge\0{cache_salt}\0{digest}".encode()).hexdigest()


def chunk_keys(keys: Sequence[bytes], blocks_per_chunk: int, *, group: int = 0) -> list[bytes]:
    """The offload tier's keys. A chunk is named by its last block and its KV cache group.

    keys: [blocks] block keys of one prompt; the blocks of a trailing partial chunk get no key.
    Returns [blocks // blocks_per_chunk] keys of 36 bytes.
    Source: vllm/v1/kv_offload/base.py 0.32, `make_offload_key`.
    """
    suffix = group.to_bytes(4, "big")
    return [key + suffix for key in keys[blocks_per_chunk - 1 :: blocks_per_chunk]]


def redis_key(namespace: str, chunk_key: bytes) -> str:
    """The name of a chunk's Redis string.

    namespace: `CacheNamespace.digest`.
    """
    return VALUE_PREFIX + member(namespace, chunk_key)


def member(namespace: str, chunk_key: bytes) -> str:
    """The name of a chunk in the cache's ledger."""
    return f"{namespace}:{chunk_key.hex()}"


def _sha256_cbor(value: object) -> bytes:
    return hashlib.sha256(cbor2.dumps(value, canonical=True)).digest()
