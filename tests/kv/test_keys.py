"""Block keys are vLLM's, computed without vLLM."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memserve.domain import EmbeddedRows, KvOrigin
from memserve.kv.keys import VLLM_HASH_SEED, CacheNamespace, block_keys, chunk_keys, prompt_keys, redis_key

NAMESPACE = CacheNamespace(
    model_digest="m",
    kv_dtype="bfloat16",
    kv_layout="cpu/vec/LBHNC/1",
    block_size_tokens=32,
    blocks_per_chunk=2,
)


def test_a_digest_is_the_same_on_every_machine() -> None:
    assert NAMESPACE.digest == "e47fd770f92dcc37c08f651f9694f066531b46daa69f300b38ec52392b99221f"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheNamespace)])
def test_a_change_of_any_field_changes_the_namespace(field: str) -> None:
    old = getattr(NAMESPACE, field)
    changed = dataclasses.replace(NAMESPACE, **{field: old + 1 if isinstance(old, int) else old + "x"})
    assert changed.digest != NAMESPACE.digest


def test_a_namespace_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size_tokens"):
        dataclasses.replace(NAMESPACE, block_size_tokens=0)


def test_a_trailing_partial_block_gets_no_key() -> None:
    assert len(block_keys(range(95), 32, lora=None, cache_salt=None)) == 2
    assert block_keys([], 32, lora=None, cache_salt=None) == []


def test_a_block_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size"):
        block_keys([1], 0, lora=None, cache_salt=None)


def test_prompts_share_keys_exactly_as_far_as_they_are_equal() -> None:
    first = block_keys([*range(64), 1], 16, lora=None, cache_salt=None)
    second = block_keys([*range(40), *range(24)], 16, lora=None, cache_salt=None)
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, False, False]


OTHERS = [
    {"cache_salt": "t2"},
    {"cache_salt": None},
    {"lora": ("a", "/q")},
    {"lora": ("b", "/p")},
    {"lora": None},
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_salt_or_adapter_shares_no_block(other: dict[str, object]) -> None:
    given = {"lora": ("a", "/p"), "cache_salt": "t1"}
    first = block_keys(range(64), 16, **given)  # type: ignore[arg-type]
    second = block_keys(range(64), 16, **{**given, **other})  # type: ignore[arg-type]
    assert not set(first) & set(second)


def test_a_soft_prompts_keys_need_its_embeddings() -> None:
    rows = EmbeddedRows(bytes(range(64)), 4)
    soft = KvOrigin(prefix="a" * 64, prefix_tokens=16, is_embedded=True)
    token_ids = [0] * 16 + list(range(48))
    for origin, embedded in ((soft, None), (KvOrigin(), rows)):
        with pytest.raises(ValueError, match="embedded"):
            prompt_keys(token_ids, 16, origin, "salt", embedded)
    keys = [
        key
        for origin in (soft, KvOrigin("b" * 64, "a" * 64, 16, is_embedded=True))
        for content in (bytes(range(64)), bytes(64))
        for key in prompt_keys(token_ids, 16, origin, "salt", EmbeddedRows(content, 4))
    ]
    assert len(set(keys)) == len(keys) == 16


def test_a_chunk_is_named_by_its_last_block_and_the_group() -> None:
    keys = block_keys(range(80), 16, lora=None, cache_salt=None)
    assert chunk_keys(keys, 2) == [keys[1] + bytes(4), keys[3] + bytes(4)]
    assert chunk_keys(keys, 1, group=258)[0] == keys[0] + b"\x00\x00\x01\x02"


def test_a_redis_key_names_namespace_and_chunk() -> None:
    assert redis_key("ab12", b"\x01\xff") == "memserve:kv:ab12:01ff"


text = st.text(min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    token_ids=st.lists(st.integers(min_value=0, max_value=300_000), max_size=200),
    block_size=st.sampled_from([1, 16, 32, 64]),
    lora=st.none() | st.tuples(text, text),
    cache_salt=st.none() | st.text(max_size=12),
    blocks_per_chunk=st.integers(min_value=1, max_value=4),
    hash_seed=st.sampled_from([VLLM_HASH_SEED, "0", "17"]),
    embedded_tokens=st.integers(min_value=0, max_value=80),
)
def test_keys_are_those_that_vllm_computes(
    token_ids: list[int],
    block_size: int,
    lora: tuple[str, str] | None,
    cache_salt: str | None,
    blocks_per_chunk: int,
    hash_seed: str,
    embedded_tokens: int,
) -> None:
    kv_cache_utils = pytest.importorskip("vllm.v1.core.kv_cache_utils")
    import torch
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.kv_offload.base import make_offload_key
    from vllm.v1.request import Request

    sha256_cbor = get_hash_fn_by_name("sha256_cbor")
    with pytest.MonkeyPatch.context() as patch:
        if hash_seed == VLLM_HASH_SEED:
            patch.delenv("PYTHONHASHSEED", raising=False)
        else:
            patch.setenv("PYTHONHASHSEED", hash_seed)
        kv_cache_utils.init_none_hash(sha256_cbor)
    token_ids = [0] * embedded_tokens + (token_ids or [0])
    rows = EmbeddedRows(bytes(index % 251 for index in range(embedded_tokens * 12)), 12)
    embeddings = torch.zeros(len(token_ids), 3, dtype=torch.int32)
    if embedded_tokens:
        values = torch.frombuffer(bytearray(rows.content), dtype=torch.int32)
        embeddings[:embedded_tokens] = values.view(-1, 3)
    request = Request(
        request_id="r",
        prompt_token_ids=token_ids,
        prompt_embeds=embeddings if embedded_tokens else None,
        prompt_is_token_ids=[place >= embedded_tokens for place in range(len(token_ids))],
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        lora_request=LoRARequest(lora[0], 1, lora[1]) if lora else None,
        cache_salt=cache_salt,
        block_hasher=kv_cache_utils.get_request_block_hasher(block_size, sha256_cbor),
    )
    ours = block_keys(
        token_ids,
        block_size,
        lora=lora,
        cache_salt=cache_salt,
        hash_seed=hash_seed,
        embedded=rows if embedded_tokens else None,
    )
    assert ours == request.block_hashes
    theirs = [
        make_offload_key(key, 0) for key in request.block_hashes[blocks_per_chunk - 1 :: blocks_per_chunk]
    ]
    assert chunk_keys(ours, blocks_per_chunk) == theirs


def test_the_package_imports_neither_vllm_nor_torch() -> None:
    modules = ["index", "keys", "lookup", "store", "transport.breaker", "values.codecs", "values.envelope"]
    program = (
        f"import sys; {'; '.join(f'import memserve.kv.{name}' for name in modules)}; print({{'vllm', "
        f"'torch'}} & set(sys.modules))"
    )
    assert (
        subprocess.check_output([sys.executable, "-c", program], text=True, encoding="utf-8").strip()
        == "set()"
    )
