"""Every Prometheus instrument of the gateway.

The workers' instruments come from vLLM and from the KV tier (`memserve_kv_tier_*`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from memserve.domain import RecallOutcome, RefusalReason, TokenFault, Usage
from memserve.domain.kinds import KINDS
from memserve.domain.ladder import RUNGS
from memserve.metrics.certificates import CertificateMetrics
from memserve.metrics.embedding import EmbeddingMetrics

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


# Buckets of OpenTelemetry's semantic conventions for generative AI.
# Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics.
GEN_AI_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
GEN_AI_TPOT = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
GEN_AI_DURATION = tuple(0.01 * 2**power for power in range(14))
GEN_AI_TOKENS = tuple(4.0**power for power in range(14))
GEN_AI_LABELS = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]
PROVIDER = "memserve"
CHAT, COMPLETION, EMBEDDINGS = "chat", "text_completion", "embeddings"
GATEWAY_LOOPS = (
    "answers",
    "canaries",
    "certificates",
    "discovery",
    "distillations",
    "embedder",
    "erasures",
    "gateways",
    "health",
    "keys",
    "ladder",
    "pacing",
    "pinned",
    "pressure",
    "sweep",
    "token_keys",
    "uses",
    "watch",
)
MODULE_ACTIONS = ("publish", "promote", "rollback", "split", "canary_rollback", "drop", "delete")


def loop_failures(registry: CollectorRegistry, loops: Sequence[str]) -> Counter:
    """The counter of a gateway or a worker that `memserve.processes.supervised` reports failures to."""
    counter = Counter(
        "memserve_loop_failures_total",
        "Steps of background loops that failed and are taken again, by loop.",
        ["loop"],
        registry=registry,
    )
    begin(counter, loops)
    return counter


def begin(counter: Counter | Histogram, *labels: Sequence[str]) -> None:
    """Have a series for each value of the first label, with each of the second, and so on, from the start.

    A series that begins with its first event hides that event from `rate` and `increase`.
    """
    for values in itertools.product(*labels):
        counter.labels(*values)


@dataclass(frozen=True, slots=True)
class AnswerSeries:
    """What is observed once for each answer of an operation, under OpenTelemetry's names."""

    ttft: Histogram
    tpot: Histogram
    duration: Histogram
    input_tokens: Histogram
    output_tokens: Histogram


