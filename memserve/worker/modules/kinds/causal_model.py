"""A small Llama or Qwen2 as plain arithmetic, which logit experts compute with.

Every sequence has its own KV state. All sequences of a step go through the matrices as one flat run of
tokens, without padding. Only attention is computed for each sequence by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu

# When a sequence's KV is full, it grows by this many tokens more than are needed.
GROWTH_TOKENS = 256
# The frequencies of other types depend on the length of the sequence. Cached keys would not follow a change.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class Projection(NamedTuple):
    """A linear map."""

    weight: Tensor
    """[out, in]"""
    bias: Tensor | None
    """[out]"""

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Layer(NamedTuple):
    """The weights of one layer."""

    input_norm: Tensor
    qkv: Projection
    """Queries, keys and values in one."""
    output: Projection
    mlp_norm: Tensor
    gate_up: Projection
    """The two halves of the gated MLP in one."""
    down: Projection


class KvState:
    """Keys and values of one sequence in one model."""

    def __init__(self) -> None:
        self.length = 0
        """How many tokens it has. A caller lowers it to take the last tokens back."""
        self._held: Tensor | None = None

    def reserve(self, tokens: int, like: Tensor, layers: int) -> Tensor:
        """Make room for more tokens behind the present tokens.

        tokens: how many more.
        like: [kv_heads, tokens, head_dim], for the shape, dtype and device.
        Returns the whole KV, [layers, 2, kv_heads, capacity, head_dim].
        """
        capacity = 0 if self._held is None else self._held.shape[3]
        if self._held is None or self.length + tokens > capacity:
            kv_heads, _, head_dim = like.shape
            grown = like.new_empty(layers, 2, kv_heads, self.length + tokens + GROWTH_TOKENS, head_dim)
            if self._held is not None:
                grown[:, :, :, : self.length] = self._held[:, :, :, : self.length]
            self._held = grown
        return self._held


class CausalModel:
    """Weights on a device. It computes logits from tokens."""

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """config: the model's `config.json` of transformers, parsed.

        weights: by the names that transformers gives them.
        Raises ValueError for another architecture, and for weights that are missing or do not fit.
        """
        self._dtype, self._device = dtype, device
        shape = _typed_config(config)
        self.vocab_size: int = shape.vocab_size
        self._hidden: int = shape.hidden_size
        self._heads: int = shape.num_attention_heads
        self._kv_heads: int = shape.num_key_value_heads
        self._head_dim: int = (
            getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        )
        self._epsilon: float = shape.rms_norm_eps
        self._frequencies, self._rope_scale = _rope(shape, device)

        def take(name: str, *size: int) -> Tensor:
            if name not in weights:
                raise ValueError(f"{name} is missing")
            if tuple(weights[name].shape) != size:
                raise ValueError(f"{name} has the shape {list(weights[name].shape)}, not {list(size)}")
            return weights[name].to(device=device, dtype=dtype)

        def project(prefix: str, outputs: Mapping[str, int], width: int) -> Projection:
            parts = [take(f"{prefix}.{name}.weight", out, width) for name, out in outputs.items()]
            if not any(f"{prefix}.{name}.bias" in weights for name in outputs):
                return Projection(torch.cat(parts), None)
            return Projection(
                torch.cat(parts),
                torch.cat([take(f"{prefix}.{name}.bias", out) for name, out in outputs.items()]),
            )

        hidden, inner = self._hidden, shape.intermediate_size
        q, kv = self._heads * self._head_dim, self._kv_heads * self._head_dim
        self._layers = [
            Layer(
                input_norm=take(f"{prefix}.input_layernorm.weight", hidden),
                qkv=project(f"{prefix}.self_attn", {"q_proj": q, "k_proj": kv, "v_proj": kv}, hidden),
                output=project(f"{prefix}.self_attn", {"o_proj": hidden}, q),
                mlp_norm=take(f"{prefix}.post_attention_layernorm.weight", hidden),
                gate_up=project(f"{prefix}.mlp", {"gate_proj": inner, "up_proj": inner}, hidden),
                down=project(f"{prefix}.mlp", {"down_proj": hidden}, inner),
            )
            for prefix in (f"model.layers.{number}" for number in range(shape.num_hidden_layers))
        ]
        self._norm = take("model.norm.weight", hidden)
        self._embeddings = take("model.embed_tokens.weight", self.vocab_size, hidden)
        self._head = (
            self._embeddings if shape.tie_word_embeddings else take("lm_head.weight", self.vocab_size, hidden)
        )

    @classmethod
    def load(
        cls, folder: Path, files: Sequence[Path], dtype: torch.dtype, device: torch.device
    ) -> CausalModel:
        """Read `config.json` in the folder, and the weights in these safetensors files.

        Raises ValueError when a file is missing, or when this class cannot compute the model.
        """
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        except Exception as error:  # errors of safetensors, of JSON and of the file system
            raise ValueError(f"{folder.name} cannot be read: {error}") from error
        return cls(config, weights, dtype, device)

    @torch.inference_mode()
    def read(self, sequences: Sequence[tuple[KvState, Sequence[int]]]) -> Tensor:
        """Read more tokens of some sequences. Each KV state grows by the tokens of its sequence.

        sequences: each with at least one token.
        Returns the logits after the last token of each sequence, float32 [sequences, vocab_size].
        """
        counts = [len(tokens) for _, tokens in sequences]
        starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
        ids = torch.tensor([token for _, tokens in sequences for token in tokens], device=self._device)
        places = [
            place
            for (state, _), count in zip(sequences, counts, strict=True)
            for place in range(state.length, state.length + count)
        ]
        angles = (
            torch.tensor(places, dtype=torch.float32, device=self._device)[:, None, None] * self._frequencies
        )
        cos, sin = ((turned * self._rope_scale).to(self._dtype) for turned in (angles.cos(), angles.sin()))
        hidden = embedding(ids, self._embeddings)
        for number, layer in enumerate(self._layers):
            heads = layer.qkv(self._normed(hidden, layer.input_norm)).view(len(ids), -1, self._head_dim)
            both = self._heads + self._kv_heads
            left, right = heads[:, :both].chunk(2, dim=-1)
            heads = torch.cat(
                (torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1), heads[:, both:]),
                dim=1,
            )
            heads = heads.transpose(0, 1)
            mixed = [
                self._attend(heads[:, start:end], state, number)
                for (state, _), start, end in zip(sequences, starts[:-1], starts[1:], strict=True)
            ]
            hidden = hidden + layer.output(torch.cat(mixed))
            gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(silu(gate) * up)
        for (state, _), count in zip(sequences, counts, strict=True):
            state.length += count
        last = hidden[torch.tensor(starts[1:], device=self._device) - 1]
        return linear(self._normed(last, self._norm), self._head).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, (self._hidden,), weight, self._epsilon)

    def _attend(self, heads: Tensor, state: KvState, layer: int) -> Tensor:
        """Attention of one sequence in one layer. Adds the new keys and values to its KV state.

        heads: [heads + 2 * kv_heads, tokens, head_dim].
        Returns [tokens, heads * head_dim].
        """
        query, fresh = (
            heads[: self._heads],
            heads[self._heads :].reshape(2, self._kv_heads, -1, self._head_dim),
        )
        tokens, past = query.shape[1], state.length
        held = state.reserve(tokens, fresh[0], len(self._layers))[layer]
        held[:, :, past : past + tokens] = fresh
        keys, values = held[:, None, :, : past + tokens]
        if tokens == 1:
            # The query heads that share a key become the rows of one query. This needs neither a copy of the
            # keys nor a mask.
            grouped = query.reshape(1, self._kv_heads, -1, self._head_dim)
            return scaled_dot_product_attention(grouped, keys, values).reshape(1, -1)
        mask = None
        if past:
            mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=self._device).tril(past)
        mixed = scaled_dot_product_attention(
            query[None], keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return mixed[0].transpose(0, 1).reshape(tokens, -1)


def _typed_config(config: Mapping[str, Any]) -> Any:
    """The config with transformers' defaults. Raises ValueError unless it is a plain Llama or Qwen2."""
    # transformers is imported here, so that engines without experts start without it.
    from transformers import LlamaConfig, Qwen2Config

    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config}
    kind = kinds.get(str(config.get("model_type")))
    if kind is None:
        raise ValueError(f"model_type {config.get('model_type')!r} is none of {', '.join(kinds)}")
    try:
        shape = kind(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.json is refused: {error}") from error
    if shape.hidden_act != "silu" or getattr(shape, "use_sliding_window", False):
        raise ValueError("hidden_act must be silu, and use_sliding_window false")
    if shape.rope_parameters["rope_type"] not in ROPE_TYPES:
        raise ValueError(
            f"rope_type {shape.rope_parameters['rope_type']!r} is none of {', '.join(ROPE_TYPES)}"
        )
    return shape


def _rope(shape: Any, device: torch.device) -> tuple[Tensor, float]:
    """Rotary frequencies [head_dim / 2], and the factor of sine and cosine."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(shape)
    return rotary.inv_freq.to(device=device, dtype=torch.float32), float(rotary.attention_scaling)
