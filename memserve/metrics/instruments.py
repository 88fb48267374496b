"""Every Prometheus instrument of the gateway.

The workers' instruments come from vLLM and from the KV tier (`memserve_kv_tier_*`).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


def loop_failures(registry: CollectorRegistry) -> Counter:
    """The counter of a gateway or a worker that `memserve.processes.supervised` reports failures to."""
    return Counter(
        "memserve_loop_failures_total",
        "Steps of background loops that failed and are taken again, by loop.",
        ["loop"],
        registry=registry,
    )


class GatewayMetrics:
    """The gateway's instruments, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declare_answers(self.registry)
        self._declare_routing(self.registry)
        self._declare_texts(self.registry)
        self._declare_modules(self.registry)
        self._declare_process(self.registry)

    def _declare_answers(self, r: CollectorRegistry) -> None:
        self.requests = Counter(
            "memserve_requests_total",
            "Calls answered, by RPC and gRPC status, or HTTP_ and the status of the HTTP port.",
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
            "Calls that were refused now and may be sent again later, by reason.",
            ["reason"],
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
        self.recall = Histogram(
            "memserve_recall_seconds",
            "Vector recall of a request, by outcome.",
            ["outcome"],
            buckets=SECONDS,
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

    def _declare_modules(self, r: CollectorRegistry) -> None:
        self.module_answers = Counter(
            "memserve_module_answers_total",
            "Answers that began with a module, by kind.",
            ["kind"],
            registry=r,
        )
        self.module_changes = Counter(
            "memserve_module_changes_total",
            "Changes of modules: publish, promote, rollback, split, canary_rollback, drop, delete. "
            "By action.",
            ["action"],
            registry=r,
        )

    def _declare_process(self, r: CollectorRegistry) -> None:
        self.loop_failures = loop_failures(r)
        self.disk_is_short = Gauge(
            "memserve_disk_is_short", "1 while changes are refused because a disk is nearly full.", registry=r
        )

    def loop_failed(self, loop: str) -> None:
        """loop: a name from the code."""
        self.loop_failures.labels(loop).inc()
