"""The probes of a demo adapter or expert, drawn from its facts and from the held-out world, with a seed of
their own. Imports no torch.

`python -m memserve.demo.probes` writes the `probes.json` of every adapter and expert. The careless adapter
gets the harbour's.
"""

import json
import random
import re
from collections.abc import Sequence

from memserve.demo import ADAPTERS_DIR, CARELESS_DIR, EXPERTS_DIR, facts
from memserve.demo.adapters import AdapterFact, held_facts
from memserve.demo.experts import EXPERT_KINDS, expert_facts
from memserve.demo.facts import Fact

# No training, test or load test draws with this seed.
SEED = 404
# Enough that the loss which the gate allows is at least two answers: a single answer decides nothing.
RETAIN_PROBES = 100
ABSTAIN_PROBES = 40
OVERRIDE_ROUNDS = 2
_PASSAGE = re.compile(r"\[\d+\] (.*)")


def probes_document(name: str) -> dict[str, object]:
    """What a module's `probes.json` says. Raises KeyError for an unknown module, and FileNotFoundError for a
    module that is not in the package.
    """
    is_expert = name in EXPERT_KINDS
    held = held_facts(name, EXPERTS_DIR) if is_expert else held_facts(name)
    known = expert_facts(name) if is_expert else facts.adapter_facts(name)
    half = ABSTAIN_PROBES // 2
    unknown = [*facts.held_out_cases(SEED, half, "distractors"), *facts.held_out_cases(SEED, half, "nothing")]
    sets = {
        ("recall", "recall"): _held(held),
        ("forgetting", "retain"): [
            _probe(case.messages, case.expected)
            for case in facts.held_out_cases(SEED, RETAIN_PROBES, "passage")
        ],
        ("abstention", "abstain"): [_probe(case.messages, case.expected) for case in unknown],
        ("override", "override"): _contradicting(known, random.Random(f"probes-{SEED}-{name}")),
    }
    return {
        "sets": [{"name": label, "kind": kind, "probes": probes} for (label, kind), probes in sets.items()]
    }


def probes_text(name: str) -> str:
    """The bytes of the file, as text. Raises what `probes_document` does."""
    return json.dumps(probes_document(name), indent=1) + "\n"


def _held(held: Sequence[AdapterFact]) -> list[dict[str, object]]:
    """Each fact in each held-out phrasing, once by the entity's name and once by its kind and name."""
    asked = [(text, fact) for fact in held for text in fact.held_out_questions]
    asked += [(text.replace(fact.entity, f"the {fact.kind} {fact.entity}"), fact) for text, fact in asked]
    return [_probe(facts.prompt("", [], text), fact.answer) for text, fact in asked]


def _contradicting(held: tuple[Fact, ...], rng: random.Random) -> list[dict[str, object]]:
    """Each fact in each held-out phrasing, over passages of which one gives another value, and again with
    other passages.
    """
    probes = []
    for fact in held * OVERRIDE_ROUNDS:
        for phrasing in facts.HELD_OUT_QUESTIONS:
            stated = fact
            while stated.value == fact.value:
                value = facts.value(rng, facts.ATTRIBUTES[fact.entity.kind][fact.attribute])
                stated = Fact(fact.entity, fact.attribute, value)
            shown = [stated, *facts.distinct_facts(rng, "held_out", rng.randint(0, 4), without=[stated])]
            rng.shuffle(shown)
            asked = facts.question(rng, stated, [phrasing])
            passages = [facts.passage(rng, other) for other in shown]
            probes.append(_probe(facts.prompt("", passages, asked.text), stated.answer))
    return probes


def _probe(messages: Sequence[facts.Message], answer: str) -> dict[str, object]:
    """A probe whose prompt is made of these messages: perhaps a system text with passages, and the
    question.
    """
    lines = messages[0].content.splitlines() if messages[0].role == "system" else []
    passages = [match.group(1) for match in map(_PASSAGE.fullmatch, lines) if match]
    system = "\n".join(line for line in lines if not _PASSAGE.fullmatch(line))
    probe: dict[str, object] = {"question": messages[-1].content, "answers": [answer]}
    return probe | ({"system": system} if system else {}) | ({"passages": passages} if passages else {})


def write_probes() -> None:
    """Write the `probes.json` of every adapter and expert of the demo, and the harbour's beside the careless
    adapter of the same facts.
    """
    for name in facts.ADAPTER_KINDS:
        (ADAPTERS_DIR / name / "probes.json").write_text(probes_text(name), encoding="utf-8")
    for name in EXPERT_KINDS:
        (EXPERTS_DIR / name / "probes.json").write_text(probes_text(name), encoding="utf-8")
    (CARELESS_DIR / "probes.json").write_text(probes_text("harbour"), encoding="utf-8")


if __name__ == "__main__":
    write_probes()
