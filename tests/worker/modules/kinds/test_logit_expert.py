"""Logit experts: the arithmetic equals transformers', the state follows vLLM's batch, and a real engine tells
what its expert knows.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from memserve.worker.modules.kinds.causal_model import CausalModel, KvState
    from memserve.worker.modules.kinds.logit_expert import (
        LIMIT,
        LogitExperts,
        expert_parameters,
    )

VOCAB = 40


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
}


DIGESTS = {name: letter * 64 for name, letter in {"own": "a", "against": "b", "other": "c"}.items()}


def write_model(model: Any, folder: Path, weights: str = "model.safetensors") -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
    tied = model.config.tie_word_embeddings
    save_file(
        {
            name: each.contiguous()
            for name, each in model.state_dict().items()
            if not (tied and "lm_head" in name)
        },
        folder / weights,
    )
    return model.eval()


def write_expert(folder: Path, seed: int, anti: str) -> Any:
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "expert_config.json").write_text(
        json.dumps({"kind": "logit_expert", "anti_expert": anti}), encoding="utf-8"
    )
    return write_model(LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)), folder)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, tie_word_embeddings=True),
        LlamaConfig(
            **SIZES,
            head_dim=8,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        Qwen2Config(**SIZES),
    ],
    ids=["tied llama", "llama with scaled rope and wide heads", "qwen2 with biases"],
)
def test_sequences_of_any_lengths_read_together_give_the_logits_of_transformers(
    config: Any, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    theirs = (LlamaForCausalLM if config.model_type == "llama" else Qwen2ForCausalLM)(config)
    for name, each in theirs.named_parameters():
        if "bias" in name:
            each.data.normal_()
    write_model(theirs, tmp_path)
    ours = CausalModel.load(tmp_path, [tmp_path / "model.safetensors"], torch.float32, torch.device("cpu"))
    rows = [torch.randint(VOCAB, (length,)).tolist() for length in (30, 7, 18)]
    states = [KvState() for _ in rows]
    for start, end in ((0, 5), (5, 6), (6, 7)):  # a prompt, and two tokens behind it
        found = ours.read([(state, row[start:end]) for state, row in zip(states, rows, strict=True)])
    found = ours.read(
        [(states[0], rows[0][7:]), (states[2], rows[2][7:])]
    )  # a longer piece behind what is there
    for row, logits in zip((rows[0], rows[2]), found, strict=True):
        torch.testing.assert_close(logits, theirs(torch.tensor([row])).logits[0, -1], rtol=1e-4, atol=1e-4)
    assert [state.length for state in states] == [30, 7, 18]


class Batch:
    """Stands where vLLM's model runner does: a persistent batch of running token lists, and what it tells a
    logits processor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(7)
        self.base = write_model(
            LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)), folder / "base"
        )
        self.models = {
            "own": (write_expert(folder / "own", 1, "none"), None),
            "against": (write_expert(folder / "against", 2, "base"), self.base),
            "other": (write_expert(folder / "other", 3, "file"), write_expert(folder / "anti", 4, "none")),
        }
        (folder / "other" / "anti_model.safetensors").write_bytes(
            (folder / "anti" / "model.safetensors").read_bytes()
        )
        self.experts = self.processor()

    def processor(self) -> LogitExperts:
        model = SimpleNamespace(
            model=str(self.folder / "base"), get_vocab_size=lambda: VOCAB, dtype=torch.float32
        )
        return LogitExperts(
            SimpleNamespace(model_config=model, additional_config={LIMIT: 2}), torch.device("cpu"), False
        )

    def added(self, row: int, name: str, alpha: float, prompt: list[int], outputs: list[int]) -> Any:
        params = expert_parameters(DIGESTS[name], alpha, str(self.folder / name)) if name else None
        return (row, SamplingParams(extra_args=params), prompt, outputs)

    def update(
        self, added: Sequence[Any] = (), removed: Sequence[int] = (), moved: Sequence[Any] = ()
    ) -> None:
        self.experts.update_state(BatchUpdate(batch_size=0, removed=removed, added=added, moved=moved))

    def shift(self, name: str, alpha: float, tokens: list[int]) -> Tensor:
        expert, anti = self.models[name]
        with torch.inference_mode():
            own = expert(torch.tensor([tokens])).logits[0, -1]
            return alpha * (
                own.log_softmax(-1) if anti is None else own - anti(torch.tensor([tokens])).logits[0, -1]
            )

    def check(self, *rows: tuple[str, float, list[int]]) -> None:
        """rows: of each request in the batch its expert, alpha, and all of its tokens."""
        before = torch.randn(len(rows), VOCAB)
        after = self.experts.apply(before.clone())
        for (name, alpha, tokens), old, new in zip(rows, before, after, strict=True):
            if name and alpha:
                torch.testing.assert_close(new - old, self.shift(name, alpha, tokens), rtol=1e-3, atol=1e-3)
            else:
                assert torch.equal(new, old)


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def test_the_state_follows_requests_that_come_grow_swap_move_and_go(batch: Batch) -> None:
    prompts = [[1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11, 12, 13, 14]]
    outputs: list[list[int]] = [[], [], [], []]
    names, alphas = ["own", "", "against", "own"], [1.0, 0.0, 0.5, -2.0]

    def row(at: int) -> tuple[str, float, list[int]]:
        return (names[at], alphas[at], prompts[at] + outputs[at])

    batch.update(added=[batch.added(at, names[at], alphas[at], prompts[at], outputs[at]) for at in range(4)])
    batch.check(*map(row, range(4)))
    batch.check(*map(row, range(4)))  # a step of a prompt that is not all computed yet: nothing was sampled
    for token in (20, 21):
        for each in outputs:
            each.append(token)
        batch.experts.update_state(None)
        batch.check(*map(row, range(4)))
    batch.update(moved=[(0, 1, MoveDirectionality.SWAP)])
    batch.check(*map(row, (1, 0, 2, 3)))
    outputs[3].append(22)
    batch.update(removed=[1], moved=[(3, 1, MoveDirectionality.UNIDIRECTIONAL)])
    batch.check(*map(row, (1, 3, 2)))
    # Row 2 is taken at once by a request without an expert, and the one that was preempted comes back with
    # its outputs.
    batch.update(
        added=[batch.added(2, "", 0, [1], []), batch.added(3, names[0], alphas[0], prompts[0], outputs[0])]
    )
    batch.check(row(1), row(3), ("", 0.0, [1]), row(0))
    batch.update(removed=[3, 1])
    assert batch.experts.in_use == set()
    batch.check(row(1), ("", 0.0, []), ("", 0.0, [1]))


