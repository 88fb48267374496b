"""The instruments of certificates, and the loop's step that follows their files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from memserve.tls.live import LiveTls


class CertificateMetrics:
    """Instruments of a gateway or a worker. There are no series without TLS."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.expiry = Gauge(
            "memserve_certificate_expiry_timestamp_seconds",
            "Unix time at which a certificate expires, or the first of its chain. public: shown to clients. "
            "internal: shown to workers, gateways, Redis, Milvus. public_authorities, internal_authorities: "
            "what the others' certificates must come from.",
            ["certificate"],
            registry=registry,
        )
        self.failures = Counter(
            "memserve_certificate_failures_total",
            "Changes of certificate files that were not taken over, because the files do not fit each other: "
            "the certificate before stays.",
            ["certificate"],
            registry=registry,
        )


class FollowedCertificates:
    """The certificates of a process, whose files are looked at every second."""

    def __init__(
        self,
        certificates: Iterable[LiveTls | None],
        metrics: CertificateMetrics,
        reconnect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """reconnect: called after a change, and again while it raises. For connections that do not see the
        change by themselves.
        """
        self._certificates = [live for live in certificates if live is not None]
        self._metrics = metrics
        self._reconnect, self._due = reconnect, False
        self._show()

    async def look(self) -> None:
        for live in self._certificates:
            self._due |= live.look()
        self._show()
        if self._due and self._reconnect is not None:
            await self._reconnect()
        self._due = False

    def _show(self) -> None:
        for live in self._certificates:
            expiry = self._metrics.expiry
            expiry.labels(live.name).set(live.current.expires_s)
            if live.current.authorities_expire_s is not None:
                expiry.labels(f"{live.name}_authorities").set(live.current.authorities_expire_s)
            failures = self._metrics.failures.labels(live.name)
            failures.inc(live.take_failures())
