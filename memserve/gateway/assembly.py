"""Puts a gateway together: every part is opened here, and handed to those that use it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from memserve import credentials
from memserve.config import Settings
from memserve.disk import DiskWatch
from memserve.errors import StartupError
from memserve.gateway.access.callers import Access, Inflight
from memserve.gateway.access.token_quota import TokenQuota
from memserve.gateway.answer_explanations import AnswerExplanations
from memserve.gateway.consolidation import Consolidations
from memserve.gateway.decisions import Decisions
from memserve.gateway.documents import DocumentKeeper
from memserve.gateway.erasure import OutsideTheStore
from memserve.gateway.erasures.assembly import Reached, erasing_of
from memserve.gateway.erasures.erasures import Erasures
from memserve.gateway.explanations import Explanations
from memserve.gateway.feedback import Feedback
from memserve.gateway.ladder.controller import LadderController, order_of
from memserve.gateway.ladder.hands import LadderHands
from memserve.gateway.ladder.standing import Standings
from memserve.gateway.layout import PromptLayout, open_layout
from memserve.gateway.leave_one_out import LeavingOneOut
from memserve.gateway.lineage.lineage import LineageReader
from memserve.gateway.live import LiveRequests
from memserve.gateway.module_fit import ModuleFits
from memserve.gateway.modules.canary import CanaryWatch
from memserve.gateway.modules.chosen_memories import ChosenMemories
from memserve.gateway.modules.composition import ModuleComposition
from memserve.gateway.modules.deletion import ModuleDeletion
from memserve.gateway.modules.distil_work import DistilWork
from memserve.gateway.modules.distillation import ModuleDistillation
from memserve.gateway.modules.gate import Gate
from memserve.gateway.modules.gatekeeper import Gatekeeper
from memserve.gateway.modules.lifecycle import ModuleLifecycle
from memserve.gateway.modules.placement import ModulePlacement
from memserve.gateway.modules.trial import ModuleTrial
from memserve.gateway.modules.version_uses import VersionUses
from memserve.gateway.opening import (
    connect_texts,
    disk_watch,
    open_cache,
    open_modules,
    open_pool,
    open_texts,
)
from memserve.gateway.outcomes import OutcomeCounts
from memserve.gateway.pinned import Pinned
from memserve.gateway.pipeline import Pipeline
from memserve.gateway.prefixes import Prefixes
from memserve.gateway.provenance import Provenance
from memserve.gateway.recall_preview import RecallPreviews
from memserve.gateway.reindexer import Reindexer
from memserve.gateway.remembering import Remembering
from memserve.gateway.scoring import Scoring
from memserve.gateway.soft_prompts import SoftPromptRows
from memserve.gateway.steps.check import RequestCheck
from memserve.gateway.steps.lookup import CacheLookup
from memserve.gateway.steps.prompt import PromptFitting
from memserve.gateway.steps.recall import Recall
from memserve.gateway.steps.resolve import ModuleUses
from memserve.gateway.steps.route import Router
from memserve.gateway.steps.stream import Answers
from memserve.gateway.surprise import SurpriseGate
from memserve.gateway.taught import TaughtFacts
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.gateway.warm_pinned import WarmPinned
from memserve.gateway.workers.calls import GrpcCalls
from memserve.gateway.workers.pool import WorkerPool
from memserve.kv.lookup import PrefixLookup
from memserve.loop_pressure import LoopPressure
from memserve.memory.answers.store import KeptAnswers
from memserve.memory.documents.reader import DocumentReader
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.memory.texts.encoders.watched import WatchedEndpoint
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.uses import UseLedger
from memserve.metrics.instruments import GatewayMetrics
from memserve.model.files import ModelFiles, open_model
from memserve.policy.routing.breaker import Breakers
from memserve.policy.routing.residuals import Residuals
from memserve.private_files import open_data_dir
from memserve.processes.supervised import Background
from memserve.registry.gateways import Gateways
from memserve.registry.ladder import LadderRecords
from memserve.tls.live import LiveTls
from memserve.turns import FairThreads, leave_one, on_own_thread

TOKENIZER_THREADS = 2


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """The open parts of a gateway, from which the services are made."""

    settings: Settings
    model: ModelFiles
    tokenizer: ChatTokenizer
    layout: PromptLayout
    tokenizing: FairThreads
    metrics: GatewayMetrics
    disk: DiskWatch
    texts: VectorMemory
    watched_embedder: WatchedEndpoint | None
    """None: the embedding model is here."""
    activation: ActivationMemory
    modules: ParametricMemory
    lookup: PrefixLookup
    pool: WorkerPool
    gateways: Gateways
    background: Background
    """Work that outlives calls."""
    inflight: Inflight
    tokens: TokenQuota
    answers: KeptAnswers
    ledger: UseLedger
    erasures: KeptErasures
    documents: DocumentReader
    ladder: LadderRecords
    uses: ModuleUses = field(default_factory=ModuleUses)
    outcomes: OutcomeCounts = field(default_factory=OutcomeCounts)
    decisions: Decisions = field(default_factory=Decisions)
    live: LiveRequests = field(default_factory=LiveRequests)
    residuals: Residuals = field(default_factory=Residuals)
    breakers: Breakers = field(default_factory=Breakers)
    pressure: LoopPressure = field(default_factory=LoopPressure)


@dataclass(frozen=True, slots=True)
class GatewayServices:
    """What the gateway does, for an edge to offer: one object for each noun."""

    pipeline: Pipeline
    previews: RecallPreviews
    remembering: Remembering
    reindexer: Reindexer
    feedback: Feedback
    prefixes: Prefixes
    trial: ModuleTrial
    gatekeeper: Gatekeeper
    placement: ModulePlacement
    lifecycle: ModuleLifecycle
    deletion: ModuleDeletion
    composition: ModuleComposition
    distillation: ModuleDistillation
    consolidations: Consolidations
    canaries: CanaryWatch
    warm_pinned: WarmPinned
    ladder: LadderController
    explanations: AnswerExplanations
    scoring: Scoring
    lineage: LineageReader
    erasures: Erasures


@contextlib.asynccontextmanager
async def open_parts(settings: Settings, tls: LiveTls | None = None) -> AsyncIterator[GatewayParts]:
    """Everything behind the services, started; closed in the reverse order. Raises StartupError.

    tls: what workers and Milvus see. None: no TLS to workers.
    """
    if not settings.redis:
        raise StartupError("a gateway needs the registry: set redis_url (`memserve up` starts its own)")
    model = open_model(Path(settings.model), settings.max_context_tokens)
    open_data_dir(settings.data)
    run_folder = settings.data / "run"
    run_folder.mkdir(mode=0o700, exist_ok=True)
    tokenizer = await on_own_thread(partial(ChatTokenizer, model, run_folder, settings.chat_template))
    layout = open_layout(model, tokenizer, settings.recall_template)
    metrics = GatewayMetrics(model.name)
    disk = disk_watch(settings)
    async with contextlib.AsyncExitStack() as stack:
        texts, watched = await open_texts(settings, metrics, disk, tls, stack)
        tokenizing = FairThreads("tokenizer", TOKENIZER_THREADS, share=leave_one)
        stack.callback(tokenizing.close)
        lookup, activation = await open_cache(settings, stack)
        modules = await open_modules(settings, model, stack)
        connect = partial(
            GrpcCalls, credential=credentials.worker_credential(credentials.salt_key(settings)), tls=tls
        )
        pool = await open_pool(settings, model, connect, metrics, modules.base_digest, stack)
        tokens = TokenQuota(settings.redis, settings.tokens_per_minute_per_tenant)
        answers = KeptAnswers(settings.redis, settings.answers_kept_s, tokenizer.decode, metrics.not_kept)
        ledger, erasures = UseLedger(settings.redis), KeptErasures(settings.redis)
        for kept in (tokens, answers, ledger, erasures):
            stack.push_async_callback(kept.close)
        connect_texts(texts, tokenizer, OutsideTheStore(answers, ledger, settings.data))
        gateways = Gateways(settings.redis)
        stack.push_async_callback(gateways.close)
        background = Background()
        stack.push_async_callback(background.close)
        yield GatewayParts(
            settings=settings,
            model=model,
            tokenizer=tokenizer,
            layout=layout,
            tokenizing=tokenizing,
            metrics=metrics,
            disk=disk,
            texts=texts,
            watched_embedder=watched,
            activation=activation,
            modules=modules,
            lookup=lookup,
            pool=pool,
            gateways=gateways,
            background=background,
            inflight=Inflight(settings.max_inflight, settings.max_inflight_per_tenant),
            tokens=tokens,
            answers=answers,
            ledger=ledger,
            erasures=erasures,
            documents=stack.enter_context(contextlib.closing(DocumentReader())),
            ladder=await stack.enter_async_context(contextlib.aclosing(LadderRecords(settings.redis))),
        )


def services_of(parts: GatewayParts, access: Access) -> GatewayServices:
    """Nothing is opened here. access: whose tenants the canary watch acts for."""
    settings, memory, pool = parts.settings, parts.modules, parts.pool
    check = RequestCheck(parts.model, parts.tokenizer)
    fit = PromptFitting(parts.model, parts.layout, parts.tokenizing, settings)
    look_up = CacheLookup(pool, parts.lookup, parts.metrics, SoftPromptRows(memory, parts.background))
    router = Router(pool, settings, parts.residuals, parts.breakers)
    pinned = Pinned(parts.texts)
    prefixes = Prefixes(check, fit, memory, parts.activation, pool, parts.tokens)
    warm_pinned = _warm_pinned(parts, pinned, prefixes, access)
    taught = TaughtFacts(memory, parts.texts, parts.background)
    pipeline = _pipeline(parts, check, fit, look_up, router, pinned, warm_pinned, taught)
    scoring = Scoring(parts.layout, parts.tokenizing, look_up, router, parts.breakers, parts.tokens)
    trial = ModuleTrial(pool)
    gatekeeper = Gatekeeper(memory, trial, _gate(parts))
    placement = ModulePlacement(pool, memory.store)
    lifecycle = ModuleLifecycle(memory, gatekeeper, placement, parts.background)
    deletion = _deletion(parts, placement)
    distillation = _distillation(parts, access, gatekeeper, lifecycle, deletion)
    lineage, erasures = erasing_of(_reached(parts), access, deletion, distillation, taught, warm_pinned)
    remembering = _remembering(parts, scoring, erasures)
    hands = LadderHands(memory, placement, distillation, parts.background)
    return GatewayServices(
        pipeline=pipeline,
        previews=RecallPreviews(pipeline),
        remembering=remembering,
        reindexer=Reindexer(settings, parts.texts, parts.metrics.embedding, parts.background),
        feedback=Feedback(parts.answers, parts.texts, parts.ledger, remembering),
        prefixes=prefixes,
        warm_pinned=warm_pinned,
        trial=trial,
        gatekeeper=gatekeeper,
        placement=placement,
        lifecycle=lifecycle,
        deletion=deletion,
        composition=ModuleComposition(memory, pool, trial, parts.erasures, deletion),
        distillation=distillation,
        ladder=_ladder(parts, pinned, warm_pinned, hands, access),
        canaries=_canaries(parts, access, gatekeeper),
        consolidations=Consolidations(
            parts.texts, memory.store, _gate(parts), parts.tokenizing, parts.erasures
        ),
        explanations=_explanations(parts, scoring),
        scoring=scoring,
        lineage=lineage,
        erasures=erasures,
    )


def _pipeline(
    parts: GatewayParts,
    check: RequestCheck,
    fit: PromptFitting,
    look_up: CacheLookup,
    router: Router,
    pinned: Pinned,
    warm_pinned: WarmPinned,
    taught: TaughtFacts,
) -> Pipeline:
    return Pipeline(
        settings=parts.settings,
        inflight=parts.inflight,
        live=parts.live,
        metrics=parts.metrics,
        check=check,
        modules=parts.modules,
        uses=parts.uses,
        texts=parts.texts,
        recall=_recall(parts, pinned),
        fit=fit,
        pool=parts.pool,
        look_up=look_up,
        router=router,
        answers=Answers(parts.metrics, parts.outcomes, parts.decisions, parts.residuals, parts.breakers),
        tokens=parts.tokens,
        provenance=Provenance(parts.answers, parts.decisions, parts.settings),
        ledger=parts.ledger,
        warm_pinned=warm_pinned,
        taught=taught,
    )


def _reached(parts: GatewayParts) -> Reached:
    return Reached(
        texts=parts.texts,
        modules=parts.modules,
        activation=parts.activation,
        answers=parts.answers,
        ledger=parts.ledger,
        pool=parts.pool,
        gateways=parts.gateways,
        kept=parts.erasures,
        background=parts.background,
    )


def _canaries(parts: GatewayParts, access: Access, gatekeeper: Gatekeeper) -> CanaryWatch:
    interval_s = parts.settings.canary_interval_s
    return CanaryWatch(parts.modules, gatekeeper, parts.outcomes, access, parts.metrics, interval_s)


def _warm_pinned(parts: GatewayParts, pinned: Pinned, prefixes: Prefixes, access: Access) -> WarmPinned:
    enabled = parts.settings.warm_pinned
    return WarmPinned(
        pinned, prefixes, parts.layout, parts.tokenizing, parts.metrics, access, enabled=enabled
    )


def _deletion(parts: GatewayParts, placement: ModulePlacement) -> ModuleDeletion:
    uses = VersionUses(parts.uses, parts.pool, parts.gateways)
    return ModuleDeletion(parts.modules, parts.activation, placement, uses, parts.background)


def _distillation(
    parts: GatewayParts,
    access: Access,
    gatekeeper: Gatekeeper,
    lifecycle: ModuleLifecycle,
    deletion: ModuleDeletion,
) -> ModuleDistillation:
    work = DistilWork(
        parts.modules,
        ChosenMemories(parts.texts, parts.tokenizing, parts.layout.tokenizer.special_token_in),
        parts.pool,
        ModuleTrial(parts.pool),
        gatekeeper,
        lifecycle,
        parts.layout,
        parts.settings.promotes_distilled,
        parts.erasures,
    )
    return ModuleDistillation(parts.modules, work, deletion, access.named, parts.background, parts.metrics)


def _ladder(
    parts: GatewayParts, pinned: Pinned, warm_pinned: WarmPinned, hands: LadderHands, access: Access
) -> LadderController:
    texts, store, settings = parts.texts, parts.modules.store, parts.settings
    standings = Standings(
        texts, parts.ledger, pinned, warm_pinned, store, parts.pool, parts.model, settings.recall_limit
    )
    order, records, metrics = order_of(settings), parts.ladder, parts.metrics
    return LadderController(order, records, standings, hands, texts, store, warm_pinned, access, metrics)


def _explanations(parts: GatewayParts, scoring: Scoring) -> AnswerExplanations:
    leaving_out = LeavingOneOut(parts.layout, parts.tokenizing, parts.modules, scoring)
    return AnswerExplanations(Explanations(parts.decisions, parts.gateways), parts.answers, leaving_out)


def _gate(parts: GatewayParts) -> Gate:
    return Gate(parts.pool, parts.layout, parts.tokenizing, parts.model.max_context_tokens)


def _recall(parts: GatewayParts, pinned: Pinned) -> Recall:
    fits = ModuleFits(
        parts.modules,
        # Looked up for each call: a reindexing puts another one there.
        lambda tenant, texts: parts.texts.embedding.embed(tenant, texts, query=False),
        parts.background,
        embedder=lambda: parts.texts.embedder.vectors.embedder,
    )
    return Recall(parts.texts, pinned, fits, parts.ledger, parts.tokenizer, parts.settings, parts.metrics)


def _remembering(parts: GatewayParts, scoring: Scoring, erasures: Erasures) -> Remembering:
    surprise = SurpriseGate(scoring, parts.layout, parts.model.max_context_tokens)
    documents = DocumentKeeper(parts.texts, parts.documents, parts.tokenizer)
    return Remembering(parts.texts, parts.tokenizer, surprise, documents, erasures)
