"""What the gateway knows of the knowledge of modules."""

from __future__ import annotations

from dataclasses import replace

from memserve.domain import ModuleKind, ModuleVersion, WeightFigures
from memserve.gateway.module_fit import KnowledgeText, knowledge_texts
from memserve.memory.modules.probes import Probes
from memserve.policy.modules.gate import Probe, ProbeKind, ProbeSet


def version(name: str) -> ModuleVersion:
    return ModuleVersion(
        name, 1, f"digest-{name}", ModuleKind.LORA, "base", 8, (), 0, 0.0, "", (), (), "", "",
        WeightFigures(0, 0.0, 0.0), "",
    )  # fmt: skip


def test_what_a_module_knows_is_told_by_its_notes_its_sources_and_its_questions() -> None:
    described = replace(version("harbour"), notes="  Ships \n and stations ", sources=("log book", ""))
    recall = ProbeSet("recall", ProbeKind.RECALL, (Probe("Which captain?", ("It is Anna.",)),) * 2)
    unknown = ProbeSet("abstention", ProbeKind.ABSTAIN, (Probe("Which dentist?", ("I do not know.",)),))
    assert knowledge_texts(described, Probes((recall, unknown))) == (
        KnowledgeText("Ships and stations"),
        KnowledgeText("log book"),
        KnowledgeText("Which captain?", is_question=True),
    )
    assert knowledge_texts(version("harbour"), None) == ()
