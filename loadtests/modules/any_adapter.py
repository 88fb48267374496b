"""Adapters as peft makes them, every kind and setting: each answers as peft does, or is refused with what is
at fault named.

A real `memserve up` on the demo model. Every adapter is made with peft on the same base, with random weights
that change the answers, saved, published, promoted and asked; peft answers the same prompts with the saved
files. What is accepted and answers with other tokens is the fault that this looks for: an adapter whose
meaning memserve has not understood.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import CONFIG_FILE, WEIGHTS_FILE, running_stack
from memserve.client import CallFailed, Client
from memserve.demo import MODEL_DIR
from memserve.domain import Sampling

CASES_LEAST = 45
TOKENS = 8
QUESTIONS = ("Where is the north gate?", "What is the code of Amber Lantern?", "Hello.")
# Large enough to change what a random adapter answers, small enough that log-probabilities do not all meet.
B_SCALE = 0.3
EQUAL, REFUSED, DIFFERENT = "as peft", "refused", "DIFFERENT"

Edit = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """An adapter. options: of LoraConfig. edit: what is done to the saved folder. named: what a refusal must
    name; "": it must answer.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    edit: Edit = lambda folder: None
    named: str = ""
    make: Callable[[Any], Any] | None = None
    dtype: torch.dtype = torch.float32
    zero: bool = False


def edited_config(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / CONFIG_FILE
        config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
        file.write_text(json.dumps(config), encoding="utf-8")

    return edit


def edited_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Edit:
    def edit(folder: Path) -> None:
        save_file(
            {name: tensor.contiguous() for name, tensor in change(load_file(folder / WEIGHTS_FILE)).items()},
            folder / WEIGHTS_FILE,
        )

    return edit


def renamed(old: str, new: str) -> Edit:
    return edited_tensors(
        lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}
    )


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS_FILE), folder / "adapter_model.bin")
    (folder / WEIGHTS_FILE).unlink()


def cut_off(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])


