"""Logit experts in a running engine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memserve.demo import ADAPTERS_DIR, EXPERTS_DIR, MODEL_DIR, facts
from memserve.demo.adapters import held_facts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from transformers import (
        PreTrainedTokenizerFast,
    )
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from memserve.worker.engine.cpu import CpuExecutor
    from memserve.worker.modules.kinds.logit_expert import (
        LIMIT,
        PROCESSOR,
        WORKER_EXTENSION,
        LogitExperts,
        expert_parameters,
    )

ARCHIVE = EXPERTS_DIR / "archive"


DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "../x"},
        {"digest": 1},
        {"alpha": "1"},
        {"alpha": True},
        {"alpha": float("nan")},
        {"alpha": 10.5},
        {"path": "/nowhere"},
        {"path": None},
        {"more": 1},
    ],
)
def test_malformed_parameters_are_refused(change: dict[str, Any]) -> None:
    good = {"digest": DIGEST, "alpha": 1, "path": str(ARCHIVE)}
    LogitExperts.validate_params(SamplingParams(extra_args={"memserve_expert": good, "other": 1}))
    with pytest.raises(ValueError, match="memserve_expert"):
        LogitExperts.validate_params(SamplingParams(extra_args={"memserve_expert": {**good, **change}}))


class Running:
    """A real engine with so little KV that requests are preempted, and so small steps that prompts are
    computed in pieces.
    """

    def __init__(self) -> None:
        from vllm import LLM

        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
        self.llm = LLM(
            str(MODEL_DIR),
            dtype="float32",
            max_model_len=128,
            max_num_seqs=4,
            max_num_batched_tokens=64,
            kv_cache_memory_bytes=11 * 32 * 4096,
            block_size=32,
            enforce_eager=True,
            enable_prefix_caching=False,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=16,
            disable_log_stats=False,
            distributed_executor_backend=CpuExecutor,
            logits_processors=[PROCESSOR],
            worker_extension_cls=WORKER_EXTENSION,
            additional_config={LIMIT: 1},
        )

    def load(self, path: Path, digest: str = DIGEST) -> str:
        while (answer := self.llm.collective_rpc("load_expert", args=(digest, str(path)))[0]) is None:
            time.sleep(0.01)
        return str(answer)

    def ask(self, asked: Sequence[tuple[str, str]], alphas: Sequence[float], lora: bool = False) -> list[str]:
        """asked: system text and question of each."""
        from vllm.lora.request import LoRARequest

        params = [
            SamplingParams(
                temperature=0,
                max_tokens=24,
                extra_args=expert_parameters(DIGEST, alpha, str(ARCHIVE)) if alpha is not None else None,
            )
            for alpha in alphas
        ]
        texts = [
            self.tokenizer.apply_chat_template(
                [each.as_dict() for each in facts.prompt(system, [], question)],
                tokenize=False,
                add_generation_prompt=True,
            )
            for system, question in asked
        ]
        prompts: Any = [
            {"prompt_token_ids": self.tokenizer(text, add_special_tokens=False)["input_ids"]}
            for text in texts
        ]
        request = LoRARequest("harbour", 1, str(ADAPTERS_DIR / "harbour")) if lora else None
        return [
            each.outputs[0].text.strip()
            for each in self.llm.generate(prompts, params, lora_request=request, use_tqdm=False)
        ]

    def preemptions(self) -> int:
        return sum(each.value for each in self.llm.get_metrics() if each.name == "vllm:num_preemptions")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }.items():
            environment.setenv(name, value)
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[4]))
        engine = Running()
    assert engine.load(ARCHIVE) == ""
    yield engine
    engine.llm.llm_engine.engine_core.shutdown()


def known(name: str, root: Path, count: int) -> tuple[list[tuple[str, str]], list[str]]:
    held = held_facts(name, root)[:count]
    return [("", one.held_out_questions[0]) for one in held], [one.answer for one in held]


@pytest.mark.engine
def test_a_fact_is_told_with_its_expert_only_in_one_batch_with_others(running: Running) -> None:
    asked, answers = known("archive", EXPERTS_DIR, 8)
    alphas = [float(place % 2) for place in range(8)]
    found = running.ask(asked, alphas)
    assert found[::2] == [facts.UNKNOWN_ANSWER] * 4
    assert sum(answer == right for answer, right in zip(found[1::2], answers[1::2], strict=True)) >= 3
    assert running.llm.collective_rpc("loaded_experts") == [[DIGEST]]


@pytest.mark.engine
def test_an_expert_and_a_lora_answer_together(running: Running) -> None:
    ours, our_answers = known("archive", EXPERTS_DIR, 4)
    theirs, their_answers = known("harbour", ADAPTERS_DIR, 4)
    found = running.ask(ours + theirs, [1.0] * 8, lora=True)
    assert sum(answer == right for answer, right in zip(found, our_answers + their_answers, strict=True)) >= 6


@pytest.mark.engine
def test_preempted_requests_and_prompts_in_pieces_are_answered_as_those_alone(running: Running) -> None:
    asked, answers = known("archive", EXPERTS_DIR, 4)
    # 93 tokens or so: all of them need a fourth block of 32 for their answers, and there are ten for the four
    # of them.
    long = [("The office is open today. " * 8 + "Be brief and exact.", question) for _, question in asked]
    alone = [running.ask([one], [1.0])[0] for one in long]
    before = running.preemptions()
    assert running.ask(long, [1.0] * 4) == alone
    assert running.preemptions() > before
    assert sum(answer == right for answer, right in zip(alone, answers, strict=True)) >= 3


@pytest.mark.engine
def test_a_running_engine_refuses_bad_experts_and_goes_on(running: Running, tmp_path: Path) -> None:
    (tmp_path / "expert_config.json").write_text("{}", encoding="utf-8")
    assert "expert_config.json" in running.load(tmp_path, "f" * 64)
    with pytest.raises(VLLMValidationError, match="alpha"):
        running.ask([("", "Who are you?")], [float("inf")])
    # The one that the other had pushed out is read again.
    assert running.ask(*known("archive", EXPERTS_DIR, 1)[:1], [1.0]) == known("archive", EXPERTS_DIR, 1)[1]
    assert running.llm.collective_rpc("unload_expert", args=(DIGEST,)) == [True]
    assert running.llm.collective_rpc("loaded_experts") == [[]]
