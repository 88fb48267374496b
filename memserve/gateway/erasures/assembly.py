"""Puts lineage and erasure together from a gateway's parts."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.gateway.access.callers import Access
from memserve.gateway.erasures.erasures import Erasures
from memserve.gateway.erasures.jobs import StoppingJobs
from memserve.gateway.erasures.retiring import Retiring
from memserve.gateway.erasures.steps import ErasureSteps
from memserve.gateway.erasures.subject import ErasurePlans
from memserve.gateway.erasures.workers import ForgettingWorkers
from memserve.gateway.lineage.lineage import LineageReader
from memserve.gateway.lineage.records import LineageRecords
from memserve.gateway.modules.deletion import ModuleDeletion
from memserve.gateway.modules.distillation import ModuleDistillation
from memserve.gateway.taught import TaughtFacts
from memserve.gateway.warm_pinned import WarmPinned
from memserve.gateway.workers.pool import WorkerPool
from memserve.memory.answers.store import KeptAnswers
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.uses import UseLedger
from memserve.processes.supervised import Background
from memserve.registry.gateways import Gateways


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a memory, and what was made of it, may be."""

    texts: VectorMemory
    modules: ParametricMemory
    activation: ActivationMemory
    answers: KeptAnswers
    ledger: UseLedger
    pool: WorkerPool
    gateways: Gateways
    kept: KeptErasures
    background: Background


def erasing_of(
    reached: Reached,
    access: Access,
    deletion: ModuleDeletion,
    distillation: ModuleDistillation,
    taught: TaughtFacts,
    warm_pinned: WarmPinned,
) -> tuple[LineageReader, Erasures]:
    """access: whose tenants an erasure acts for that is gone on with."""
    modules, texts = reached.modules, reached.texts
    records = LineageRecords(modules.store, texts)
    plans = ErasurePlans(records, modules.store, texts)
    steps = ErasureSteps(
        kept=reached.kept,
        plans=plans,
        retiring=Retiring(plans, modules.store, deletion),
        workers=ForgettingWorkers(reached.pool),
        jobs=StoppingJobs(distillation, taught, reached.gateways),
        texts=texts,
        answers=reached.answers,
        activation=reached.activation,
        modules=modules,
    )
    erasures = Erasures(reached.kept, plans, steps, texts, modules.store, access, reached.background)
    reader = LineageReader(
        records, modules, texts, reached.answers, reached.ledger, reached.activation, warm_pinned
    )
    return reader, erasures
