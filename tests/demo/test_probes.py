"""The demo's probes, asked with transformers as the gate asks a worker. They pass the adapters, and refuse
the careless adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from memserve.demo import ADAPTERS_DIR, CARELESS_DIR, MODEL_DIR, facts
from memserve.demo.probes import probes_text
from memserve.domain import GateFigure
from memserve.memory.modules.probes import parse_probes
from memserve.policy.modules.gate import Answer, Probe, ProbeKind, confidence, failing, judge

pytestmark = pytest.mark.timeout(120)
ROWS = 32
FOLDERS = {
    "harbour": ADAPTERS_DIR / "harbour",
    "observatory": ADAPTERS_DIR / "observatory",
    "careless": CARELESS_DIR,
}
FACTS_OF = {"harbour": "harbour", "observatory": "observatory", "careless": "harbour"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _asked(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, probes: Sequence[Probe]
) -> list[Answer]:
    prompts = [facts.prompt(probe.system, probe.passages, probe.question) for probe in probes]
    texts = [
        tokenizer.apply_chat_template(
            [message.as_dict() for message in messages], tokenize=False, add_generation_prompt=True
        )
        for messages in prompts
    ]
    replies: list[Answer] = [Answer("", 0.0)] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for start in range(0, len(texts), ROWS):
        places = by_length[start : start + ROWS]
        batch = tokenizer(
            [texts[at] for at in places],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=24,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = output.sequences[:, ids.shape[1] :]
        logprobs = torch.stack(output.logits, 1).log_softmax(-1).gather(-1, new.unsqueeze(-1)).squeeze(-1)
        for at, tokens, row in zip(places, new.tolist(), logprobs.tolist(), strict=True):
            length = (
                tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
            )
            replies[at] = Answer(
                tokenizer.decode(tokens[:length], skip_special_tokens=True), confidence(row[:length])
            )
    return replies


def _figures(folder: Path) -> tuple[GateFigure, ...]:
    tokenizer, model = (
        PreTrainedTokenizerFast.from_pretrained(MODEL_DIR),
        LlamaForCausalLM.from_pretrained(MODEL_DIR),
    )
    probes = parse_probes((folder / "probes.json").read_bytes())
    asked = [probe for probe_set in probes.sets for probe in probe_set.probes]
    base = _asked(model, tokenizer, asked)
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    return judge(probes.sets, probes.thresholds, base, _asked(adapted.get_base_model(), tokenizer, asked))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_probes_file_says_what_the_generator_says(name: str) -> None:
    assert (FOLDERS[name] / "probes.json").read_text(encoding="utf-8") == probes_text(FACTS_OF[name])


def test_the_probes_ask_for_held_out_phrasings_and_contradict_every_fact() -> None:
    sets = parse_probes(probes_text("harbour").encode()).sets
    by_kind = {probe_set.kind: probe_set.probes for probe_set in sets}
    assert by_kind.keys() == set(ProbeKind) - {ProbeKind.CUSTOM, ProbeKind.LEAK}
    true = {fact.answer for fact in facts.adapter_facts("harbour")}
    assert {probe.answers[0] for probe in by_kind[ProbeKind.RECALL]} == true
    assert not any(probe.answers[0] in true for probe in by_kind[ProbeKind.OVERRIDE])
    assert {probe.answers for probe in by_kind[ProbeKind.ABSTAIN]} == {(facts.UNKNOWN_ANSWER,)}
    assert all(probe.passages for kind in (ProbeKind.RETAIN, ProbeKind.OVERRIDE) for probe in by_kind[kind])


def test_a_probe_makes_the_messages_of_the_case_that_it_was_drawn_from() -> None:
    sets = parse_probes(probes_text("harbour").encode()).sets
    retain = next(probe_set for probe_set in sets if probe_set.kind is ProbeKind.RETAIN)
    cases = facts.held_out_cases(404, len(retain.probes), "passage")
    asked = [
        (facts.prompt(probe.system, probe.passages, probe.question), probe.answers[0])
        for probe in retain.probes
    ]
    assert asked == [(case.messages, case.expected) for case in cases]


@pytest.mark.parametrize("name", sorted(facts.ADAPTER_KINDS))
def test_the_demo_adapters_pass_the_gate(name: str) -> None:
    figures = _figures(FOLDERS[name])
    assert [figure.name for figure in figures] == [
        "recall",
        "forgetting",
        "abstention",
        "override",
        "calibration",
    ]
    assert all(figure.holds for figure in figures), failing(figures)


def test_an_adapter_trained_without_replay_knows_its_facts_and_is_refused_because_it_never_abstains() -> None:
    figures = {figure.name: figure for figure in _figures(CARELESS_DIR)}
    assert figures["recall"].holds
    assert figures["abstention"].module <= 0.1 < 0.9 <= figures["abstention"].base
    assert failing(figures.values()).startswith("abstention ")


def test_the_careless_adapter_is_small_and_names_no_place_on_a_machine() -> None:
    files = list(CARELESS_DIR.iterdir())
    assert {file.suffix for file in files} <= {".safetensors", ".json"}
    assert sum(file.stat().st_size for file in files) <= 700_000
    assert not any(
        place in file.read_text(encoding="utf-8")
        for file in CARELESS_DIR.glob("*.json")
        for place in ("/home/", "/tmp/", "/work/", "/root/")
    )