def of_kind(name: str, **options: Any) -> Callable[[Any], Any]:
    """Another kind of peft's, by the name of its configuration."""

    def make(model: Any) -> Any:
        import peft

        return peft.get_peft_model(model, getattr(peft, name)(task_type="CAUSAL_LM", **options))

    return make


ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
QV = {"target_modules": ["q_proj", "v_proj"]}
CASES = [
    Case("plain", QV),
    *(Case(f"rank {rank}", {**QV, "r": rank, "lora_alpha": 2 * rank}) for rank in (1, 2, 4, 8, 16)),
    *(Case(f"alpha {alpha:g}", {**QV, "r": 8, "lora_alpha": alpha}) for alpha in (1, 4, 16, 64)),
    Case("a negative alpha", {**QV, "r": 8}, edited_config(lora_alpha=-8)),
    Case("a fractional alpha", {**QV, "r": 8}, edited_config(lora_alpha=5.5)),
    Case("rank-stabilised", {**QV, "r": 8, "use_rslora": True}),
    *(Case(f"one target: {target}", {"target_modules": [target]}) for target in (*ATTENTION, *MLP)),
    Case("attention", {"target_modules": ATTENTION}),
    Case("MLP", {"target_modules": MLP}),
    Case("all linear layers", {"target_modules": "all-linear"}),
    Case("targets as a pattern", {"target_modules": r".*self_attn\.(q|v)_proj"}),
    Case("one layer", {**QV, "layers_to_transform": [0], "layers_pattern": "layers"}),
    Case("some layers", {"target_modules": ATTENTION, "layers_to_transform": [0, 1]}),
    Case("modules left out", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    Case("dropout", {**QV, "lora_dropout": 0.2}),
    Case("initialised gaussian", {**QV, "init_lora_weights": "gaussian"}),
    Case("initialised orthogonal", {**QV, "init_lora_weights": "orthogonal"}),
    Case("not initialised", {**QV, "init_lora_weights": False}),
    Case("float16 weights", QV, dtype=torch.float16),
    Case("bfloat16 weights", QV, dtype=torch.bfloat16),
    Case(
        "unset keys written as null",
        QV,
        edited_config(
            modules_to_save=None, megatron_config=None, eva_config=None, trainable_token_indices=None
        ),
    ),
    Case("another base's name", QV, edited_config(base_model_name_or_path="somebody/else", revision="main")),
    Case("PiSSA", {**QV, "init_lora_weights": "pissa"}, named="init_lora_weights"),
    Case("PiSSA, fast", {**QV, "init_lora_weights": "pissa_niter_4"}, named="init_lora_weights"),
    Case("OLoRA", {**QV, "init_lora_weights": "olora"}, named="init_lora_weights"),
    Case("DoRA", {**QV, "use_dora": True}, named="use_dora"),
    Case("biases of all layers", QV, edited_config(bias="all"), named="bias"),
    Case("biases of LoRA layers", QV, edited_config(bias="lora_only"), named="bias"),
    Case("a bias of lora_B", {**QV, "lora_bias": True}, named="lora_bias"),
    Case("a whole module saved", {**QV, "modules_to_save": ["lm_head"]}, named="modules_to_save"),
    Case("ranks by pattern", {**QV, "rank_pattern": {"q_proj": 4}}, named="rank_pattern"),
    Case("alphas by pattern", {**QV, "alpha_pattern": {"q_proj": 4}}, named="alpha_pattern"),
    Case("trained tokens", {**QV, "trainable_token_indices": [5, 6]}, named="trainable_token_indices"),
    Case("layers copied", {**QV, "layer_replication": [[0, 2], [1, 2]]}, named="layer_replication"),
    Case("fan in, fan out", QV, edited_config(fan_in_fan_out=True), named="fan_in_fan_out"),
    Case(
        "activated by tokens", QV, edited_config(alora_invocation_tokens=[5]), named="alora_invocation_tokens"
    ),
    Case("for sequence classification", QV, edited_config(task_type="SEQ_CLS"), named="task_type"),
    Case("a key that nobody knows", QV, edited_config(use_tomorrow=True), named="use_tomorrow"),
    Case("embeddings", {"target_modules": ["q_proj", "embed_tokens"]}, named="embed"),
    Case("the head", {"target_modules": ["q_proj", "lm_head"]}, named="lm_head"),
    Case("a rank over the limit", {**QV, "r": 64}, named="r"),
    Case("a rank that is not the tensors'", {**QV, "r": 8}, edited_config(r=4), named="lora_A"),
    Case("alpha 0", QV, edited_config(lora_alpha=0), named="lora_alpha"),
    Case("without any effect", QV, named="zero", zero=True),
    Case("a pickle", QV, as_pickle, named="convert it with"),
    Case("cut off", QV, cut_off, named=WEIGHTS_FILE),
    Case(
        "another prefix",
        QV,
        renamed("base_model.model.model.", "base_model.model.language_model.model."),
        named="rename it to",
    ),
    Case(
        "a half missing",
        QV,
        edited_tensors(lambda t: {n: x for n, x in t.items() if "lora_B" not in n}),
        named="only one of lora_A and lora_B",
    ),
    Case(
        "not a number",
        QV,
        edited_tensors(lambda t: {n: x * float("nan") for n, x in t.items()}),
        named="lora_",
    ),
    Case(
        "AdaLoRA", make=of_kind("AdaLoraConfig", target_modules=["q_proj"], total_step=10), named="peft_type"
    ),
    Case("LoHa", make=of_kind("LoHaConfig", target_modules=["q_proj"]), named="peft_type"),
    Case("LoKr", make=of_kind("LoKrConfig", target_modules=["q_proj"]), named="peft_type"),
    Case(
        "IA3", make=of_kind("IA3Config", target_modules=["q_proj"], feedforward_modules=[]), named="peft_type"
    ),
    Case("OFT", make=of_kind("OFTConfig", target_modules=["q_proj"], oft_block_size=4), named="peft_type"),
    Case("prompt tuning", make=of_kind("PromptTuningConfig", num_virtual_tokens=4), named="peft_type"),
    Case("prefix tuning", make=of_kind("PrefixTuningConfig", num_virtual_tokens=4), named="peft_type"),
]
QUICK = (
    "plain",
    "rank-stabilised",
    "all linear layers",
    "PiSSA",
    "DoRA",
    "a key that nobody knows",
    "AdaLoRA",
    "another prefix",
)


class Peft:
    """The base in transformers, and its answers with an adapter of peft's."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)

    def base(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()

    def write(self, case: Case, folder: Path, seed: int) -> None:
        """Make the adapter and save it."""
        import peft

        torch.manual_seed(seed)
        options = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **case.options}
        model = (
            case.make(self.base())
            if case.make
            else peft.get_peft_model(self.base(), peft.LoraConfig(**options))
        )
        if not case.zero and not str(case.options.get("init_lora_weights", "")).startswith(
            ("pissa", "olora")
        ):
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0, B_SCALE)
        model.to(case.dtype).save_pretrained(folder)
        case.edit(folder)

    def answers(self, folder: Path) -> list[list[int]]:
        """Greedy token ids of each question."""
        from peft import PeftModel

        model = PeftModel.from_pretrained(self.base(), folder).eval()
        answers = []
        for question in QUESTIONS:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                tokenize=True,
                return_tensors="pt",
                return_dict=True,
            )
            with torch.no_grad():
                ids = model.generate(
                    **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0
                )
            answers.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
        return answers


def tried(case: Case, number: int, peft: Peft, client: Client, folder: Path) -> tuple[str, str]:
    """What became of the case, and why."""
    peft.write(case, folder, seed=number)
    name = f"a{number}"
    try:
        version = client.modules.publish(name, folder)
        sampling = Sampling(max_tokens=TOKENS, min_tokens=TOKENS)
        got = [
            list(client.generate(question, module=version.reference, sampling=sampling).token_ids)
            for question in QUESTIONS
        ]
    except (CallFailed, FileNotFoundError) as refused:
        return REFUSED, str(refused)
    want = peft.answers(folder)
    return (EQUAL, "") if got == want else (DIFFERENT, f"{got} where peft has {want}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("any_adapter", __doc__)
    chosen = options.parse_args(arguments)
    cases = [case for case in CASES if not chosen.quick or case.name in QUICK]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    peft, rows, folder = Peft(), [], Path(tempfile.mkdtemp(prefix="memserve-adapters-"))
    wrong: list[str] = []
    counts = {EQUAL: 0, REFUSED: 0, DIFFERENT: 0}
    try:
        with running_stack(workers=1) as stack, Client(stack.address, timeout_s=120) as client:
            for number, case in enumerate(cases):
                outcome, why = tried(case, number, peft, client, folder / str(number))
                counts[outcome] += 1
                sound = (outcome == EQUAL and not case.named) or (
                    outcome == REFUSED and bool(case.named) and case.named in why
                )
                if not sound:
                    wrong.append(case.name)
                report(f"{case.name}: {outcome}{'' if sound else '  WRONG'} {why[:140]}")
                rows.append([case.name, outcome, why[:110] if outcome != DIFFERENT else why])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_table(("adapter", "became", ""), rows)
    bars = [
        Bar("adapters", len(cases), at_least=len(QUICK) if chosen.quick else CASES_LEAST),
        Bar("accepted and other than peft", counts[DIFFERENT], at_most=0),
        Bar("refused though plain, or without naming what is at fault", len(wrong), at_most=0),
    ]
    return finish(bars, {"as peft": counts[EQUAL], "refused": counts[REFUSED], "wrong": wrong}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
