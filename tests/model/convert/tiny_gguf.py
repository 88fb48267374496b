"""Small GGUF files, as llama.cpp's own writer makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, CONTEXT = 64, 96, 2, 4, 2, 512
CONTROLS = ["<|end|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Tensor = npt.NDArray[np.float32]


@dataclass
class TinyGguf:
    """A Llama of two layers with a tokenizer of bytes."""

    architecture: str = "llama"
    template: str = TEMPLATE
    values: dict[str, int] = field(default_factory=dict)
    """In place of, or beside, the numbers that are written."""
    texts: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """Tensors that are left out, by their beginnings."""
    beside: tuple[str, ...] = ()
    """Further tensors."""
    kind: str = "F32"
    """Of the matrices' numbers, as ggml calls it."""

    def tensors(self) -> dict[str, Tensor]:
        """The weights by transformers' names, seeded."""
        random = np.random.default_rng(7)
        head = HIDDEN // HEADS
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (len(tokens()), HIDDEN)}
        for layer in range(LAYERS):
            at = f"model.layers.{layer}"
            shapes |= {
                f"{at}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
                f"{at}.self_attn.k_proj.weight": (KV_HEADS * head, HIDDEN),
                f"{at}.self_attn.v_proj.weight": (KV_HEADS * head, HIDDEN),
                f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                f"{at}.mlp.gate_proj.weight": (INNER, HIDDEN),
                f"{at}.mlp.up_proj.weight": (INNER, HIDDEN),
                f"{at}.mlp.down_proj.weight": (HIDDEN, INNER),
                f"{at}.input_layernorm.weight": (HIDDEN,),
                f"{at}.post_attention_layernorm.weight": (HIDDEN,),
            }
        shapes["model.norm.weight"] = (HIDDEN,)
        return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        numbers = {
            "block_count": LAYERS, "context_length": CONTEXT, "embedding_length": HIDDEN,
            "feed_forward_length": INNER, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
            "rope.dimension_count": HIDDEN // HEADS,
        } | self.values  # fmt: skip
        for name, number in numbers.items():
            writer.add_uint32(
                f"{self.architecture}.{name}" if not name.startswith("split.") else name, number
            )
        writer.add_float32(f"{self.architecture}.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add_float32(f"{self.architecture}.rope.freq_base", 10_000.0)
        for name, text in self.texts.items():
            writer.add_string(name, text)
        add_tokenizer(writer, self.template)
        for name, tensor in self._named().items():
            if not name.startswith(self.without or ("-",)):
                self._add(writer, name, tensor)
        for name in self.beside:
            writer.add_tensor(name, np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _named(self) -> dict[str, Tensor]:
        """The weights by GGUF's names. llama.cpp turns the rows of Q and K around."""
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
        turned = {".q_proj.": HEADS, ".k_proj.": KV_HEADS}
        result = {}
        for name, tensor in self.tensors().items():
            for part, heads in turned.items():
                if part in name:
                    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, HIDDEN)
                    tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
            result[f"{names.get_name(name.removesuffix('.weight'))}.weight"] = np.ascontiguousarray(tensor)
        return result

    def _add(self, writer: Any, name: str, tensor: Tensor) -> None:
        if self.kind != "F32" and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType[self.kind]
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)


def tokens() -> list[str]:
    """A vocabulary: the control tokens, GPT-2's letters for the bytes, and two merges."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + at) for at in range(len(others))]
    return [*CONTROLS, *letters, "th", "the"]


def add_tokenizer(writer: Any, template: str = TEMPLATE) -> None:
    words = tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3] * len(CONTROLS) + [1] * (len(words) - len(CONTROLS)))
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(2)
    writer.add_bos_token_id(1)
    if template:
        writer.add_chat_template(template)