def test_an_alpha_of_zero_is_off(batch: Batch) -> None:
    batch.update(added=[batch.added(0, "own", 0.0, [1, 2], [])])
    assert batch.experts.in_use == set()
    batch.check(("own", 0.0, [1, 2]))


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("instead", [[], [30], [30, 31, 32, 33]])
def test_tokens_that_were_taken_back_are_forgotten(batch: Batch, kept: int, instead: list[int]) -> None:
    prompt, outputs = [1, 2, 3], [20, 21, 22, 23]
    batch.update(added=[batch.added(0, "other", 1.5, prompt, outputs)])
    batch.check(("other", 1.5, prompt + outputs))
    outputs[kept:] = instead
    batch.check(("other", 1.5, prompt + outputs))
    outputs.append(24)
    batch.check(("other", 1.5, prompt + outputs))


def until_read(batch: Batch, name: str) -> str:
    while (
        answer := batch.experts.shelf.ask(DIGESTS[name], str(batch.folder / name), batch.experts.in_use)
    ) is None:
        time.sleep(0.001)
    return answer


def test_the_least_recently_used_expert_goes_out_and_one_in_use_stays(batch: Batch) -> None:
    assert [until_read(batch, name) for name in ("own", "against")] == ["", ""]
    batch.update(added=[batch.added(0, "own", 1.0, [1, 2], [])])
    assert until_read(batch, "other") == ""
    assert batch.experts.shelf.loaded() == [DIGESTS["own"], DIGESTS["other"]]
    batch.update(added=[batch.added(1, "other", 1.0, [1, 2], [])])
    assert "are in use" in until_read(batch, "against")
    batch.update(removed=[1, 0])
    assert until_read(batch, "against") == ""
    # A request whose expert has been pushed out since brings it back.
    batch.update(added=[batch.added(0, "own", 1.0, [1, 2], [])])
    batch.check(("own", 1.0, [1, 2]))
    assert len(batch.experts.shelf.loaded()) == 2


def spoil(folder: Path, **changes: Any) -> None:
    for name, value in changes.items():
        if name == "weights":
            (folder / "model.safetensors").write_bytes(value)
        else:
            path = folder / ("expert_config.json" if name == "anti_expert" else "config.json")
            path.write_text(
                json.dumps({**json.loads(path.read_text(encoding="utf-8")), name: value}), encoding="utf-8"
            )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": b"not safetensors"}, "cannot be read"),
        ({"anti_expert": "other"}, "anti_expert"),
        ({"anti_expert": "file"}, "cannot be read"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"hidden_size": 32}, "has the shape"),
        ({"vocab_size": VOCAB + 8}, "has the shape"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_an_expert_that_cannot_be_used_is_refused_with_the_reason(
    batch: Batch, changes: dict[str, Any], reason: str
) -> None:
    spoil(batch.folder / "own", **changes)
    assert reason in until_read(batch, "own")
    assert batch.experts.shelf.loaded() == []
    assert until_read(batch, "against") == ""


def test_an_expert_with_another_vocabulary_is_refused(batch: Batch) -> None:
    write_model(
        LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": VOCAB + 8}, tie_word_embeddings=True)),
        batch.folder / "own",
    )
    assert until_read(batch, "own") == "its vocabulary has 48 tokens, the served model's 40"
