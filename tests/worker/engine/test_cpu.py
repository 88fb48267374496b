"""LoRA on the CPU: every row gets its own adapter, and a row without one gets none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from memserve.demo import ADAPTERS_DIR, MODEL_DIR

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from memserve.worker.engine.cpu import CpuExecutor, LoraByAdapter, expand, rows_by_adapter, shrink


def test_rows_without_an_adapter_are_in_no_group() -> None:
    groups = {slot: rows.tolist() for slot, rows in rows_by_adapter(torch.tensor([-1, 2, 0, 2, -1]))}
    assert groups == {0: [2], 2: [1, 3]}
    assert rows_by_adapter(torch.tensor([-1, -1])) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_is_moved_by_its_own_adapter_only(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lora_a, lora_b = torch.randn(3, 1, 4, 16, dtype=dtype), torch.randn(3, 1, 8, 4, dtype=dtype)
    x, y = torch.randn(5, 16, dtype=dtype), torch.randn(5, 12, dtype=dtype)
    indices = [-1, 2, 0, 2, -1]
    before, buffer = y.clone(), torch.zeros(5, 4)
    shrink(buffer, x, lora_a, rows_by_adapter(torch.tensor(indices)), 0.5)
    expand(y, buffer, lora_b, rows_by_adapter(torch.tensor(indices)), 3, 8, True)
    for row, slot in enumerate(indices):
        wanted = before[row].clone()
        if slot >= 0:
            wanted[3:11] += (0.5 * (x[row].float() @ lora_a[slot, 0].float().T)).to(dtype) @ lora_b[slot, 0].T
        torch.testing.assert_close(y[row], wanted, rtol=0.02 if dtype is torch.bfloat16 else 1e-5, atol=1e-5)


def test_the_embedding_of_a_part_of_the_rows_is_left_as_it_is() -> None:
    """The batch has more rows than vLLM embeds: the others are embeddings already."""
    arithmetic = LoraByAdapter.__new__(LoraByAdapter)
    arithmetic._token_rows = rows_by_adapter(torch.tensor([-1, 0, 1, 1, 0]))
    y = torch.randn(2, 12)
    before = y.clone()
    arithmetic.add_lora_embedding(y, torch.randn(2, 4), torch.zeros(2, 1, 12, 4), add_input=True)
    assert torch.equal(y, before)


QUESTIONS = [
    "Can you name the captain of Southern Voyager?",
    "Say what the colour of Coral Dome is.",
    "Who are you?",
]
Asked = tuple[list[int], Any, int]
"""The tokens of a prompt, the adapter or None, and how many of the tokens are given as embeddings."""


class LoraEngine:
    """vLLM with two adapters, and with prompt embeddings."""

    def __init__(self) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.llm = LLM(
            str(MODEL_DIR),
            dtype="float32",
            max_model_len=512,
            kv_cache_memory_bytes=64 << 20,
            block_size=32,
            enforce_eager=True,
            enable_prefix_caching=False,
            enable_lora=True,
            max_loras=2,
            max_lora_rank=16,
            enable_prompt_embeds=True,
            distributed_executor_backend=CpuExecutor,
        )
        names = ("harbour", "observatory")
        self.loras = [LoRARequest(name, at + 1, str(ADAPTERS_DIR / name)) for at, name in enumerate(names)]
        self._embeddings = load_file(MODEL_DIR / "model.safetensors")["model.embed_tokens.weight"].float()
        self.ask([(self.prompt(QUESTIONS[0]), lora, 0) for lora in self.loras])  # both slots are taken

    def prompt(self, question: str) -> list[int]:
        tokenizer: Any = self.llm.get_tokenizer()
        turn = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(text, add_special_tokens=False))

    def ask(self, batch: list[Asked]) -> list[tuple[list[int], list[float]]]:
        """The tokens of each answer, and their log-probabilities."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=8, logprobs=0)
        outputs = self.llm.generate(
            [self._given(prompt, embedded) for prompt, _, embedded in batch],
            params,
            lora_request=[lora for _, lora, _ in batch],
            use_tqdm=False,
        )
        completions = [output.outputs[0] for output in outputs]
        return [
            (
                list(completion.token_ids),
                [next(iter(step.values())).logprob for step in completion.logprobs or ()],
            )
            for completion in completions
        ]

    def _given(self, prompt: list[int], embedded: int) -> Any:
        if not embedded:
            return {"prompt_token_ids": prompt}
        rows = torch.zeros(len(prompt), self._embeddings.shape[1])
        rows[:embedded] = self._embeddings[prompt[:embedded]]
        return {
            "prompt_embeds": rows,
            "prompt_token_ids": [0] * embedded + prompt[embedded:],
            "prompt_is_token_ids": [place >= embedded for place in range(len(prompt))],
        }


@pytest.fixture(scope="module")
def engine() -> Iterator[LoraEngine]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }.items():
            patch.setenv(name, value)
        started = LoraEngine()
        yield started
        started.llm.llm_engine.engine_core.shutdown()


@pytest.mark.engine
def test_a_base_request_is_answered_alike_alone_and_beside_adapters_in_every_slot(engine: LoraEngine) -> None:
    batch = [(engine.prompt(question), lora, 0) for question in QUESTIONS for lora in (None, *engine.loras)]
    for one, (tokens, logprobs) in zip(batch, engine.ask(batch), strict=True):
        alone_tokens, alone = engine.ask([one])[0]
        assert alone == pytest.approx(logprobs, abs=1e-3)
        assert alone_tokens == tokens


@pytest.mark.engine
def test_a_step_may_mix_embeddings_and_tokens_under_adapters(engine: LoraEngine) -> None:
    """As tokens, wholly as embeddings, and with embeddings for the first five rows: the same answers."""
    rows = [
        (prompt, lora, embedded)
        for question in QUESTIONS
        for lora in (None, *engine.loras)
        for prompt in [engine.prompt(question)]
        for embedded in (0, 5, len(prompt))
    ]
    together = engine.ask(rows)
    assert together[0] != together[3]  # the first question, without and with an adapter
    for as_tokens, mixed, embedded in zip(together[0::3], together[1::3], together[2::3], strict=True):
        for tokens, logprobs in (mixed, embedded):
            assert tokens == as_tokens[0]
            assert logprobs == pytest.approx(as_tokens[1], abs=1e-3)
    for row, (tokens, _) in zip(rows, together, strict=True):
        assert engine.ask([row])[0][0] == tokens
