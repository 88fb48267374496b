"""The demo's network: its shape, how it begins, and its loss, in the way that is quickest on a CPU."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memserve.demo.training.batches import IGNORED, MAX_POSITIONS, Batch

_NARROW_TOKENS = 400


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the demo's shape: about one and a quarter million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _look_back(model)
    return model


def _look_back(model: LlamaForCausalLM) -> None:
    """Let head h of the first layer begin by looking at the token h + 1 places back.

    Looking up a fact needs the words before a value to be known at the value. Found by chance that takes most
    of the training; begun so it takes none. One dimension of every embedding is constant; queries and keys
    turn it into a peak of the rotary phases.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    head_dim = int(config.head_dim or 0)
    half, strength = head_dim // 2, 1.25
    angles = torch.as_tensor(model.model.rotary_emb.inv_freq).float()
    angles = angles[angles > 0.02]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.25
        query = attention.q_proj.weight.view(config.num_attention_heads, head_dim, -1)
        key = attention.k_proj.weight.view(-1, head_dim, config.hidden_size)
        query.mul_(0.1)
        key.mul_(0.1)
        key[:, : len(angles), 0] = strength
        for head in range(config.num_attention_heads):
            query[head, : len(angles), 0] = strength * torch.cos(angles * (head + 1))
            query[head, half : half + len(angles), 0] = -strength * torch.sin(angles * (head + 1))


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy over the tokens of the answers.

    The layers' own projections run (with their LoRA, if they have one), but positions may jump and only
    answers reach the head.
    """
    base, head_dim = model.model, int(model.config.head_dim or 0)
    rows, width = batch.ids.shape
    hidden = base.embed_tokens(batch.ids)
    cos, sin = base.rotary_emb(hidden, batch.positions)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def rotated(heads: Tensor) -> Tensor:
        left, right = heads.chunk(2, dim=-1)
        turned: Tensor = heads * cos + torch.cat((-right, left), dim=-1) * sin
        return turned

    def split(states: Tensor) -> Tensor:
        return states.view(rows, width, -1, head_dim).transpose(1, 2)

    for layer in base.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query, key, value = (
            rotated(split(attention.q_proj(normed))),
            rotated(split(attention.k_proj(normed))),
            split(attention.v_proj(normed)),
        )
        mixed = _attend(query, key, value)
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(rows, width, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    learned = batch.targets != IGNORED
    logits = model.lm_head(base.norm(hidden[learned]))
    return cross_entropy(logits.float(), batch.targets[learned])


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention over [rows, heads, tokens, head_dim], by the way that is quickest on a CPU.

    The flash kernel is slow backwards in bfloat16; narrow batches are quicker without it.
    """
    tokens = query.shape[2]
    if tokens > _NARROW_TOKENS:
        return scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    query, key, value = (
        query.bfloat16(),
        key.bfloat16().repeat_interleave(groups, 1),
        value.bfloat16().repeat_interleave(groups, 1),
    )
    ahead = torch.full((tokens, tokens), -torch.inf, dtype=torch.bfloat16).triu(1)
    scores = torch.baddbmm(
        ahead.expand(query.shape[0] * query.shape[1], tokens, tokens),
        query.flatten(0, 1),
        key.flatten(0, 1).transpose(1, 2),
        alpha=query.shape[-1] ** -0.5,
    )
    return (scores.softmax(-1, dtype=torch.bfloat16) @ value.flatten(0, 1)).view_as(query)
