"""Logit experts: the arithmetic equals transformers', the state follows vLLM's batch, and a real engine tells
what its expert knows.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from memserve.demo import ADAPTERS_DIR, EXPERTS_DIR, MODEL_DIR, facts
from memserve.demo.adapters import held_facts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from memserve.worker.engine.cpu import CpuExecutor
    from memserve.worker.modules.kinds.causal_model import CausalModel, KvState
    from memserve.worker.modules.kinds.logit_expert import (
        LIMIT,
        PROCESSOR,
        WORKER_EXTENSION,
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

    def processor(self, **settings: Any) -> LogitExperts:
        model = SimpleNamespace(
            model=str(self.folder / "base"), get_vocab_size=lambda: VOCAB, dtype=torch.float32, **settings
        )
        model.enable_prompt_embeds = settings.get("enable_prompt_embeds", False)
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


def test_an_engine_that_takes_prompts_without_tokens_has_no_experts(batch: Batch) -> None:
    with pytest.raises(ValueError, match="prompt embeddings"):
        batch.processor(enable_prompt_embeds=True)


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
