"""What a request's cartridge asks of the scheduler: how much is supplied, where, and what must never run."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memserve.memory.modules.kinds.cartridge import PLAIN_TENSOR, cartridge_files

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    import torch
    from safetensors.numpy import save
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        MLAAttentionSpec,
        SlidingWindowSpec,
    )

    from memserve.worker.kv.cartridges import (
        ABSENT_WAIT_S,
        PREFIX,
        CartridgePrefixes,
        CartridgeShelf,
        Supply,
        first_positions,
        no_prefix_reason,
        prefix_parameters,
        read_cartridge,
        slots_of,
    )
    from memserve.worker.modules.kinds.embedded import EMBEDDED_TOKENS
    from memserve.worker.modules.kinds.logit_expert import read_prompt

BLOCK, TOKENS = 32, 128
DIGEST, OTHER = "a" * 64, "b" * 64
SHAPE: dict[str, Any] = {"block_size": BLOCK, "num_kv_heads": 2, "head_size": 8, "dtype": torch.float32}
FULL = FullAttentionSpec(**SHAPE)


def config(*specs: Any) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([str(number)], spec) for number, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=16, kv_cache_tensors=[], kv_cache_groups=groups)


class Layer:
    """An attention layer whose blocks are a plain tensor."""

    num_kv_heads, head_size, head_size_v = 2, 8, 8

    def __init__(self) -> None:
        self.kv_cache = torch.zeros(16 * BLOCK, 2, 2, 8)
        self.impl = self

    def do_kv_cache_update(self, layer: Any, keys: Any, values: Any, kv_cache: Any, slots: Any) -> None:
        kv_cache[slots] = torch.stack([keys, values], 1)


def kv_of(tokens: int = TOKENS, layers: int = 3) -> Any:
    return np.random.default_rng(0).normal(size=(tokens, layers, 2, 2, 8)).astype(np.float32)


def write(folder: Path, kv: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in cartridge_files(kv, "c" * 64, {}).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def shelf(tmp_path: Path) -> CartridgeShelf:
    """With one cartridge."""
    shelf = CartridgeShelf("engine", config(FULL), torch.float32)
    shelf.attach([Layer() for _ in range(3)])
    shelf.load(DIGEST, write(tmp_path / "one", kv_of()))
    return shelf


@pytest.fixture
def prefixes(shelf: CartridgeShelf) -> CartridgePrefixes:
    """With one request for it."""
    prefixes = CartridgePrefixes(shelf, BLOCK)
    prefixes.begin("r", {PREFIX: prefix_parameters(DIGEST, TOKENS)})
    return prefixes


@pytest.mark.parametrize(("local", "missing"), [(0, 128), (64, 64), (96, 32), (128, 0), (160, 0)])
def test_what_the_engines_blocks_lack_is_supplied(
    prefixes: CartridgePrefixes, local: int, missing: int
) -> None:
    assert prefixes.missing("r", local, 0.0) == missing
    blocks = [7, 3, 5, 9, 11, 12]
    assert prefixes.allocated("r", blocks, missing + 32) == missing
    supplies = prefixes.take_supplies()
    assert supplies == ((Supply(DIGEST, local, tuple(blocks[local // BLOCK : 4])),) if missing else ())
    assert prefixes.take_supplies() == ()


def test_a_request_without_a_cartridge_is_left_alone(prefixes: CartridgePrefixes) -> None:
    prefixes.begin("base", None)
    assert prefixes.missing("base", 0, 0.0) == 0
    assert prefixes.allocated("base", [1, 2], 64) == 0
    assert prefixes.unsupplied({"base": 0}) == []


def test_a_request_that_gets_no_blocks_asks_again(prefixes: CartridgePrefixes) -> None:
    assert prefixes.missing("r", 0, 0.0) == 128
    assert prefixes.missing("r", 64, 0.0) == 64
    assert prefixes.allocated("r", [1, 2, 3, 4], 64) == 64
    assert prefixes.take_supplies() == (Supply(DIGEST, 64, (3, 4)),)


def test_where_vllm_takes_nothing_from_the_connector_nothing_is_supplied(prefixes: CartridgePrefixes) -> None:
    assert prefixes.missing("r", 0, 0.0) == 128
    assert prefixes.allocated("r", [1, 2, 3, 4], 0) == 0
    assert prefixes.take_supplies() == ()


def test_an_absent_cartridge_is_waited_for_and_then_left_to_the_guard(
    prefixes: CartridgePrefixes, shelf: CartridgeShelf, tmp_path: Path
) -> None:
    shelf.drop(DIGEST)
    assert prefixes.missing("r", 0, 100.0) is None
    assert prefixes.missing("r", 0, 100.0 + ABSENT_WAIT_S / 2) is None
    shelf.load(DIGEST, tmp_path / "one")
    assert prefixes.missing("r", 0, 100.0 + ABSENT_WAIT_S) == 128
    shelf.drop(DIGEST)
    assert prefixes.missing("r", 0, 200.0) is None
    assert prefixes.missing("r", 0, 200.0 + ABSENT_WAIT_S) == 0
    assert prefixes.allocated("r", [1, 2, 3, 4], 0) == 0


def test_a_cartridge_of_another_length_counts_as_absent(prefixes: CartridgePrefixes) -> None:
    prefixes.begin("long", {PREFIX: prefix_parameters(DIGEST, 2 * TOKENS)})
    assert prefixes.missing("long", 0, 0.0) is None


def test_the_first_position_of_a_step_must_lie_behind_the_cartridge(prefixes: CartridgePrefixes) -> None:
    assert prefixes.unsupplied({"r": 0, "base": 0}) == ["r"]
    assert prefixes.unsupplied({"r": 96}) == ["r"]
    assert prefixes.unsupplied({"r": 128}) == []
    prefixes.end("r")
    assert prefixes.unsupplied({"r": 0}) == []


def test_the_first_positions_are_those_of_new_and_of_running_requests() -> None:
    output: Any = SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id="new", num_computed_tokens=64)],
        scheduled_cached_reqs=SimpleNamespace(req_ids=["old", "back"], num_computed_tokens=[200, 0]),
    )
    assert first_positions(output) == {"new": 64, "old": 200, "back": 0}


def test_a_supply_writes_the_positions_into_their_blocks(shelf: CartridgeShelf) -> None:
    layers: list[Layer] = shelf._layers
    assert shelf.supply([Supply(DIGEST, 32, (9, 2)), Supply(OTHER, 0, (4, 5))]) == {4, 5}
    for number, layer in enumerate(layers):
        written = layer.kv_cache.view(16, BLOCK, 2, 2, 8)
        part = torch.from_numpy(kv_of()[32:96, number])
        assert torch.equal(written[9], part[:32])
        assert torch.equal(written[2], part[32:])
        assert not written[[4, 5, 0, 15]].any()


def test_the_used_one_is_the_last_to_leave(shelf: CartridgeShelf, tmp_path: Path) -> None:
    shelf.load(OTHER, write(tmp_path / "two", kv_of(64)))
    assert shelf.held() == {DIGEST: 128, OTHER: 64}
    shelf.supply([Supply(DIGEST, 0, (1,))])
    assert list(shelf.held()) == [OTHER, DIGEST]


def test_both_forms_of_the_file_are_read_alike(tmp_path: Path) -> None:
    kv = kv_of()
    (tmp_path / "plain").write_bytes(save({PLAIN_TENSOR: kv}))
    files = write(tmp_path / "peft", kv)
    read = read_cartridge(files / "adapter_model.safetensors", (3, 2, 2, 8), torch.float32)
    assert torch.equal(read, read_cartridge(tmp_path / "plain", (3, 2, 2, 8), torch.float32))
    assert torch.equal(read, torch.from_numpy(kv).permute(1, 2, 0, 3, 4))


def test_a_file_that_does_not_fit_the_engine_is_refused(shelf: CartridgeShelf, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this engine has 3 layers of 2 KV heads of 8"):
        shelf.load(OTHER, write(tmp_path / "layers", kv_of(layers=2)))
    with pytest.raises(ValueError, match="no multiple of the block's 32"):
        shelf.load(OTHER, write(tmp_path / "block", kv_of(48)))
    path = write(tmp_path / "range", kv_of() * 1e6) / "adapter_model.safetensors"
    with pytest.raises(ValueError, match=r"beyond the range of torch\.float16"):
        read_cartridge(path, (3, 2, 2, 8), torch.float16)
    assert list(shelf.held()) == [DIGEST]


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([FULL], ""),
        ([FULL, FULL], "in 2 groups of layers"),
        ([SlidingWindowSpec(**SHAPE, sliding_window=64)], "SlidingWindowSpec"),
        ([FullAttentionSpec(**SHAPE, sliding_window=64)], "full attention"),
        ([MLAAttentionSpec(**{**SHAPE, "num_kv_heads": 1})], "MLAAttentionSpec"),
    ],
)
def test_engines_whose_blocks_are_no_keys_and_values_take_none(specs: list[Any], reason: str) -> None:
    refusal = no_prefix_reason(config(*specs))
    assert reason in refusal
    assert bool(refusal) == bool(reason)
    if reason:
        with pytest.raises(ValueError, match="KV is"):
            CartridgeShelf("engine", config(*specs), torch.float32).load(DIGEST, Path("nowhere"))


def test_slots_are_all_places_of_the_blocks() -> None:
    assert slots_of([2, 0], 3).tolist() == [6, 7, 8, 0, 1, 2]


def test_an_expert_does_not_read_placeholders() -> None:
    extra = {"kv_transfer_params": {PREFIX: prefix_parameters(DIGEST, 2)}}
    params: Any = SimpleNamespace(extra_args=extra)
    assert read_prompt([0, 0, 5, 6], params) == [5, 6]
    assert read_prompt([5, 6], SimpleNamespace(extra_args=None)) == [5, 6]  # type: ignore[arg-type]
    embedded: Any = SimpleNamespace(extra_args={EMBEDDED_TOKENS: 1})
    assert read_prompt([0, 5, 6], embedded) == [5, 6]
