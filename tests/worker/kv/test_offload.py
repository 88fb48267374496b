"""The configuration of vLLM's KV offloading."""

from __future__ import annotations

import warnings
from typing import Literal

import pytest


@pytest.mark.parametrize(
    ("kv_bytes_per_token", "block_size_tokens", "blocks"),
    [
        (512, 32, 2),
        (12 << 10, 32, 4),
        (128 << 10, 16, 1),
        (32 << 10, 16, 4),
        (512, 128, 1),
        (1 << 20, 32, 1),
        (8 << 10, 32, 4),
    ],
)
def test_a_chunk_is_at_most_two_mebibytes_and_loses_little_of_a_prefix(
    kv_bytes_per_token: int, block_size_tokens: int, blocks: int
) -> None:
    from memserve.worker.kv.offload import chunk_blocks

    assert chunk_blocks(kv_bytes_per_token=kv_bytes_per_token, block_size_tokens=block_size_tokens) == blocks


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_the_classes_that_vllm_finds_by_name_are_there(platform: Literal["cpu", "cuda"]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
        from vllm.utils.import_utils import resolve_obj_by_qualname

        from memserve.worker.engine.cpu import LoraByAdapter
        from memserve.worker.kv.offload import kv_transfer_config
        from memserve.worker.kv.tier_settings import RedisTierSettings
        from memserve.worker.modules.extension import WORKER_EXTENSION
        from memserve.worker.modules.kinds.logit_expert import PROCESSOR

    tier = RedisTierSettings(redis_url="redis://localhost", namespace="n")
    config = kv_transfer_config(platform=platform, tier=tier, host_bytes=1 << 20, blocks_per_chunk=2)
    extra = config.kv_connector_extra_config
    (secondary,) = extra["secondary_tiers"]
    names = {
        f"{config.kv_connector_module_path}.{config.kv_connector}": "MemserveConnector",
        f"{extra['spec_module_path']}.{extra['spec_name']}": (
            "CpuTieringOffloadingSpec" if platform == "cpu" else "TieringOffloadingSpec"
        ),
        f"{secondary['module_path']}.{secondary['type']}": "RedisTier",
        WORKER_EXTENSION: "WorkerExtension",
        PROCESSOR.replace(":", "."): "LogitExperts",
        f"{LoraByAdapter.__module__}.{LoraByAdapter.__qualname__}": "LoraByAdapter",
    }
    assert {name: resolve_obj_by_qualname(name).__name__ for name in names} == names
