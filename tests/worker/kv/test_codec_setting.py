"""The setting `kv_codec`: what an engine is told, and what is refused before one is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.kv.keys import CacheNamespace
from memserve.kv.values.codecs import chunk_codec
from memserve.kv.values.envelope import Codec
from memserve.model.files import ModelFiles
from memserve.worker.kv.configure import activation_memory
from memserve.worker.kv.tier_settings import RedisTierSettings

CONFIG = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "head_dim": 64,
}


def told(codec: str, dtype: str = "bfloat16", **config: Any) -> tuple[CacheNamespace, dict[str, Any]]:
    """The namespace and the tier's parameters."""
    model = ModelFiles(Path("/models/small"), 8192, {**CONFIG, "dtype": dtype, **config})
    settings = Settings(kv_codec=codec, redis_url="redis://localhost")  # type: ignore[arg-type]
    namespace, transfer = activation_memory(settings, model, "digest")
    [tier] = transfer.kv_connector_extra_config["secondary_tiers"]
    return namespace, {name: value for name, value in tier.items() if name not in ("type", "module_path")}


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [("raw", "float32"), ("lossless", "bfloat16"), ("int8", "bfloat16"), ("int8", "float32")],
)
def test_the_tier_gets_the_codec_as_plain_values(codec: str, dtype: str) -> None:
    namespace, parameters = told(codec, dtype)
    tier = RedisTierSettings.parse(parameters)
    item_bytes = 4 if dtype == "float32" else 2
    chunk_bytes = namespace.chunk_tokens * 4 * 2 * 2 * 64 * item_bytes
    assert chunk_codec(tier.codec, tier.layout, chunk_bytes=chunk_bytes).code is Codec[codec.upper()]
    assert (tier.layout is not None) is (codec == "int8")


def test_engines_of_different_codecs_share_nothing() -> None:
    assert len({told(codec)[0].digest for codec in ("raw", "lossless", "int8")}) == 3


@pytest.mark.parametrize(
    ("codec", "dtype", "config", "why"),
    [
        ("lossless", "float32", {}, "lossless is for KV in bfloat16, and that of small is in float32"),
        ("lossless", "float16", {}, "in float16"),
        ("int8", "bfloat16", {"kv_lora_rank": 64}, "small has latent attention"),
        ("int8", "float64", {}, "float64"),
    ],
)
def test_a_codec_that_does_not_fit_the_model_is_refused_by_the_setting(
    codec: str, dtype: str, config: dict[str, Any], why: str
) -> None:
    with pytest.raises(StartupError, match=why) as refused:
        told(codec, dtype, **config)
    assert str(refused.value).startswith("setting kv_codec: ")