class GatewayMetrics:
    """The gateway's instruments, in a registry of their own."""

    def __init__(self, model: str = "") -> None:
        """model: the served model's name, the only one that labels answers."""
        self.registry = CollectorRegistry()
        self._model = model
        self._declare_answers(self.registry)
        self._declare_routing(self.registry)
        self._declare_texts(self.registry)
        self._declare_modules(self.registry)
        self._declare_ladder(self.registry)
        self._declare_process(self.registry)
        self._declare_gen_ai(self.registry)
        self._begin()
        self._series = {operation: self._series_of(operation) for operation in (CHAT, COMPLETION)}

    def _declare_answers(self, r: CollectorRegistry) -> None:
        self.requests = Counter(
            "memserve_requests_total",
            "Calls that have ended, by RPC and gRPC status, or HTTP_ and the status of the HTTP port. A "
            "stream that fails has the status of its failure.",
            ["rpc", "code"],
            registry=r,
        )
        self.inflight = Gauge("memserve_inflight_requests", "Answers under way.", registry=r)
        self.ttft = Histogram(
            "memserve_ttft_seconds", "Acceptance of a call to its first token.", buckets=SECONDS, registry=r
        )
        self.tpot = Histogram(
            "memserve_tpot_seconds",
            "Mean time of an answer's further tokens.",
            buckets=TOKEN_SECONDS,
            registry=r,
        )
        self.slo_missed = Counter(
            "memserve_slo_missed_total",
            "Answers slower than their SLO, by the wish that was missed.",
            ["wish"],
            registry=r,
        )
        self.prompt_tokens = Counter(
            "memserve_prompt_tokens_total", "Prompt tokens of answers that began.", registry=r
        )
        self.output_tokens = Counter("memserve_output_tokens_total", "Tokens generated.", registry=r)
        self.cached_tokens = Counter(
            "memserve_cached_tokens_total", "Prompt tokens not computed again, by tier.", ["tier"], registry=r
        )

    def _declare_routing(self, r: CollectorRegistry) -> None:
        self.lookups = Counter(
            "memserve_prefix_lookups_total",
            "Look-ups of prefixes in Redis, by outcome.",
            ["outcome"],
            registry=r,
        )
        self.rerouted = Counter(
            "memserve_rerouted_total",
            "Requests sent to another worker because the first failed before a token.",
            registry=r,
        )
        self.forecasts = Gauge(
            "memserve_ttft_forecast_ratio",
            "Predictions of the time to first token, lately: mape (mean absolute error, of the actual time), "
            "bias (below 0: too hopeful), coverage (first tokens within the interval of their prediction).",
            ["what"],
            registry=r,
        )
        self.unread_streams = Counter(
            "memserve_unread_streams_total",
            "Streams ended because their caller did not read them.",
            registry=r,
        )
        self.predicted_misses = Counter(
            "memserve_predicted_misses_total",
            "Requests whose worker was predicted to miss the time to first token that they wish for.",
            registry=r,
        )
        self.refused = Counter(
            "memserve_refused_total",
            "Calls that were refused now and may be sent again later, by reason: "
            f"{', '.join(RefusalReason.known())}.",
            ["reason"],
            registry=r,
        )
        self.tokens_refused = Counter(
            "memserve_tokens_refused_total",
            f"Calls refused for their JSON Web Token, by the rule that it breaks: {', '.join(TokenFault)}.",
            ["fault"],
            registry=r,
        )
        self.queued_seconds = Gauge(
            "memserve_queued_seconds",
            "Time that the engines need for the prompts that they have and that wait for them, the sum over "
            "workers.",
            registry=r,
        )
        self.token_window = Gauge(
            "memserve_token_window_seconds",
            "How long a token may wait in a worker for others, because the gateway's loop is late or busy.",
            registry=r,
        )
        self.held = Gauge(
            "memserve_held_requests", "Requests that wait for a first worker to be ready.", registry=r
        )
        self.ready_workers = Gauge("memserve_ready_workers", "Workers that take requests.", registry=r)

    def _declare_texts(self, r: CollectorRegistry) -> None:
        self.embedding = EmbeddingMetrics(r)
        self.recall = Histogram(
            "memserve_recall_seconds",
            "Vector recall of a request, by outcome.",
            ["outcome"],
            buckets=SECONDS,
            registry=r,
        )
        self.pinned_prefixes = Counter(
            "memserve_pinned_prefixes_total",
            "Looks at the beginning of prompts with pinned passages, by outcome: stored (it is in Redis), "
            "computed (now it is), short (of less than one chunk), failed.",
            ["outcome"],
            registry=r,
        )
        self.lost_memories = Gauge(
            "memserve_lost_memories",
            "Memories that were acknowledged and that the vector store has lost: its files are damaged.",
            registry=r,
        )
        self.journal_failures = Gauge(
            "memserve_journal_failures",
            "Flushes, replays and writes of the vector store that failed since the gateway's start.",
            registry=r,
        )
        self.journal_replayed = Gauge(
            "memserve_journal_replayed_writes",
            "Writes brought into the vector store again, since the gateway's start.",
            registry=r,
        )
        self.unapplied_writes = Gauge(
            "memserve_journal_unapplied_writes",
            "Writes that are acknowledged and that the vector store does not have yet.",
            registry=r,
        )

        self.answers_not_kept = Counter(
            "memserve_answers_not_kept_total",
            "Answers of which is not kept what they used, because too many waited or the registry failed.",
            registry=r,
        )

    def _declare_modules(self, r: CollectorRegistry) -> None:
        self.module_answers = Counter(
            "memserve_module_answers_total",
            "Answers that began with a module, by kind.",
            ["kind"],
            registry=r,
        )
        self.held_modules = Gauge(
            "memserve_held_modules",
            "Modules that workers hold, by place, the sum over workers.",
            ["place"],
            registry=r,
        )
        self.module_changes = Counter(
            "memserve_module_changes_total",
            "Changes of modules: publish, promote, rollback, split, canary_rollback, drop, delete. "
            "By action.",
            ["action"],
            registry=r,
        )

    def _declare_ladder(self, r: CollectorRegistry) -> None:
        self.ladder_namespaces = Gauge(
            "memserve_ladder_namespaces",
            "Namespaces of all tenants on the ladder of knowledge, by rung: text, prefix, cartridge, lora.",
            ["rung"],
            registry=r,
        )
        self.ladder_bytes = Gauge(
            "memserve_ladder_bytes", "What the namespaces take there, of all tenants' budgets.", registry=r
        )
        self.ladder_making = Gauge(
            "memserve_ladder_making_seconds",
            "Processor seconds that the ladder has spent in the tenants' present periods of 24 hours.",
            registry=r,
        )
        self.ladder_moves = Counter(
            "memserve_ladder_moves_total",
            "Moves that this gateway has carried out, by action: promote, demote.",
            ["action"],
            registry=r,
        )

    def _declare_process(self, r: CollectorRegistry) -> None:
        self.loop_failures = loop_failures(r, GATEWAY_LOOPS)
        self.disk_is_short = Gauge(
            "memserve_disk_is_short", "1 while changes are refused because a disk is nearly full.", registry=r
        )
        self.certificates = CertificateMetrics(r)
        self.certificate_expiry = self.certificates.expiry
        self.certificate_failures = self.certificates.failures

    def _declare_gen_ai(self, r: CollectorRegistry) -> None:
        self.gen_ai_ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "OpenTelemetry's gen_ai.server.time_to_first_token: as memserve_ttft_seconds.",
            GEN_AI_LABELS,
            buckets=GEN_AI_TTFT,
            registry=r,
        )
        self.gen_ai_tpot = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "OpenTelemetry's gen_ai.server.time_per_output_token: as memserve_tpot_seconds.",
            GEN_AI_LABELS,
            buckets=GEN_AI_TPOT,
            registry=r,
        )
        self.gen_ai_duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "OpenTelemetry's gen_ai.server.request.duration: a request to its last token. error_type is "
            "empty, or why there was no whole answer.",
            [*GEN_AI_LABELS, "error_type"],
            buckets=GEN_AI_DURATION,
            registry=r,
        )
        self.gen_ai_tokens = Histogram(
            "gen_ai_client_token_usage",
            "OpenTelemetry's gen_ai.client.token.usage: tokens of a request that was answered, by "
            "gen_ai_token_type: input or output.",
            [*GEN_AI_LABELS, "gen_ai_token_type"],
            buckets=GEN_AI_TOKENS,
            registry=r,
        )

    def _begin(self) -> None:
        begin(self.requests, ["Generate"], ["OK", "HTTP_200"])
        begin(self.slo_missed, ["ttft", "tpot"])
        begin(self.cached_tokens, ["device", "host", "redis", "cartridge"])
        begin(self.lookups, ["hit", "miss", "unavailable"])
        begin(self.refused, [*RefusalReason.known()])
        begin(self.tokens_refused, [*TokenFault])
        begin(self.recall, [*RecallOutcome.known()])
        begin(self.module_answers, [*KINDS])
        begin(self.ladder_moves, ["promote", "demote"])
        for rung in RUNGS:
            self.ladder_namespaces.labels(rung)
        begin(self.module_changes, MODULE_ACTIONS)

    def _series_of(self, operation: str) -> AnswerSeries:
        labels = (operation, PROVIDER, self._model)
        return AnswerSeries(
            self.gen_ai_ttft.labels(*labels),
            self.gen_ai_tpot.labels(*labels),
            self.gen_ai_duration.labels(*labels, ""),
            self.gen_ai_tokens.labels(*labels, "input"),
            self.gen_ai_tokens.labels(*labels, "output"),
        )

    def answered(self, operation: str, usage: Usage, duration_s: float) -> None:
        """operation: CHAT or COMPLETION."""
        series = self._series[operation]
        series.ttft.observe(usage.ttft_ms / 1000)
        if usage.tpot_ms is not None:
            series.tpot.observe(usage.tpot_ms / 1000)
        series.duration.observe(duration_s)
        series.input_tokens.observe(usage.prompt_tokens)
        series.output_tokens.observe(usage.output_tokens)

    def not_answered(self, operation: str, error: BaseException, duration_s: float) -> None:
        """operation: CHAT or COMPLETION."""
        kind = type(error).__name__ if isinstance(error, Exception) else "cancelled"
        self.gen_ai_duration.labels(operation, PROVIDER, self._model, kind).observe(duration_s)

    def embedded(self, embedder: str, tokens: int, duration_s: float) -> None:
        labels = (EMBEDDINGS, PROVIDER, embedder)
        self.gen_ai_duration.labels(*labels, "").observe(duration_s)
        self.gen_ai_tokens.labels(*labels, "input").observe(tokens)

    def not_kept(self, answers: int) -> None:
        """What so many answers used is not kept."""
        self.answers_not_kept.inc(answers)

    def loop_failed(self, loop: str) -> None:
        """loop: a name from the code."""
        self.loop_failures.labels(loop).inc()
