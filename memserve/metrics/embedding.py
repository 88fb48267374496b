"""Prometheus instruments of the models that read memories."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BATCH_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
BATCH_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
RERANK_OUTCOMES = ("whole", "part", "skipped", "failed")


class EmbeddingMetrics:
    """Of one gateway."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """registry: None for one that nobody reads."""
        r = registry or CollectorRegistry()
        self.cache = Counter(
            "memserve_embedding_cache_total",
            "Texts to embed, by outcome: hit (the embedding was kept), miss.",
            ["outcome"],
            registry=r,
        )
        self.cache_bytes = Gauge(
            "memserve_embedding_cache_bytes", "Memory of the embeddings that are kept.", registry=r
        )
        self.batch_texts = Histogram(
            "memserve_embedding_batch_texts",
            "Texts that were embedded in one call of the model.",
            buckets=BATCH_TEXTS,
            registry=r,
        )
        self.seconds = Histogram(
            "memserve_embedding_seconds",
            "One call of the embedding model.",
            buckets=BATCH_SECONDS,
            registry=r,
        )
        self.changed = Gauge(
            "memserve_embedder_changed",
            "1 while the model behind embedder_url is another one than embedded the memories.",
            registry=r,
        )
        self.reindexed = Gauge(
            "memserve_reindexed_memories",
            "Memories that the pass of a reindexing has looked at; 0 when none is under way.",
            registry=r,
        )
        self.reranked = Counter(
            "memserve_rerank_total",
            "Searches that a reranker was to put in order, by outcome: whole, part (time for the best only), "
            "skipped (no time), failed.",
            ["outcome"],
            registry=r,
        )
        self.rerank_seconds = Histogram(
            "memserve_rerank_seconds", "Reranking of one search.", buckets=BATCH_SECONDS, registry=r
        )
        for outcome in ("hit", "miss"):
            self.cache.labels(outcome)
        for outcome in RERANK_OUTCOMES:
            self.reranked.labels(outcome)
